"""What the engine benchmark asks for: pictures to draw and questions about images.

Owns prompts, images and seeds, and nothing else: it knows neither model nor engine. Invariant: the
same name always gives the same work, so that results of different days compare.
"""

from dataclasses import dataclass

from PIL import Image, ImageDraw

PROMPTS = (
    "a large red circle on a white background",
    "a blue star to the left of a yellow square",
    "a small green triangle on gray",
    "a large purple diamond above a small black cross on a beige background",
    "an orange square",
    "a cyan star in the top right corner on a white background",
    "a small pink circle below a large blue triangle",
    "a yellow diamond, a red cross and a green circle on a gray background",
)

QUESTIONS = (
    "What color is the circle?",
    "How many shapes are there?",
    "Is there a star?",
    "Describe the image.",
    "What is the background color?",
    "What shape is on the left?",
    "Is the square large or small?",
    "Where is the triangle in the picture?",
)

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to draw, always guided."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image of its own, answered greedily in exactly `num_tokens` tokens."""

    text: str
    image: Image.Image
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Work that arrives at once."""

    name: str
    pictures: tuple[Picture, ...] = ()
    questions: tuple[Question, ...] = ()


def workloads(side_px: int, *, answer_tokens: int) -> tuple[Workload, ...]:
    """Return the four workloads; images are `side_px` wide and high, as the tower takes them."""
    pictures = tuple(Picture(prompt, seed) for seed, prompt in enumerate(PROMPTS))
    questions = tuple(
        Question(text, _scene(side_px, index), answer_tokens)
        for index, text in enumerate(QUESTIONS)
    )
    return (
        Workload("one image", pictures=pictures[:1]),
        Workload("8 images", pictures=pictures),
        Workload("8 questions", questions=questions),
        Workload("4 images and 4 questions", pictures=pictures[:4], questions=questions[4:]),
    )


def _scene(side_px: int, index: int) -> Image.Image:
    """Return a circle and a square; no two indices give the same picture."""
    image = Image.new("RGB", (side_px, side_px), "white")
    draw = ImageDraw.Draw(image)
    unit = side_px / 16
    draw.ellipse((unit, unit, 7 * unit, 7 * unit), fill=COLORS[index % len(COLORS)])
    draw.rectangle(
        (9 * unit, 9 * unit, 14 * unit, 14 * unit), fill=COLORS[(index + 3) % len(COLORS)]
    )
    return image
