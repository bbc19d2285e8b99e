"""What people ask to be drawn: captions of scenes, and what a drawing has to show to fulfil one.

Owns the phrasings of captions. Knows nothing of questions, models or pixels. Invariant: a caption
says nothing that is untrue of its scene, and `required` lists all it says, so that a drawing can be
checked without the scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from weights.recipe.world import Object, Scene, place_of, relation_of

RELATION_PHRASES = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
PLACE_PHRASES = ("in the {} corner", "in the {}", "at the {}")
PREFIXES = (
    "draw ",
    "please draw ",
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "generate ",
    "paint ",
    "show me ",
    "create an image of ",
    "generate an image of ",
    "draw a picture of ",
    "make a picture with ",
    "I want ",
)
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "diamond": "diamonds",
    "cross": "crosses",
}
SIZE_WORDS = {
    "large": ("large", "large", "large", "large", "big"),
    "small": ("small", "small", "small", "small", "little", "tiny"),
}
BACKGROUND_PHRASES = (
    " on a {} background",
    " on a {} background",
    " on {}",
    " with a {} background",
    ", {} background",
    " against a {} background",
)


@dataclass(frozen=True)
class Required:
    """An object a drawing must show; what is None was left open."""

    shape: str
    color: str | None
    size: str | None
    place: str | None = None


@dataclass(frozen=True)
class Caption:
    """A caption and all it asks for; `relations` are (index of an object, word, another's)."""

    text: str
    required: tuple[Required, ...]
    relations: tuple[tuple[int, str, int], ...]
    background: str | None


def article(words: str) -> str:
    """Return the words with "a" or "an" in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene, rng: random.Random, *, plain: bool = False) -> Caption:
    """Return one of the many captions of a scene; a `plain` one names every colour and has no odd
    words around it."""
    objects = list(scene.objects)
    rng.shuffle(objects)
    if len(objects) == 1:
        text, required, relations = _single(objects[0], rng, plain)
    else:
        text, required, relations = _several(objects, rng, plain)
    background = scene.background if rng.random() < 0.6 else None
    if background is not None:
        word = "grey" if background == "gray" and rng.random() < 0.2 else background
        phrase = BACKGROUND_PHRASES[0] if plain else rng.choice(BACKGROUND_PHRASES)
        text += phrase.format(word)
    if not plain:
        text = _surround(text, rng)
    return Caption(text, tuple(required), tuple(relations), background)


def _surround(text: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        text = rng.choice(PREFIXES) + text
    elif draw < 0.42 and text.startswith(("a ", "an ")):
        text = text.split(" ", 1)[1]
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text += "."
    return text


def _named(item: Object, rng: random.Random, plain: bool) -> tuple[str, Required]:
    """Return "small red circle" with or without some of its words."""
    size = item.size if rng.random() < 0.65 else None
    color = None if not plain and rng.random() < 0.04 else item.color
    words = []
    if size is not None:
        words.append(size if plain else rng.choice(SIZE_WORDS[size]))
    if color is not None:
        words.append(color)
    return " ".join([*words, item.shape]), Required(item.shape, color, size)


def _at(place: str, rng: random.Random, plain: bool) -> str:
    """Return " in the top left corner" or the like."""
    if " " in place:
        return " " + (PLACE_PHRASES[0] if plain else rng.choice(PLACE_PHRASES)).format(place)
    if place == "center":
        return (
            " in the center"
            if plain
            else rng.choice((" in the center", " in the middle", " in the centre"))
        )
    if place in ("top", "bottom"):
        return f" at the {place}"
    return (
        f" on the {place}"
        if plain
        else rng.choice((f" on the {place}", f" on the {place} side", f" at the {place}"))
    )


def _single(
    item: Object, rng: random.Random, plain: bool
) -> tuple[str, list[Required], list[tuple[int, str, int]]]:
    name, required = _named(item, rng, plain)
    text = article(name)
    place = place_of(item)
    if place is not None and rng.random() < 0.45:
        text += _at(place, rng, plain)
        required = Required(required.shape, required.color, required.size, place)
    return text, [required], []


def _several(
    objects: list[Object], rng: random.Random, plain: bool
) -> tuple[str, list[Required], list[tuple[int, str, int]]]:
    twins = len({(o.shape, o.color, o.size) for o in objects}) == 1
    if len({(o.shape, o.color) for o in objects}) == 1 and rng.random() < 0.7:
        return _twins(objects, rng, same_size=twins)
    named = [_named(o, rng, plain) for o in objects]
    names, required = [n for n, _ in named], [r for _, r in named]
    relations: list[tuple[int, str, int]] = []
    relation = relation_of(objects[0], objects[1])
    draw = rng.random()
    places = [place_of(o) for o in objects]
    if relation is not None and draw < 0.65:
        text = f"{article(names[0])} {_relation_phrase(relation, rng, plain)} {article(names[1])}"
        relations.append((0, relation, 1))
        if len(objects) == 3:
            text += _third(objects, names, relations, rng, plain)
    elif draw < 0.8 and len(objects) == 2 and all(places):
        parts = []
        for i, place in enumerate(places):
            assert place is not None
            parts.append(article(names[i]) + _at(place, rng, plain))
            required[i] = Required(required[i].shape, required[i].color, required[i].size, place)
        text = " and ".join(parts)
    else:
        text = ", ".join(article(n) for n in names[:-1]) + f" and {article(names[-1])}"
    return text, required, relations


def _third(
    objects: list[Object],
    names: list[str],
    relations: list[tuple[int, str, int]],
    rng: random.Random,
    plain: bool,
) -> str:
    """Return how the third object follows a related pair, and add the relation it tells."""
    for i in rng.sample((0, 1), 2):
        relation = relation_of(objects[2], objects[i])
        told_apart = len({(o.shape, o.color) for o in objects}) == 3
        if relation is not None and told_apart and rng.random() < 0.7:
            relations.append((2, relation, i))
            phrase = _relation_phrase(relation, rng, plain)
            return f" and {article(names[2])} {phrase} the {names[i]}"
    return f" and {article(names[2])}"


def _twins(
    objects: list[Object], rng: random.Random, *, same_size: bool
) -> tuple[str, list[Required], list[tuple[int, str, int]]]:
    """Return "two red circles" or "three large stars"."""
    size = objects[0].size if same_size and rng.random() < 0.6 else None
    words = ["two" if len(objects) == 2 else "three", *([size] if size else []), objects[0].color]
    text = " ".join([*words, PLURALS[objects[0].shape]])
    return text, [Required(o.shape, o.color, size) for o in objects], []


def _relation_phrase(relation: str, rng: random.Random, plain: bool) -> str:
    return RELATION_PHRASES[relation][0] if plain else rng.choice(RELATION_PHRASES[relation])
