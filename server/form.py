"""How a form is read: multipart or URL-encoded, to a request body and its files.

Owns the way from bytes to fields; knows no endpoint. Invariants: the whole form is in memory, whose
size the body limit has bounded, and no name a client gave a file is ever kept; a page of another
site cannot send a form here, as it cannot send JSON.
"""

import functools
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from janus_core.errors import ParameterError
from server.context import context_of
from server.json_route import JsonRequest, refuse_other_sites
from server.middleware import CLIENT_GONE
from server.offload import Offload
from server.principal import principal_of
from server.schemas.common import Body

MULTIPART, URL_ENCODED = "multipart/form-data", "application/x-www-form-urlencoded"

BodyT = TypeVar("BodyT", bound=Body)


@dataclass(frozen=True, slots=True)
class FormLimits:
    """Fields and files together, and the bytes of a field that is no file."""

    max_parts: int
    max_field_bytes: int


@dataclass(frozen=True, slots=True)
class Form:
    """Texts and files by field name, each in the order they came. `name[]` is read as `name`."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def file(self, name: str) -> bytes:
        """The one file of this name. Raises ParameterError if there is none, or another too."""
        files = self.files.get(name, [])
        if len(files) != 1:
            message = f"One file named {name} is required, but there are {len(files)}."
            raise ParameterError(message, param=name)
        return files[0]

    def body(self, model: type[BodyT]) -> BodyT:
        """The fields as a request body: numbers, booleans and lists are read as JSON.

        Raises RequestValidationError, as FastAPI does for a body that is JSON.
        """
        texts = _text_fields(model)
        values = {name: _value(given, is_text=name in texts) for name, given in self.fields.items()}
        return _validated(model, values)


class FormRoute(APIRoute):
    """A route that reads a form, or JSON by `json_body`: a client that leaves before its form is
    complete is no error."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, called once the body is here."""
        handle = super().get_route_handler()

        async def handle_form(request: Request) -> Response:
            json_request = JsonRequest(request.scope, request.receive)
            try:
                await json_request.body()  # kept for whoever asks next
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            return await handle(json_request)

        return handle_form


async def read_form(request: Request, offload: Offload) -> Form:
    """The form a request carries, parsed off the event loop.

    Raises HTTPException 415 for another content type, 403 for a form of another site's page and 400
    for bytes that are no form; ParameterError for too long a field.
    """
    refuse_other_sites(request)
    header = request.headers.get("content-type", "")
    media_type, options = parse_options_header(header)
    body, tenant = await request.body(), principal_of(request).tenant
    settings = context_of(request).settings
    limits = FormLimits(settings.max_form_parts, settings.max_form_field_bytes)
    if media_type == MULTIPART.encode() and options.get(b"boundary"):
        boundary = options[b"boundary"]
        return await offload.admit(tenant, _multipart, body, boundary=boundary, limits=limits)
    if media_type == URL_ENCODED.encode():
        return await offload.admit(tenant, _url_encoded, body, limits=limits)
    raise HTTPException(415, f"The content type must be {MULTIPART}.")


async def json_body(request: Request, model: type[BodyT]) -> BodyT | None:
    """The body of a `FormRoute`'s request that is JSON instead of a form; None if it is not.

    Raises RequestValidationError.
    """
    media_type, _ = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"application/json":
        return None
    try:
        values = await request.json()
    except json.JSONDecodeError:
        problem = {"type": "json_invalid", "loc": ("body",), "msg": "not JSON"}
        raise RequestValidationError([problem]) from None
    return _validated(model, values)


