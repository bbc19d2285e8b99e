"""Images in and out: from a client's bytes to the tower's pixels, from drawn pixels to a file.

Owns decoding with its limits, the preprocessing of the original
(`janus/models/image_processing_vlm.py`) and encoding. Knows no network, no prompt and no torch.
Invariants: nothing is decoded before its header has passed the limits; one frame is decoded,
whatever the file holds; an image that cannot be used is an ImageInputError with one of OpenAI's
codes, and its message quotes nothing of the file or the process.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from janus_core.errors import CheckpointError, ImageInputError
from janus_core.strict_json import Section, read_object

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"

Pixels = npt.NDArray[np.uint8]
"""`[height, width, 3]`, RGB."""

OutputFormat = Literal["png", "jpeg", "webp"]

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


def decode_image(data: bytes, limits: ImageLimits, *, param: str | None = None) -> Image.Image:
    """The first frame of a PNG, JPEG, WebP, GIF or BMP file, upright, RGB, transparency over white.

    `param` names the field the bytes came from in errors. Raises ImageInputError for bytes that are
    no such image, are truncated, or exceed a limit.
    """
    return _converted(_checked(data, limits, param), _rgb, param)


def decode_mask(
    data: bytes, limits: ImageLimits, *, param: str | None = None
) -> Image.Image | None:
    """What an image file marks for drawing, mode L, 255 where it does; None if it marks nothing.

    A file with transparent pixels marks those that are fully so (OpenAI's masks), any other what is
    light. Raises what `decode_image` raises.
    """
    mask = _converted(_checked(data, limits, param), _marked, param)
    return mask if mask.getbbox() else None


def decode_alpha(
    data: bytes, limits: ImageLimits, *, param: str | None = None
) -> Image.Image | None:
    """How opaque each pixel of an image file is, mode L, upright, 0 for transparent; None if all
    are opaque. Raises what `decode_image` raises."""
    image = _checked(data, limits, param)
    if not image.has_transparency_data:
        return None
    alpha = _converted(image, _alpha, param)
    return None if alpha.getextrema() == OPAQUE else alpha


def _converted(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], param: str | None
) -> Image.Image:
    """The decoded image, upright and converted."""
    try:
        image.load()
        return convert(_upright(image))
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
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _marked(image: Image.Image) -> Image.Image:
    """255 where a mask marks a pixel, else 0."""
    if image.has_transparency_data and (alpha := _alpha(image)).getextrema() != OPAQUE:
        return alpha.point([255] + [0] * 255)
    return _rgb(image).convert("L").point([255 * (level >= 128) for level in range(256)])


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """What the vision tower reads: float32 `[3, side, side]`, and a digest of it for the caches."""

    pixels_CHW: npt.NDArray[np.float32]
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessor:
    """Resizes, pads and normalises as `preprocessor_config.json` of the checkpoint says."""

    image_size: int
    min_size: int
    rescale_factor: float
    do_normalize: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, directory: Path) -> "ImageProcessor":
        """Read the checkpoint's file, of either layout. Raises CheckpointError without one."""
        settings = _preprocessor_settings(directory)
        if isinstance(settings.values.get("size"), dict):
            image_size = settings.section("size").integer("height")
        else:
            image_size = settings.integer("image_size")
        return cls(
            image_size=image_size,
            min_size=settings.integer("min_size", 14),
            rescale_factor=settings.number("rescale_factor", 1 / 255),
            do_normalize=settings.flag("do_normalize", default=True),
            mean=_per_channel(settings, "image_mean"),
            std=_per_channel(settings, "image_std"),
        )

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Preprocess an RGB image. The digest depends on the pixels the tower will see, nothing
        else."""
        square_HWC = self._square(image)
        digest = hashlib.blake2b(square_HWC.tobytes(), digest_size=32).digest()
        return PreparedImage(self._normalised(square_HWC), digest)

    def preprocess(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Pixels of an RGB image as the vision tower expects them: float32 `[3, side, side]`."""
        return self._normalised(self._square(image))

    def _square(self, image: Image.Image) -> Pixels:
        """Bicubic to the long side, then padded to a centred square with the mean colour.

        Sides are floored, `side / longest` first: then the long side is exact for every size.
        """
        longest = max(image.size)
        width, height = (
            max(int(side / longest * self.image_size), self.min_size) for side in image.size
        )
        resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        square_HWC = np.empty((self.image_size, self.image_size, 3), dtype=np.uint8)
        square_HWC[:] = [int(mean * 255) for mean in self.mean]
        top, left = (self.image_size - height) // 2, (self.image_size - width) // 2
        square_HWC[top : top + height, left : left + width] = resized
        return square_HWC

    def _normalised(self, square_HWC: Pixels) -> npt.NDArray[np.float32]:
        """Rescaled and normalised, each step rounded to float32 as in the original.

        A byte has 256 values, so each channel is a table look-up.
        """
        scaled = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        side = self.image_size
        pixels_CHW = np.empty((3, side, side), dtype=np.float32)
        for channel in range(3):
            table = scaled
            if self.do_normalize:
                mean, std = np.float32(self.mean[channel]), np.float32(self.std[channel])
                table = (scaled - mean) / std
            pixels_CHW[channel] = table[square_HWC[:, :, channel]]
        return pixels_CHW


def _preprocessor_settings(directory: Path) -> Section:
    """The preprocessor's own file, or its section in the processor's file (newer transformers)."""
    own, shared = directory / PREPROCESSOR_FILE, directory / PROCESSOR_FILE
    if own.is_file():
        return read_object(own)
    if shared.is_file():
        return read_object(shared).section("image_processor")
    raise CheckpointError(f"The checkpoint {directory} has no {PREPROCESSOR_FILE}.")


def _per_channel(settings: Section, name: str) -> tuple[float, ...]:
    """Three numbers, 0.5 each where the file has none."""
    values = settings.values.get(name)
    if values is None:
        return (0.5, 0.5, 0.5)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(value, int | float) for value in values)
    ):
        raise settings.error(f"{name} must be three numbers, but is {values!r}")
    return tuple(map(float, values))


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
