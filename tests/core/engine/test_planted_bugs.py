"""Bugs, planted one at a time, which the state machine over the scheduler must find."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import Phase

from janus_core.engine.fair_queue import FairQueue
from janus_core.engine.plan import StepPlan
from janus_core.engine.scheduler import Scheduler
from janus_core.engine.sequence import RequestState
from janus_core.engine.slots import Prefix, Slot, SlotPool
from janus_core.engine.waiting_room import WaitingRoom
from tests.core.engine.test_scheduler_machine import run_machine

FOUND_WITHIN_S = 60.0

release, acquire, find_gap = SlotPool.release, SlotPool.acquire, SlotPool._find_gap
find_prefix, in_turn = SlotPool.find_prefix, FairQueue.__iter__


def forget_a_release(pool: SlotPool, slot: Slot, *, keep: int) -> None:
    """Slots that leave little behind are forgotten."""
    if keep >= 16:
        release(pool, slot, keep=keep)


def use_what_is_promised(pool: SlotPool, keys: list[int], salt: str) -> Prefix:
    """A prefix that is being computed is taken as if it were."""
    found = find_prefix(pool, keys, salt)
    return Prefix(found.slot, found.num_promised, found.num_promised) if found.slot else found


def forget_the_second_sequence(scheduler: Scheduler, state: RequestState, *, keep: int) -> None:
    first = state.sequences[0]
    scheduler._pool.release(first.slot, keep=keep)
    for sequence in state.sequences:
        sequence.slot = None


def own_twice(pool: SlotPool, keys, salt, *, capacity, prefix, from_top):
    """A whole prefix is used where it is, whoever else uses it."""
    source = prefix.slot
    if source is not None and source.in_use and source.capacity >= capacity:
        return source, None
    return acquire(pool, keys, salt, capacity=capacity, prefix=prefix, from_top=from_top)


def allocate_amidst(pool: SlotPool, capacity: int, *, from_top: bool):
    """Room found a unit too low."""
    found = find_gap(pool, capacity, from_top=from_top)
    return found if found is None or from_top or not found[0] else (found[0] - 32, found[1] - 32)


def share_with_all(slot: Slot, keys: list[int], salt: str, num_hashed: int) -> int:
    """Compares neither tenants nor what follows the hash."""
    del salt
    return min(len(keys), len(slot.keys)) if slot.keys[:8] == keys[:8] else num_hashed


def chain_without_salt(keys: list[int], salt: str) -> list[int]:
    del salt
    return [hash(tuple(keys[:end])) for end in range(8, len(keys) + 1, 8)]


def lose_who_is_set_back(scheduler: Scheduler, state: RequestState) -> None:
    scheduler._texts.running.remove(state)
    scheduler._free(state, keep=0)
    scheduler.num_set_backs += 1


def copy_nothing(plan: StepPlan, copy) -> None:
    """A slot that was moved or forked is as empty as it was."""
    del plan, copy


def skip_the_line(queue: FairQueue, state: RequestState) -> None:
    """Whoever is set back or comes goes behind all others of its tenant, sorted or not."""
    line = queue._lines.setdefault(state.tenant, [])
    queue._charged.setdefault(state.tenant, 0)
    line.insert(0, state)
    queue._num += 1


def never_leave(room: WaitingRoom, request_id: str) -> None:
    del room, request_id


def remove_without_books(queue: FairQueue, state: RequestState) -> None:
    """The last one of a tenant stays listed."""
    line = queue._lines[state.tenant]
    if len(line) > 1:
        line.remove(state)
        queue._num -= 1


def serve_some_last(queue: FairQueue) -> Iterator[RequestState]:
    """Whoever has no name waits until nobody else does."""
    waiting = list(in_turn(queue))
    yield from [state for state in waiting if state.tenant]
    yield from [state for state in waiting if not state.tenant]


SLOTS = "janus_core.engine.slots"
BUGS: dict[str, tuple[object, str, Callable]] = {
    "a release is skipped": (SlotPool, "release", forget_a_release),
    "a prefix is longer than what was computed": (SlotPool, "find_prefix", use_what_is_promised),
    "the second sequence of a pair is forgotten": (Scheduler, "_free", forget_the_second_sequence),
    "a slot has two owners": (SlotPool, "acquire", own_twice),
    "slots overlap": (SlotPool, "_find_gap", allocate_amidst),
    "a copy is left out": (StepPlan, "add_copy", copy_nothing),
    "a request that was set back is lost": (Scheduler, "_set_back", lose_who_is_set_back),
    "the newest goes first": (FairQueue, "add", skip_the_line),
    "the room forgets who left": (WaitingRoom, "leave", never_leave),
    "who was taken waits on": (FairQueue, "remove", remove_without_books),
}


@pytest.mark.parametrize("name", [*BUGS, "tenants share prefixes"])
def test_the_machine_finds_a_planted_bug(name: str) -> None:
    with ExitStack() as stack:
        if name in BUGS:
            owner, attribute, broken = BUGS[name]
            stack.enter_context(patch.object(owner, attribute, broken))
        else:
            stack.enter_context(patch(f"{SLOTS}._num_shared", share_with_all))
            stack.enter_context(patch(f"{SLOTS}._hash_chain", chain_without_salt))
        expect_a_find((AssertionError, ValueError, KeyError))


def test_the_machine_finds_a_tenant_that_starves() -> None:
    with patch.object(FairQueue, "__iter__", serve_some_last):
        expect_a_find(AssertionError, match="starved")


def expect_a_find(errors: type | tuple[type, ...], *, match: str | None = None) -> None:
    started_s = time.monotonic()
    with pytest.raises(errors, match=match):
        run_machine(
            max_examples=1500,
            phases=[Phase.generate],
            database=None,
            report_multiple_bugs=False,
        )
    assert time.monotonic() - started_s < FOUND_WITHIN_S
