"""The world of janus-mini: scenes of one to three flat shapes, how they are drawn by chance, how
they look.

Owns the vocabulary of the world (shapes, colours, sizes, backgrounds, places, relations), the
sampler, the renderer, and the split into trained and held-out combinations. Knows nothing of words
around it (`language`) nor of models. Invariant: a combination is either trained or held out, by a
hash that depends on nothing else.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "pink": (245, 150, 190),
    "cyan": (60, 200, 220),
    "black": (20, 20, 20),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (250, 250, 250),
    "gray": (170, 170, 170),
    "beige": (235, 220, 190),
}
SIZES = ("small", "large")
RELATIONS = ("left", "right", "above", "below")

# What other programs call by the same names (CSS colours and common palettes).
OTHER_SHADES: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (200, 30, 30), (214, 39, 40)),
    "green": ((0, 128, 0), (0, 180, 0), (34, 139, 34), (0, 200, 0)),
    "blue": ((0, 0, 255), (30, 60, 200), (31, 90, 200)),
    "yellow": ((255, 255, 0), (255, 221, 0), (250, 220, 60)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14)),
    "purple": ((128, 0, 128), (148, 0, 211), (120, 50, 160)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 150, 180)),
    "cyan": ((0, 255, 255), (0, 200, 210), (80, 220, 230)),
    "black": ((0, 0, 0), (40, 40, 40)),
    "white": ((255, 255, 255), (245, 245, 245)),
    "gray": ((128, 128, 128), (190, 190, 190), (150, 150, 150)),
    "beige": ((245, 245, 220), (240, 228, 200), (225, 210, 175)),
}

# Diameters as fractions of the picture's short side; between small and large nothing is ever drawn.
VARIED_EXTENTS: dict[str, tuple[float, float]] = {"small": (0.14, 0.29), "large": (0.36, 0.58)}
CANONICAL_EXTENTS: dict[str, float] = {"small": 16 / 64, "large": 28 / 64}
# The more large objects a scene may hold, the smaller the largest of them has to be.
LARGEST_BY_COUNT = {1: 0.58, 2: 0.47, 3: 0.43}
# Centres of canonical objects: the corners between VQ codes, so that a shape falls into few
# distinct codes.
CANONICAL_GRID = tuple(i / 8 for i in range(1, 8))

# A place is named only when its centre keeps this distance from the lines of the 3x3 grid.
PLACE_MARGIN = 0.035
# A relation is named only when one axis separates the centres by this much ...
RELATION_DISTANCE = 0.19
# ... and the other axis by no more than this share of it.
RELATION_SLACK = 0.62


@dataclass(frozen=True)
class Object:
    """A shape at (x, y), fractions of the picture's sides from its top left corner.

    `extent` is the diameter as a fraction of the short side; `proportion` (0..1) picks among the
    accepted forms of a shape (a slimmer diamond, a fatter cross); `rotation` is in degrees.
    """

    shape: str
    color: str
    size: str
    x: float
    y: float
    extent: float
    rgb: Rgb
    rotation: float = 0.0
    proportion: float = 0.5


@dataclass(frozen=True)
class Scene:
    """One to three objects on a background, in a picture of the given width / height `aspect`."""

    objects: tuple[Object, ...]
    background: str
    background_rgb: Rgb
    aspect: float = 1.0


def make_object(shape: str, color: str, size: str, *, x: float, y: float) -> Object:
    """Return the canonical object: exact colour, one extent per size, no rotation."""
    return Object(shape, color, size, x, y, CANONICAL_EXTENTS[size], COLORS[color])


def make_scene(objects: Iterable[Object], background: str) -> Scene:
    """Return a canonical square scene."""
    return Scene(tuple(objects), background, BACKGROUNDS[background])


def place_of(item: Object) -> str | None:
    """Return "top left" ... "center" ... "bottom right", or None when the centre is too near a grid
    line."""
    if any(abs(v - line) < PLACE_MARGIN for v in (item.x, item.y) for line in (1 / 3, 2 / 3)):
        return None
    column = ("left", "", "right")[min(2, int(item.x * 3))]
    row = ("top", "", "bottom")[min(2, int(item.y * 3))]
    return f"{row} {column}".strip() or "center"


def relation_of(item: Object, other: Object) -> str | None:
    """Return where `item` is, seen from `other`: one of RELATIONS, or None when no single word is
    clearly right."""
    dx, dy = item.x - other.x, item.y - other.y
    major, minor = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if major < RELATION_DISTANCE or minor > RELATION_SLACK * major:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def combination(scene: Scene) -> str:
    """Return the key that is trained or held out: the whole look of a single object, else the set
    of coloured shapes."""
    if len(scene.objects) == 1:
        item = scene.objects[0]
        return f"{item.size} {item.color} {item.shape} on {scene.background}"
    return ", ".join(sorted(f"{item.color} {item.shape}" for item in scene.objects))


def is_held_out(scene: Scene) -> bool:
    """Return whether training must never see this scene's combination (one in ten)."""
    return zlib.crc32(combination(scene).encode()) % 10 == 0


