"""What OpenAPI says about refusals: every status an operation can answer with besides its own.

Owns the list, in one place, because most refusals come from layers that no route knows of. Knows
no endpoint. Invariant: whatever is refused, the answer is declared, and is an `ErrorBody`.
"""

from typing import Any

from fastapi import FastAPI

from server.schemas.common import ErrorBody

EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
"""OpenAPI before 3.2 has no word for the items of a stream: tools take the schema of a stream for
that of each event, as server-sent events are parsed."""

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": EVENT}}}
}
"""For a route that answers at once or, on request, as a stream of events."""

_REF = "#/components/schemas/{model}"

# Any request: its head may be no HTTP, too long, too slow, for another host, without a key, one too
# many, or find the server draining.
_ALWAYS = {
    400: "The request is not valid; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "A page of another site sent this, or it is for the administrator's key.",
    408: "The request did not arrive in time.",
    421: "This server does not answer to the name in Host.",
    429: "Too many requests, or no room for another one; `retry-after` says when to come back.",
    431: "The headers are too many or too long.",
    500: "The server failed to answer.",
    503: "The server is not ready, or stops; `retry-after` says when to come back.",
}
_WITH_BODY = {
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body has another content type than those declared.",
    504: "The answer was not complete in time.",
}
_WITH_PATH = {404: "There is nothing under this name."}


def declare_refusals(app: FastAPI) -> None:
    """Complete the schema that FastAPI derives from the routes of `app`."""
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(derive())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> None:
    models = schema["components"]["schemas"]
    error = ErrorBody.model_json_schema(ref_template=_REF)
    models.update(error.pop("$defs"), ErrorBody=error)
    # FastAPI's own answer to a body that does not fit, which is never sent.
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, text in sorted(_refusals(path, operation).items()):
                responses.setdefault(str(status), _refusal(text))


def _refusals(path: str, operation: dict[str, Any]) -> dict[int, str]:
    found = dict(_ALWAYS)
    if "{" in path:
        found |= _WITH_PATH
    if "requestBody" in operation:
        found |= _WITH_BODY
    return found


def _refusal(text: str) -> dict[str, Any]:
    reference = {"$ref": _REF.format(model="ErrorBody")}
    return {"description": text, "content": {"application/json": {"schema": reference}}}
