"""Pure ASGI middleware: request id, body limit, access line, HTTP metrics, the last catch.

Owns what is true for every route; knows no route. Pure ASGI, because Starlette's
`BaseHTTPMiddleware` hides a client's departure from the handlers. Invariant: every HTTP request
gets exactly one answer with an `x-request-id`, one access line and one observation in the metrics.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_core.errors import CapacityError
from server.access import METRICS_PATH, PROBES
from server.access_line import request_id, write_line
from server.errors import INTERNAL
from server.logs import printable
from server.record import RequestRecord, attach_record
from server.tracing import trace_id

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's status for a client that left before its answer; logged and counted, never sent."""

_QUIET = PROBES | {METRICS_PATH, "/load"}
"""Asked every few seconds by machines; logged at debug level only."""

UNMATCHED = "unmatched"
"""The route of a path that has none."""

HttpObserver = Callable[[str, str, int, float], None]
"""Called with method, route, status and seconds once an answer is complete."""


@dataclass(slots=True)
class _Answer:
    """What has been sent so far; status 0 is nothing."""

    status: int = 0
    complete: bool = False


class RequestContext:
    """The outermost layer: gives each request its id and record, and writes its line."""

    def __init__(
        self, app: ASGIApp, *, observe: HttpObserver, templates: Collection[str] = ()
    ) -> None:
        """`templates` are routes that are refused before they are looked up, when they are."""
        self._app = app
        self._observe = observe
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(request_id(Headers(scope=scope).get("x-request-id", "")))
        attach_record(scope, record)  # type: ignore[arg-type]  # a Scope is a MutableMapping
        started = time.perf_counter()
        answer = _Answer()

        async def send_tracked(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.request_id
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - started)))
            elif message["type"] == "http.response.body":
                answer.complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_tracked)
        except Exception:
            logger.exception("Unexpected failure in request %s", record.request_id)
            if answer.status:
                raise  # half an answer is out: only a broken connection can still say so
            await INTERNAL.response()(scope, receive, send_tracked)
        finally:
            self._report(scope, record, answer=answer, duration_s=time.perf_counter() - started)

    def _report(
        self, scope: Scope, record: RequestRecord, *, answer: _Answer, duration_s: float
    ) -> None:
        """One access line and one observation. An answer cut short counts as a client that left."""
        status = answer.status if answer.complete else CLIENT_GONE
        route = route_of(scope, self._templates)
        self._observe(scope["method"], route, status, duration_s)
        fields: dict[str, object] = {
            "request_id": record.request_id,
            **trace_id(),
            "method": printable(scope["method"], limit=16),
            # The address of a kept picture is the only key to it, and the log is no place for keys.
            "path": printable(scope["path"] if route == UNMATCHED else route),
            "status": status,
            "total_s": round(duration_s, 4),
            **record.fields(),
        }
        level = logging.DEBUG if route in _QUIET and status == HTTPStatus.OK else logging.INFO
        write_line(fields, level=level)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """Of one body: `max_bytes`, and a time of `timeout_s`, of which every `min_bytes_per_s`
    received give a second back, but never more than it was. Of all bodies together, whose requests
    are being answered: `max_held_bytes`."""

    max_bytes: int
    max_held_bytes: int
    timeout_s: float
    min_bytes_per_s: int


class BodyLimit:
    """Receives the body, whole, as one message, when the app first asks for it.

    Raises HTTPException, into whoever asks: 413 for a body over the limit, by its declared length
    before any of it is read, or once it exceeds it; 408 for one that takes too long. Raises
    CapacityError when the bodies of all requests together are too much. As one message a body in a
    million pieces takes no more memory than in one.
    """

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits
        self._num_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_body, num_bytes = False, 0

        async def receive_whole() -> Message:
            nonlocal has_body, num_bytes
            if has_body:
                return await receive()
            if declared > self._limits.max_bytes:
                raise self._too_large()
            pieces: list[bytes | bytearray] = []
            loop, limits, more_body = asyncio.get_running_loop(), self._limits, True
            deadline_s = loop.time() + limits.timeout_s
            while more_body:
                async with self._by(deadline_s):
                    message = await receive()
                if message["type"] != "http.request":
                    return message
                piece, more_body = message.get("body", b""), message.get("more_body", False)
                num_bytes += len(piece)
                # Never more time than at first: whoever sends much at once could else hold it for
                # hours, and keep everybody's bodies out.
                gained_s = len(piece) / limits.min_bytes_per_s
                deadline_s = min(deadline_s + gained_s, loop.time() + limits.timeout_s)
                self._num_held += len(piece)
                self._check(num_bytes)
                if not pieces and more_body:
                    pieces.append(bytearray())
                _append(pieces, piece)
            has_body = True
            return {"type": "http.request", "body": b"".join(pieces), "more_body": False}

        length = Headers(scope=scope).get("content-length", "0")
        declared = int(length) if length.isdecimal() else 0
        try:
            await self._app(scope, receive_whole, send)
        finally:
            self._num_held -= num_bytes

    @asynccontextmanager
    async def _by(self, deadline_s: float) -> AsyncIterator[None]:
        """Raises HTTPException 408 if what is awaited takes longer than the client has."""
        try:
            async with asyncio.timeout_at(deadline_s):
                yield
        except TimeoutError:
            raise HTTPException(
                HTTPStatus.REQUEST_TIMEOUT,
                "The request's body took too long.",
                headers={"connection": "close"},
            ) from None

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_bytes:
            raise self._too_large()
        if self._num_held > self._limits.max_held_bytes:
            raise CapacityError(
                "The bodies of all requests together exceed the memory for them.",
                retry_after_s=1.0,
            )

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The request body exceeds {self._limits.max_bytes} bytes.",
            # The rest of the body is not read, so the connection cannot carry another request.
            headers={"connection": "close"},
        )


def route_of(scope: Scope, templates: Collection[str] = ()) -> str:
    """The template of the route that answered, or would have: a closed set, fit for a metric's
    label."""
    route = scope.get("route")
    if isinstance(route, Route):
        return route.path
    path: str = scope["path"]
    return path if path in templates else UNMATCHED


def _append(pieces: list[bytes | bytearray], piece: bytes) -> None:
    """To the one buffer that is there, or as the only piece, which is then never copied."""
    if pieces and isinstance(pieces[0], bytearray):
        pieces[0] += piece
    else:
        pieces.append(piece)
