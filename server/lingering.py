"""A transport whose end is its protocol's business.

Owns nothing: hands everything on to the transport it wraps, except for `close`. uvicorn closes a
connection as soon as an answer is complete; if the client still sends, the kernel then resets the
connection, and the answer can be lost with it. So the protocol decides how to close. Invariant:
after `close` it says that it is closing, whether or not the wrapped one does already.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class LingeringTransport(asyncio.Transport):
    """`on_close` is called at the first `close` instead of closing `inner`."""

    def __init__(self, inner: asyncio.Transport, on_close: Callable[[], None]) -> None:
        super().__init__()
        self.inner = inner
        self._on_close = on_close
        self._is_closing = False

    def close(self) -> None:
        """Let the protocol close."""
        if not self._is_closing:
            self._is_closing = True
            self._on_close()

    def is_closing(self) -> bool:
        """Whether nothing more will be sent."""
        return self._is_closing or self.inner.is_closing()

    def abort(self) -> None:
        """Drop the connection and whatever is unsent."""
        self._is_closing = True
        self.inner.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or buffer."""
        self.inner.write(data)

    def write_eof(self) -> None:
        """Send no more."""
        self.inner.write_eof()

    def can_write_eof(self) -> bool:
        """Whether the other side can be told that no more comes."""
        return self.inner.can_write_eof()

    def get_write_buffer_size(self) -> int:
        """Bytes the kernel has not taken yet."""
        return self.inner.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When the protocol is told to pause."""
        self.inner.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        """Receive nothing."""
        self.inner.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self.inner.resume_reading()

    def is_reading(self) -> bool:
        """Whether it receives."""
        return self.inner.is_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the wrapped transport."""
        return self.inner.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Who is told of events."""
        self.inner.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told of events."""
        return self.inner.get_protocol()
