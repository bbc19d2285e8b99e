"""From the engine's events to a chat completion whose answers are pictures.

Owns `message.images` and `delta.images`; knows no codes. Invariant: as for answers in text, a
stream ends with `[DONE]` or with an error object, and every choice gets exactly one finish reason.
"""

from collections.abc import AsyncIterator

from starlette.responses import Response

from janus_core.engine.events import Finished
from server.chat_envelope import ChatEnvelope
from server.context import Context
from server.dispatch import RequestHandle
from server.drawing import Drawing
from server.schemas.chat import ChatRequest
from server.schemas.chat_replies import AnswerMessage, AnswerPicture, Choice, Delta, PictureUrl
from server.sse import DONE, PING, data_frame, ended_by_error


class ChatPicturesReply:
    """The pictures of one HTTP request, one per choice."""

    def __init__(self, context: Context, drawing: Drawing, *, body: ChatRequest) -> None:
        self._context = context
        self._drawing = drawing
        self._envelope = ChatEnvelope(context, body, draws=True)

    async def response(self, handle: RequestHandle) -> Response:
        """Wait for all pictures, then answer at once. Raises the error of one that failed."""
        choices: dict[int, Choice] = {}
        async for item in handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            index, event = item
            if isinstance(event, Finished):
                images = [await self._picture(index, event)]
                message = AnswerMessage(role="assistant", content="", refusal=None, images=images)
                choices[index] = Choice(
                    index=index,
                    message=message,
                    logprobs=None,
                    finish_reason=self._envelope.finish(event),
                )
        completion = self._envelope.completion(
            [choices[index] for index in sorted(choices)],
            seed=self._drawing.requests[0].sampling.seed,
        )
        return Response(completion.to_json(), media_type="application/json")

    def frames(self, handle: RequestHandle, *, ping_interval_s: float) -> AsyncIterator[bytes]:
        """The chunks of a stream: each picture in one, because clients keep all they are given."""
        chunks = self._frames(handle, ping_interval_s=ping_interval_s)
        return ended_by_error(chunks, frame_of=data_frame)

    async def _frames(
        self, handle: RequestHandle, *, ping_interval_s: float
    ) -> AsyncIterator[bytes]:
        for index in range(len(self._drawing.requests)):
            yield self._frame(index, Delta(role="assistant", content=""))
        async for item in handle.events(idle_s=ping_interval_s):
            if item is None:
                yield PING
                continue
            index, event = item
            if isinstance(event, Finished):
                yield self._frame(index, Delta(images=[await self._picture(index, event)]))
                reason = self._envelope.finish(event)
                yield data_frame(self._envelope.chunk(index, Delta(), reason=reason).to_json())
        for frame in self._envelope.last_frames():
            yield frame
        yield DONE

    def _frame(self, index: int, delta: Delta) -> bytes:
        return data_frame(self._envelope.chunk(index, delta).to_json())

    async def _picture(self, index: int, event: Finished) -> AnswerPicture:
        assert event.pixels is not None, "a completed picture has pixels"
        file = await self._drawing.encode(self._context, index=index, pixels=event.pixels)
        return AnswerPicture(
            type="image_url",
            image_url=PictureUrl(url=f"data:{self._drawing.style.media_type};base64,{file}"),
            index=0,
            seed=self._drawing.requests[index].sampling.seed,
        )
