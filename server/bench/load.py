"""What is asked of the server, and when.

Owns the workloads and the arrivals; knows neither HTTP nor what came back. Invariant: the same seed
gives the same bodies in the same order, and the same arrival times.
"""

import base64
import io
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from PIL import Image, ImageDraw

from janus_core.errors import ParameterError

Kind = Literal["chat", "vqa", "image"]
Workload = Literal["chat", "vqa", "images", "mix"]

CHAT_PATH, IMAGE_PATH = "/v1/chat/completions", "/v1/images/generations"

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
QUESTIONS = (
    "What color is the {shape}?",
    "How many shapes are there?",
    "Is there a {color} {shape}?",
    "Describe the image.",
    "What shape is {place}?",
)
SCENE_PX = 256


@dataclass(frozen=True, slots=True)
class Job:
    """One request to send."""

    kind: Kind
    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """`image_share` is the share of pictures in the mix; of the rest, half ask about an image.

    `max_tokens` bounds an answer, `ignore_eos` makes every answer as long as that. `previews` are
    asked of every picture. `num_scenes` different images are asked about, so that some questions
    find theirs in the server's caches; 0 is a new image for every question.
    """

    workload: Workload = "mix"
    seed: int = 0
    max_tokens: int = 64
    ignore_eos: bool = False
    previews: int = 1
    image_share: float = 0.5
    num_scenes: int = 0
    model: str | None = None


def workload_named(name: str) -> Workload:
    """Raises ParameterError for a name that is none."""
    for known in get_args(Workload):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ParameterError(
        f"workload must be one of {', '.join(get_args(Workload))}, but is {name}.",
        param="workload",
    )


def jobs(options: LoadOptions) -> Iterator[Job]:
    """Requests without end; each with a seed of its own."""
    rng = random.Random(options.seed)
    number = 0
    while True:
        kind = _kind(options, rng)
        seed = rng.randrange(2**31)
        if kind == "image":
            yield _picture(options, rng, seed=seed)
        else:
            scene = rng.randrange(options.num_scenes) if options.num_scenes else number
            image = _scene(options.seed, scene) if kind == "vqa" else None
            yield _question(options, rng, seed=seed, image=image)
        number += 1


def arrivals(rate_per_s: float, *, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests arrive, without end: a Poisson process."""
    rng = random.Random(seed)
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate_per_s)
        yield at_s


def _kind(options: LoadOptions, rng: random.Random) -> Kind:
    if options.workload == "mix":
        if rng.random() < options.image_share:
            return "image"
        return "vqa" if rng.random() < 0.5 else "chat"
    return "image" if options.workload == "images" else options.workload


def _words(template: str, rng: random.Random) -> str:
    return template.format(
        color=rng.choice(COLORS), shape=rng.choice(SHAPES), place=rng.choice(PLACES)
    )


def _picture(options: LoadOptions, rng: random.Random, *, seed: int) -> Job:
    body: dict[str, Any] = {
        "prompt": _words("a {color} {shape} {place}", rng),
        "seed": seed,
        "stream": True,
        "partial_images": options.previews,
    }
    return Job("image", IMAGE_PATH, _named(body, options))


def _question(options: LoadOptions, rng: random.Random, *, seed: int, image: str | None) -> Job:
    text = _words(rng.choice(QUESTIONS), rng)
    parts = [{"type": "text", "text": text}]
    content: Any = text
    if image is not None:
        content = [{"type": "image_url", "image_url": {"url": image}}, *parts]
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": options.max_tokens,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        body["ignore_eos"] = True
    return Job("chat" if image is None else "vqa", CHAT_PATH, _named(body, options))


def _named(body: dict[str, Any], options: LoadOptions) -> dict[str, Any]:
    return body if options.model is None else body | {"model": options.model}


def _scene(seed: int, number: int) -> str:
    """A PNG with three discs and squares, as a data URL."""
    rng = random.Random(f"{seed} {number}")
    image = Image.new("RGB", (SCENE_PX, SCENE_PX), rng.choice(("white", "gray", "beige")))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = rng.randrange(SCENE_PX // 2), rng.randrange(SCENE_PX // 2)
        size = rng.randrange(SCENE_PX // 8, SCENE_PX // 2)
        figure = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        figure((left, top, left + size, top + size), fill=rng.choice(COLORS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
