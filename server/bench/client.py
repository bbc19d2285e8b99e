"""One request over HTTP, and the moment at which every part of the answer came.

Owns connections and the reading of streams, on asyncio and h11; knows no model and no statistics.
Not a general client: plain HTTP/1.1 to one server, a connection for each request, which is closed
after it. Invariant: `send` always returns an `Exchange`; what went wrong is in it.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

from janus_core.errors import ParameterError

CHUNK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Moment:
    """One event of a stream, or the whole body of an answer that is none; `at_s` of
    `time.perf_counter`."""

    at_s: float
    body: Mapping[str, Any]


@dataclass(slots=True)
class Exchange:
    """What one request became. `error` is empty if the answer came to its end."""

    started_s: float
    ended_s: float = 0.0
    status: int = 0
    moments: list[Moment] = field(default_factory=list)
    error: str = ""


class Client:
    """Sends JSON to one server. `key` goes into the header `Authorization`."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 600.0) -> None:
        """Raises ParameterError if `url` is not an address this client can use."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ParameterError(
                f"{url} is not an address like http://127.0.0.1:8000.", param="url"
            )
        self._host, self._port = parts.hostname, parts.port or 80
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._key = key
        self._timeout_s = timeout_s

    async def send(self, path: str, body: Mapping[str, Any] | None = None) -> Exchange:
        """POST `body`, or GET without one. An answer that takes longer than the timeout is an
        error."""
        exchange = Exchange(time.perf_counter())
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(path, body, exchange)
        except TimeoutError:
            exchange.error = f"no end within {self._timeout_s:g} s"
        except (OSError, h11.RemoteProtocolError, ValueError) as error:
            exchange.error = f"{type(error).__name__}: {error}"
        exchange.ended_s = time.perf_counter()
        return exchange

    async def _exchange(
        self, path: str, body: Mapping[str, Any] | None, exchange: Exchange
    ) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            connection = h11.Connection(h11.CLIENT)
            writer.write(self._request(connection, path, body))
            await writer.drain()
            await _read_answer(reader, connection, exchange)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _request(
        self, connection: h11.Connection, path: str, body: Mapping[str, Any] | None
    ) -> bytes:
        headers = [("host", f"{self._host}:{self._port}"), ("connection", "close")]
        if self._key:
            headers.append(("authorization", f"Bearer {self._key}"))
        data = b"" if body is None else json.dumps(body).encode()
        if data:
            headers += [("content-type", "application/json"), ("content-length", str(len(data)))]
        method = "POST" if data else "GET"
        head = h11.Request(method=method, target=self._prefix + path, headers=headers)
        events = (
            [head, h11.Data(data=data), h11.EndOfMessage()] if data else [head, h11.EndOfMessage()]
        )
        return b"".join(connection.send(event) or b"" for event in events)


async def _read_answer(
    reader: asyncio.StreamReader, connection: h11.Connection, exchange: Exchange
) -> None:
    """Fill `exchange` from the answer's bytes."""
    buffer = bytearray()
    is_stream = False
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(CHUNK_BYTES))
        elif isinstance(event, h11.Response):
            exchange.status = event.status_code
            is_stream = b"text/event-stream" in dict(event.headers).get(b"content-type", b"")
        elif isinstance(event, h11.Data):
            buffer += event.data
            if is_stream:
                _take_frames(buffer, exchange)
        elif isinstance(event, h11.EndOfMessage):
            break
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("the server closed the connection")
    if not is_stream and buffer:
        _take_body(bytes(buffer), exchange)
    if exchange.status >= 400 and not exchange.error:
        exchange.error = f"status {exchange.status}"


def _take_frames(buffer: bytearray, exchange: Exchange) -> None:
    """Move the complete server-sent events from `buffer` to the moments."""
    now_s = time.perf_counter()
    while (end := buffer.find(b"\n\n")) >= 0:
        frame = bytes(buffer[:end])
        del buffer[: end + 2]
        lines = [line[5:].strip() for line in frame.split(b"\n") if line.startswith(b"data:")]
        if lines and lines[0] != b"[DONE]":
            _add(b"\n".join(lines), now_s, exchange)


def _take_body(data: bytes, exchange: Exchange) -> None:
    if exchange.status < 400 or data.startswith(b"{"):
        _add(data, time.perf_counter(), exchange)


def _add(data: bytes, now_s: float, exchange: Exchange) -> None:
    body = json.loads(data)
    if "error" in body:
        error = body["error"]
        exchange.error = str(error.get("message", error) if isinstance(error, dict) else error)
    else:
        exchange.moments.append(Moment(now_s, body))
