"""The items of a response's output as they grow: a message, or a picture.

Owns the events of one item between its `response.output_item.added` and `.done`; knows neither the
response around it nor the network. Invariant: what the events add up to is the item at the end.
"""

import uuid
from collections.abc import Sequence

from janus_core.engine.events import Finished, Pixels, Preview, SampledToken, TextDelta
from janus_core.tokenizer import Tokenizer
from server.chat_envelope import content_logprobs
from server.context import Context
from server.dispatch import RequestEvent
from server.drawing import Drawing
from server.schemas.chat_replies import ContentLogprob
from server.schemas.responses_replies import ImageGenerationCall, OutputMessage, OutputText

Event = tuple[str, dict[str, object]]
"""The type of an event and its fields, without its number."""


class MessageItem:
    """An answer in text."""

    output_index = 0

    def __init__(self, tokenizer: Tokenizer, *, with_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._texts: list[str] = []
        self._logprobs: list[ContentLogprob] = []
        self._item = OutputMessage(
            type="message",
            id=f"msg_{uuid.uuid4().hex}",
            role="assistant",
            status="in_progress",
            content=[],
        )

    def snapshot(self) -> OutputMessage:
        """The item as it is now."""
        return self._item.model_copy()

    def begin(self) -> list[Event]:
        """The part that will hold the text."""
        return [("response.content_part.added", {**self._place(), "part": self._part()})]

    async def push(self, event: RequestEvent) -> list[Event]:
        """Take an event of the engine's; what a stream says about it."""
        if isinstance(event, Finished):
            self._item.status = "incomplete" if event.reason == "length" else "completed"
            return self._end()
        if not isinstance(event, TextDelta):
            return []
        logprobs = self._content_logprobs(event.tokens)
        if not (event.text or logprobs):
            return []
        self._texts.append(event.text)
        self._logprobs += logprobs
        fields = {**self._place(), "delta": event.text, "logprobs": logprobs}
        return [("response.output_text.delta", fields)]

    def _end(self) -> list[Event]:
        part = self._part()
        self._item.content = [part]
        done = {**self._place(), "text": part.text, "logprobs": part.logprobs}
        return [
            ("response.output_text.done", done),
            ("response.content_part.done", {**self._place(), "part": part}),
        ]

    def _part(self) -> OutputText:
        text = "".join(self._texts)
        return OutputText(
            type="output_text", text=text, annotations=[], logprobs=list(self._logprobs)
        )

    def _place(self) -> dict[str, object]:
        return {"item_id": self._item.id, "output_index": self.output_index, "content_index": 0}

    def _content_logprobs(self, tokens: Sequence[SampledToken]) -> list[ContentLogprob]:
        return content_logprobs(tokens, self._tokenizer) if self._with_logprobs else []


class PictureItem:
    """An answer that is a picture."""

    output_index = 0

    def __init__(self, context: Context, drawing: Drawing) -> None:
        self._context = context
        self._drawing = drawing
        self._item = ImageGenerationCall(
            type="image_generation_call",
            id=f"ig_{uuid.uuid4().hex}",
            status="in_progress",
            result=None,
            action="generate",
            background="opaque",
            output_format=drawing.style.format,
            quality=drawing.body.shown_quality,
            size=drawing.style.size,
            revised_prompt=None,
            seed=drawing.requests[0].sampling.seed,
        )

    def snapshot(self) -> ImageGenerationCall:
        """The item as it is now."""
        return self._item.model_copy()

    def begin(self) -> list[Event]:
        """The model has the call, and draws."""
        self._item.status = "generating"
        states = ("in_progress", "generating")
        return [(f"response.image_generation_call.{state}", self._place()) for state in states]

    async def push(self, event: RequestEvent) -> list[Event]:
        """Take an event of the engine's; what a stream says about it."""
        if isinstance(event, Preview):
            fields = {
                **self._place(),
                "partial_image_index": event.index,
                "partial_image_b64": await self._encode(event.pixels),
                "size": self._item.size,
                "quality": self._item.quality,
                "background": self._item.background,
                "output_format": self._item.output_format,
            }
            return [("response.image_generation_call.partial_image", fields)]
        if isinstance(event, Finished):
            assert event.pixels is not None, "a completed picture has pixels"
            self._item.result = await self._encode(event.pixels)
            self._item.status = "completed"
            return [("response.image_generation_call.completed", self._place())]
        return []

    def _place(self) -> dict[str, object]:
        return {"item_id": self._item.id, "output_index": self.output_index}

    async def _encode(self, pixels: Pixels) -> str:
        return await self._drawing.encode(self._context, index=0, pixels=pixels)


ResponseItem = MessageItem | PictureItem
