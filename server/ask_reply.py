"""From the engine's events to the answer of a question in a form, whole or as a stream.

Owns the short shape of these replies; knows no prompt and no network. Invariant: a stream ends with
the event `done`, which holds the reply a request without a stream would have had, or with `error`.
"""

from collections.abc import AsyncIterator

from starlette.responses import Response

from janus_core.engine.events import Finished, TextDelta
from server.chat_envelope import chat_usage
from server.context import Context
from server.dispatch import RequestHandle
from server.schemas.ask import AnswerKey, AskReply, CaptionReply, TextEvent
from server.sse import PING, ended_by_error, event_frame


class AnswerReplies:
    """The reply to one HTTP request; `key` is the name of its text."""

    def __init__(self, context: Context, *, seed: int, key: AnswerKey) -> None:
        self._model = context.model_name
        self._seed = seed
        self._key = key
        self._texts: list[str] = []

    async def response(self, handle: RequestHandle) -> Response:
        """Wait for the end, then answer at once. Raises the error of the engine."""
        async for item in handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            _, event = item
            if isinstance(event, TextDelta):
                self._texts.append(event.text)
            elif isinstance(event, Finished):
                return Response(self._reply(event).to_json(), media_type="application/json")
        raise AssertionError("a request that has not finished has failed")

    def frames(self, handle: RequestHandle, *, ping_interval_s: float) -> AsyncIterator[bytes]:
        """An event `delta` for each piece of text, then `done`."""
        frames = self._frames(handle, ping_interval_s=ping_interval_s)
        return ended_by_error(frames, frame_of=lambda error: event_frame("error", error))

    async def _frames(
        self, handle: RequestHandle, *, ping_interval_s: float
    ) -> AsyncIterator[bytes]:
        async for item in handle.events(idle_s=ping_interval_s):
            if item is None:
                yield PING
                continue
            _, event = item
            if isinstance(event, TextDelta) and event.text:
                self._texts.append(event.text)
                yield event_frame("delta", TextEvent(text=event.text).to_json())
            elif isinstance(event, Finished):
                yield event_frame("done", self._reply(event).to_json())

    def _reply(self, event: Finished) -> AskReply | CaptionReply:
        assert event.reason != "cancelled", "the handle raises for a cancelled request"
        text = "".join(self._texts)
        shared = {
            "model": self._model,
            "finish_reason": event.reason,
            "seed": self._seed,
            "usage": chat_usage([event.usage], draws=False),
        }
        if self._key == "answer":
            return AskReply(answer=text, **shared)
        return CaptionReply(caption=text, **shared)
