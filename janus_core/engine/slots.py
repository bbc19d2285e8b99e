"""The positions of the KV pool, handed out as contiguous slots, and the prefixes they hold.

Owns which position belongs to whom and which prefix is where; knows positions and integers, neither
tensors nor requests. Invariant: slots never overlap, start at a multiple of `SLOT_UNIT`, and no
position `>= num_computed` of a slot is ever offered as a prefix.

A slot is *in use* by one sequence, or it is *cached*: left by a finished sequence, offered to
others, and evicted, least recently used first, when its room is needed.

    |<- slot, in use ------------>|<- free ->|<- slot, cached ->|<- free ->|
    start      num_computed    start + capacity
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from janus_core.engine.settings import SLOT_UNIT

BLOCK_TOKENS = 8
"""Tokens per link of a prefix's hash chain: no prefix shorter than this is found."""

MAX_CANDIDATES = 8
"""Slots compared per link; many sequences may share the beginning of a prompt."""


@dataclass(eq=False, slots=True)
class Slot:
    """Positions `[start, start + capacity)`, of which the first `num_computed` are valid.

    `keys[i]` says what position `i` holds (see `Sequence.keys`); `hashes` is the hash chain of the
    keys under which the slot is found.
    """

    start: int
    capacity: int
    keys: list[int]
    salt: str
    num_computed: int = 0
    in_use: bool = True
    last_used: int = 0
    hashes: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + self.capacity


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest known beginning of a sequence: `num_ready` positions of `slot` can be reused now,
    `num_promised` once those that are being computed are done."""

    slot: Slot | None
    num_ready: int
    num_promised: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `length` pool positions. Copies of a step are carried out in their order, before
    anything is written."""

    source: int
    target: int
    length: int


NO_PREFIX = Prefix(None, 0, 0)


