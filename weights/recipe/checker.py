"""What a drawn picture shows, judged by its pixels alone.

Owns the reading of a picture (background, objects with colour, shape, size and centre). Knows no
model, no request, and learns nothing: colours are measured, shapes are compared with prototypes
that `world` renders. Invariant: what cannot be named is never guessed; an object that is not
clearly one shape in one colour has no shape or no colour.

Shape suffixes: H picture rows, W picture columns, G side of a normalised outline, P prototypes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from weights.recipe import world

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

# Pictures are judged at this short side; larger ones are averaged down first.
WORKING_PX = 64
# A pixel this far from the background (Euclidean, of 441) belongs to something; decoder noise stays
# below 20.
FOREGROUND_DISTANCE = 34.0
# A pixel this far from every blend of an object's colour with the background is not that object's.
BLEND_DISTANCE = 60.0
# A remnant of fewer pixels is noise; the smallest object of the world has about 29.
MIN_PIXELS = 12
# Farther than this from every accepted shade (CIELAB), a colour has no name.
NAMED_COLOR_DISTANCE = 26.0
# The overlap (soft intersection over union) with the best prototype below which a shape has no name
MIN_OVERLAP = 0.87
# (blobs and polygons of any kind resemble a circle, so a circle must be rounder) ...
MIN_CIRCLE_OVERLAP = 0.90
# ... and how much worse the best prototype of any other shape must be.
MIN_OVERLAP_LEAD = 0.01
# Between the largest small and the smallest large extent, in short sides.
LARGE_EXTENT = (world.VARIED_EXTENTS["small"][1] + world.VARIED_EXTENTS["large"][0]) / 2
# Samples per side of a normalised outline. It covers a square of twice the root of the object's
# area, which holds every shape.
GRID = 28


@dataclass(frozen=True)
class FoundObject:
    """What was seen at (x, y), fractions of the sides; a name is None when none is clear.

    `extent` is the diameter as a fraction of the short side, `overlap` the agreement (0..1) with
    the best prototype.
    """

    shape: str | None
    color: str | None
    size: str
    x: float
    y: float
    extent: float
    overlap: float


@dataclass(frozen=True)
class Found:
    """Everything seen in a picture."""

    background: str | None
    objects: tuple[FoundObject, ...]


def look(picture: Image.Image) -> Found:
    """Return what the picture shows; objects from the left to the right."""
    rgb_HW3 = np.asarray(_to_working_size(picture), dtype=np.float64)
    edges = (rgb_HW3[:2], rgb_HW3[-2:], rgb_HW3[:, :2], rgb_HW3[:, -2:])
    background = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    objects = [_identify(alpha_HW, color) for alpha_HW, color in _segments(rgb_HW3, background)]
    objects.sort(key=lambda item: (item.x, item.y))
    return Found(name_color(background, tuple(world.BACKGROUNDS)), tuple(objects))


def name_color(rgb: Floats, names: Sequence[str]) -> str | None:
    """Return which of the names the colour is nearest to, None when it is near to none."""
    shades, owners = _shades(tuple(names))
    distances = np.linalg.norm(shades - _lab(rgb), axis=1)
    best = int(np.argmin(distances))
    return owners[best] if distances[best] <= NAMED_COLOR_DISTANCE else None


def _to_working_size(picture: Image.Image) -> Image.Image:
    scale = WORKING_PX / min(picture.size)
    if scale == 1:
        return picture.convert("RGB")
    size = (round(picture.width * scale), round(picture.height * scale))
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return picture.convert("RGB").resize(size, resample)


def _segments(rgb_HW3: Floats, background: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Yield each object's coverage (0..1 per pixel, soft at the edge) and its colour.

    A connected patch of foreground may hold several touching objects: the most frequent colour is
    taken out, with its soft edge, and what remains is looked at again.
    """
    strength_HW = np.linalg.norm(rgb_HW3 - background, axis=2)
    rest_HW = strength_HW > FOREGROUND_DISTANCE
    while True:
        patch_HW = next(_components(rest_HW), None)
        if patch_HW is None:
            return
        color = _dominant_color(rgb_HW3[patch_HW], strength_HW[patch_HW])
        alpha_HW, off_HW = _unmix(rgb_HW3, background, color)
        solid_HW = patch_HW & (alpha_HW >= 0.5) & (off_HW < BLEND_DISTANCE)
        pieces = list(_components(solid_HW))
        for piece_HW in pieces:
            near_HW = _grown(_grown(piece_HW))
            blend_HW = near_HW & (off_HW < BLEND_DISTANCE)
            owned_HW = blend_HW & _owned(pieces, piece_HW)
            yield np.where(owned_HW, alpha_HW.clip(0, 1), 0.0), color
            rest_HW = rest_HW & ~blend_HW
        if not pieces:
            # Nothing solid in one colour, but too much for noise: an object without a name.
            yield patch_HW.astype(np.float64), color
            rest_HW = rest_HW & ~patch_HW


