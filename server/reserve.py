"""Connections beyond the limit: a few are let in, so that probes are answered by a server that is
merely full; whoever wants anything else gets the 503 that the listener gives.

Owns the order in which such connections came, and what they may ask. Knows no socket. Invariants:
each of them has one answer and ends with it, and when others come, the oldest gives way: to hold
connections open keeps no probe out.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access_line import request_id, write_early_line
from server.listener import (
    NUM_SPARE,
    TOO_MANY_BODY,
    TOO_MANY_CODE,
    TOO_MANY_HEADERS,
    Listener,
)

NUM_KEPT = NUM_SPARE // 2
"""As many again may come in one turn of the event loop. Where hundreds come in a second, a probe
has tens of milliseconds to say what it wants."""


class Guest(Protocol):
    """A connection, as far as it can be told to go."""

    def give_way(self) -> None:
        """End now."""


class Reserve:
    """The connections of a server that came when it was full. They may ask for `paths`;
    `on_refusal` is told of each that asks for more. `listeners` know which ones they are."""

    def __init__(self, *, paths: Collection[str], on_refusal: Callable[[str], None]) -> None:
        self.listeners: Sequence[Listener] = ()
        self._paths = paths
        self._on_refusal = on_refusal
        self._guests: dict[Guest, None] = {}

    def has(self, descriptor: int) -> bool:
        """Whether the connection with this descriptor was one too many."""
        return any(descriptor in listener.spare for listener in self.listeners)

    def enter(self, guest: Guest) -> None:
        """Let one in, for whom the oldest may have to go."""
        self._guests[guest] = None
        if len(self._guests) > NUM_KEPT:
            oldest = next(iter(self._guests))
            self.leave(oldest)
            oldest.give_way()

    def leave(self, guest: Guest) -> None:
        """It has ended, if it had entered."""
        self._guests.pop(guest, None)

    def app(self, app: ASGIApp) -> ASGIApp:
        """What such a connection talks to: `app`, once, where it answers probes."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_last(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)["connection"] = "close"
                await send(message)

            if scope["path"] in self._paths:
                await app(scope, receive, send_last)
                return
            self._on_refusal(TOO_MANY_CODE)
            id = request_id(Headers(scope=scope).get("x-request-id", ""))
            headers = TOO_MANY_HEADERS | {"x-request-id": id}
            refusal = Response(TOO_MANY_BODY, 503, headers, "application/json")
            await refusal(scope, receive, send_last)
            write_early_line(id, status=503, code=TOO_MANY_CODE)

        return answer
