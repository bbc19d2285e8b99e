"""Whether a picture shows what was asked for: the judge of janus-mini's drawings.

Owns requirements and verdicts. Knows no pixels: `checker` says what is seen. Invariant: an object
without a name meets no request, and what nobody asked for is a fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from weights.recipe.checker import Found, FoundObject, look

# Centres closer than this along the named axis are not apart.
MIN_RELATION_DISTANCE = 0.12


@dataclass(frozen=True)
class RequiredObject:
    """An object that was asked for; None leaves a property open."""

    shape: str
    color: str | None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Requirement:
    """What a picture must show, and nothing beyond.

    A relation `(i, "left", j)` says that object `i` is left of object `j` (one of world.RELATIONS).
    """

    objects: tuple[RequiredObject, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what was required; `faults` says what is wrong or surplus.

    `shows_all` is less: every object is there with its shape, colour, place and relations, whatever
    its size, the background, and what else there is.
    """

    holds: bool
    shows_all: bool
    faults: tuple[str, ...]
    found: Found


def check(picture: Image.Image, requirement: Requirement) -> Verdict:
    """Return the verdict on a picture of any size."""
    return judge(look(picture), requirement)


def judge(found: Found, requirement: Requirement) -> Verdict:
    """Return the verdict on what was seen in a picture."""
    faults: list[str] = []
    if requirement.background not in (None, found.background):
        faults.append(f"background is {found.background}, not {requirement.background}")
    if len(found.objects) != len(requirement.objects):
        faults.append(f"{len(found.objects)} objects instead of {len(requirement.objects)}")
    else:
        # The assignment of found to required objects with the fewest faults is the fairest reading.
        readings = [_faults(order, requirement) for order in itertools.permutations(found.objects)]
        faults += sorted(readings, key=len)[0]
    return Verdict(not faults, not faults or _shows_all(found, requirement), tuple(faults), found)


def _faults(order: Sequence[FoundObject], requirement: Requirement) -> list[str]:
    faults = []
    for seen, asked in zip(order, requirement.objects, strict=True):
        pairs = (
            (seen.shape, asked.shape),
            (seen.color, asked.color),
            (seen.size, asked.size),
            (_place(seen), asked.place),
        )
        faults += [f"{have} instead of {want}" for have, want in pairs if want not in (None, have)]
    for i, relation, j in requirement.relations:
        if not _related(order[i], relation, order[j]):
            faults.append(f"object {i} is not {relation} of object {j}")
    return faults


def _shows_all(found: Found, requirement: Requirement) -> bool:
    wanted = replace(
        requirement, objects=tuple(replace(item, size=None) for item in requirement.objects)
    )
    number = len(wanted.objects)
    return any(not _faults(some, wanted) for some in itertools.permutations(found.objects, number))


def _place(seen: FoundObject) -> str:
    column = ("left", "", "right")[min(2, int(seen.x * 3))]
    row = ("top", "", "bottom")[min(2, int(seen.y * 3))]
    return f"{row} {column}".strip() or "center"


def _related(seen: FoundObject, relation: str, other: FoundObject) -> bool:
    """Return whether the centres lie apart in the relation's direction, more than across it."""
    dx, dy = seen.x - other.x, seen.y - other.y
    along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
    if relation in ("left", "above"):
        along = -along
    return along >= MIN_RELATION_DISTANCE and along > abs(across)
