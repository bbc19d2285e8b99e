"""How a JSON body is read: the content type, the parser, and what happens when the client leaves.

Owns the way from bytes to a dict; knows no schema. Invariant: NaN, Infinity, UTF-16, bottomless
nesting, endless lists and objects with a key twice are refused here, before any field is looked at.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import jiter
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.context import context_of
from server.middleware import CLIENT_GONE
from server.origins import ANY, parse_origins

PIECE_BYTES = 2**18


class JsonRequest(Request):
    """Parses with the parser that is within pydantic: Python's own takes NaN, and raises
    RecursionError on `[[[[`."""

    async def json(self) -> Any:
        """The body as Python values; JSONDecodeError, which FastAPI expects, for anything else."""
        body = await self.body()
        settings = context_of(self).settings
        if _has_too_many_values(body, limit=settings.max_json_values):
            raise HTTPException(400, f"The body has more than {settings.max_json_values} values.")
        try:
            value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
        except ValueError as error:
            if str(error).startswith("Detected duplicate key"):
                # One of the two would be dropped in silence; and a proxy that looks at bodies may
                # have seen the other.
                raise HTTPException(400, "An object of the body has a key twice.") from None
            raise json.JSONDecodeError("not valid JSON", "", 0) from error
        depth = settings.max_json_depth
        if body.count(b"[") + body.count(b"{") > depth and _is_deeper(value, depth):
            raise HTTPException(400, f"The body has more than {depth} lists within each other.")
        return value


class JsonRoute(APIRoute):
    """A route whose body must say that it is JSON, so that no web form can send it; without a body
    it is for our own pages and for clients that are no browser."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with our way of reading the body."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if self.body_field is not None and media_type != "application/json":
                raise HTTPException(415, "The content type must be application/json.")
            if self.body_field is None and request.method == "POST":
                refuse_other_sites(request)
            json_request = JsonRequest(request.scope, request.receive)
            try:
                await json_request.body()  # kept for whoever asks next
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            return await handle(json_request)

        return handle_json


async def unless_client_leaves(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """Await `answer`; if the client leaves first, cancel it.

    `Request.is_disconnected` only looks when asked; the body has been read, so the next message to
    receive is the disconnect.
    """
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else Response(status_code=CLIENT_GONE)
    finally:
        answering.cancel()
        leaving.cancel()


def refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another site sent, where nothing else keeps it from being sent: such
    a page can post a form, or nothing, without being asked. Raises HTTPException 403."""
    if request.headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return
    allowed = context_of(request).settings.allowed_origins
    if allowed is None or not {ANY, request.headers.get("origin")} & set(parse_origins(allowed)):
        raise HTTPException(403, "Pages of other sites may not use this server.")


def _has_too_many_values(body: bytes, *, limit: int) -> bool:
    """Counts what separates values, also inside of strings; stops soon where there is too much. A
    long string is copied at once, but every value becomes an object, and no other request is
    answered meanwhile."""
    num_values = 0
    for first in range(0, len(body), PIECE_BYTES):
        num_values += sum(body.count(mark, first, first + PIECE_BYTES) for mark in b",[{")
        if num_values > limit:
            return True
    return False


def _is_deeper(value: object, depth: int) -> bool:
    """Whether `value` has more levels of lists and objects."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return False
        level = [
            child
            for each in containers
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return True


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
