"""Drawn pictures: the size policy, and pixels to a file in base64.

Owns what a client's `size` means; knows no endpoint. The model draws squares of one size only. Any
other size is that picture, enlarged with Lanczos until it covers the frame and cut at its centre,
as DeepSeek's own demo enlarges (`demo/app_januspro.py`).
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from janus_core.engine.events import Pixels
from janus_core.errors import ParameterError
from janus_core.images import OutputFormat, encode_image

MIN_SIDE_PX = 16

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """How pictures leave the server. `quality` is for JPEG and WebP, 0 to 100."""

    width: int
    height: int
    format: OutputFormat
    quality: int

    @property
    def size(self) -> str:
        """`WxH`."""
        return f"{self.width}x{self.height}"

    def encode(self, pixels: Pixels, *, metadata: Mapping[str, str]) -> str:
        """The picture as a file in base64. Takes milliseconds: not for the event loop."""
        if pixels.shape[:2] != (self.height, self.width):
            fitted = ImageOps.fit(
                Image.fromarray(pixels), (self.width, self.height), Image.Resampling.LANCZOS
            )
            pixels = np.asarray(fitted)
        data = encode_image(pixels, self.format, quality=self.quality, metadata=metadata)
        return base64.b64encode(data).decode("ascii")


def parse_size(size: str | None, *, native_px: int, max_px: int) -> tuple[int, int]:
    """Width and height of `WxH`; `auto` and None are the model's own. Raises ParameterError."""
    if size is None or size == "auto":
        return native_px, native_px
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ParameterError("size must be auto or WIDTHxHEIGHT in pixels.", param="size")
    width, height = int(match[1]), int(match[2])
    if not (min(width, height) >= MIN_SIDE_PX and max(width, height) <= max_px):
        raise ParameterError(
            f"size is {width}x{height}, but each side must be within [{MIN_SIDE_PX}, {max_px}].",
            param="size",
        )
    return width, height
