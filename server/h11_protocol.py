"""uvicorn's HTTP/1.1 protocol with deadlines, and OpenAI's error object for what is no request.

Owns a connection's time and what never reaches a route: heads that are malformed, too large or too
slow, connections that say nothing, clients that do not read. Knows no route; the time of a body is
`BodyLimit`'s, where it can be answered like any other refusal. Invariant: every connection has, at
every moment, either work of ours going on or a deadline of its own.
"""

import asyncio
import fcntl
import functools
import struct
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from server.access_line import request_id, write_early_line
from server.errors import INVALID_REQUEST, ErrorReply
from server.h11_connection import HeadLimits, StrictConnection
from server.lingering import LingeringTransport
from server.listener import TOO_MANY_CODE, too_many_connections
from server.record import id_in
from server.reserve import Reserve

LINGER_S = 2.0
"""How long a client may go on sending after its answer, so that it gets to reading it."""

INVALID_HTTP = ErrorReply(
    400, INVALID_REQUEST, "This is not a valid HTTP request.", code="invalid_http"
)
HEAD_TOO_LARGE = ErrorReply(
    431, INVALID_REQUEST, "The request's header is too large.", code="header_too_large"
)
TOO_MANY_CHUNKS = ErrorReply(
    413, INVALID_REQUEST, "The request's body has too many chunks.", code="request_too_large"
)
TOO_SLOW = ErrorReply(
    408, INVALID_REQUEST, "The request's header took too long.", code="request_timeout"
)
_BY_HINT = {431: HEAD_TOO_LARGE, 413: TOO_MANY_CHUNKS}


def _ignore(_: str) -> None:
    """Nobody counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """`header_timeout_s` runs from the connection, or from the first byte of a later request, to
    the end of the head. A client that has unread bytes of ours must read `min_bytes_per_s` over
    `write_timeout_s`. `on_refusal` is told why a connection ended: a code, or `slow_reader`.
    `reserve` has the connections that are more than there may be."""

    head: HeadLimits = field(default_factory=HeadLimits)
    header_timeout_s: float = 10.0
    write_timeout_s: float = 30.0
    min_bytes_per_s: int = 1024
    on_refusal: Callable[[str], None] = _ignore
    reserve: Reserve | None = None


class GuardedProtocol(H11Protocol):
    """One connection within `limits`."""

    conn: StrictConnection
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before a request
    transport: LingeringTransport

    def __init__(self, *, limits: ConnectionLimits, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self._limits = limits
        self.conn = StrictConnection(limits.head)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._has_said_anything = False
        self._is_deaf = False
        """Whatever comes is dropped: the connection is about to end."""

    @classmethod
    def within(cls, limits: ConnectionLimits) -> type[asyncio.Protocol]:
        """What uvicorn takes for a protocol's class: it is only ever called."""
        return functools.partial(cls, limits=limits)  # type: ignore[return-value]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(LingeringTransport(transport, self._end))
        self._await_head()
        reserve, connection = self._limits.reserve, transport.get_extra_info("socket")
        if reserve is not None and reserve.has(connection.fileno()):
            self.app = reserve.app(self.app)
            reserve.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, without anything left to wait for."""
        self._is_deaf = True
        if self._limits.reserve is not None:
            self._limits.reserve.leave(self)
        for timer in (self._head_timer, self._write_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self.transport.abort()  # a no-op by now, after which uvicorn's `close` is one, too
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's."""
        self._has_said_anything = True
        if not self._is_deaf:
            super().data_received(data)

    def handle_events(self) -> None:
        """As uvicorn's, in turns; keeps the deadline of the head."""
        if self._is_deaf:
            return
        self.conn.begin_turn()
        super().handle_events()
        if self._is_deaf:
            return
        if self.conn.is_behind:
            self.flow.pause_reading()
            self.loop.call_soon(self._go_on)
        if self.conn.their_state is not h11.IDLE:
            self._cancel_head_timer()
        elif self._head_timer is None and self.conn.trailing_data[0]:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but with the status the parser hints at, and JSON; `msg` is not sent."""
        del msg
        error = sys.exc_info()[1]
        hint = getattr(error, "error_status_hint", 0)
        self._refuse(_BY_HINT.get(hint, INVALID_HTTP))

    def pause_writing(self) -> None:
        """The client does not keep up: from now on it is watched."""
        super().pause_writing()
        self._watch_reader(self._num_unread())

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def give_way(self) -> None:
        """End at once, with the answer to a connection too many if there was none yet; the kernel
        takes so few bytes without delay."""
        if not self._is_deaf and self.conn.our_state is h11.IDLE:
            self._limits.on_refusal(TOO_MANY_CODE)
            self.transport.write(too_many_connections())
        self._is_deaf = True
        self.transport.abort()

    def _go_on(self) -> None:
        """The next turn of a connection that had more events than one may take."""
        if not self._is_deaf:
            self.flow.resume_reading()
            self.handle_events()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.header_timeout_s, self._miss_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _miss_head(self) -> None:
        """The head has not come in time: said to whoever began one."""
        self._head_timer = None
        if self._has_said_anything:
            self._refuse(TOO_SLOW)
        else:
            self._limits.on_refusal("silent")
            self._is_deaf = True
            self.transport.close()

    def _refuse(self, reply: ErrorReply) -> None:
        """Answer what never becomes a request, or ends within its body; then close."""
        self._limits.on_refusal(reply.code or "")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(reply)
        self._is_deaf = True
        if self.cycle is not None and not self.cycle.response_complete:
            # Whoever waits for the rest of the body is told that its client has left.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _send(self, reply: ErrorReply) -> None:
        id = self._id()
        write_early_line(id, status=reply.status, code=reply.code or "")
        body = reply.json().encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            ("x-request-id", id),
        ]
        reason = HTTPStatus(reply.status).phrase.encode()
        head = h11.Response(status_code=reply.status, headers=headers, reason=reason)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _id(self) -> str:
        """Of the request whose body this cuts off, if the app knows of it, else a new one."""
        known = None
        if self.cycle is not None and not self.cycle.response_complete:
            known = id_in(self.cycle.scope)
        return known or request_id()

    def _end(self) -> None:
        """Close once everything is sent and the client has stopped sending, or time is up."""
        inner = self.transport.inner
        self._cancel_head_timer()
        may_send = self._is_deaf or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        self._is_deaf = True
        if may_send and self._has_said_anything and not inner.is_closing():
            inner.write_eof()
            self.flow.resume_reading()
            self._close_timer = self.loop.call_later(LINGER_S, inner.abort)
            return
        inner.close()
        if inner.get_write_buffer_size() and self._write_timer is None:
            self._watch_reader(self._num_unread())

    def _watch_reader(self, num_unread: int) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._write_timer = self.loop.call_later(
            self._limits.write_timeout_s, self._check_reader, num_unread
        )

    def _check_reader(self, num_unread: int) -> None:
        """Drop a client that has read next to nothing since `num_unread` bytes were waiting."""
        self._write_timer = None
        now_unread = self._num_unread()
        wanted = self._limits.min_bytes_per_s * self._limits.write_timeout_s
        if num_unread - now_unread >= wanted:
            self._watch_reader(now_unread)
        elif now_unread:
            self._limits.on_refusal("slow_reader")
            self.transport.abort()

    def _num_unread(self) -> int:
        """Bytes of ours that have not reached the client: here, and with the kernel."""
        num_unread = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        if sys.platform == "linux" and connection is not None and connection.fileno() >= 0:
            queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ there
            num_unread += struct.unpack("i", queued)[0]
        return num_unread
