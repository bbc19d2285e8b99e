"""From an image to what the vision tower reads.

Owns the preprocessing of the original (`janus/models/image_processing_vlm.py`); knows no file
format and no torch. Invariant: what is computed from is the square of bytes that the digest is
taken of, so equal digests mean equal pixels.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from janus_core.errors import CheckpointError
from janus_core.images import Pixels
from janus_core.strict_json import Section, read_object

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"


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
        """Preprocess an RGB image."""
        return self.prepare_square(self.square(image))

    def prepare_square(self, square_HWC: Pixels) -> PreparedImage:
        """Preprocess what `square` made. The digest depends on the pixels the tower will see,
        nothing else."""
        digest = hashlib.blake2b(square_HWC.tobytes(), digest_size=32).digest()
        return PreparedImage(self._normalised(square_HWC), digest)

    def preprocess(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Pixels of an RGB image as the vision tower expects them: float32 `[3, side, side]`."""
        return self._normalised(self.square(image))

    def square(self, image: Image.Image) -> Pixels:
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
