"""What a server is doing when a fault comes: nothing, one request, a full batch, streams, a drain.

Owns the requests of each situation and the way into a drain. Knows no fault. Invariant: the
requests of a situation have the same answers on every server without faults.
"""

import signal
from collections.abc import Iterable, Mapping

import pytest

from tests.hardening.injection import Asked, ask, drawing, question
from tests.hardening.target import Target
from tests.serving import wait_until

SITUATIONS = {
    "idle": [],
    "one": [question(1)],
    "full": [*[question(s) for s in range(12)], *[drawing(s) for s in range(3)]],
    "streams": [
        *[question(s, stream=True) for s in range(6)],
        *[drawing(s, stream=True) for s in range(3)],
    ],
    "draining": [
        *[question(s, stream=True) for s in range(4)],
        *[question(s) for s in range(4, 8)],
    ],
}
SURVIVED = [name for name in SITUATIONS if name != "draining"]
"""Those after which the server is there."""

DRAIN = {"drain_delay_s": 0, "grace_s": 60}
SLOWLY = "step:1:slow:0.2"
"""So that what is in flight still is when the next fault comes."""

EXIT_S = 20.0


def cases(kinds: Iterable[str], situations: Iterable[str], quick: Mapping[str, str]) -> list:
    """Every kind in every situation; all but the quick ones, `quick[kind]`, are marked slow."""
    made = []
    for kind in kinds:
        for situation in situations:
            marks = () if situation in quick[kind].split() else (pytest.mark.slow,)
            made.append(pytest.param(kind, situation, marks=marks, id=f"{kind}-{situation}"))
    return made


def golden_of(target: Target) -> dict[str, list[str]]:
    """What each of them gets where nobody else asks."""
    return {
        name: [ask(target, request).text for request in requests]
        for name, requests in SITUATIONS.items()
    }


def in_flight(target: Target, requests: Iterable[tuple]) -> Asked:
    """These, all accepted by the engine and all streams begun."""
    asked = Asked(target, requests)
    asked.wait_until_begun(target.patience_s)
    asked.wait_until_accepted(target.patience_s)
    return asked


def drain(target: Target) -> None:
    """Tell the server to stop, and wait until it refuses what comes."""
    target.signal(signal.SIGTERM)
    wait_until(
        lambda: "draining" in target.log_text(), target.patience_s, message="it does not drain"
    )
