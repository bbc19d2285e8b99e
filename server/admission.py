"""What is decided about a request before its body is read: its deadline, and whether there is room.

Owns the deadline's header, the timer until the engine has the request, and the list of routes that
lead to the engine; knows no body. Under overload most requests end here, so refusing costs neither
a parser nor a thread. Invariant: what is refused here would have been refused later, in the same
words, but for a chat that wants a picture while only text has no room.
"""

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_core.errors import CapacityError, JanusError
from server.access import ADMIN_PREFIX
from server.context import Context
from server.deadline import missed
from server.errors import INVALID_REQUEST, ErrorReply, reply_for
from server.record import record_in

TIMEOUT_HEADER = "x-request-timeout-s"

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

DRAWING = frozenset(
    {
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
        "/generate_images/",
    }
)
"""Routes whose every request waits for a picture."""

ASKING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/ask",
        "/v1/caption",
        "/sdapi/v1/interrogate",
        "/understand_image_and_question/",
    }
)
"""Routes whose requests wait for text; some may ask for a picture, which only their body tells, and
count as text until it is read."""


class Admission:
    """The layer in front of the routes; `timeout_s` is the longest deadline."""

    def __init__(self, app: ASGIApp, *, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._set_deadline(scope) or self._no_room(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
        elif scope["path"].startswith(ADMIN_PREFIX):
            # To fall asleep has a time of its own, and must not be left half done.
            await self._app(scope, receive, send)
        else:
            await self._in_time(scope, receive, send)

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse if neither the engine has the request by its deadline nor an answer
        has begun: its body, images to fetch or decode, or places in a queue may take too long."""
        record, has_begun = record_in(scope), False
        record.preparing = timer = asyncio.timeout_at(record.deadline_s)

        async def send_begun(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            record.hand_over()
            await send(message)

        try:
            async with timer:
                await self._app(scope, receive, send_begun)
        except TimeoutError:
            if has_begun or not timer.expired():
                raise
            await self._missed(scope).response()(scope, receive, send)
        finally:
            record.preparing = None

    def _missed(self, scope: Scope) -> ErrorReply:
        """The reply to a request whose deadline has passed."""
        context: Context = scope["app"].state.context
        record = record_in(scope)
        error = missed(
            record,
            context.metrics,
            # Some answers are computed in two parts.
            has_begun=record.output_tokens > 0,
            retry_after_s=context.dispatcher.service.retry_after_s,
        )
        return _refusal(error, context)

    def _set_deadline(self, scope: Scope) -> ErrorReply | None:
        """Note the deadline; a reply if the client's is none."""
        given = Headers(scope=scope).get(TIMEOUT_HEADER)
        if given is not None and not (_SECONDS.fullmatch(given) and float(given) > 0.0):
            return ErrorReply(
                400,
                INVALID_REQUEST,
                f"{TIMEOUT_HEADER} must be a positive number of seconds.",
                param=TIMEOUT_HEADER,
                code="invalid_value",
            )
        timeout_s = self._timeout_s if given is None else min(float(given), self._timeout_s)
        record = record_in(scope)
        record.deadline_s = record.received_s + timeout_s
        return None

    def _no_room(self, scope: Scope) -> ErrorReply | None:
        """A reply if whatever comes would be refused."""
        path = scope["path"]
        if scope["method"] != "POST" or not (path in DRAWING or path in ASKING):
            return None
        context: Context = scope["app"].state.context
        try:
            context.dispatcher.check_room(record_in(scope), draws=path in DRAWING)
        except JanusError as error:
            return _refusal(error, context)
        return None


def _refusal(error: JanusError, context: Context) -> ErrorReply:
    """The reply; what only has to come back later is counted."""
    reply = reply_for(error)
    if isinstance(error, CapacityError):
        context.metrics.rejected(reply.code or reply.type)
    return reply
