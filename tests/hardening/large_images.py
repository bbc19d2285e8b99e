"""Images of few bytes and many pixels, and what is measured while they are decoded.

Owns the file and the leaving of those who sent it. Knows no server. Invariant: when it is over,
nothing is decoded for anybody any more.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx2
from PIL import Image

from tests.hardening.target import png_bytes

UNDER_WAY_S = 1.0
"""Until the first of them are being decoded."""

AT_HAND_S = 1.5
"""For what is being decoded when its client leaves."""


def large_file() -> bytes:
    """Some kilobytes with as many pixels as may be: more than half a second to decode."""
    return png_bytes(Image.new("LA", (5000, 5000), (1, 2)))


@asynccontextmanager
async def under_way(tasks: Sequence[asyncio.Task[httpx2.Response]]) -> AsyncIterator[None]:
    """Inside the requests of `tasks` are being answered; at the end their clients have left."""
    try:
        await asyncio.sleep(UNDER_WAY_S)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(AT_HAND_S)


async def timed(client: httpx2.AsyncClient, path: str, body: dict) -> tuple[httpx2.Response, float]:
    """The reply, and the seconds it took."""
    started_s = time.monotonic()
    reply = await client.post(path, json=body)
    return reply, time.monotonic() - started_s
