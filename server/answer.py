"""One question about one image, answered in text as a whole.

Owns the way from an image to a sentence for endpoints that are no conversation; knows no shapes.
Invariant: the engine is left with nothing to do for whoever stops waiting.
"""

from contextlib import closing

from janus_core.engine.events import TextDelta
from janus_core.pipeline import TextOptions
from server.context import Context
from server.conversation import ImageSource, Turn, text_requests
from server.record import RequestRecord

DESCRIBE = "Describe the image."
"""The question whose answer is a caption."""


async def answer_about(
    context: Context,
    image: ImageSource,
    question: str,
    *,
    options: TextOptions,
    record: RequestRecord,
) -> str:
    """The answer. Raises the errors of a chat completion."""
    turn = Turn("user", (image, question), "question")
    requests = await text_requests(
        context, [turn], options, tenant=record.principal.tenant, param="question"
    )
    record.task, record.num_choices = record.task or "chat", 1
    pieces: list[str] = []
    with closing(context.dispatcher.submit(requests, record=record)) as handle:
        async for item in handle.events():
            if item is not None and isinstance(item[1], TextDelta):
                pieces.append(item[1].text)
    return "".join(pieces).strip()


async def caption_of(context: Context, image: ImageSource, *, record: RequestRecord) -> str:
    """What the model sees in the image, in its own words."""
    options = TextOptions(max_tokens=MAX_CAPTION_TOKENS)
    record.task = "caption"
    caption = await answer_about(context, image, DESCRIBE, options=options, record=record)
    record.take_back()
    return caption


MAX_CAPTION_TOKENS = 256
"""Where a description that does not end is cut off."""
