"""What people ask about a scene, and the one right answer.

Owns the phrasings of questions and the form of answers: short, lower case, without a full stop, except whole
sentences. Knows nothing of models or pixels. Invariant: an answer is a function of scene and question; what is not
clear in a scene (a centre near a grid line, a diagonal relation) is not asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from weights.recipe.captions import PLURALS, RELATION_PHRASES, article
from weights.recipe.references import NOUNS, at, full_name, in_order, listed, pick_reference
from weights.recipe.world import BACKGROUNDS, COLORS, SHAPES, SIZES, Object, Scene, place_of, relation_of

NUMBERS = ("zero", "one", "two", "three")
PICTURES = ("picture", "image", "scene")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATION_ANSWERS = {"left": "left", "right": "right", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question of one of KINDS, and its answer."""

    kind: str
    text: str
    answer: str


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Return one question of every kind that can be asked clearly of the scene."""
    asked = []
    for kind, ask in _ASKERS.items():
        pair = ask(scene, rng)
        if pair is not None:
            asked.append(Question(kind, _vary(pair[0], kind, rng), pair[1]))
    return asked


def _vary(text: str, kind: str, rng: random.Random) -> str:
    """Return the question as another hand may have typed it."""
    if rng.random() < 0.06:
        text = f"{rng.choice(('Please tell me:', 'Tell me:', 'Question:', 'Look at the picture.'))} {text}"
    if rng.random() < 0.04 and kind not in ("describe", "what", "absent"):
        text += rng.choice((" Answer with one word.", " Answer briefly.", " Answer in one word."))
    elif rng.random() < 0.1 and text[-1] in "?.":
        text = text[:-1]
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12:
        text = text.replace("color", "colour")
    if rng.random() < 0.1:
        text = text.replace("gray", "grey")
    return text


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


Pair = tuple[str, str] | None


def _ask_what(scene: Scene, rng: random.Random) -> Pair:
    answer = listed(scene)
    picture = rng.choice(PICTURES)
    text = rng.choice((
        f"What is in the {picture}?", f"What is in this {picture}?", f"What can you see in the {picture}?",
        f"What does the {picture} show?", "What do you see?", "What is there?", "What is this?",
        f"What objects are in the {picture}?", "Which objects are there?", f"What is shown in the {picture}?",
        f"What's in the {picture}?", "What shapes do you see?", f"List the objects in the {picture}.",
        f"Which shapes are in the {picture}?", "What can you see?", "Name everything you see.",
    ))  # fmt: skip
    return None if answer is None else (text, answer)


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
    return rng.choice((
        f"What color is {ref}?", f"What color is {ref}?", f"What color is {ref}?", f"What is the color of {ref}?",
        f"Which color is {ref}?", f"Which color does {ref} have?", f"What color does {ref} have?",
        f"Tell me the color of {ref}.", f"Name the color of {ref}.", f"What's the color of {ref}?",
        f"In what color is {ref} drawn?", f"Tell me what color {ref} is.", f"Can you tell me what color {ref} is?",
    )), item.color  # fmt: skip


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
    texts = [
        f"What shape is {ref}?", f"What shape is {ref}?", f"Which shape is {ref}?", f"What is the shape of {ref}?",
        f"What kind of shape is {ref}?", f"What shape does {ref} have?", f"Tell me the shape of {ref}.",
        f"What's the shape of {ref}?", f"Which shape does {ref} have?", f"Name the shape of {ref}.",
    ]  # fmt: skip
    if [o.color for o in scene.objects].count(item.color) == 1:
        texts += [f"What shape is {item.color}?", f"Which shape is {item.color}?", f"What is {item.color}?",
                  f"What is the {item.color} {rng.choice(NOUNS)}?"]  # fmt: skip
    return rng.choice(texts), item.shape


def _ask_count(scene: Scene, rng: random.Random) -> Pair:
    picture, noun = rng.choice(PICTURES), rng.choice(NOUNS) + "s"
    objects = scene.objects
    draw = rng.random()
    if draw < 0.4:
        name, number = noun, len(objects)
    else:
        like = rng.choice(objects) if rng.random() < 0.75 else _stranger(rng)
        if draw < 0.62:
            name, number = PLURALS[like.shape], sum(o.shape == like.shape for o in objects)
        elif draw < 0.82:
            name, number = f"{like.color} {noun}", sum(o.color == like.color for o in objects)
        elif draw < 0.92:
            name, number = f"{like.size} {noun}", sum(o.size == like.size for o in objects)
        else:
            name = f"{like.color} {PLURALS[like.shape]}"
            number = sum((o.color, o.shape) == (like.color, like.shape) for o in objects)
    return rng.choice((
        f"How many {name} are there?", f"How many {name} are there?", f"How many {name} are in the {picture}?",
        f"How many {name} are there in the {picture}?", f"How many {name} do you see?", f"Count the {name}.",
        f"How many {name} can you see?", f"What is the number of {name}?", f"How many {name} does the {picture} show?",
        f"How many {name}?",
    )), NUMBERS[number]  # fmt: skip


@dataclass(frozen=True)
class _Stranger:
    shape: str
    color: str
    size: str


def _stranger(rng: random.Random) -> _Stranger:
    return _Stranger(rng.choice(SHAPES), rng.choice(tuple(COLORS)), rng.choice(SIZES))


def _nearly(item: Object, rng: random.Random) -> _Stranger:
    """Return what differs from an object in one respect."""
    kind = [item.shape, item.color, item.size]
    changed = rng.choice((0, 0, 1, 1, 2))
    kind[changed] = rng.choice([v for v in (SHAPES, tuple(COLORS), SIZES)[changed] if v != kind[changed]])
    return _Stranger(*kind)


def _ask_existence(scene: Scene, rng: random.Random) -> Pair:
    truth = rng.random() < 0.5
    attributes = rng.choice((("shape",), ("shape",), ("color", "shape"), ("color", "shape"), ("color",),
                             ("size", "shape"), ("size", "color", "shape"), ("size",)))  # fmt: skip
    for _ in range(8):
        item = rng.choice(scene.objects)
        like: Object | _Stranger = item if truth else (_nearly(item, rng) if rng.random() < 0.6 else _stranger(rng))
        exists = any(all(getattr(o, a) == getattr(like, a) for a in attributes) for o in scene.objects)
        if exists == truth:
            break
    words = " ".join(getattr(like, a) for a in attributes)
    picture = rng.choice(PICTURES)
    if attributes == ("color",) and rng.random() < 0.4:
        text = rng.choice((f"Is there anything {words}?", f"Is anything {words}?", f"Do you see anything {words}?"))
        return text, _yes(exists)
    name = words if "shape" in attributes else f"{words} {rng.choice(NOUNS)}"
    plural = name[: -len(like.shape)] + PLURALS[like.shape] if "shape" in attributes else name + "s"
    name = article(name)
    return rng.choice((
        f"Is there {name}?", f"Is there {name}?", f"Is there {name} in the {picture}?", f"Do you see {name}?",
        f"Can you see {name}?", f"Does the {picture} contain {name}?", f"Does the {picture} show {name}?",
        f"Are there any {plural}?", f"Is {name} in the {picture}?", f"Are there any {plural} in the {picture}?",
        f"Is there {name} in this {picture}?", f"Is {name} present?", f"Does this {picture} have {name}?",
    )), _yes(exists)  # fmt: skip


def _ask_size(scene: Scene, rng: random.Random) -> Pair:
    item = rng.choice(scene.objects)
    ref = pick_reference(item, scene, rng, without=("size",))
    if ref is None:
        return None
    if rng.random() < 0.25:
        size = rng.choice(SIZES)
        word = rng.choice(("large", "big") if size == "large" else ("small", "little"))
        return f"Is {ref} {word}?", _yes(size == item.size)
    return rng.choice((
        f"What size is {ref}?", f"What size is {ref}?", f"How big is {ref}?", f"How large is {ref}?",
        f"Is {ref} large or small?", f"Is {ref} small or large?", f"Is {ref} big or small?",
        f"What is the size of {ref}?", f"Which size does {ref} have?", f"What's the size of {ref}?",
        f"Tell me the size of {ref}.",
    )), item.size  # fmt: skip


def _ask_place(scene: Scene, rng: random.Random) -> Pair:
    draw = rng.random()
    item = rng.choice(scene.objects)
    if draw < 0.2:
        return _ask_what_at(scene, rng)
    ref = pick_reference(item, scene, rng, without=("place",))
    if ref is None:
        return None
    if draw < 0.3:
        low, high, v = ("left", "right", item.x) if rng.random() < 0.5 else ("top", "bottom", item.y)
        first, second = (low, high) if rng.random() < 0.7 else (high, low)
        on = "on" if low == "left" else "at"
        text = f"Is {ref} {on} the {first} or {on} the {second}?" if rng.random() < 0.7 else f"Is {ref} {on} the {first} or the {second}?"
        return None if abs(v - 0.5) < 0.09 else (text, low if v < 0.5 else high)
    place = place_of(item)
    if place is None:
        return None
    picture = rng.choice(PICTURES)
    if draw < 0.42:
        said = place if rng.random() < 0.5 else rng.choice([p for p in PLACES if p != place])
        return f"Is {ref} {at(said, rng)}?", _yes(said == place)
    return rng.choice((
        f"Where is {ref}?", f"Where is {ref}?", f"Where is {ref}?", f"Where is {ref} in the {picture}?",
        f"Where in the {picture} is {ref}?", f"In which part of the {picture} is {ref}?", f"What is the position of {ref}?",
        f"Where can I find {ref}?", f"Where do you see {ref}?", f"Where is {ref} located?",
        f"What is the location of {ref}?", f"In which place is {ref}?",
    )), place  # fmt: skip


PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")


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
    text = rng.choice(("What is {}?", "What is {}?", "What do you see {}?", "What can be seen {}?", "Which object is {}?"))
    return text.format(at(said, rng)), article(full_name(there[0])) if there else "nothing"


def _ask_relation(scene: Scene, rng: random.Random) -> Pair:
    if len(scene.objects) == 1:
        return None
    item, other = rng.sample(scene.objects, 2)
    relation = relation_of(item, other)
    without = ("place",)
    refs = pick_reference(item, scene, rng, without=without), pick_reference(other, scene, rng, without=without)
    if relation is None or None in refs:
        return None
    a, b = refs
    draw = rng.random()
    if draw < 0.3:
        return rng.choice((
            f"Where is {a} relative to {b}?", f"Where is {a} compared to {b}?", f"Where is {a} with respect to {b}?",
            f"Where is {a} in relation to {b}?", f"Where is {a}, seen from {b}?",
            f"What is the position of {a} relative to {b}?", f"On which side of {b} is {a}?",
            f"What is the relation of {a} to {b}?", f"How is {a} placed relative to {b}?",
        )), RELATION_ANSWERS[relation]  # fmt: skip
    if draw < 0.65:
        said = relation if rng.random() < 0.5 else OPPOSITE[relation]
        if said != relation and rng.random() < 0.2 and min(abs(item.x - other.x), abs(item.y - other.y)) < 0.06:
            said = rng.choice([word for word in OPPOSITE if word not in (relation, OPPOSITE[relation])])
        return f"Is {a} {rng.choice(RELATION_PHRASES[said])} {b}?", _yes(said == relation)
    if draw < 0.78:
        first, second = rng.sample((relation, OPPOSITE[relation]), 2)
        words = [RELATION_PHRASES[word][0] for word in (first, second)]
        if relation in ("left", "right") and rng.random() < 0.5:
            words = [f"to the {first}", f"{second} of"]
        return f"Is {a} {words[0]} or {words[1]} {b}?", RELATION_ANSWERS[relation]
    return _ask_neighbour(scene, rng, (item, other, b or ""))


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
        return f"What shape is {phrase} {ref}?" if draw < 0.78 else f"Which shape is {phrase} {ref}?", item.shape
    return f"What color is the {rng.choice(NOUNS)} {phrase} {ref}?", item.color


def _ask_background(scene: Scene, rng: random.Random) -> Pair:
    draw = rng.random()
    if draw < 0.2:
        color = scene.background if rng.random() < 0.5 else rng.choice((*BACKGROUNDS, *BACKGROUNDS, *COLORS))
        return f"Is the background {color}?", _yes(color == scene.background)
    picture = rng.choice(PICTURES)
    return rng.choice((
        "What color is the background?", "What color is the background?", "What is the background color?",
        "What is the color of the background?", "Which color is the background?", "What background color is used?",
        f"What is the background of the {picture}?", "On what background is it?", "What color does the background have?",
        "Tell me the color of the background.", "What's the background?", f"What is the background color of the {picture}?",
        "What background do you see?", "What kind of background is there?",
    )), scene.background  # fmt: skip


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


def _ask_describe(scene: Scene, rng: random.Random) -> Pair:
    answer = description(scene)
    picture = rng.choice(PICTURES)
    text = rng.choice((
        "Describe the image.", "Describe the image.", f"Describe the {picture}.", f"Describe this {picture}.",
        f"Please describe the {picture}.", f"Describe the {picture} in one sentence.", f"Give a description of the {picture}.",
        f"Can you describe the {picture}?", f"Describe what you see in the {picture}.", "Describe what you see.",
        f"Write a caption for the {picture}.", f"Describe the {picture} in detail.",
    ))  # fmt: skip
    return None if answer is None else (text, answer)


def _ask_absent(scene: Scene, rng: random.Random) -> Pair:
    """Ask about something that is not there."""
    like = _nearly(rng.choice(scene.objects), rng) if rng.random() < 0.5 else _stranger(rng)
    colored = rng.random() < 0.4
    if any(o.shape == like.shape and (not colored or o.color == like.color) for o in scene.objects):
        return None
    name = f"{like.color} {like.shape}" if colored else like.shape
    texts = [f"What size is the {name}?", f"Where is the {name}?", f"How big is the {name}?", f"Is the {name} large or small?"]
    if not colored:
        texts += [f"What color is the {name}?"] * 3
    return rng.choice(texts), f"There is no {name}."


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
