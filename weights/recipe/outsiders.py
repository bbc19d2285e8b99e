"""Scenes drawn by another program, asked about and asked for in a person's own words.

Owns a second renderer and second phrasings, on purpose without a line in common with `world`,
`language` and `captions`: plain named colours, other proportions, no anti-aliasing, 256 to 400 px.
Nothing here is trained on. Its combinations are any, so its figures are about the style, not about
unseen combinations.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from weights.recipe.exam import Commission, Question
from weights.recipe.verdict import RequiredObject, Requirement

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
# As CSS names them, but for the green and the purple of drawing programs.
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "pink": (255, 182, 193),
    "cyan": (0, 255, 255),
    "black": (0, 0, 0),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (160, 160, 160), "beige": (245, 245, 220)}
DIAMETERS = {"small": (0.18, 0.24), "large": (0.37, 0.42)}
NUMBERS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Figure:
    """A shape with its centre and diameter as fractions of the side."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    diameter: float

    @property
    def name(self) -> str:
        return f"a {self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Drawing:
    """One or two figures of different shape and colour; of two, the first is further left or up."""

    figures: tuple[Figure, ...]
    background: str

    @property
    def first(self) -> Figure:
        return self.figures[0]

    @property
    def last(self) -> Figure:
        return self.figures[-1]

    @property
    def side_by_side(self) -> bool:
        return abs(self.first.x - self.last.x) > abs(self.first.y - self.last.y)


def outside_questions(count: int, *, seed: int = 3) -> list[Question]:
    """Return questions in a person's words, each on a drawing of its own."""
    rng = random.Random(seed)
    exam = []
    for i in range(count):
        kind, num_figures, ask = _ASKERS[i % len(_ASKERS)]
        drawing = _compose(rng, num_figures or rng.choice((1, 2)))
        text, answer = ask(drawing, rng)
        exam.append(
            Question(kind, _paint(drawing, rng.choice((256, 300, 384, 400))), text, (answer,))
        )
    return exam


def outside_captions() -> list[Commission]:
    """Return captions as people write them."""
    return [_commission(line) for line in _CAPTIONS.strip().splitlines()]


def _compose(rng: random.Random, num_figures: int) -> Drawing:
    shapes = rng.sample(SHAPES, num_figures)
    colors = rng.sample(tuple(COLORS), num_figures)
    background = rng.choice(tuple(BACKGROUNDS))
    if num_figures == 1:
        centres = [(rng.choice((0.23, 0.5, 0.77)), rng.choice((0.23, 0.5, 0.77)))]
    elif rng.random() < 0.5:
        centres = [(0.26, 0.5), (0.74, 0.5)]
    else:
        centres = [(0.5, 0.26), (0.5, 0.74)]
    figures = []
    for shape, color, (x, y) in zip(shapes, colors, centres, strict=True):
        if color == "pink" and background == "beige":
            background = "white"  # nobody tells these two apart at a glance
        size = rng.choice(tuple(DIAMETERS))
        x, y = x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)
        figures.append(Figure(shape, color, size, x, y, rng.uniform(*DIAMETERS[size])))
    return Drawing(tuple(figures), background)


def _paint(drawing: Drawing, px: int) -> Image.Image:
    picture = Image.new("RGB", (px, px), BACKGROUNDS[drawing.background])
    draw = ImageDraw.Draw(picture)
    for figure in drawing.figures:
        cx, cy, r = figure.x * px, figure.y * px, figure.diameter * px / 2
        box, fill = (cx - r, cy - r, cx + r, cy + r), COLORS[figure.color]
        match figure.shape:
            case "circle":
                draw.ellipse(box, fill=fill)
            case "square":
                draw.rectangle(box, fill=fill)
            case "triangle":
                half = r * math.sqrt(3) / 2
                draw.polygon([(cx, cy - half), (cx - r, cy + half), (cx + r, cy + half)], fill=fill)
            case "star":
                draw.polygon([_on_ring(cx, cy, r, i) for i in range(10)], fill=fill)
            case "diamond":
                points = [(cx, cy - r), (cx + 0.8 * r, cy), (cx, cy + r), (cx - 0.8 * r, cy)]
                draw.polygon(points, fill=fill)
            case _:
                arm = r / 3
                draw.rectangle((cx - arm, cy - r, cx + arm, cy + r), fill=fill)
                draw.rectangle((cx - r, cy - arm, cx + r, cy + arm), fill=fill)
    return picture


