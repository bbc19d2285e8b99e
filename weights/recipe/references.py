"""How an object of a scene is named: completely, shortly but unmistakably, or by where it is.

Owns references and the order of objects in lists. Knows nothing of questions. Invariant: a
reference fits exactly one object of its scene.
"""

from __future__ import annotations

import itertools
import random
import re

from weights.recipe.captions import article
from weights.recipe.world import Object, Scene, place_of, relation_of

NOUNS = ("object", "shape", "figure", "thing")
# "the red one", but never "ones" nor "a one".
REFERENCE_NOUNS = (*NOUNS, "one")
# Centres closer than the first in x count as one column; between the two no order is clear.
SAME_COLUMN, OTHER_COLUMN = 0.03, 0.07
PLACE_SYNONYMS = {
    "top left": "upper left",
    "top right": "upper right",
    "bottom left": "lower left",
    "bottom right": "lower right",
}


def full_name(item: Object) -> str:
    """Return "large red circle"."""
    return f"{item.size} {item.color} {item.shape}"


def in_order(scene: Scene) -> list[Object] | None:
    """Return the objects as answers list them, or None when their order is not clear.

    One above the other: from the top. Otherwise from left to right.
    """
    objects = list(scene.objects)
    if len(objects) == 2:
        return _pair_in_order(objects[0], objects[1])
    objects.sort(key=lambda item: item.x)
    for a, b in itertools.pairwise(objects):
        if SAME_COLUMN < b.x - a.x < OTHER_COLUMN:
            return None
    columns: list[list[Object]] = []
    for item in objects:
        if columns and item.x - columns[-1][-1].x <= SAME_COLUMN:
            columns[-1].append(item)
        else:
            columns.append([item])
    return [item for column in columns for item in sorted(column, key=lambda item: item.y)]


def _pair_in_order(a: Object, b: Object) -> list[Object] | None:
    relation = relation_of(a, b)
    if relation is not None:
        return [a, b] if relation in ("left", "above") else [b, a]
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    # Nearly clear pairs are left out: a little to either side the order changes.
    if min(dx, dy) < 0.75 * max(dx, dy) or dx < OTHER_COLUMN:
        return None
    return [a, b] if a.x < b.x else [b, a]


def listed(scene: Scene) -> str | None:
    """Return "a large red circle and a small blue square", or None when the order is not clear."""
    objects = in_order(scene)
    if objects is None:
        return None
    names = [article(full_name(item)) for item in objects]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def references(item: Object, scene: Scene, *, without: tuple[str, ...] = ()) -> list[str]:
    """Return the phrases that fit `item` alone and do not tell the attributes in `without`."""
    others = [o for o in scene.objects if o is not item]
    found = []
    for attributes in (
        ("shape",),
        ("color",),
        ("size",),
        ("color", "shape"),
        ("size", "shape"),
        ("size", "color"),
        ("size", "color", "shape"),
    ):
        if set(attributes) & set(without):
            continue
        if any(all(getattr(o, a) == getattr(item, a) for a in attributes) for o in others):
            continue
        words = [getattr(item, a) for a in attributes]
        found += (
            [f"the {' '.join(words)}"]
            if "shape" in attributes
            else [f"the {' '.join(words)} {n}" for n in REFERENCE_NOUNS]
        )
    if not others:
        found += ["it", "the object", "the shape", "the figure"]
    return found


def mentions(text: str, scene: Scene) -> list[tuple[int, Object]]:
    """Return the objects a text names, each with the end of its name in the text."""
    found: dict[int, Object] = {}
    for item in scene.objects:
        for phrase in references(item, scene):
            if phrase.startswith("the "):
                for match in re.finditer(rf"{phrase}\b", text):
                    found[match.end()] = item
    return sorted(found.items(), key=lambda pair: pair[0])


def by_place(item: Object, scene: Scene, rng: random.Random) -> str | None:
    """Return "the shape in the top left" or "the object on the left", or None when that is not
    clear."""
    noun = rng.choice(NOUNS)
    others = [o for o in scene.objects if o is not item]
    if len(others) == 1 and rng.random() < 0.5:
        relation = relation_of(item, others[0])
        ends = {
            "left": "on the left",
            "right": "on the right",
            "above": "at the top",
            "below": "at the bottom",
        }
        return None if relation is None else f"the {noun} {ends[relation]}"
    place = place_of(item)
    if (
        place is None
        or place not in (*PLACE_SYNONYMS, "center")
        or any(place_of(o) in (place, None) for o in others)
    ):
        return None
    return f"the {noun} {at(place, rng)}"


def at(place: str, rng: random.Random) -> str:
    """Return "in the top left corner", "in the middle", "at the top" and the like."""
    if place == "center":
        return rng.choice(("in the center", "in the middle", "in the centre"))
    if place in ("top", "bottom"):
        return rng.choice((f"at the {place}", f"in the {place} center", f"in the {place} middle"))
    if place in ("left", "right"):
        return rng.choice((f"on the {place}", f"in the {place} center", f"in the middle {place}"))
    name = PLACE_SYNONYMS[place] if rng.random() < 0.2 else place
    return rng.choice((f"in the {name} corner", f"in the {name}", f"at the {name}"))


def pick_reference(
    item: Object, scene: Scene, rng: random.Random, *, without: tuple[str, ...] = ()
) -> str | None:
    """Return a random reference, or None when nothing else is left to name the object by."""
    found = references(item, scene, without=without)
    if (not found or rng.random() < 0.12) and "place" not in without:
        told = by_place(item, scene, rng)
        if told is not None:
            return told
    short = [words for words in found if len(words.split()) <= 3]
    if short and rng.random() < 0.7:
        return rng.choice(short)
    return rng.choice(found) if found else None
