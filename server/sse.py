"""Server-sent events: the frames of a stream, and the response that sends them.

Owns the bytes on the wire and the end of a stream's life; knows nothing of chunks or pictures.
Invariant: whatever ends the response (its last frame, an error, a client that left, even one that
left before the first byte), the handle behind it is closed exactly then.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from janus_core.errors import JanusError
from server.errors import INTERNAL, reply_for

logger = logging.getLogger(__name__)

PING = b": ping\n\n"
"""A comment: keeps proxies from closing a silent stream; clients ignore it."""

DONE = b"data: [DONE]\n\n"
"""The last frame of a chat completion that ended well."""

_HEADERS = {
    "cache-control": "no-cache",
    # nginx would otherwise buffer the whole stream.
    "x-accel-buffering": "no",
}


class Closable(Protocol):
    """Something to let go of when the stream is over."""

    def close(self) -> None:
        """Release it; called once or more often."""


def data_frame(payload: str) -> bytes:
    """An unnamed event; `payload` is JSON and so has no line break."""
    return f"data: {payload}\n\n".encode()


def event_frame(name: str, payload: str) -> bytes:
    """A named event."""
    return f"event: {name}\ndata: {payload}\n\n".encode()


async def ended_by_error(
    frames: AsyncIterator[bytes], *, frame_of: Callable[[str], bytes]
) -> AsyncIterator[bytes]:
    """`frames`, and if they break off, one more made of the error object's JSON by `frame_of`.

    The status is out by then: without this frame a client could not tell a failure from an end.
    """
    try:
        async for frame in frames:
            yield frame
    except JanusError as error:
        yield frame_of(reply_for(error).json())
    except Exception:
        logger.exception("Unexpected failure in a stream")
        yield frame_of(INTERNAL.json())


class EventStream(StreamingResponse):
    """Sends `frames` as they come. Closes `handle` at the end, however it ends.

    A generator that was never started does not run its `finally`, so a client that leaves between
    the admission of its request and the first frame is noticed only here.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        handle: Closable,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            frames, media_type="text/event-stream", headers={**_HEADERS, **(headers or {})}
        )
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._handle.close()