def _on_ring(cx: float, cy: float, radius: float, i: int) -> tuple[float, float]:
    """Return corner `i` of a pentagram: its inner corners lie at 0.382 of the radius."""
    radius *= 1.06 * (0.382 if i % 2 else 1.0)
    return cx + radius * math.sin(i * math.pi / 5), cy - radius * math.cos(i * math.pi / 5)


def _place(figure: Figure) -> str:
    column = "left" if figure.x < 1 / 3 else "right" if figure.x > 2 / 3 else ""
    row = "top" if figure.y < 1 / 3 else "bottom" if figure.y > 2 / 3 else ""
    return f"{row} {column}".strip() or "center"


def _all(drawing: Drawing) -> str:
    return " and ".join(figure.name for figure in drawing.figures)


def _sentence(drawing: Drawing) -> str:
    first, last = drawing.first, drawing.last
    end = f"on a {drawing.background} background."
    if len(drawing.figures) == 1:
        return f"A{first.name[1:]} {end}"
    relation = "to the left of" if drawing.side_by_side else "above"
    return f"A{first.name[1:]} is {relation} {last.name} {end}"


def _truth(rng: random.Random, right: str, others: tuple[str, ...]) -> tuple[str, str]:
    """Return a claim that is right every other time, and "yes" or "no"."""
    if rng.random() < 0.5:
        return right, "yes"
    return rng.choice([other for other in others if other != right]), "no"


def _missing(drawing: Drawing, rng: random.Random) -> str:
    return rng.choice([s for s in SHAPES if all(s != figure.shape for figure in drawing.figures)])


def _ask_existence_of_shape(drawing: Drawing, rng: random.Random) -> tuple[str, str]:
    there = rng.random() < 0.5
    shape = drawing.last.shape if there else _missing(drawing, rng)
    return f"is there a {shape} somewhere?", "yes" if there else "no"


def _ask_existence_of_color(drawing: Drawing, rng: random.Random) -> tuple[str, str]:
    used = [figure.color for figure in drawing.figures]
    there = rng.random() < 0.5
    color = used[0] if there else rng.choice([c for c in COLORS if c not in used])
    return f"Can you see something {color}?", "yes" if there else "no"


def _ask_side(drawing: Drawing, _: random.Random) -> tuple[str, str]:
    first, last = drawing.first.shape, drawing.last.shape
    if drawing.side_by_side:
        return f"Is the {first} to the left or to the right of the {last}?", "left"
    return f"Is the {first} above or below the {last}?", "above"


def _ask_relation_truth(drawing: Drawing, rng: random.Random) -> tuple[str, str]:
    words = ("to the left of", "to the right of") if drawing.side_by_side else ("above", "below")
    claim, answer = _truth(rng, words[1], words)
    return f"is the {drawing.last.color} shape {claim} the {drawing.first.color} one?", answer


def _ask_absent(drawing: Drawing, rng: random.Random) -> tuple[str, str]:
    shape = _missing(drawing, rng)
    return f"Which color is the {shape}?", f"There is no {shape}."


def _ask_beside(drawing: Drawing, _: random.Random) -> tuple[str, str]:
    word = "to the right of" if drawing.side_by_side else "below"
    return f"What is {word} the {drawing.first.shape}?", drawing.last.name


Asker = Callable[[Drawing, random.Random], tuple[str, str]]

