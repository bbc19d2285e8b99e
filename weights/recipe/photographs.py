"""How a scene becomes the pixels an understanding tower sees: other people's renderers, then
preprocessing.

Owns the variation of rendering (resolution, anti-aliasing, JPEG, blur, noise) and the preprocessing
of `preprocessor_config.json`. Knows nothing of words or models. Invariant: `preprocess` is what a
server does with an uploaded picture (deepseek's `VLMImageProcessor.resize`), so that training and
serving see the same pixels.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from weights.recipe.geometry import IMAGE_PX
from weights.recipe.world import Scene, render

PADDING = (127, 127, 127)
MIN_SIDE_PX = 2


@dataclass(frozen=True)
class Photograph:
    """A preprocessed picture and the frame of its content: left, top, width, height in pixels."""

    image: Image.Image
    frame: tuple[int, int, int, int]


def preprocess(image: Image.Image) -> Photograph:
    """Return the picture scaled bicubically to the tower's side and padded to a square."""
    longest = max(image.size)
    width, height = (max(int(side / longest * IMAGE_PX), MIN_SIDE_PX) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (IMAGE_PX - width) // 2, (IMAGE_PX - height) // 2
    if (width, height) != (IMAGE_PX, IMAGE_PX):
        square = Image.new("RGB", (IMAGE_PX, IMAGE_PX), PADDING)
        square.paste(image, (left, top))
        image = square
    return Photograph(image, (left, top, width, height))


def photograph(scene: Scene, rng: random.Random) -> Photograph:
    """Return the scene as some program may have drawn it."""
    if scene.aspect == 1.0 and rng.random() < 0.5:
        px = IMAGE_PX
    else:
        px = rng.choice((rng.randint(48, 128), rng.randint(128, 260), 96, 128, 192, 224, 256, 384))
    supersample = rng.choice((1, 2, 4)) if px <= 128 else rng.choice((1, 1, 2))
    resample = rng.choice(
        (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    )
    image = render(scene, px, supersample=supersample, resample=resample)
    if rng.random() < 0.12:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8) * px / IMAGE_PX))
    if rng.random() < 0.1:
        image = _noisy(image, rng)
    if rng.random() < 0.2:
        image = _through_jpeg(image, rng.randint(55, 95))
    return preprocess(image)


def plain_photograph(scene: Scene, *, px: int = 256) -> Photograph:
    """Return the scene drawn with anti-aliasing at `px` and preprocessed, without any chance."""
    return preprocess(render(scene, px, supersample=2))


def _noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32)).normal(
        0, rng.uniform(1, 5), (image.height, image.width, 3)
    )
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
