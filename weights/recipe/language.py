"""What people ask about a scene, and the one right answer.

Owns the choice of questions and the form of answers: short, lower case, without a full stop,
except whole sentences. The sentences stand in `phrases`. Knows nothing of models or pixels.
Invariant: an answer is a function of scene and question; what is not clear in a scene (a centre
near a grid line, a diagonal relation) is not asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from weights.recipe import phrases
from weights.recipe.captions import PLURALS, RELATION_PHRASES, article
from weights.recipe.references import (
    NOUNS,
    at,
    full_name,
    in_order,
    listed,
    pick_reference,
)
from weights.recipe.world import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    place_of,
    relation_of,
)

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
Pair = tuple[str, str] | None


@dataclass(frozen=True)
class Question:
    """A question of one of KINDS, and its answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class _Look:
    """What an object may look like, without one being there."""

    shape: str
    color: str
    size: str


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Return one question of every kind that can be asked clearly of the scene."""
    asked = []
    for kind, ask in _ASKERS.items():
        pair = ask(scene, rng)
        if pair is not None:
            asked.append(Question(kind, _vary(pair[0], kind, rng), pair[1]))
    return asked


def description(scene: Scene) -> str | None:
    """Return the one description of a scene, or None when the order of its objects is not clear."""
    objects = in_order(scene)
    if objects is None:
        return None
    end = f" on a {scene.background} background."
    relation = relation_of(objects[0], objects[1]) if len(objects) == 2 else None
    if relation is None:
        return _capital(listed(scene) or "") + end
    names = [article(full_name(o)) for o in objects]
    return f"{_capital(names[0])} is {RELATION_PHRASES[relation][0]} {names[1]}{end}"


def _vary(text: str, kind: str, rng: random.Random) -> str:
    """Return the question as another hand may have typed it."""
    if rng.random() < 0.06:
        text = f"{rng.choice(phrases.OPENINGS)} {text}"
    if rng.random() < 0.04 and kind not in ("describe", "what", "absent"):
        text += rng.choice(phrases.BRIEFLY)
    elif rng.random() < 0.1 and text[-1] in "?.":
        text = text[:-1]
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12:
        text = text.replace("color", "colour")
    if rng.random() < 0.1:
        text = text.replace("gray", "grey")
    return text


def _say(sentences: tuple[str, ...] | list[str], rng: random.Random, **words: str) -> str:
    """Return one of the sentences with its fields filled in."""
    return rng.choice(sentences).format(picture=rng.choice(phrases.PICTURES), **words)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _ask_what(scene: Scene, rng: random.Random) -> Pair:
    answer = listed(scene)
    return None if answer is None else (_say(phrases.WHAT, rng), answer)


def _ask_color(scene: Scene, rng: random.Random) -> Pair:
    item = rng.choice(scene.objects)
    ref = pick_reference(item, scene, rng, without=("color",))
    if ref is None:
        return None
    if rng.random() < 0.15:
        other = rng.choice([c for c in COLORS if c != item.color])
        first, second = rng.sample((item.color, other), 2)
        return f"Is {ref} {first} or {second}?", item.color
    if rng.random() < 0.12:
        color = item.color if rng.random() < 0.5 else rng.choice(tuple(COLORS))
        return f"Is {ref} {color}?", _yes(color == item.color)
    return _say(phrases.COLOR, rng, ref=ref), item.color


def _ask_shape(scene: Scene, rng: random.Random) -> Pair:
    item = rng.choice(scene.objects)
    ref = pick_reference(item, scene, rng, without=("shape",))
    if ref is None:
        return None
    if rng.random() < 0.15:
        other = rng.choice([s for s in SHAPES if s != item.shape])
        first, second = rng.sample((item.shape, other), 2)
        return f"Is {ref} {article(first)} or {article(second)}?", item.shape
    if rng.random() < 0.12:
        shape = item.shape if rng.random() < 0.5 else rng.choice(SHAPES)
        return f"Is {ref} {article(shape)}?", _yes(shape == item.shape)
    if [o.color for o in scene.objects].count(item.color) == 1 and rng.random() < 0.3:
        text = _say(phrases.SHAPE_OF_COLOR, rng, color=item.color, noun=rng.choice(NOUNS))
        return text, item.shape
    return _say(phrases.SHAPE, rng, ref=ref), item.shape


def _ask_count(scene: Scene, rng: random.Random) -> Pair:
    noun = rng.choice(NOUNS) + "s"
    objects = scene.objects
    draw = rng.random()
    like = rng.choice(objects) if rng.random() < 0.75 else _stranger(rng)
    if draw < 0.4:
        name, number = noun, len(objects)
    elif draw < 0.62:
        name, number = PLURALS[like.shape], sum(o.shape == like.shape for o in objects)
    elif draw < 0.82:
        name, number = f"{like.color} {noun}", sum(o.color == like.color for o in objects)
    elif draw < 0.92:
        name, number = f"{like.size} {noun}", sum(o.size == like.size for o in objects)
    else:
        name = f"{like.color} {PLURALS[like.shape]}"
        number = sum((o.color, o.shape) == (like.color, like.shape) for o in objects)
    return _say(phrases.COUNT, rng, things=name), phrases.NUMBERS[number]


def _stranger(rng: random.Random) -> _Look:
    return _Look(rng.choice(SHAPES), rng.choice(tuple(COLORS)), rng.choice(SIZES))


def _nearly(item: Object, rng: random.Random) -> _Look:
    """Return what differs from an object in one respect."""
    kind = [item.shape, item.color, item.size]
    changed = rng.choice((0, 0, 1, 1, 2))
    values = (SHAPES, tuple(COLORS), SIZES)[changed]
    kind[changed] = rng.choice([value for value in values if value != kind[changed]])
    return _Look(*kind)


_EXISTENCE_ATTRIBUTES = (
    ("shape",),
    ("shape",),
    ("color", "shape"),
    ("color", "shape"),
    ("color",),
    ("size", "shape"),
    ("size", "color", "shape"),
    ("size",),
)


def _ask_existence(scene: Scene, rng: random.Random) -> Pair:
    truth = rng.random() < 0.5
    both_sizes = len({o.size for o in scene.objects}) == len(SIZES)
    attributes = rng.choice(_EXISTENCE_ATTRIBUTES)
    # In a scene with both sizes there is no size to deny.
    if attributes == ("size",) and both_sizes and not truth:
        attributes = ("size", "shape")
    like = _candidate(scene, rng, attributes, truth=truth)
    words = " ".join(getattr(like, a) for a in attributes)
    if attributes == ("color",) and rng.random() < 0.4:
        return _say(phrases.ANYTHING, rng, color=words), _yes(truth)
    name = words if "shape" in attributes else f"{words} {rng.choice(NOUNS)}"
    is_shape = "shape" in attributes
    plural = name[: -len(like.shape)] + PLURALS[like.shape] if is_shape else name + "s"
    return _say(phrases.EXISTENCE, rng, thing=article(name), things=plural), _yes(truth)


def _candidate(
    scene: Scene, rng: random.Random, attributes: tuple[str, ...], *, truth: bool
) -> Object | _Look:
    """Return a look that the scene has (or has not, unless `truth`) in these attributes."""
    while True:
        item = rng.choice(scene.objects)
        like: Object | _Look = item
        if not truth:
            like = _nearly(item, rng) if rng.random() < 0.6 else _stranger(rng)
        exists = any(
            all(getattr(o, a) == getattr(like, a) for a in attributes) for o in scene.objects
        )
        if exists == truth:
            return like


def _ask_size(scene: Scene, rng: random.Random) -> Pair:
    item = rng.choice(scene.objects)
    ref = pick_reference(item, scene, rng, without=("size",))
    if ref is None:
        return None
    if rng.random() < 0.25:
        size = rng.choice(SIZES)
        word = rng.choice(("large", "big") if size == "large" else ("small", "little"))
        return f"Is {ref} {word}?", _yes(size == item.size)
    return _say(phrases.SIZE, rng, ref=ref), item.size


def _ask_place(scene: Scene, rng: random.Random) -> Pair:
    draw = rng.random()
    if draw < 0.2:
        return _ask_what_at(scene, rng)
    item = rng.choice(scene.objects)
    ref = pick_reference(item, scene, rng, without=("place",))
    if ref is None:
        return None
    if draw < 0.3:
        return _ask_side(item, ref, rng)
    place = place_of(item)
    if place is None:
        return None
    if draw < 0.42:
        said = place if rng.random() < 0.5 else rng.choice([p for p in PLACES if p != place])
        return f"Is {ref} {at(said, rng)}?", _yes(said == place)
    return _say(phrases.PLACE, rng, ref=ref), place


def _ask_side(item: Object, ref: str, rng: random.Random) -> Pair:
    """Ask in which half of the picture an object is."""
    horizontal = rng.random() < 0.5
    low, high, value = ("left", "right", item.x) if horizontal else ("top", "bottom", item.y)
    first, second = (low, high) if rng.random() < 0.7 else (high, low)
    if abs(value - 0.5) < 0.09:
        return None
    on = "on" if horizontal else "at"
    text = _say(phrases.SIDE_OF_PICTURE, rng, ref=ref, on=on, first=first, second=second)
    return text, low if value < 0.5 else high


def _ask_what_at(scene: Scene, rng: random.Random) -> Pair:
    places = [place_of(o) for o in scene.objects]
    if None in places:
        return None
    free = [p for p in PLACES if p not in places]
    said = rng.choice(places) if rng.random() < 0.8 else rng.choice(free)
    assert said is not None
    there = [o for o, p in zip(scene.objects, places, strict=True) if p == said]
    if len(there) > 1:
        return None
    text = _say(phrases.WHAT_AT, rng, there=at(said, rng))
    return text, article(full_name(there[0])) if there else "nothing"


def _ask_relation(scene: Scene, rng: random.Random) -> Pair:
    if len(scene.objects) == 1:
        return None
    item, other = rng.sample(scene.objects, 2)
    relation = relation_of(item, other)
    a = pick_reference(item, scene, rng, without=("place",))
    b = pick_reference(other, scene, rng, without=("place",))
    if relation is None or a is None or b is None:
        return None
    draw = rng.random()
    if draw < 0.3:
        return _say(phrases.RELATION, rng, a=a, b=b), relation
    if draw < 0.65:
        said = _claimed(item, other, relation, rng)
        return f"Is {a} {rng.choice(RELATION_PHRASES[said])} {b}?", _yes(said == relation)
    if draw < 0.78:
        first, second = rng.sample((relation, OPPOSITE[relation]), 2)
        words = [RELATION_PHRASES[word][0] for word in (first, second)]
        if relation in ("left", "right") and rng.random() < 0.5:
            words = [f"to the {first}", f"{second} of"]
        elif rng.random() < 0.3:
            words[0] = words[0].removesuffix(" of")
        return f"Is {a} {words[0]} or {words[1]} {b}?", relation
    return _ask_neighbour(scene, rng, (item, other, b))


def _claimed(item: Object, other: Object, relation: str, rng: random.Random) -> str:
    """Return the true relation, its opposite, or one across where that is clearly wrong."""
    if rng.random() < 0.5:
        return relation
    level = min(abs(item.x - other.x), abs(item.y - other.y)) < 0.06
    if level and rng.random() < 0.2:
        return rng.choice([word for word in OPPOSITE if word not in (relation, OPPOSITE[relation])])
    return OPPOSITE[relation]


def _ask_neighbour(scene: Scene, rng: random.Random, about: tuple[Object, Object, str]) -> Pair:
    """Ask what is on one side of an object, with two objects in the scene."""
    item, other, ref = about
    relation = relation_of(item, other)
    if len(scene.objects) != 2 or relation is None:
        return None
    phrase = rng.choice(RELATION_PHRASES[relation])
    draw = rng.random()
    if draw < 0.55:
        return f"What is {phrase} {ref}?", article(full_name(item))
    if draw < 0.7:
        return f"What is {rng.choice(RELATION_PHRASES[OPPOSITE[relation]])} {ref}?", "nothing"
    if draw < 0.85:
        return f"{rng.choice(('What', 'Which'))} shape is {phrase} {ref}?", item.shape
    return f"What color is the {rng.choice(NOUNS)} {phrase} {ref}?", item.color


def _ask_background(scene: Scene, rng: random.Random) -> Pair:
    if rng.random() < 0.2:
        others = (*BACKGROUNDS, *BACKGROUNDS, *COLORS)
        color = scene.background if rng.random() < 0.5 else rng.choice(others)
        return f"Is the background {color}?", _yes(color == scene.background)
    return _say(phrases.BACKGROUND, rng), scene.background


def _ask_describe(scene: Scene, rng: random.Random) -> Pair:
    answer = description(scene)
    return None if answer is None else (_say(phrases.DESCRIBE, rng), answer)


def _ask_absent(scene: Scene, rng: random.Random) -> Pair:
    """Ask about something that is not there."""
    like = _nearly(rng.choice(scene.objects), rng) if rng.random() < 0.5 else _stranger(rng)
    colored = rng.random() < 0.4
    if any(o.shape == like.shape and (not colored or o.color == like.color) for o in scene.objects):
        return None
    name = f"{like.color} {like.shape}" if colored else like.shape
    sentences = phrases.ABSENT if colored else (*phrases.ABSENT, *phrases.ABSENT_COLOR)
    return _say(sentences, rng, thing=name), f"There is no {name}."


_ASKERS: dict[str, Callable[[Scene, random.Random], Pair]] = {
    "what": _ask_what,
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "existence": _ask_existence,
    "size": _ask_size,
    "place": _ask_place,
    "relation": _ask_relation,
    "background": _ask_background,
    "describe": _ask_describe,
    "absent": _ask_absent,
}
KINDS = tuple(_ASKERS)
