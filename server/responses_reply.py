"""From the engine's events to a response, whole or as a stream of its states.

Owns the order of events; knows no prompt and no network. Invariants: `sequence_number` counts from
0 without gaps, and a stream ends with `response.completed`, `response.incomplete` or
`response.failed`; the first two hold the response that a reply without a stream would have been.
"""

import logging
from collections.abc import AsyncIterator

from pydantic_core import to_json
from starlette.responses import Response

from janus_core.engine.events import Finished
from janus_core.errors import JanusError
from server.dispatch import RequestHandle
from server.errors import INTERNAL, ErrorReply, reply_for
from server.responses_items import Event, ResponseItem
from server.responses_object import ResponseStates
from server.sse import PING, event_frame

logger = logging.getLogger(__name__)


class ResponseReply:
    """The response to one HTTP request."""

    def __init__(self, states: ResponseStates, item: ResponseItem) -> None:
        self._states = states
        self._item = item
        self._num_events = 0

    async def response(self, handle: RequestHandle) -> Response:
        """Wait for the end, then answer at once. Raises the error of the engine."""
        async for pair in handle.events():
            assert pair is not None, "only an idle limit makes silence visible"
            _, event = pair
            await self._item.push(event)
            if isinstance(event, Finished):
                ended = self._states.ended(self._item.snapshot(), event)
                return Response(ended.to_json(), media_type="application/json")
        raise AssertionError("a request that has not finished has failed")

    async def frames(
        self, handle: RequestHandle, *, ping_interval_s: float
    ) -> AsyncIterator[bytes]:
        """The events of a stream. OpenAI's ends without `[DONE]`.

        The status is out by then, so a failure becomes two events: the error, and the response that
        failed.
        """
        try:
            async for frame in self._frames(handle, ping_interval_s=ping_interval_s):
                yield frame
            return
        except JanusError as error:
            reply = reply_for(error)
        except Exception:
            logger.exception("Unexpected failure in a stream")
            reply = INTERNAL
        for event in self._failure(reply):
            yield self._frame(event)

    async def _frames(
        self, handle: RequestHandle, *, ping_interval_s: float
    ) -> AsyncIterator[bytes]:
        item = self._item
        begun: dict[str, object] = {"response": self._states.begun()}
        place = {"output_index": item.output_index}
        first: list[Event] = [
            ("response.created", begun),
            ("response.in_progress", begun),
            ("response.output_item.added", {**place, "item": item.snapshot()}),
        ]
        for event in [*first, *item.begin()]:
            yield self._frame(event)
        async for pair in handle.events(idle_s=ping_interval_s):
            if pair is None:
                yield PING
                continue
            _, engine_event = pair
            for event in await item.push(engine_event):
                yield self._frame(event)
            if isinstance(engine_event, Finished):
                yield self._frame(("response.output_item.done", {**place, "item": item.snapshot()}))
                ended = self._states.ended(item.snapshot(), engine_event)
                yield self._frame((f"response.{ended.status}", {"response": ended}))

    def _failure(self, reply: ErrorReply) -> list[Event]:
        error: dict[str, object] = {
            "code": reply.code,
            "message": reply.message,
            "param": reply.param,
        }
        return [
            ("error", error),
            ("response.failed", {"response": self._states.failed(reply.message)}),
        ]

    def _frame(self, event: Event) -> bytes:
        name, fields = event
        payload = {"type": name, **fields, "sequence_number": self._num_events}
        self._num_events += 1
        return event_frame(name, to_json(payload).decode())