def form_schema(
    model: type[Body],
    *,
    files: tuple[str, ...],
    optional_files: tuple[str, ...] = (),
    json_fields: tuple[str, ...] = (),
) -> dict[str, object]:
    """What OpenAPI says about a route that reads `model` and `files` from a form.

    A route with `json_fields` reads JSON as well, in which these stand for the files.
    """
    schema = _inlined(model.model_json_schema())
    assert isinstance(schema, dict)
    fields = {name: each for name, each in schema["properties"].items() if name not in json_fields}
    binary = {"type": "string", "format": "binary"}
    form = schema | {
        "properties": dict.fromkeys((*files, *optional_files), binary) | fields,
        "required": [*files, *schema.get("required", [])],
    }
    content = {MULTIPART: {"schema": form}}
    if json_fields:
        content["application/json"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: object, definitions: Mapping[str, object] | None = None) -> object:
    """A JSON schema without references, which would lead nowhere from within OpenAPI's."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = schema.get("$defs", definitions) or {}
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(each, definitions) for key, each in schema.items() if key != "$defs"}


class _Parts:
    """Collects what the parser calls out."""

    def __init__(self, limits: FormLimits) -> None:
        self.form = Form()
        self._limits = limits
        self._num_parts = 0
        self._is_complete = False
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._data = bytearray()

    def parse(self, body: bytes, *, boundary: bytes) -> Form:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )
        parser.write(body)
        parser.finalize()
        if not self._is_complete:
            raise FormParserError("The last boundary is missing.")
        return self.form

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > self._limits.max_parts:
            raise FormParserError(f"The form has more than {self._limits.max_parts} parts.")
        self._disposition, self._data = b"", bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _on_part_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = _name(options.get(b"name", b"").decode("utf-8", "replace"))
        if b"filename" in options:
            self.form.files.setdefault(name, []).append(bytes(self._data))
        else:
            text = _text(name, bytes(self._data), limits=self._limits)
            self.form.fields.setdefault(name, []).append(text)

    def _on_end(self) -> None:
        self._is_complete = True


def _multipart(body: bytes, *, boundary: bytes, limits: FormLimits) -> Form:
    try:
        return _Parts(limits).parse(body, boundary=boundary)
    except FormParserError:
        raise HTTPException(400, "The body is not a valid multipart form.") from None


def _url_encoded(body: bytes, *, limits: FormLimits) -> Form:
    most = limits.max_parts
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=most)
    except ValueError:
        raise HTTPException(400, "The body is not a valid URL-encoded form.") from None
    form = Form()
    for name, value in pairs:
        text = _text(name, value.encode(), limits=limits)
        form.fields.setdefault(_name(name), []).append(text)
    return form


def _name(name: str) -> str:
    return name.removesuffix("[]")


def _text(name: str, data: bytes, *, limits: FormLimits) -> str:
    most = limits.max_field_bytes
    if len(data) > most:
        raise ParameterError(
            f"The field has {len(data)} bytes; the limit is {most}.", param=name[:200]
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ParameterError("The field is not UTF-8.", param=name[:200]) from None


def _validated(model: type[BodyT], values: object) -> BodyT:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(problems) from error


@functools.cache
def _text_fields(model: type[Body]) -> frozenset[str]:
    """Fields that may be a string, and so are never read as JSON: a prompt may be `5`."""
    properties = model.model_json_schema()["properties"]
    return frozenset(
        name
        for name, schema in properties.items()
        if any("string" in (each.get("type"), *_enum_types(each)) for each in _variants(schema))
    )


def _variants(schema: dict[str, object]) -> list[dict[str, object]]:
    variants = schema.get("anyOf")
    return variants if isinstance(variants, list) else [schema]


def _enum_types(schema: dict[str, object]) -> list[str]:
    values = schema.get("enum", [])
    assert isinstance(values, list)
    return ["string" for value in values if isinstance(value, str)]


def _value(texts: list[str], *, is_text: bool) -> object:
    """What the field says; several of one name are a list. An empty number is none."""
    values = [text if is_text else _parsed(text) for text in texts]
    return values[0] if len(values) == 1 else values


def _parsed(text: str) -> object:
    if not text.strip():
        return None
    if text.lower() in ("true", "false"):  # Python's clients write str(True)
        text = text.lower()
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text  # the model says what is wrong with it