def sample_scene(
    rng: random.Random,
    *,
    held_out: bool = False,
    varied: bool = True,
    num_objects: int | None = None,
) -> Scene:
    """Return a scene from the trained or the held-out combinations.

    `varied` scenes (for understanding) jitter position, size, shade, rotation and proportions; the
    others (for drawing) have exact colours, two sizes, and centres on a grid.
    """
    while True:
        count = num_objects or rng.choices((1, 2, 3), weights=(3, 4, 3))[0]
        scene = _sample_any(rng, count, varied)
        if scene is not None and is_held_out(scene) == held_out:
            return scene


def render(
    scene: Scene, px: int = 64, *, supersample: int = 4, resample: int = Image.Resampling.BOX
) -> Image.Image:
    """Return the picture, RGB, with a short side of `px` pixels; `supersample=1` draws without
    anti-aliasing."""
    width = round(px * max(1.0, scene.aspect))
    height = round(px * max(1.0, 1 / scene.aspect))
    canvas = Image.new("RGB", (width * supersample, height * supersample), scene.background_rgb)
    draw = ImageDraw.Draw(canvas)
    short = px * supersample
    for item in scene.objects:
        cx, cy = item.x * canvas.width, item.y * canvas.height
        diameter = item.extent * short
        # Pillow fills polygons up to and including their last pixel: half a pixel keeps shapes
        # centred.
        points = [(cx + u * diameter - 0.5, cy + v * diameter - 0.5) for u, v in _outline(item)]
        draw.polygon(points, fill=item.rgb)
    if supersample > 1:
        canvas = canvas.resize((width, height), resample)
    return canvas


def _sample_any(rng: random.Random, count: int, varied: bool) -> Scene | None:
    background = rng.choice(tuple(BACKGROUNDS))
    kinds = [
        (rng.choice(SHAPES), rng.choice(tuple(COLORS)), rng.choice(SIZES)) for _ in range(count)
    ]
    if count > 1 and rng.random() < 0.15:
        # Chance alone would hardly ever draw "two red circles".
        kinds[1] = kinds[0]
    if varied and count > 1 and rng.random() < 0.2:
        # The same shape or colour twice: what tells them apart has to be looked at.
        kinds[1] = (
            (kinds[0][0], kinds[1][1], kinds[1][2])
            if rng.random() < 0.5
            else (kinds[1][0], kinds[0][1], kinds[1][2])
        )
    aligned = count > 1 and rng.random() < 0.6
    for _ in range(12):
        objects = _place_objects(rng, kinds, varied=varied)
        if objects is not None and not (aligned and not _clearly_related(objects)):
            break
    else:
        return None
    if not varied:
        return make_scene(objects, background)
    aspect = math.exp(rng.uniform(-0.3, 0.3)) if rng.random() < 0.15 else 1.0
    return Scene(objects, background, _shade(rng, background, BACKGROUNDS[background]), aspect)


def _clearly_related(objects: tuple[Object, ...]) -> bool:
    return all(relation_of(a, b) is not None for a, b in itertools.pairwise(objects))


