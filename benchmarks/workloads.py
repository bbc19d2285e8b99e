"""What the comparisons ask for: pictures to draw and questions about images.

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

FORTY_WORDS = (
    "Look at the picture and tell me which shapes you see, what color each of them has, where they "
    "are placed, which one is the largest of all, and what color the background has behind all of "
    "these shapes together?",
    "Please count the shapes in the image first, then say for every one of them whether it is "
    "large or small, and at the end describe the background and tell me if there is a star beside "
    "a large square?",
)
"""Two questions of exactly forty words about one image."""

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to draw, always guided."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question, usually about an image of its own, answered greedily in exactly `num_tokens`
    tokens."""

    text: str
    image: Image.Image | None
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Work that arrives at once."""

    name: str
    pictures: tuple[Picture, ...] = ()
    questions: tuple[Question, ...] = ()


def workloads(side_px: int, *, answer_tokens: int) -> tuple[Workload, ...]:
    """Return the four workloads; images are `side_px` wide and high, as the tower takes them."""
    questions = tuple(
        Question(text, scene(side_px, index), answer_tokens) for index, text in enumerate(QUESTIONS)
    )
    return (
        Workload("one image", pictures=pictures(1)),
        Workload("8 images", pictures=pictures(8)),
        Workload("8 questions", questions=questions),
        Workload("4 images and 4 questions", pictures=pictures(4), questions=questions[4:]),
    )


def pictures(count: int) -> tuple[Picture, ...]:
    """The first `count` pictures, at most as many as there are prompts."""
    return tuple(Picture(prompt, seed) for seed, prompt in enumerate(PROMPTS[:count]))


def chats(count: int, *, answer_tokens: int) -> tuple[Question, ...]:
    """The first `count` questions, without images."""
    return tuple(Question(text, None, answer_tokens) for text in QUESTIONS[:count])


def scene(side_px: int, index: int) -> Image.Image:
    """A circle and a square; no two of the first eight indices give the same picture."""
    image = Image.new("RGB", (side_px, side_px), "white")
    draw = ImageDraw.Draw(image)
    unit = side_px / 16
    draw.ellipse((unit, unit, 7 * unit, 7 * unit), fill=COLORS[index % len(COLORS)])
    draw.rectangle(
        (9 * unit, 9 * unit, 14 * unit, 14 * unit), fill=COLORS[(index + 3) % len(COLORS)]
    )
    return image
