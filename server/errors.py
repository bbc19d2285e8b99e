"""Errors at the edge: one table from error classes to OpenAI's error object, and the handlers.

Owns status codes, types and codes; knows nothing about why an error was raised. Invariant: every
error a client sees is `{"error": {"message", "type", "param", "code"}}` with all four keys, and
never repeats more of the client's input than a number.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from janus_core.errors import (
    RESTART_RETRY_S,
    AbortedError,
    AsleepError,
    CapacityError,
    DrainingError,
    EngineDeadError,
    ImageInputError,
    JanusError,
    QueuedTooLongError,
    QueueFullError,
    RanTooLongError,
    RateLimitError,
    RequestError,
    StepError,
    TransientStepError,
    told_retry_s,
)

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
NOT_FOUND = "not_found_error"
PERMISSION = "permission_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"
UNAVAILABLE = "service_unavailable"

_INTERNAL_MESSAGE = "The server failed to answer; its log has the reason."


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What the client gets. `should_retry` None leaves the decision to the client's own rules."""

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    def object(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def json(self) -> str:
        """The error object as one line of JSON; ASCII, so that no message can break it."""
        return json.dumps(self.object(), ensure_ascii=True)

    def headers(self) -> dict[str, str]:
        """`retry-after` in whole seconds, the hint OpenAI's clients obey first, and what else the
        status asks for. Who has to wait for longer than is ever said comes back and is told
        again."""
        headers = dict(self.extra_headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(told_retry_s(self.retry_after_s)))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers

    def response(self) -> Response:
        """The whole answer, for an error before the first byte of a reply."""
        return Response(
            self.json(), self.status, headers=self.headers(), media_type="application/json"
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the table: what a class of errors means in HTTP."""

    status: int
    type: str
    code: str | None = None
    should_retry: bool | None = None
    # Instead of the error's own message, which may quote an exception nobody foresaw.
    message: str | None = None
    # If the error does not know it better.
    retry_after_s: float | None = None
    # Whether the connection ends with the answer: who keeps it would come back to this process.
    closes: bool = False


# The nearest class of the error's MRO decides.
_BY_CLASS: Mapping[type, _Row] = {
    RequestError: _Row(400, INVALID_REQUEST),
    QueueFullError: _Row(429, RATE_LIMIT, "queue_full", True),
    RateLimitError: _Row(429, RATE_LIMIT, "rate_limit_exceeded", True),
    DrainingError: _Row(503, UNAVAILABLE, "draining", True, closes=True),
    AsleepError: _Row(503, UNAVAILABLE, "asleep", True),
    CapacityError: _Row(503, UNAVAILABLE, "server_is_overloaded", True),
    QueuedTooLongError: _Row(503, UNAVAILABLE, "deadline_exceeded", True),
    # It would take as long again.
    RanTooLongError: _Row(504, UNAVAILABLE, "deadline_exceeded", False),
    # The same prompt would fail the same way: a retry only costs everybody steps.
    StepError: _Row(
        500, SERVER_ERROR, "step_failed", False, "The engine failed to compute this request."
    ),
    TransientStepError: _Row(503, UNAVAILABLE, "server_is_overloaded", True),
    EngineDeadError: _Row(503, UNAVAILABLE, "engine_dead", True, retry_after_s=RESTART_RETRY_S),
    # Ended on purpose: whoever did it does not want it to come again at once.
    AbortedError: _Row(503, UNAVAILABLE, "aborted", False),
    JanusError: _Row(500, SERVER_ERROR, "internal_error", False, _INTERNAL_MESSAGE),
}

# Codes that stand for another status than their class does.
_STATUS_BY_CODE: Mapping[str, int] = {
    "model_not_found": 404,
    "image_not_found": 404,
    "still_busy": 409,
}

# Refusals by the framework, before any of our code ran.
_BY_STATUS: Mapping[int, _Row] = {
    400: _Row(400, INVALID_REQUEST, "invalid_body"),
    404: _Row(404, NOT_FOUND, "unknown_url"),
    405: _Row(405, INVALID_REQUEST, "method_not_allowed"),
    408: _Row(408, INVALID_REQUEST, "request_timeout"),
    413: _Row(413, INVALID_REQUEST, "request_too_large"),
    415: _Row(415, INVALID_REQUEST, "unsupported_media_type"),
}

INTERNAL = ErrorReply(
    500, SERVER_ERROR, _INTERNAL_MESSAGE, code="internal_error", should_retry=False
)
"""For an exception nobody expected: its text may hold anything and is never sent."""


def reply_for(error: JanusError) -> ErrorReply:
    """Look `error` up in the table."""
    row = next(_BY_CLASS[cls] for cls in type(error).__mro__ if cls in _BY_CLASS)
    param = code = None
    if isinstance(error, RequestError):
        param, code = error.param, error.code
    retry_after_s = row.retry_after_s
    if isinstance(error, CapacityError | TransientStepError):
        retry_after_s = error.retry_after_s
    return ErrorReply(
        _STATUS_BY_CODE.get(code or "", row.status),
        row.type,
        row.message or error.message,
        param=param,
        code=code or row.code,
        retry_after_s=retry_after_s,
        should_retry=row.should_retry,
        extra_headers={"connection": "close"} if row.closes else {},
    )


def unsupported(param: str, message: str) -> RequestError:
    """A field that is well formed and cannot be honoured by this server."""
    return RequestError(message, param=param, code="unsupported_value")


class OnRejection(Protocol):
    """Is told why a request was refused."""

    def __call__(self, reason: str, *, by_image: bool = False) -> None:
        """`reason` is a code of ours."""


def install_handlers(app: FastAPI, *, on_rejection: OnRejection) -> None:
    """Give every error that reaches `app` the envelope; the middleware catches the unexpected.

    `on_rejection` is told the code of each request that was refused before the engine worked on it,
    and whether an input image was the reason.
    """

    async def on_janus_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, JanusError)
        reply = reply_for(error)
        if isinstance(error, RequestError | CapacityError):
            on_rejection(reply.code or reply.type, by_image=isinstance(error, ImageInputError))
        return reply.response()

    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        reply = _validation_reply(error.errors())
        on_rejection(reply.code or reply.type)
        return reply.response()

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = _http_reply(error).response()
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(JanusError, on_janus_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)


def _http_reply(error: HTTPException) -> ErrorReply:
    """The framework's refusals; neither path nor method is echoed, they may hold anything."""
    row = _BY_STATUS.get(error.status_code, _Row(error.status_code, INVALID_REQUEST))
    message = str(error.detail)
    if error.status_code == 404:
        message = "There is nothing at this URL."
    elif error.status_code == 405:
        message = "This URL does not answer this method."
    return ErrorReply(row.status, row.type, message, code=row.code)


def _validation_reply(problems: Sequence[Mapping[str, object]]) -> ErrorReply:
    """The first problem pydantic found: names the field, quotes nothing but numbers."""
    problem = problems[0]
    loc = problem["loc"]
    assert isinstance(loc, tuple)
    kind, param = str(problem["type"]), field_path(loc)
    if kind == "json_invalid":
        return ErrorReply(400, INVALID_REQUEST, "The body is not valid JSON.", code="invalid_json")
    if not param:
        return ErrorReply(
            400, INVALID_REQUEST, "The body must be a JSON object.", code="invalid_body"
        )
    if kind == "missing":
        message = f"The field {param} is required."
    else:
        message = f"Invalid value for {param}: {problem['msg']}{_shown(problem.get('input'))}."
    code = "missing_required_parameter" if kind == "missing" else "invalid_value"
    return ErrorReply(400, INVALID_REQUEST, message, param=param, code=code)


def field_path(loc: Sequence[int | str]) -> str:
    """`("body", "messages", 0, "content")` as `messages.0.content`; a hostile key is cut short."""
    return ".".join(map(str, loc[1:]))[:200]


def _shown(value: object) -> str:
    """The offending value if it is a number; anything else may be long, secret or unprintable."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, int) and abs(value) >= 2**64:
        return ", but it has more than 64 bits"
    return f", but it is {value}"
