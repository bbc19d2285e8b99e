"""Pure ASGI middleware: request id, body limit, access line, HTTP metrics, the last catch.

Owns what is true for every route; knows no route. Pure ASGI, because Starlette's
`BaseHTTPMiddleware` hides a client's departure from the handlers. Invariant: every HTTP request
gets exactly one answer with an `x-request-id`, one access line and one observation in the metrics.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import INTERNAL
from server.logs import printable
from server.record import RequestRecord, attach_record
from server.tracing import trace_id

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("server.access")

CLIENT_GONE = 499
"""nginx's status for a client that left before its answer; logged and counted, never sent."""

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_QUIET = frozenset({"/livez", "/readyz", "/health", "/metrics"})
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

    def __init__(self, app: ASGIApp, *, observe: HttpObserver) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope))
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
        route = route_of(scope)
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
        line = " ".join(f"{name}={value}" for name, value in fields.items())
        access_logger.log(level, "%s", line, extra={"fields": fields})


class BodyLimit:
    """Refuses a body over `max_bytes` with 413: by its declared length, or once it exceeds it."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            if declared > self._max_bytes:
                raise self._too_large()
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._too_large()
            return message

        length = Headers(scope=scope).get("content-length", "0")
        declared = int(length) if length.isdecimal() else 0
        await self._app(scope, receive_limited, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The request body exceeds {self._max_bytes} bytes.",
            # The rest of the body is not read, so the connection cannot carry another request.
            headers={"connection": "close"},
        )


def route_of(scope: Scope) -> str:
    """The template of the route that answered: a closed set, fit for a metric's label."""
    route = scope.get("route")
    return route.path if isinstance(route, Route) else UNMATCHED


def _request_id(scope: Scope) -> str:
    """The client's `x-request-id` if it is a short plain word, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _ACCEPTED_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