# Kind, number of figures (0: one or two), question and answer.
_ASKERS: tuple[tuple[str, int, Asker], ...] = (
    ("what", 1, lambda d, _: ("What is drawn here?", d.first.name)),
    ("what", 2, lambda d, _: ("what do you see in this picture?", _all(d))),
    ("what", 0, lambda d, _: ("What objects do you see?", _all(d))),
    ("color", 1, lambda d, _: ("what colour is it", d.first.color)),
    ("color", 2, lambda d, _: (f"Which colour does the {d.last.shape} have?", d.last.color)),
    ("color", 0, lambda d, _: (f"What color is that {d.first.shape}?", d.first.color)),
    ("shape", 1, lambda d, _: ("what kind of shape do you see?", d.first.shape)),
    ("shape", 2, lambda d, _: (f"What shape is the {d.first.color} thing?", d.first.shape)),
    ("shape", 0, lambda d, _: (f"Which shape is {d.last.color}?", d.last.shape)),
    ("count", 0, lambda d, _: ("how many objects do you see?", NUMBERS[len(d.figures)])),
    ("count", 0, lambda d, _: ("How many shapes are in this image?", NUMBERS[len(d.figures)])),
    ("count", 2, lambda d, _: (f"How many {d.last.color} objects are there?", "one")),
    ("existence", 0, _ask_existence_of_shape),
    ("existence", 0, _ask_existence_of_color),
    ("size", 1, lambda d, _: ("Is it a small or a large one?", d.first.size)),
    ("size", 2, lambda d, _: (f"how big is the {d.last.shape}?", d.last.size)),
    ("size", 0, lambda d, _: (f"Is the {d.first.color} object large or small?", d.first.size)),
    ("place", 1, lambda d, _: ("where is it?", _place(d.first))),
    ("place", 1, lambda d, _: (f"Where in the image is the {d.first.shape}?", _place(d.first))),
    ("place", 2, lambda d, _: (f"Where do I find the {d.last.color} shape?", _place(d.last))),
    ("relation", 2, _ask_side),
    ("relation", 2, _ask_relation_truth),
    ("relation", 2, _ask_beside),
    ("background", 0, lambda d, _: ("what is the background colour?", d.background)),
    ("background", 0, lambda d, _: ("What color is the background of this image?", d.background)),
    ("describe", 0, lambda d, _: ("Describe the image.", _sentence(d))),
    ("describe", 0, lambda d, _: ("please describe this picture", _sentence(d))),
    ("absent", 0, _ask_absent),
)

# Kind | caption | objects "[size] color shape [@ place]" | relation of the first to the second |
# background.
_CAPTIONS = """
one | a large red circle on a white background | large red circle | | white
one | A small blue star. | small blue star | |
one | green triangle | green triangle | |
one | Draw a big yellow square on a gray background | large yellow square | | gray
one | a black cross | black cross | |
one | Please draw a large pink diamond. | large pink diamond | |
one | an orange circle on beige | orange circle | | beige
one | a tiny cyan square | small cyan square | |
place | a small purple star in the top left corner | small purple star @ top left | |
place | a red triangle in the middle | red triangle @ center | |
place | small green circle at the bottom right | small green circle @ bottom right | |
place | a black square in the top right | black square @ top right | |
two | a blue star to the left of a yellow square | blue star; yellow square | left |
two | A green circle above a red cross | green circle; red cross | above |
two | a pink triangle below a black diamond | pink triangle; black diamond | below |
two | large orange star right of a small cyan circle | large orange star; small cyan circle | right |
two | a red square and a blue circle | red square; blue circle | |
two | a yellow diamond and a purple triangle on gray | yellow diamond; purple triangle | | gray
two | draw a red star above a green star | red star; green star | above |
two | two blue circles | blue circle; blue circle | |
two | Two small red stars on a white background. | small red star; small red star | | white
three | a red circle, a green square and a blue triangle | red circle; green square; blue triangle | |
three | three small yellow diamonds | small yellow diamond; small yellow diamond; small yellow diamond | |
three | black star left of a pink circle and an orange square | black star; pink circle; orange square | left |
"""  # noqa: E501


def _commission(line: str) -> Commission:
    kind, caption, objects, relation, background = (cell.strip() for cell in line.split("|"))
    required = tuple(_required(words) for words in objects.split(";"))
    relations = ((0, relation, 1),) if relation else ()
    return Commission(kind, caption, Requirement(required, relations, background or None))


def _required(words: str) -> RequiredObject:
    look, _, place = words.partition(" @ ")
    *size, color, shape = look.split()
    return RequiredObject(shape, color, size[0] if size else None, place.strip() or None)