def _owned(pieces: Sequence[Mask], piece_HW: Mask) -> Mask:
    """Return the pixels that no other piece's soft edge claims first."""
    others_HW = np.zeros_like(piece_HW)
    for other_HW in pieces:
        if other_HW is not piece_HW:
            others_HW |= _grown(other_HW)
    return piece_HW | ~others_HW


def _components(mask_HW: Mask) -> Iterator[Mask]:
    """Yield the 8-connected components of at least MIN_PIXELS."""
    left_HW = mask_HW.copy()
    while left_HW.any():
        part_HW = np.zeros_like(left_HW)
        part_HW[np.unravel_index(int(np.argmax(left_HW)), left_HW.shape)] = True
        size = 0
        while size != (size := int(part_HW.sum())):
            part_HW = _grown(part_HW) & left_HW
        left_HW &= ~part_HW
        if size >= MIN_PIXELS:
            yield part_HW


def _grown(mask_HW: Mask) -> Mask:
    """Return the mask with its eight neighbours."""
    padded = np.pad(mask_HW, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _dominant_color(rgb_N3: Floats, strength_N: Floats) -> Floats:
    """Return the median of the most frequent named colour among the pixels that stand out most.

    Edge pixels are blends with the background and would be misnamed (red on white looks pink).
    """
    core_N3 = rgb_N3[strength_N >= 0.8 * np.quantile(strength_N, 0.9)]
    names = tuple(world.COLORS)
    named: dict[str | None, list[Floats]] = {}
    for rgb in core_N3:
        named.setdefault(name_color(rgb, names), []).append(rgb)
    color: Floats = np.median(np.array(max(named.values(), key=len)), axis=0)
    return color


def _unmix(rgb_HW3: Floats, background: Floats, color: Floats) -> tuple[Floats, Floats]:
    """Return per pixel the share of `color` over the background, and the distance from it."""
    axis = color - background
    alpha_HW = (rgb_HW3 - background) @ axis / (axis @ axis)
    blend_HW3 = background + alpha_HW.clip(0, 1.0)[..., None] * axis
    return alpha_HW, np.linalg.norm(rgb_HW3 - blend_HW3, axis=2)


def _identify(alpha_HW: Floats, color: Floats) -> FoundObject:
    outline_GG, x, y, root_area = _normalised(alpha_HW)
    overlap_P = _overlaps(outline_GG.astype(np.float32), _prototype_outlines())
    prototypes = _prototypes()
    best = int(np.argmax(overlap_P))
    kind = prototypes[best]
    rival = max(o for o, p in zip(overlap_P, prototypes, strict=True) if p.shape != kind.shape)
    needed = MIN_CIRCLE_OVERLAP if kind.shape == "circle" else MIN_OVERLAP
    clear = overlap_P[best] >= needed and overlap_P[best] - rival >= MIN_OVERLAP_LEAD
    height, width = alpha_HW.shape
    extent = root_area * kind.extent_per_root_area
    return FoundObject(
        shape=kind.shape if clear else None,
        color=name_color(color, tuple(world.COLORS)),
        size="large" if extent / min(width, height) > LARGE_EXTENT else "small",
        x=(x - kind.offset_x * root_area) / width,
        y=(y - kind.offset_y * root_area) / height,
        extent=extent / min(width, height),
        overlap=float(overlap_P[best]),
    )


def _normalised(alpha_HW: Floats) -> tuple[Floats, float, float, float]:
    """Return the coverage centred and scaled by the root of its area; centroid x, y and that root.

    Positions and the root are in pixels; a fully covered pixel counts 1 to the area.
    """
    area = alpha_HW.sum()
    rows, columns = np.mgrid[: alpha_HW.shape[0], : alpha_HW.shape[1]] + 0.5
    x, y = float((alpha_HW * columns).sum() / area), float((alpha_HW * rows).sum() / area)
    root_area = float(np.sqrt(area))
    steps = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    outline_GG = _bilinear(alpha_HW, y + steps * root_area - 0.5, x + steps * root_area - 0.5)
    return outline_GG, x, y, root_area


def _bilinear(values_HW: Floats, rows: Floats, columns: Floats) -> Floats:
    """Return the values at the crossings of fractional rows and columns; 0 outside."""
    padded = np.pad(values_HW, 1)
    rows = (rows + 1).clip(0, padded.shape[0] - 1.001)
    columns = (columns + 1).clip(0, padded.shape[1] - 1.001)
    top, left = rows.astype(int), columns.astype(int)
    down, across = (rows - top)[:, None], (columns - left)[None, :]
    near, far = padded[np.ix_(top, left)], padded[np.ix_(top, left + 1)]
    upper = near * (1 - across) + far * across
    near, far = padded[np.ix_(top + 1, left)], padded[np.ix_(top + 1, left + 1)]
    lower = near * (1 - across) + far * across
    values_GG: Floats = upper * (1 - down) + lower * down
    return values_GG


def _overlaps(outline_GG: Floats, outlines_PGG: Floats) -> Floats:
    shared = np.minimum(outline_GG, outlines_PGG).sum(axis=(1, 2))
    overlap_P: Floats = shared / np.maximum(outline_GG, outlines_PGG).sum(axis=(1, 2))
    return overlap_P


@dataclass(frozen=True)
class _Prototype:
    """A rendered shape. Offsets run from nominal centre to centroid, in roots of its area."""

    shape: str
    offset_x: float
    offset_y: float
    extent_per_root_area: float
    outline_GG: Floats


@functools.cache
def _prototypes() -> tuple[_Prototype, ...]:
    """Return every shape in several extents, proportions and rotations, crisp and soft."""
    extents = (world.VARIED_EXTENTS["small"][0], *world.CANONICAL_EXTENTS.values())
    return tuple(
        _prototype(shape, extent, proportion, rotation, blur)
        for shape in world.SHAPES
        for extent, blur in itertools.product(extents, (0.0, 1.0))
        for proportion, rotation in itertools.product(_proportions(shape), _rotations(shape))
    )


def _proportions(shape: str) -> tuple[float, ...]:
    return (0.5,) if shape in ("circle", "square") else (0.0, 0.25, 0.5, 0.75, 1.0)


def _rotations(shape: str) -> tuple[float, ...]:
    if shape == "circle":
        return (0.0,)
    upright = (-9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0)
    return upright + tuple(45.0 + angle for angle in upright) if shape == "cross" else upright


@functools.cache
def _prototype_outlines() -> Floats:
    return np.stack([prototype.outline_GG for prototype in _prototypes()]).astype(np.float32)


def _prototype(
    shape: str, extent: float, proportion: float, rotation: float, blur: float
) -> _Prototype:
    black = (0, 0, 0)
    item = world.Object(shape, "black", "small", 0.5, 0.5, extent, black, rotation, proportion)
    picture = world.render(world.Scene((item,), "white", (255, 255, 255)), WORKING_PX)
    picture = picture.filter(ImageFilter.GaussianBlur(blur))
    alpha_HW = 1 - np.asarray(picture.convert("L"), dtype=np.float64) / 255
    outline_GG, x, y, root_area = _normalised(alpha_HW)
    middle = WORKING_PX / 2
    return _Prototype(
        shape,
        (x - middle) / root_area,
        (y - middle) / root_area,
        extent * WORKING_PX / root_area,
        outline_GG,
    )


@functools.cache
def _shades(names: tuple[str, ...]) -> tuple[Floats, tuple[str, ...]]:
    """Return every accepted shade of the names in CIELAB, and whose each is."""
    exact = world.COLORS | world.BACKGROUNDS
    pairs = [(rgb, name) for name in names for rgb in (exact[name], *world.OTHER_SHADES[name])]
    shades = np.array([_lab(np.array(rgb, dtype=np.float64)) for rgb, _ in pairs])
    return shades, tuple(name for _, name in pairs)


def _lab(rgb: Floats) -> Floats:
    """Return CIELAB (D65) of an sRGB colour in 0..255, formulas of IEC 61966-2-1 and CIE 15."""
    v = rgb / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
