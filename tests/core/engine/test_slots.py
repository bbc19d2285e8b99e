"""The slot pool against a twin that knows who wrote which key where."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_core.engine.settings import SLOT_UNIT
from janus_core.engine.slots import BLOCK_TOKENS, NO_PREFIX, Slot, SlotPool

UNIT = SLOT_UNIT


def take(pool: SlotPool, keys: list[int], capacity: int | None = None, salt: str = "") -> Slot:
    """A slot with all of `keys` computed."""
    prefix = pool.find_prefix(keys, salt)
    acquired = pool.acquire(
        keys, salt, capacity=capacity or len(keys), prefix=prefix, from_top=False
    )
    assert acquired is not None
    slot, _ = acquired
    slot.num_computed = len(keys)
    return slot


def test_slots_are_whole_units_and_lie_beside_each_other() -> None:
    pool = SlotPool(4 * UNIT)
    first, second = take(pool, [1] * 5), take(pool, [2] * (UNIT + 1))
    assert (first.start, first.capacity) == (0, UNIT)
    assert (second.start, second.capacity) == (UNIT, 2 * UNIT)
    assert pool.num_used == 3 * UNIT
    pool.check_integrity()


def test_from_top_leaves_the_bottom_whole() -> None:
    pool = SlotPool(4 * UNIT)
    acquired = pool.acquire([1], "", capacity=1, prefix=NO_PREFIX, from_top=True)
    assert acquired is not None
    assert acquired[0].start == 3 * UNIT
    assert pool.has_room([3 * UNIT])
    assert not pool.has_room([3 * UNIT, 1])


def test_a_full_pool_refuses() -> None:
    pool = SlotPool(2 * UNIT)
    take(pool, [1], 2 * UNIT)
    assert pool.acquire([2], "", capacity=1, prefix=NO_PREFIX, from_top=False) is None


def test_the_longest_prefix_is_found_and_all_but_the_last_token_reused() -> None:
    pool = SlotPool(16 * UNIT)
    words = list(range(100, 150))
    take(pool, words[:20])
    take(pool, words[:41])
    assert pool.find_prefix(words, "").num_ready == 41
    assert pool.find_prefix(words[:30], "").num_ready == 29
    assert pool.find_prefix([*words[:13], 7, 7, 7], "").num_ready == 13
    assert pool.find_prefix(words[: BLOCK_TOKENS - 1], "").num_ready == 0


def test_tenants_share_nothing() -> None:
    pool = SlotPool(4 * UNIT)
    words = list(range(20))
    take(pool, words, salt="a")
    assert pool.find_prefix([*words, 1], "b").slot is None
    assert pool.find_prefix([*words, 1], "a").num_ready == 20


def test_equal_hashes_of_unequal_keys_are_no_prefix() -> None:
    """-1 and -2 have the same hash in CPython, so these chains collide."""
    assert hash(-1) == hash(-2)
    pool = SlotPool(4 * UNIT)
    take(pool, [-1] * 20)
    assert pool.find_prefix([-2] * 20, "").slot is None


def test_what_is_not_computed_yet_is_promised_only() -> None:
    pool = SlotPool(4 * UNIT)
    words = list(range(30))
    slot = take(pool, words)
    slot.num_computed = 9
    prefix = pool.find_prefix(words, "")
    assert (prefix.num_ready, prefix.num_promised) == (9, 29)


def test_a_prefix_in_use_is_copied() -> None:
    pool = SlotPool(4 * UNIT)
    words = list(range(20))
    take(pool, words)
    prefix = pool.find_prefix(words, "")
    acquired = pool.acquire(words, "", capacity=20, prefix=prefix, from_top=False)
    assert acquired is not None
    slot, copy = acquired
    assert copy is not None
    assert (copy.source, copy.target, copy.length) == (0, slot.start, 19)
    assert slot.num_computed == 19


def test_a_cached_prefix_is_taken_over_if_nothing_is_lost() -> None:
    pool = SlotPool(4 * UNIT)
    words = list(range(20))
    pool.release(take(pool, words), keep=20)
    assert (pool.num_used, pool.num_cached) == (0, UNIT)
    longer = [*words, 50, 51]
    prefix = pool.find_prefix(longer, "")
    acquired = pool.acquire(longer, "", capacity=2 * UNIT, prefix=prefix, from_top=False)
    assert acquired is not None
    slot, copy = acquired
    assert copy is None
    assert (slot.start, slot.capacity, slot.num_computed) == (0, 2 * UNIT, 20)
    assert (pool.num_used, pool.num_cached) == (2 * UNIT, 0)
    pool.check_integrity()


def test_a_cached_prefix_others_may_want_is_copied() -> None:
    pool = SlotPool(4 * UNIT)
    words = list(range(20))
    pool.release(take(pool, words), keep=20)
    branch = [*words[:12], 99, 98]
    slot = take(pool, branch)
    assert slot.start == UNIT
    assert pool.find_prefix([*words, 1], "").num_ready == 20
    assert pool.num_cached == UNIT


def test_the_least_recently_used_prefix_makes_room() -> None:
    pool = SlotPool(3 * UNIT)
    for word in (1, 2, 3):
        pool.release(take(pool, [word] * 10), keep=10)
    take(pool, [1] * 10)  # takes the oldest one over: now in use
    take(pool, [4] * 10)
    assert pool.find_prefix([2] * 11, "").num_ready == 0
    assert pool.find_prefix([3] * 11, "").num_ready == 10


def test_only_neighbours_that_make_room_together_are_evicted() -> None:
    """Not the oldest, wherever they lie: of the runs that suffice, the one least recently used."""
    pool = SlotPool(8 * UNIT)
    texts = [[*range(100 * n, 100 * n + UNIT)] for n in range(8)]
    slots = [take(pool, keys) for keys in texts]
    for number in (0, 6, 2, 3, 4, 7, 5, 1):
        pool.release(slots[number], keep=UNIT)
    large = take(pool, [*range(900, 900 + 2 * UNIT)])
    assert large.start == 2 * UNIT
    pool.check_integrity()
    kept = [n for n, keys in enumerate(texts) if pool.find_prefix(keys, "").num_ready]
    assert kept == [0, 1, 4, 5, 6, 7]


def test_nothing_is_evicted_in_vain() -> None:
    pool = SlotPool(3 * UNIT)
    pool.release(take(pool, [1] * 10), keep=10)
    take(pool, [2] * 10)
    assert pool.acquire([3], "", capacity=2 * UNIT, prefix=NO_PREFIX, from_top=False) is None
    assert pool.num_cached == UNIT


def test_one_copy_of_a_prefix_is_kept() -> None:
    pool = SlotPool(8 * UNIT)
    slots = [take(pool, [1] * 10) for _ in range(3)]
    for slot in slots:
        pool.release(slot, keep=10)
    assert pool.num_cached == UNIT


def test_a_slot_grows_in_place_then_by_moving() -> None:
    pool = SlotPool(6 * UNIT, prefix_cache=False)
    slot = take(pool, [1] * 10)
    grown = pool.grow(slot, 2 * UNIT)
    assert grown == (slot, None)
    take(pool, [2] * 10)
    slot.num_computed = 40
    moved = pool.grow(slot, 3 * UNIT)
    assert moved is not None
    new, copy = moved
    assert copy is not None
    assert (new.start, copy.source, copy.target, copy.length) == (3 * UNIT, 0, 3 * UNIT, 40)
    assert pool.grow(new, 4 * UNIT) is None
    pool.check_integrity()


def test_without_prefix_cache_nothing_stays() -> None:
    pool = SlotPool(2 * UNIT, prefix_cache=False)
    pool.release(take(pool, [1] * 20), keep=20)
    assert pool.num_cached == 0
    assert pool.find_prefix([1] * 20, "") is NO_PREFIX


class Twin:
    """Plays the pool's memory: which key each position holds, carried by copies and
    computations."""

    def __init__(self, num_positions: int) -> None:
        self.memory: list[int | None] = [None] * num_positions

    def copy(self, copy) -> None:
        if copy is not None:
            source = self.memory[copy.source : copy.source + copy.length]
            assert None not in source
            self.memory[copy.target : copy.target + copy.length] = source

    def compute(self, slot: Slot, until: int) -> None:
        self.memory[slot.start + slot.num_computed : slot.start + until] = slot.keys[
            slot.num_computed : until
        ]
        slot.num_computed = until

    def check(self, slot: Slot) -> None:
        held = self.memory[slot.start : slot.start + slot.num_computed]
        assert held == slot.keys[: slot.num_computed]


actions = st.tuples(st.sampled_from("aagrc"), st.integers(0, 2**16), st.integers(1, 90))


@settings(max_examples=150, deadline=None)
@given(st.lists(actions, max_size=60), st.booleans())
def test_every_slot_holds_what_it_says(script: list[tuple[str, int, int]], from_top: bool) -> None:
    """Acquire, grow, release and compute in any order: positions below `num_computed` are right."""
    pool, twin = SlotPool(8 * UNIT), Twin(8 * UNIT)
    in_use: list[Slot] = []
    for action, choice, size in script:
        if action == "a":
            # Few different prompts, so that prefixes are shared.
            keys = ([choice % 2] * 16 + [choice % 3] * 24 + list(range(60)))[:size]
            prefix = pool.find_prefix(keys, "")
            capacity = size + choice % 40
            fits = pool.has_room([capacity])
            acquired = pool.acquire(keys, "", capacity=capacity, prefix=prefix, from_top=from_top)
            assert fits == (acquired is not None)
            if acquired is not None:
                slot, copy = acquired
                assert slot.num_computed in (0, prefix.num_ready)
                twin.copy(copy)
                in_use.append(slot)
        elif in_use:
            place = choice % len(in_use)
            slot = in_use[place]
            if action == "c":
                twin.compute(slot, min(len(slot.keys), slot.num_computed + size))
            elif action == "g":
                grown = pool.grow(slot, slot.capacity + size)
                if grown is not None:
                    in_use[place], copy = grown
                    twin.copy(copy)
            else:
                pool.release(in_use.pop(place), keep=size)
        for slot in in_use:
            twin.check(slot)
        pool.check_integrity()
    for slot in in_use:
        pool.release(slot, keep=len(slot.keys))
    assert pool.num_used == 0
    pool.check_integrity()


@pytest.mark.parametrize("num_positions", [1, UNIT + 1])
def test_a_pool_is_whole_units(num_positions: int) -> None:
    with pytest.raises(AssertionError, match="whole number of units"):
        SlotPool(num_positions)
