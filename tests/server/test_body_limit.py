"""How long a body may take: what was received fast earns no right to be silent."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from starlette.exceptions import HTTPException

from server.middleware import BodyLimit, BodyLimits

LIMITS = BodyLimits(
    max_bytes=2**26, max_held_bytes=2**27, timeout_s=0.3, min_bytes_per_s=10_000
)  # fmt: skip


async def take_in(pieces: AsyncIterator[bytes]) -> int:
    """Bytes of the body that a request got, whose client sends `pieces`."""
    scope = {"type": "http", "headers": []}
    received: list[int] = []

    async def receive() -> dict:
        piece = await anext(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(_: dict) -> None:
        """Nothing is sent."""

    async def app(_: dict, receive, __) -> None:
        received.append(len((await receive())["body"]))

    await BodyLimit(app, limits=LIMITS)(scope, receive, send)
    return received[0]


@pytest.mark.parametrize("pause_s", [5.0, 0.1])
async def test_a_burst_buys_no_time_for_silence_or_trickle(pause_s: float) -> None:
    async def sent() -> AsyncIterator[bytes]:
        yield b"x" * 2**20  # a hundred seconds at the least rate
        while True:
            await asyncio.sleep(pause_s)
            yield b"x"

    started = time.monotonic()
    with pytest.raises(HTTPException) as caught:
        await take_in(sent())
    assert caught.value.status_code == 408
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("num_bytes", "pause_s"), [(200, 0.01), (4000, 0.2)])
async def test_whoever_keeps_the_least_rate_is_waited_for(num_bytes: int, pause_s: float) -> None:
    """Also in pieces that are far apart, and for much longer than the time alone."""

    async def sent() -> AsyncIterator[bytes]:
        until = time.monotonic() + 5 * LIMITS.timeout_s
        while time.monotonic() < until:
            yield b"x" * num_bytes
            await asyncio.sleep(pause_s)

    assert await take_in(sent()) > 5 * LIMITS.timeout_s * LIMITS.min_bytes_per_s
