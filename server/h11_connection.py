"""h11's parser, with the limits it leaves to its user.

Owns what a request's head and the framing of its body may be: bytes, fields, chunks, one length.
Knows no socket and no time. Invariants: what exceeds a limit is a RemoteProtocolError with the
status to answer as its hint; no turn of the event loop parses more than a few hundred chunks; a
response to a request whose body has not come whole closes the connection.
"""

import re
from dataclasses import dataclass

import h11

EVENTS_PER_TURN = 256
"""Chunks parsed before the event loop goes on to other connections: some milliseconds. What one
read brings can be 40,000 of them."""

_CLOSE = (b"connection", b"close")

_FOLD_OR_END = re.compile(rb"\n(?:[ \t]|\r?\n)")
"""A line of a head that begins with a space, or the end of the head, whichever is first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Of one request: bytes and fields of its head, chunks of its body."""

    max_header_bytes: int = 32 * 2**10
    max_headers: int = 100
    max_chunks: int = 2**16


class StrictConnection(h11.Connection):
    """The server's side of a connection. Call `begin_turn` before a loop over `next_event`."""

    def __init__(self, limits: HeadLimits) -> None:
        super().__init__(h11.SERVER, limits.max_header_bytes)
        self._limits = limits
        self._num_chunks = 0
        self._num_left = EVENTS_PER_TURN

    def begin_turn(self) -> None:
        """Allow for as many events as one turn of the event loop may take."""
        self._num_left = EVENTS_PER_TURN

    @property
    def is_behind(self) -> bool:
        """Whether the turn ended before the events did."""
        return self._num_left == 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's; NEED_DATA as well when the turn is over."""
        if self._num_left == 0:
            return h11.NEED_DATA
        # A head is taken from what was received in one go, and shows no more how it was written.
        received = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._check(event, received)
            self._num_chunks = 0
        elif isinstance(event, h11.Data):
            self._num_left -= 1
            self._num_chunks += event.chunk_start
            if self._num_chunks > self._limits.max_chunks:
                raise h11.RemoteProtocolError("too many chunks", error_status_hint=413)
        return event

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]  # it has overloads
        """As h11's, but what is left of a body that nobody waited for is never read."""
        if (
            isinstance(event, h11.Response)
            and self.their_state is h11.SEND_BODY
            and _CLOSE not in event.headers
        ):
            event = h11.Response(
                status_code=event.status_code,
                headers=[*event.headers.raw_items(), _CLOSE],
                http_version=event.http_version,
                reason=event.reason,
            )
        return super().send(event)

    def _check(self, request: h11.Request, received: bytes) -> None:
        """h11 bounds a head it waits for, not one that comes at once; and it joins a field over
        several lines, which others read as several fields (RFC 9112, 5.2)."""
        first = _FOLD_OR_END.search(received)
        if first is None or first[0][-1:] != b"\n":
            raise h11.RemoteProtocolError("a field over several lines", error_status_hint=400)
        num_bytes = len(request.method) + len(request.target) + 12  # two spaces, version, CRLF
        num_bytes += sum(len(name) + len(value) + 4 for name, value in request.headers)
        if num_bytes > self._limits.max_header_bytes:
            raise h11.RemoteProtocolError("head too large", error_status_hint=431)
        if len(request.headers) > self._limits.max_headers:
            raise h11.RemoteProtocolError("too many header fields", error_status_hint=431)
        if request.http_version not in (b"1.0", b"1.1"):
            # h11 takes any digits: the preface of HTTP/2 would be a request, and a half one behind.
            raise h11.RemoteProtocolError("unknown version", error_status_hint=400)
        names = {name for name, _ in request.headers}
        # Two parties that disagree about where a body ends take its rest for a request (RFC 9112,
        # 6.1 and 11.2).
        if b"transfer-encoding" in names and (
            b"content-length" in names or request.http_version < b"1.1"
        ):
            raise h11.RemoteProtocolError("two ways to tell the length", error_status_hint=400)
