"""How a JSON body is read: the content type, the parser, and what happens when the client leaves.

Owns the way from bytes to a dict; knows no schema. Invariant: NaN, Infinity, UTF-16, bottomless
nesting and endless lists are refused here, before any field is looked at.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.context import context_of
from server.middleware import CLIENT_GONE
from server.origins import ANY, parse_origins

MAX_VALUES = 2**17
"""Values of a body: a long string is copied at once, but every value becomes an object, and no
other request is answered meanwhile. Far more than a conversation that fits a context has."""

PIECE_BYTES = 2**18


class JsonRequest(Request):
    """Parses with pydantic's parser: Python's own takes NaN, and raises RecursionError on
    `[[[[`."""

    async def json(self) -> Any:
        """The body as Python values; JSONDecodeError, which FastAPI expects, for anything else."""
        body = await self.body()
        if _has_too_many_values(body):
            raise HTTPException(400, f"The body has more than {MAX_VALUES} values.")
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError("not valid JSON", "", 0) from error


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


def _has_too_many_values(body: bytes) -> bool:
    """Counts what separates values, also inside of strings; stops soon where there is too much."""
    num_values = 0
    for first in range(0, len(body), PIECE_BYTES):
        num_values += sum(body.count(mark, first, first + PIECE_BYTES) for mark in b",[{")
        if num_values > MAX_VALUES:
            return True
    return False


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
