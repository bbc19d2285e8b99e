"""Decoding a client's images down to what the model takes in, and nothing larger.

Owns the few things that are wanted of an image file, as jobs: from files and plain options to small
arrays of bytes. Knows no network, no tensors, and not where a job runs: `ImageDecoder` runs it on
the spot, for a command line whose files are its user's own; `decode_pool` in processes that can be
killed. Invariant: both run the same functions, and whatever a decoder raises is an ImageInputError.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
from PIL import Image

from janus_core.errors import ImageInputError
from janus_core.image_processor import ImageProcessor
from janus_core.images import (
    ImageLimits,
    MaskStyle,
    Pixels,
    decode_image,
    decode_mask,
    decode_transparent,
    fit_square,
    marked_squares,
    read_png_text,
)

Bytes = npt.NDArray[np.uint8]

Params = Sequence[str | None]
"""The fields the files came from, for errors."""

OVERSAMPLING = 2
"""A JPEG may be decoded at a part of its size if that is still so many times what is wanted."""

CANNOT_DECODE = "The image cannot be decoded."


class ImageDecoder:
    """Decodes within `limits`. Threads can share it; every method takes milliseconds up to seconds
    and raises ImageInputError that names the field."""

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits

    def start(self) -> None:
        """Get ready."""

    def close(self) -> None:
        """Decode no more."""

    @property
    def num_lost(self) -> Mapping[str, int]:
        """Processes that ended before their time, by reason; here, there are none."""
        return {}

    def square(self, data: bytes, processor: ImageProcessor, *, param: str | None = None) -> Pixels:
        """What `processor.square` makes of an image."""
        (square,) = self.run("square", [data], params=[param], **asdict(processor))
        return square

    def fitted(self, data: bytes, *, side_px: int, param: str | None = None) -> Pixels:
        """The centre of an image at `side_px`, as `fit_square` cuts it."""
        (fitted,) = self.run("fitted", [data], params=[param], side_px=side_px)
        return fitted

    def edited(
        self,
        data: bytes,
        mask: bytes | None,
        *,
        side_px: int,
        grid: int,
        style: MaskStyle,
        params: Params,
    ) -> tuple[Pixels, Bytes]:
        """The image as `fitted`, and which of its squares are marked (`marked_squares`): by a mask
        of any size, or else by transparency. `params` are the two fields."""
        files = [data] if mask is None else [data, mask]
        fitted, squares = self.run(
            "edited", files, params=params, side_px=side_px, grid=grid, style=style
        )
        return fitted, squares

    def png_text(self, data: bytes, *, param: str | None = None) -> dict[str, str]:
        """The texts of a PNG."""
        (encoded,) = self.run("png_text", [data], params=[param])
        found: dict[str, str] = json.loads(encoded.tobytes())
        return found

    def run(
        self, job: str, files: Sequence[bytes], *, params: Params, **options: object
    ) -> list[Bytes]:
        """What the methods above are made of: `options` are plain, as in JSON."""
        return run_job(job, files, self.limits, params=params, options=options)


def run_job(
    job: str,
    files: Sequence[bytes],
    limits: ImageLimits,
    *,
    params: Params,
    options: dict[str, object],
) -> list[Bytes]:
    """Run one of the jobs here and now. Raises ImageInputError and nothing else."""
    try:
        return _JOBS[job](files, limits, params=params, **options)
    except ImageInputError:
        raise
    except Exception as error:  # what resizing and cropping may raise on sizes nobody thought of
        raise ImageInputError(CANNOT_DECODE, param=params[0], code="invalid_image") from error


def _square(
    files: Sequence[bytes], limits: ImageLimits, *, params: Params, image_size: int, **rest: object
) -> list[Bytes]:
    processor = ImageProcessor(image_size=image_size, **rest)  # type: ignore[arg-type]
    enough_px = OVERSAMPLING * image_size
    image = decode_image(files[0], limits, param=params[0], enough_px=enough_px)
    return [processor.square(image)]


def _fitted(
    files: Sequence[bytes], limits: ImageLimits, *, params: Params, side_px: int
) -> list[Bytes]:
    enough_px = OVERSAMPLING * side_px
    image = decode_image(files[0], limits, param=params[0], enough_px=enough_px)
    return [fit_square(image, side_px)]


def _edited(
    files: Sequence[bytes],
    limits: ImageLimits,
    *,
    params: Params,
    side_px: int,
    grid: int,
    style: MaskStyle,
) -> list[Bytes]:
    # At its whole size: a thin line of a mask would be lost.
    picture = decode_image(files[0], limits, param=params[0])
    fitted, size = fit_square(picture, side_px), picture.size
    del picture
    if len(files) == 1:
        mask = decode_transparent(files[0], limits, param=params[0])
    else:
        mask = decode_mask(files[1], limits, param=params[1], style=style)
    if mask is None:
        return [fitted, np.zeros(grid * grid, dtype=np.uint8)]
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.NEAREST)
    return [fitted, marked_squares(mask, grid)]


def _png_text(files: Sequence[bytes], limits: ImageLimits, *, params: Params) -> list[Bytes]:
    found = read_png_text(files[0], limits, param=params[0])
    return [np.frombuffer(json.dumps(found).encode(), dtype=np.uint8)]


_JOBS: dict[str, Callable[..., list[Bytes]]] = {
    "square": _square,
    "fitted": _fitted,
    "edited": _edited,
    "png_text": _png_text,
}
