"""The tasks janus-mini is examined by: questions about scenes and captions that training never saw.

Owns how held-out scenes become equally many questions of every kind, and captions with what a
drawing of them must show. Knows no model. Invariant: a seed gives the same exam on every machine,
and every scene and every caption shows a held-out combination.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass

from PIL import Image

from weights.recipe import captions, language, world
from weights.recipe.photographs import photograph
from weights.recipe.verdict import RequiredObject, Requirement

# Asked of every scene, so that few scenes suffice for many questions of every kind.
QUESTIONS_PER_SCENE = 3


@dataclass(frozen=True)
class Question:
    """A question about a picture, and the answers that count as right (compared exactly)."""

    kind: str
    picture: Image.Image
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Commission:
    """A caption to draw, and what the drawing must show."""

    kind: str
    caption: str
    requirement: Requirement


def held_out_questions(num_scenes: int, *, seed: int = 1) -> list[Question]:
    """Return `QUESTIONS_PER_SCENE * num_scenes` questions on at least as many held-out scenes.

    Every kind is asked equally often: a scene only gets questions of kinds not yet complete.
    """
    rng = random.Random(seed)
    asked: Counter[str] = Counter()
    exam: list[Question] = []
    num_questions = num_scenes * QUESTIONS_PER_SCENE
    quota = math.ceil(num_questions / len(language.KINDS))
    while len(exam) < num_questions:
        scene = world.sample_scene(rng, held_out=True)
        offered = [q for q in language.questions(scene, rng) if asked[q.kind] < quota]
        rng.shuffle(offered)
        offered.sort(key=lambda question: asked[question.kind])
        picture = photograph(scene, rng).image
        for question in offered[: min(QUESTIONS_PER_SCENE, num_questions - len(exam))]:
            asked[question.kind] += 1
            exam.append(Question(question.kind, picture, question.text, (question.answer,)))
    return exam


def held_out_captions(count: int, *, seed: int = 2) -> list[Commission]:
    """Return captions of held-out scenes that leave nothing open that makes them held out."""
    rng = random.Random(seed)
    exam: list[Commission] = []
    while len(exam) < count:
        scene = world.sample_scene(rng, held_out=True, varied=False)
        caption = captions.caption(scene, rng)
        if _tells_combination(caption):
            exam.append(Commission(_kind_of(caption), caption.text, requirement_of(caption)))
    return exam


def requirement_of(caption: captions.Caption) -> Requirement:
    """Return what a drawing of the caption must show."""
    objects = tuple(RequiredObject(o.shape, o.color, o.size, o.place) for o in caption.required)
    return Requirement(objects, caption.relations, caption.background)


def _tells_combination(caption: captions.Caption) -> bool:
    """Return whether the words alone determine the combination (see `world.combination`)."""
    if any(item.color is None for item in caption.required):
        return False
    alone = len(caption.required) == 1
    return not alone or (caption.required[0].size is not None and caption.background is not None)


def _kind_of(caption: captions.Caption) -> str:
    count = ("one object", "two objects", "three objects")[len(caption.required) - 1]
    if caption.relations:
        return f"{count}, related"
    return f"{count}, placed" if any(item.place for item in caption.required) else count
