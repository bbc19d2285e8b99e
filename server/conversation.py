"""A conversation, in whichever endpoint's words it came, to requests for the engine.

Owns what all endpoints that answer in text share: turns whose images are still encoded, and the
fields they came in. Knows no schema and no prompt format. Invariants: an error names the field as
the client wrote it, however deep it stands; and text waits for nobody's images.
"""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from janus_core.engine.request import TextRequest
from janus_core.errors import ParameterError, PromptError, RequestError
from janus_core.image_processor import PreparedImage
from janus_core.pipeline import Pipeline, TextOptions
from janus_core.prompt import Message, Role
from server.context import Context
from server.fetch import Fetcher
from server.media import bytes_of_url

ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # Results of tools are something the model is told, and it knows no third speaker.
    "tool": "user",
    "function": "user",
}

_CORE_PATH = re.compile(r"messages\.(\d+)\.content")
"""How the prompt builder names the content of a message."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An input image nobody has looked at: its URL, or its bytes. `param` is its field."""

    param: str
    url: str = ""
    data: bytes | None = None

    def read(self, *, max_bytes: int) -> bytes:
        """The encoded image. Raises ImageInputError."""
        if self.data is not None:
            return self.data
        return bytes_of_url(self.url, param=self.param, max_bytes=max_bytes)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker said and showed. `param` is the field it came in."""

    role: Role
    parts: tuple[str | ImageSource, ...]
    param: str

    @property
    def text(self) -> str:
        """Its text parts, parted by a space as in the prompt."""
        return " ".join(part for part in self.parts if isinstance(part, str))


def check_num_images(turns: Sequence[Turn], *, limit: int, param: str) -> None:
    """Refuse more than `limit` images, before any is decoded."""
    num_images = sum(isinstance(part, ImageSource) for turn in turns for part in turn.parts)
    if num_images > limit:
        raise ParameterError(
            f"The conversation has {num_images} images, but this server allows at most {limit}.",
            param=param,
        )


async def with_images(
    turns: Sequence[Turn], fetcher: Fetcher, *, max_total_bytes: int
) -> list[Turn]:
    """The turns with images behind http(s) addresses fetched, in all at most `max_total_bytes`.

    Raises ImageInputError, QueueFullError.
    """
    sources = [part for turn in turns for part in turn.parts if isinstance(part, ImageSource)]
    fetched = await fetcher.fetch_all(
        [(source.url, source.param) for source in sources], max_total_bytes=max_total_bytes
    )

    def filled(part: str | ImageSource) -> str | ImageSource:
        if isinstance(part, ImageSource) and part.url in fetched:
            return replace(part, data=fetched[part.url])
        return part

    return [replace(turn, parts=tuple(map(filled, turn.parts))) for turn in turns]


async def text_requests(
    context: Context, turns: Sequence[Turn], options: TextOptions, *, tenant: str, param: str
) -> list[TextRequest]:
    """`options.n` requests, decoded and tokenised off the event loop.

    `param` is the field of the whole conversation. Raises a RequestError that names a field,
    QueueFullError.
    """
    pipeline, turns = context.pipeline, _shown_by_users(turns)
    sources = [part for turn in turns for part in turn.parts if isinstance(part, ImageSource)]
    build = partial(_build, turns, options, pipeline=pipeline, param=param)
    if not sources:
        return await context.offload.admit(tenant, build, ())
    with context.decoding.places(tenant, len(sources)):
        # Each in a turn of its own: other tenants' images come in between.
        images = [await context.decoding.run(tenant, _prepared, each, pipeline) for each in sources]
        return await context.offload.run(tenant, build, images)


def last_user_text(turns: Sequence[Turn], *, param: str) -> tuple[str, str]:
    """What the user said last, and its field: the prompt of a picture. Raises PromptError."""
    for turn in reversed(turns):
        if turn.role == "user":
            if turn.text.strip():
                return turn.text, turn.param
            raise PromptError("The user's last message has no text to draw.", param=turn.param)
    raise PromptError("There is no user message that says what to draw.", param=param)


def _prepared(source: ImageSource, pipeline: Pipeline) -> PreparedImage:
    data = source.read(max_bytes=pipeline.limits.max_bytes)
    return pipeline.prepare_image(data, param=source.param)


def _build(
    turns: Sequence[Turn],
    options: TextOptions,
    images: Sequence[PreparedImage],
    *,
    pipeline: Pipeline,
    param: str,
) -> list[TextRequest]:
    """The requests of turns whose `images` have been prepared, in their order."""
    left = iter(images)
    messages = [
        Message(turn.role, tuple(p if isinstance(p, str) else next(left) for p in turn.parts))
        for turn in turns
    ]
    try:
        return pipeline.text_requests(messages, options, request_id=uuid.uuid4().hex)
    except RequestError as error:
        error.param = _client_path(error.param, turns, whole=param)
        raise


def _shown_by_users(turns: Sequence[Turn]) -> list[Turn]:
    """The images of the assistant's turns (pictures drawn before, as a rule) moved to the beginning
    of the user's next turn: the models were trained with images there only.

    Where no such turn follows they stay, for the prompt builder to refuse.
    """
    last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
    result: list[Turn] = []
    carried: tuple[str | ImageSource, ...] = ()
    for index, turn in enumerate(turns):
        parts = turn.parts
        if turn.role == "assistant" and index < last_user:
            carried += tuple(part for part in parts if isinstance(part, ImageSource))
            parts = tuple(part for part in parts if isinstance(part, str))
        elif turn.role == "user":
            parts, carried = carried + parts, ()
        result.append(replace(turn, parts=parts))
    return result


def _client_path(path: str | None, turns: Sequence[Turn], *, whole: str) -> str | None:
    """The prompt builder's name of a field in the client's words."""
    if path == "messages":
        return whole
    found = _CORE_PATH.fullmatch(path or "")
    return turns[int(found[1])].param if found else path
