"""Images in and out: from a client's bytes to pixels, from drawn pixels to a file.

Owns decoding with its limits, masks, the cut to a square, and encoding. Knows no network, no prompt
and no torch. Invariants: nothing is decoded before its header has passed the limits; one frame is
decoded, whatever the file holds; an image that cannot be used is an ImageInputError with one of
OpenAI's codes, and its message quotes nothing of the file or the process.
"""

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import (
    ExifTags,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
)

from janus_core.errors import ImageInputError

Pixels = npt.NDArray[np.uint8]
"""`[height, width, 3]`, RGB."""

OutputFormat = Literal["png", "jpeg", "webp"]

MaskStyle = Literal["transparent", "covered", "uncovered"]
"""What a file with transparent pixels marks: those that are fully so (OpenAI's masks), those that
are rather opaque (strokes of a brush: `create_binary_mask` in AUTOMATIC1111's
`modules/processing.py`), or all but these. Any other file marks what is light, or in the last style
dark."""

PNG_LEVEL = 3
"""Of zlib. Its own default, 6, makes enlarged pictures an eighth smaller in four times the time,
1.6 s for 2048 x 2048 textured pixels, while other pictures wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What a client's image may cost. Exceeding one is an error, nothing is scaled down silently.

    25 million pixels decode in about a second and 100 MB on one core, and exceed what a photo for a
    square of a few hundred pixels needs; WebP costs 15 bytes a pixel, five times the others.
    """

    max_bytes: int = 10 * 2**20
    max_pixels: int = 25_000_000
    max_webp_pixels: int = 16_000_000
    max_side_px: int = 16_384


_DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# MPO is what Pillow calls a JPEG with further pictures behind the first, as many phones write it.
_FORMATS = (*_DECODERS, "MPO")

OPAQUE = (255, 255)
"""Least and most of an alpha channel in which nothing is transparent: many programs always write
one."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image of each EXIF orientation upright (Exif 2.32, tag 274)."""


def decode_image(
    data: bytes, limits: ImageLimits, *, param: str | None = None, enough_px: int | None = None
) -> Image.Image:
    """The first frame of a PNG, JPEG, WebP, GIF or BMP file, upright, RGB, transparency over white.

    A JPEG is decoded at a half, a quarter or an eighth of its size where no side falls below
    `enough_px` by it, which saves most of the time and memory. `param` names the field the bytes
    came from in errors. Raises ImageInputError for bytes that are no such image, are truncated, or
    exceed a limit.
    """
    image = _checked(data, limits, param)
    if enough_px is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, (enough_px, enough_px))
    return _converted(image, _rgb, param)


def decode_mask(
    data: bytes,
    limits: ImageLimits,
    *,
    param: str | None = None,
    style: MaskStyle = "transparent",
) -> Image.Image | None:
    """What an image file marks for drawing, mode L, 255 where it does; None if it marks nothing.

    Raises what `decode_image` raises.
    """
    image = _checked(data, limits, param)
    mask = _converted(image, functools.partial(_marked, style=style), param)
    return mask if mask.getbbox() else None


def decode_transparent(
    data: bytes, limits: ImageLimits, *, param: str | None = None
) -> Image.Image | None:
    """Where an image file is fully transparent, mode L, upright, 255 where it is; None if it is
    nowhere. Raises what `decode_image` raises."""
    image = _checked(data, limits, param)
    if not image.has_transparency_data:
        return None
    mask = _converted(image, _transparent, param)
    return mask if mask.getbbox() else None


def read_png_text(data: bytes, limits: ImageLimits, *, param: str | None = None) -> dict[str, str]:
    """The texts in front of the pixels of a PNG; no pixel is decoded. Raises ImageInputError."""
    image = _checked(data, limits, param)
    if image.format != "PNG":
        raise ImageInputError("The file is no PNG.", param=param, code="invalid_image_format")
    return {str(key): text for key, text in image.info.items() if isinstance(text, str)}


def _converted(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], param: str | None
) -> Image.Image:
    """The decoded image, upright and converted."""
    try:
        image.load()
        return convert(_upright(image))
    except MemoryError as error:
        raise ImageInputError(
            "The image needs too much memory to be decoded.", param=param, code="image_too_large"
        ) from error
    except Exception:  # decoders raise what they like on damaged data: OSError, SyntaxError, ...
        raise ImageInputError(
            f"The {image.format} image cannot be decoded: it is truncated or damaged.",
            param=param,
            code="image_parse_error",
        ) from None


