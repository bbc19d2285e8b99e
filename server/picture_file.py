"""A drawn picture to a file, off the event loop and on the clock.

Owns the measurement; knows neither codes nor an endpoint's reply.
"""

import time
from collections.abc import Mapping

from janus_core.engine.events import Pixels
from server.context import Context
from server.pictures import PictureFormat

DRAWN = ""
"""Pictures wait in one line: the engine, which takes longer, drew them in turns."""


async def picture_file(
    context: Context, style: PictureFormat, pixels: Pixels, *, metadata: Mapping[str, str]
) -> bytes:
    """The picture as `style` says; a PNG has `metadata` in it."""

    def encode() -> tuple[bytes, float]:
        started = time.perf_counter()
        return style.file(pixels, metadata=metadata), time.perf_counter() - started

    file, duration_s = await context.offload.run(DRAWN, encode)
    context.metrics.observe("image_encode_seconds", duration_s)
    return file