def _place_objects(
    rng: random.Random, kinds: list[tuple[str, str, str]], *, varied: bool
) -> tuple[Object, ...] | None:
    """Return objects that do not touch, or None when they found no room."""
    placed: list[Object] = []
    # Large objects first, or they find no room.
    for shape, color, size in sorted(kinds, key=lambda kind: kind[2]):
        for _ in range(20):
            if varied:
                item = _varied_object(rng, (shape, color, size), LARGEST_BY_COUNT[len(kinds)])
                gap = 0.03
            else:
                item = _canonical_object(rng, shape, color, size)
                gap = 3 / 64
            if all(_apart(item, other, gap) for other in placed):
                placed.append(item)
                break
        else:
            return None
    rng.shuffle(placed)
    return tuple(placed)


def _apart(item: Object, other: Object, gap: float) -> bool:
    distance = max(abs(item.x - other.x), abs(item.y - other.y))
    return distance >= (item.extent + other.extent) / 2 + gap


def _canonical_object(rng: random.Random, shape: str, color: str, size: str) -> Object:
    inside = [
        v
        for v in CANONICAL_GRID
        if CANONICAL_EXTENTS[size] / 2 < v < 1 - CANONICAL_EXTENTS[size] / 2
    ]
    return make_object(shape, color, size, x=rng.choice(inside), y=rng.choice(inside))


def _varied_object(rng: random.Random, kind: tuple[str, str, str], largest: float) -> Object:
    shape, color, size = kind
    low, high = VARIED_EXTENTS[size]
    extent = rng.uniform(low, min(high, largest))
    room = extent / 2 + 0.01
    x, y = rng.uniform(room, 1 - room), rng.uniform(room, 1 - room)
    rotation = rng.uniform(-10, 10) if rng.random() < 0.6 else 0.0
    if shape == "cross" and rng.random() < 0.08:
        rotation += 45.0
    item = make_object(shape, color, size, x=x, y=y)
    return replace(
        item,
        extent=extent,
        rgb=_shade(rng, color, COLORS[color]),
        rotation=rotation,
        proportion=rng.random(),
    )


def _shade(rng: random.Random, name: str, exact: Rgb) -> Rgb:
    base = rng.choice(OTHER_SHADES[name]) if rng.random() < 0.4 else exact
    if rng.random() < 0.2:
        return base
    # Backgrounds are nearer to each other than figure colours are.
    spread = 18 if name in COLORS else 7
    red, green, blue = (min(255, max(0, v + rng.randint(-spread, spread))) for v in base)
    return red, green, blue


def _outline(item: Object) -> list[tuple[float, float]]:
    """Return the corners around (0, 0) for a diameter of 1, rotated."""
    p = item.proportion
    match item.shape:
        case "circle":
            points = _spokes(64, (0.5,))
        case "square":
            half = 0.5
            points = [(-half, -half), (half, -half), (half, half), (-half, half)]
        case "triangle":
            height = 0.8 + 0.2 * p
            points = [(0.0, -height / 2), (0.5, height / 2), (-0.5, height / 2)]
        case "star":
            points = _spokes(10, (0.53, 0.53 * (0.36 + 0.16 * p)))
        case "diamond":
            half = 0.36 + 0.14 * p
            points = [(0.0, -0.5), (half, 0.0), (0.0, 0.5), (-half, 0.0)]
        case _:
            arm = 0.12 + 0.1 * p
            points = [
                (-arm, -0.5), (arm, -0.5), (arm, -arm), (0.5, -arm), (0.5, arm), (arm, arm),
                (arm, 0.5), (-arm, 0.5), (-arm, arm), (-0.5, arm), (-0.5, -arm), (-arm, -arm),
            ]  # fmt: skip
    angle = math.radians(item.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    return [(u * cos - v * sin, u * sin + v * cos) for u, v in points]


def _spokes(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Return `count` points around the centre from the top clockwise, at the radii in turn."""
    turns = ((i, 2 * math.pi * i / count) for i in range(count))
    return [
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i, a in turns
    ]
