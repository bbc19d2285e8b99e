"""Drawn pictures: the size policy, and pixels to a file.

Owns what a client's `size` means and what a file says about itself; knows no endpoint. The model
draws squares of one size only. Any other size is that picture, enlarged with Lanczos until it
covers the frame and cut at its centre, as DeepSeek's own demo enlarges (`demo/app_januspro.py`).
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from janus_core.engine.events import Pixels
from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError
from janus_core.images import OutputFormat, encode_image

MIN_SIDE_PX = 16

DEFAULT_QUALITY = 95
"""Of JPEG and WebP, if nobody chooses; above it, files grow and nobody sees why."""

SAMPLER_NAME = "Autoregressive"
"""Where a sampler of a diffusion model is asked for: there is one way to draw, code by code."""

SizePolicy = Literal["resize", "native", "strict"]
"""What becomes of a size the model does not draw: scaled to, ignored, or refused."""

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """How pictures leave the server. `quality` is for JPEG and WebP, 0 to 100."""

    width: int
    height: int
    format: OutputFormat
    quality: int = DEFAULT_QUALITY

    @property
    def size(self) -> str:
        """`WxH`."""
        return f"{self.width}x{self.height}"

    @property
    def media_type(self) -> str:
        """Of the file."""
        return f"image/{self.format}"

    def file(self, pixels: Pixels, *, metadata: Mapping[str, str]) -> bytes:
        """The picture as a file. Takes milliseconds: not for the event loop."""
        if pixels.shape[:2] != (self.height, self.width):
            fitted = ImageOps.fit(
                Image.fromarray(pixels), (self.width, self.height), Image.Resampling.LANCZOS
            )
            pixels = np.asarray(fitted)
        return encode_image(pixels, self.format, quality=self.quality, metadata=metadata)

    def encode(self, pixels: Pixels, *, metadata: Mapping[str, str]) -> str:
        """The file in base64."""
        return base64.b64encode(self.file(pixels, metadata=metadata)).decode("ascii")


def parse_size(
    size: str | None, *, native_px: int, max_px: int, policy: SizePolicy = "resize"
) -> tuple[int, int]:
    """Width and height of `WxH`; `auto` and None are the model's own. Raises ParameterError."""
    if size is None or size == "auto":
        return native_px, native_px
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ParameterError("size must be auto or WIDTHxHEIGHT in pixels.", param="size")
    width, height = int(match[1]), int(match[2])
    if policy == "native":
        return native_px, native_px
    if policy == "strict" and (width, height) != (native_px, native_px):
        raise ParameterError(
            f"size is {width}x{height}, but this server answers {native_px}x{native_px} only.",
            param="size",
        )
    if not (min(width, height) >= MIN_SIDE_PX and max(width, height) <= max_px):
        raise ParameterError(
            f"size is {width}x{height}, but each side must be within [{MIN_SIDE_PX}, {max_px}].",
            param="size",
        )
    return width, height


def describe(
    request: ImageRequest,
    *,
    prompt: str,
    negative_prompt: str | None,
    model_name: str,
    style: PictureFormat,
    num_codes: int,
) -> dict[str, str]:
    """What a PNG says about how it was drawn: single keys, and `parameters`, the text that tools
    around AUTOMATIC1111's web UI read."""
    sampling = request.sampling
    seed, guidance = str(sampling.seed), str(request.guidance)
    filters = {"top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p}
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    if request.uncond_token_ids is None:
        negative_prompt = None  # it has no part in an unguided picture
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    settings = (
        f"Steps: {num_codes}, Sampler: {SAMPLER_NAME}, CFG scale: {guidance}, Seed: {seed}, "
        f"Size: {style.size}, Model: {model_name}"
    )
    return {
        "prompt": prompt,
        **({"negative_prompt": negative_prompt} if negative_prompt else {}),
        "seed": seed,
        "guidance_scale": guidance,
        "temperature": str(sampling.temperature),
        **{name: str(value) for name, value in filters.items() if value != neutral[name]},
        "model": model_name,
        "parameters": f"{prompt}{negative}\n{settings}",
    }