class SlotPool:
    """`num_positions` positions; with `prefix_cache` off nothing is ever shared."""

    def __init__(self, num_positions: int, *, prefix_cache: bool = True) -> None:
        assert num_positions % SLOT_UNIT == 0, "the pool is a whole number of units"
        self.num_positions = num_positions
        self.num_used = 0
        self.num_cached = 0
        self._prefix_cache = prefix_cache
        self._slots: list[Slot] = []  # ascending by start
        self._found_under: dict[int, list[Slot]] = {}
        self._clock = 0

    # ---- prefixes ---------------------------------------------------------------------------

    def find_prefix(self, keys: list[int], salt: str) -> Prefix:
        """The longest prefix of `keys` in any slot, at most all but the last position.

        The last token is always computed, because its hidden state is needed.
        """
        if not self._prefix_cache:
            return NO_PREFIX
        limit = len(keys) - 1
        chain = _hash_chain(keys, salt)
        best, num_ready, num_promised = None, 0, 0
        seen: set[int] = set()
        for num_blocks in range(len(chain), 0, -1):
            # A slot first met here shares fewer than one block more than `num_blocks`.
            if num_ready >= (num_blocks + 1) * BLOCK_TOKENS:
                break
            for slot in self._found_under.get(chain[num_blocks - 1], ())[-MAX_CANDIDATES:]:
                if id(slot) in seen:
                    continue
                seen.add(id(slot))
                shared = min(_num_shared(slot, keys, salt, num_blocks * BLOCK_TOKENS), limit)
                num_promised = max(num_promised, shared)
                ready = min(shared, slot.num_computed)
                if ready > num_ready:
                    best, num_ready = slot, ready
        return Prefix(best, num_ready, num_promised)

    # ---- slots ------------------------------------------------------------------------------

    def acquire(
        self, keys: list[int], salt: str, *, capacity: int, prefix: Prefix, from_top: bool
    ) -> tuple[Slot, Copy | None] | None:
        """A slot of at least `capacity` positions that begins with `prefix`, or None if there is no
        room.

        A cached slot is taken over if nothing of it is lost by that, or if there is no other room;
        otherwise the prefix is copied. `from_top` allocates from the pool's upper end, so that the
        rooms of text and pictures stay whole.
        """
        source = prefix.slot
        capacity = round_up(capacity)
        if source is not None:
            self._touch(source)
            # But for its last position, which the new sequence computes again.
            whole = source.num_computed <= prefix.num_ready + 1
            if not source.in_use and whole and self._take_over(source, keys, prefix, capacity):
                return source, None
            slot = self._allocate(keys, salt, capacity, from_top=from_top, pinned=source)
            if slot is not None:
                slot.num_computed = prefix.num_ready
                copy = Copy(source.start, slot.start, prefix.num_ready)
                if not source.in_use and whole:
                    self._remove(source)
                return slot, copy
            if not source.in_use and self._take_over(source, keys, prefix, capacity):
                return source, None
        slot = self._allocate(keys, salt, capacity, from_top=from_top, pinned=None)
        return None if slot is None else (slot, None)

    def grow(self, slot: Slot, capacity: int) -> tuple[Slot, Copy | None] | None:
        """`slot` with at least `capacity` positions: enlarged in place or moved; None if there is
        no room, and then nothing has changed."""
        assert slot.in_use, "only a slot in use grows"
        capacity = round_up(capacity)
        if self._extend(slot, capacity):
            return slot, None
        moved = self._allocate(slot.keys, slot.salt, capacity, from_top=True, pinned=None)
        if moved is None:
            return None
        moved.num_computed = slot.num_computed
        copy = Copy(slot.start, moved.start, slot.num_computed)
        self._remove(slot)
        return moved, copy

    def release(self, slot: Slot, *, keep: int) -> None:
        """End the use of `slot`. Its first `keep` computed positions stay as a cached prefix,
        unless another slot holds them too."""
        assert slot.in_use, "a slot is released once"
        keep = min(keep, slot.num_computed)
        keys = slot.keys[:keep]
        salt = slot.salt
        self._remove(slot)
        if not self._prefix_cache or keep < BLOCK_TOKENS:
            return
        # A key beyond the end makes the whole of `keys` eligible.
        known = self.find_prefix([*keys, -1], salt)
        if known.slot is not None and known.num_ready >= keep:
            self._touch(known.slot)
            return
        self._insert(Slot(slot.start, round_up(keep), keys, salt, num_computed=keep, in_use=False))

    def forget_cached(self) -> None:
        """Give up every cached prefix; slots in use stay what they are."""
        for slot in [slot for slot in self._slots if not slot.in_use]:
            self._remove(slot)

    def has_room(self, capacities: list[int]) -> bool:
        """Whether slots of these capacities fit beside those in use (cached slots count as
        free)."""
        gaps = sorted(end - start for start, end in self._gaps(skip_cached=True))
        for capacity in sorted(map(round_up, capacities), reverse=True):
            if not gaps or gaps[-1] < capacity:
                return False
            insort(gaps, gaps.pop() - capacity)
        return True

    def check_integrity(self) -> None:
        """Assert the invariants; for tests and idle moments."""
        for before, after in zip(self._slots, self._slots[1:], strict=False):
            assert before.end <= after.start, "slots overlap"
        for slot in self._slots:
            assert slot.start % SLOT_UNIT == 0, "a slot starts between units"
            assert slot.end <= self.num_positions, "a slot ends beyond the pool"
            assert slot.num_computed <= slot.capacity, "a slot is fuller than it is large"
            assert all(slot in self._found_under[link] for link in slot.hashes), "a prefix is lost"
        assert self.num_used == sum(slot.capacity for slot in self._slots if slot.in_use)
        assert self.num_cached == sum(slot.capacity for slot in self._slots if not slot.in_use)
        num_links = sum(len(slots) for slots in self._found_under.values())
        assert num_links == sum(len(slot.hashes) for slot in self._slots), "a stale prefix"

    # ---- below: the sorted list, the index, and eviction -----------------------------------------

    def _take_over(self, slot: Slot, keys: list[int], prefix: Prefix, capacity: int) -> bool:
        """Make the cached `slot` the slot of a sequence with `keys`, if it can be made large
        enough."""
        slot.in_use = True  # so that it is not evicted to make its own room
        self.num_cached -= slot.capacity
        self.num_used += slot.capacity
        if not self._extend(slot, capacity):
            slot.in_use = False
            self.num_cached += slot.capacity
            self.num_used -= slot.capacity
            return False
        self._unlink(slot)
        slot.keys = keys
        slot.num_computed = prefix.num_ready
        self._shrink(slot, capacity)
        self._link(slot)
        return True

    def _extend(self, slot: Slot, capacity: int) -> bool:
        """Enlarge a slot in use upwards, over free positions and cached slots."""
        first = bisect_left(self._slots, slot.start, key=_start) + 1
        last = first
        while last < len(self._slots) and not self._slots[last].in_use:
            last += 1
        limit = self._slots[last].start if last < len(self._slots) else self.num_positions
        if limit - slot.start < capacity:
            return False
        for cached in self._slots[first:last]:
            if cached.start < slot.start + capacity:
                self._remove(cached)
        self.num_used += max(0, capacity - slot.capacity)
        slot.capacity = max(capacity, slot.capacity)
        return True

    def _shrink(self, slot: Slot, capacity: int) -> None:
        self.num_used -= slot.capacity - capacity
        slot.capacity = capacity

    def _allocate(
        self, keys: list[int], salt: str, capacity: int, *, from_top: bool, pinned: Slot | None
    ) -> Slot | None:
        """A new slot in use; evicts cached slots other than `pinned`, but none in vain."""
        room = self._find_gap(capacity, from_top=from_top) or self._evict(capacity, pinned)
        if room is None:
            return None
        start, end = room
        slot = Slot(end - capacity if from_top else start, capacity, keys, salt)
        self._insert(slot)
        return slot

    def _find_gap(self, capacity: int, *, from_top: bool) -> tuple[int, int] | None:
        """The first or the last free run that is large enough."""
        fits = (gap for gap in self._gaps(skip_cached=False) if gap[1] - gap[0] >= capacity)
        return max(fits, default=None) if from_top else next(fits, None)

    def _evict(self, capacity: int, pinned: Slot | None) -> tuple[int, int] | None:
        """Evict neighbouring cached slots and return the room they leave: of all runs that suffice,
        the one whose most recently used slot was used least recently. Call it if no gap suffices.
        """
        best: list[Slot] = []
        best_used = self._clock + 1
        room = None
        run: deque[Slot] = deque()
        low = 0  # where the room of the run begins
        highs = [slot.start for slot in self._slots[1:]] + [self.num_positions]
        for slot, high in zip(self._slots, highs, strict=False):
            # What was used more recently than the best run can be in no better one.
            if slot.in_use or slot is pinned or slot.last_used >= best_used:
                run.clear()
                low = slot.end
                continue
            run.append(slot)
            while high - run[0].end >= capacity:
                low = run.popleft().end
            if high - low >= capacity:
                best, room = list(run), (low, high)
                best_used = max(cached.last_used for cached in run)
        for cached in best:
            self._remove(cached)
        return room

    def _gaps(self, *, skip_cached: bool) -> Iterator[tuple[int, int]]:
        """The free runs `[start, end)`, ascending; cached slots count as free if asked."""
        start = 0
        for slot in self._slots:
            if skip_cached and not slot.in_use:
                continue
            if slot.start > start:
                yield start, slot.start
            start = slot.end
        if self.num_positions > start:
            yield start, self.num_positions

    def _insert(self, slot: Slot) -> None:
        insort(self._slots, slot, key=_start)
        if slot.in_use:
            self.num_used += slot.capacity
        else:
            self.num_cached += slot.capacity
        self._touch(slot)
        self._link(slot)

    def _remove(self, slot: Slot) -> None:
        self._slots.remove(slot)
        if slot.in_use:
            self.num_used -= slot.capacity
        else:
            self.num_cached -= slot.capacity
        self._unlink(slot)

    def _link(self, slot: Slot) -> None:
        slot.hashes = _hash_chain(slot.keys, slot.salt) if self._prefix_cache else []
        for link in slot.hashes:
            self._found_under.setdefault(link, []).append(slot)

    def _unlink(self, slot: Slot) -> None:
        for link in slot.hashes:
            slots = self._found_under[link]
            slots.remove(slot)
            if not slots:
                del self._found_under[link]
        slot.hashes = []

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock


_start = attrgetter("start")


def round_up(num_positions: int) -> int:
    """To whole units of `SLOT_UNIT`."""
    return num_positions + -num_positions % SLOT_UNIT


def _hash_chain(keys: list[int], salt: str) -> list[int]:
    """`chain[i]` stands for `salt` and the first `(i + 1) * BLOCK_TOKENS` keys."""
    chain = []
    link = hash(salt)
    for end in range(BLOCK_TOKENS, len(keys) + 1, BLOCK_TOKENS):
        link = hash((link, *keys[end - BLOCK_TOKENS : end]))
        chain.append(link)
    return chain


def _num_shared(slot: Slot, keys: list[int], salt: str, num_hashed: int) -> int:
    """How many keys `slot` and `keys` share from the start; 0 if the equal hashes were a
    collision."""
    theirs = slot.keys
    if slot.salt != salt or theirs[:num_hashed] != keys[:num_hashed]:
        return 0
    num_shared = num_hashed
    for mine, other in zip(keys[num_hashed:], theirs[num_hashed:], strict=False):
        if mine != other:
            break
        num_shared += 1
    return num_shared
