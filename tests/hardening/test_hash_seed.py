"""Answers and pictures do not depend on the order of sets: `PYTHONHASHSEED` changes nothing."""

from collections.abc import Callable

import pytest

from tests.hardening.target import Target


@pytest.mark.slow
def test_another_seed_of_hashes_gives_the_same_answers(start_target: Callable[..., Target]) -> None:
    found = set()
    for seed in ("0", "1", "4242"):
        target = start_target(env={"PYTHONHASHSEED": seed})
        found.add((target.answer(), target.picture()))
    assert len(found) == 1