def _checked(data: bytes, limits: ImageLimits, param: str | None) -> Image.Image:
    """The image with its header read, within the limits."""
    if not data:
        raise ImageInputError("The image file is empty.", param=param, code="empty_image_file")
    if len(data) > limits.max_bytes:
        raise ImageInputError(
            f"The image file has {len(data)} bytes; the limit is {limits.max_bytes}.",
            param=param,
            code="image_file_too_large",
        )
    image = _opened(data, param)
    _check_size(image, limits, param)
    return image


def _opened(data: bytes, param: str | None) -> Image.Image:
    """The image with its header read and nothing else."""
    try:
        image = Image.open(io.BytesIO(data), formats=_DECODERS)
    except UnidentifiedImageError:
        raise ImageInputError(
            "The file is no image that can be read: PNG, JPEG, WebP, GIF and BMP are supported.",
            param=param,
            code="invalid_image_format",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageInputError(
            "The image has too many pixels.", param=param, code="image_too_large"
        ) from None
    except Exception:  # as above: a header can be damaged in as many ways
        raise ImageInputError(
            "The header of the image is damaged.", param=param, code="image_parse_error"
        ) from None
    if image.format not in _FORMATS:
        raise ImageInputError(
            f"{image.format} images are not supported: send PNG, JPEG, WebP, GIF or BMP.",
            param=param,
            code="invalid_image_format",
        )
    return image


def _check_size(image: Image.Image, limits: ImageLimits, param: str | None) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise ImageInputError(
            f"The image has {width} x {height} pixels.", param=param, code="image_too_small"
        )
    max_pixels = limits.max_pixels
    if image.format == "WEBP":
        max_pixels = min(max_pixels, limits.max_webp_pixels)
    if width * height > max_pixels or max(width, height) > limits.max_side_px:
        raise ImageInputError(
            f"The image has {width} x {height} pixels; the limit is {max_pixels} pixels for "
            f"{image.format} and {limits.max_side_px} per side.",
            param=param,
            code="image_too_large",
        )


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; an orientation that cannot be read is none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the EXIF parser raises many types on damaged blocks
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: alpha over white, 16-bit grey by its upper byte (Pillow would clip it)."""
    if image.mode.startswith("I"):
        grey = np.asarray(image) >> 8
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _transparent(image: Image.Image) -> Image.Image:
    return _alpha(image).point([255] + [0] * 255)


def _marked(image: Image.Image, *, style: MaskStyle) -> Image.Image:
    """255 where a mask marks a pixel, else 0."""
    grey = None
    if image.has_transparency_data and (alpha := _alpha(image)).getextrema() != OPAQUE:
        if style == "transparent":
            return alpha.point([255] + [0] * 255)
        grey = alpha
    if grey is None:
        grey = _rgb(image).convert("L")
    is_dark = style == "uncovered"
    return grey.point([255 * ((level < 128) == is_dark) for level in range(256)])


def fit_square(image: Image.Image, side_px: int) -> Pixels:
    """An RGB picture scaled to cover a square, the longer side cropped evenly, as the pictures the
    models learned to draw were (arXiv:2410.13848)."""
    return np.asarray(ImageOps.fit(image, (side_px, side_px), Image.Resampling.BICUBIC))


def marked_squares(mask: Image.Image, grid: int) -> Pixels:
    """Which of `grid` x `grid` squares of its centre, as `fit_square` cuts it, a mask touches: 0 or
    1 in raster order, in one row."""
    # Cropped, not scaled, so that a thin line is marked as well.
    side = min(mask.size)
    fitted = ImageOps.fit(mask, (side, side), Image.Resampling.NEAREST)
    starts = np.arange(grid) * side // grid
    by_row = np.logical_or.reduceat(np.asarray(fitted) > 0, starts, axis=0)
    return np.logical_or.reduceat(by_row, starts, axis=1).flatten().astype(np.uint8)


def encode_image(
    pixels: Pixels,
    format: OutputFormat,
    *,
    quality: int = 95,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A picture as a file. `quality` (0..100) is for JPEG and WebP; 100 makes WebP lossless.

    `metadata` becomes text chunks of a PNG, in UTF-8; the other formats carry none.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if format == "png":
        text = PngImagePlugin.PngInfo()
        for key, value in (metadata or {}).items():
            text.add_itxt(key, value)
        image.save(buffer, "PNG", pnginfo=text, compress_level=PNG_LEVEL)
    elif format == "jpeg":
        # 4:4:4: halved colour resolution smears the edges of flat colours.
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        image.save(buffer, "WEBP", quality=quality, lossless=quality == 100)
    return buffer.getvalue()
