"""Which sequences compute which tokens in the next step.

Owns the waiting and the running requests and the order among them; knows integers only, neither
tensors nor text. Invariant: the sequences of a request are admitted, planned and freed together,
and every running request has a slot for each of its sequences.

There are no phases: every sequence has `num_computed` tokens in its slot and `len(tokens)` known,
and each step moves the first towards the second within a token budget, requests that only miss
their last token (decoding) first.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from janus_core.engine.plan import Chunk, Encode, StepPlan
from janus_core.engine.request import ImageInput, TextRequest
from janus_core.engine.sequence import RequestState
from janus_core.engine.settings import EngineSettings
from janus_core.engine.slots import BLOCK_TOKENS, Copy, Prefix, SlotPool

LOOK_AHEAD = 8
"""Waiting requests of a kind examined per admission: those behind one that waits for its prefix."""


class Scheduler:
    """`is_embedded(tenant, image)` tells whether embeddings need no run of the vision tower."""

    def __init__(
        self,
        settings: EngineSettings,
        pool: SlotPool,
        *,
        is_embedded: Callable[[str, ImageInput], bool],
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._is_embedded = is_embedded
        self._images = _Kind(settings, pool, reserve_of_others=settings.text_reserve)
        # What text borrows can be taken back, because text can be set back.
        self._texts = _Kind(
            settings, pool, reserve_of_others=settings.image_reserve, lender=self._images
        )
        self._num_steps = 0
        self._images_first = False
        self.num_set_backs = 0
        self.prefix_queries_tokens = 0
        self.prefix_hits_tokens = 0

    # ---- the engine's side ----------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._texts.waiting) + len(self._images.waiting)

    @property
    def num_running(self) -> int:
        return len(self._texts.running) + len(self._images.running)

    @property
    def has_work(self) -> bool:
        return bool(self.num_waiting or self.num_running)

    def add(self, state: RequestState) -> None:
        self._kind_of(state).waiting.append(state)

    def remove(self, state: RequestState, *, keep_prefix: bool) -> None:
        """Take a request out, wherever it is. What is computed of it stays as a cached prefix if
        asked."""
        kind = self._kind_of(state)
        if not state.is_running:
            kind.waiting.remove(state)
            return
        kind.running.remove(state)
        # The next turn of a conversation repeats the answer; nobody repeats the codes of a picture.
        keep = state.num_prompt if state.is_image else len(state.sequences[0].tokens)
        self._free(state, keep=keep if keep_prefix else 0)

    def plan(self) -> StepPlan:
        """The next step. Slots are assigned at once; counts move in `commit`."""
        plan = StepPlan()
        self._num_steps += 1
        self._take_back()
        self._make_room(plan)
        for state in self._running():
            if state.is_decoding:
                plan.sampling.append(state)
                plan.chunks += [Chunk(state, sequence, 1) for sequence in state.sequences]
        plan.num_decoding = len(plan.sampling)
        budget = self._settings.tokens_per_step - len(plan.chunks)
        self._admit(plan, budget)
        self._plan_prefills(plan, budget)
        return plan

    def commit(self, chunks: Iterable[Chunk]) -> None:
        """The tokens of these chunks are in their slots."""
        for chunk in chunks:
            slot = chunk.sequence.slot
            assert slot is not None, "a computed sequence has a slot"
            slot.num_computed += chunk.num_tokens

    def check_integrity(self) -> None:
        """Assert the invariants; for tests and idle moments."""
        self._pool.check_integrity()
        slots = [sequence.slot for state in self._running() for sequence in state.sequences]
        assert all(slot is not None and slot.in_use for slot in slots), "a sequence lost its slot"
        assert len({id(slot) for slot in slots}) == len(slots), "two sequences share a slot"
        assert self._pool.num_used == sum(slot.capacity for slot in slots if slot is not None), (
            "a slot in use belongs to nobody"
        )
        assert not any(state.is_running for kind in self._kinds() for state in kind.waiting)

    # ---- growth and set-back --------------------------------------------------------------------

    def _take_back(self) -> None:
        """A picture waits: set text back that fills the share reserved for pictures."""
        if not self._images.waiting:
            return
        first = self._images.waiting[0]
        while not self._fits(first) and self._texts.is_in_debt():
            self._set_back(max(self._texts.running, key=_order))

    def _make_room(self, plan: StepPlan) -> None:
        """Enlarge the slots of text that is about to outgrow them, setting back the newest text
        requests until there is room."""
        for state in sorted(self._texts.running, key=_order):
            slot = state.sequences[0].slot
            while slot is not None and slot.capacity < len(state.sequences[0].tokens):
                grown = self._pool.grow(slot, self._reservation(state)) or self._pool.grow(
                    slot, len(state.sequences[0].tokens)
                )
                if grown is not None:
                    state.sequences[0].slot, copy = grown
                    plan.add_copy(copy)
                    break
                newest = max(self._texts.running, key=_order)
                self._set_back(newest)
                if newest is state:
                    break

    def _set_back(self, state: RequestState) -> None:
        """Free the slot of a text request and let it wait again, before all that arrived later."""
        self._texts.running.remove(state)
        self._free(state, keep=len(state.sequences[0].tokens))
        state.embedded.clear()
        waiting = self._texts.waiting
        place = next((i for i, other in enumerate(waiting) if other.order > state.order), None)
        waiting.insert(len(waiting) if place is None else place, state)
        self.num_set_backs += 1

    def _free(self, state: RequestState, *, keep: int) -> None:
        for sequence in state.sequences:
            if sequence.slot is not None:
                self._pool.release(sequence.slot, keep=keep)
                sequence.slot = None

    def _reservation(self, state: RequestState) -> int:
        """Positions to reserve per sequence: all for pictures, some ahead for text."""
        if state.is_image:
            return state.max_positions
        ahead = len(state.sequences[0].tokens) + self._settings.text_growth_tokens
        return min(state.max_positions, ahead)

    # ---- admission ------------------------------------------------------------------------------

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Give slots to waiting requests, one of each kind in turn, while prefill can keep up."""
        self._images_first = not self._images_first
        turns = [self._images, self._texts] if self._images_first else [self._texts, self._images]
        while turns:
            for kind in list(turns):
                other = self._texts if kind is self._images else self._images
                yields = self._patience_is_over(other, before=kind)
                if yields or kind.backlog_tokens() >= budget or not self._admit_one(kind, plan):
                    turns.remove(kind)

    def _admit_one(self, kind: "_Kind", plan: StepPlan) -> bool:
        """Admit the first waiting request that need not wait for a prefix being computed right
        now."""
        for place in range(min(len(kind.waiting), LOOK_AHEAD)):
            state = kind.waiting[place]
            if not self._may_start(kind, state):
                return False
            prefixes = [self._pool.find_prefix(s.keys, s.salt) for s in state.sequences]
            if any(p.num_promised - p.num_ready >= BLOCK_TOKENS for p in prefixes):
                continue
            if not self._acquire(state, prefixes, plan):
                self._block(state)
                return False
            del kind.waiting[place]
            kind.running.append(state)
            plan.started.append(state)
            state.blocked_since = None
            return True
        return False

    def _may_start(self, kind: "_Kind", state: RequestState) -> bool:
        num_sequences = len(state.sequences)
        num_positions = self._reservation(state) * num_sequences
        if not kind.within_quota(num_sequences, num_positions):
            return False
        if self._fits(state):
            return True
        self._block(state)
        return False

    def _fits(self, state: RequestState) -> bool:
        """Whether there are rows and room for all sequences of a request."""
        num_sequences = len(state.sequences)
        num_rows = self._texts.num_sequences + self._images.num_sequences + num_sequences
        return num_rows <= self._settings.max_sequences and self._pool.has_room(
            [self._reservation(state)] * num_sequences
        )

    def _acquire(self, state: RequestState, prefixes: list[Prefix], plan: StepPlan) -> bool:
        """Slots for all sequences of a request, or none."""
        copies: list[Copy | None] = []
        for sequence, prefix in zip(state.sequences, prefixes, strict=True):
            # Taking the first slot may have evicted or taken over the second one's prefix.
            found = prefix if not copies else self._pool.find_prefix(sequence.keys, sequence.salt)
            acquired = self._pool.acquire(
                sequence.keys,
                sequence.salt,
                capacity=self._reservation(state),
                prefix=found,
                from_top=not state.is_image,
            )
            if acquired is None:
                self._free(state, keep=0)
                return False
            sequence.slot, copy = acquired
            copies.append(copy)
        for copy in copies:
            plan.add_copy(copy)
        self._count_prefixes(state)
        return True

    def _count_prefixes(self, state: RequestState) -> None:
        self.prefix_queries_tokens += sum(len(s.tokens) for s in state.sequences)
        self.prefix_hits_tokens += sum(s.num_computed for s in state.sequences)
        if state.num_output == 0:
            state.num_cached = state.sequences[0].num_computed

    def _block(self, state: RequestState) -> None:
        if state.blocked_since is None:
            state.blocked_since = self._num_steps

    def _patience_is_over(self, kind: "_Kind", *, before: "_Kind") -> bool:
        """Whether the first request of `kind` lacks room for so long, and longer than that of
        `before`, that `before` must leave it the room that becomes free."""
        since = kind.blocked_since()
        if since is None or self._num_steps - since < self._settings.patience_steps:
            return False
        others = before.blocked_since()
        return others is None or since < others

    # ---- prefill --------------------------------------------------------------------------------

    def _plan_prefills(self, plan: StepPlan, budget: int) -> None:
        """Chunks for the requests that do not decode yet: text first, but a share for pictures."""
        decoding = set(plan.sampling)
        images = [state for state in self._images.running if state not in decoding]
        wanted = sum(s.num_pending for state in images for s in state.sequences)
        # A pair needs two tokens at once to finish its prefill.
        image_share = max(2, int(budget * self._settings.image_prefill_share))
        for_images = min(wanted, image_share)
        left = budget
        for state in self._texts.running:
            if state not in decoding:
                left -= self._plan_text_prefill(plan, state, left - for_images)
        for state in images:
            left -= _plan_image_prefill(plan, state, left)

    def _plan_text_prefill(self, plan: StepPlan, state: RequestState, budget: int) -> int:
        """Plan a chunk of at most `budget` tokens; ends before an image whose embeddings must
        wait."""
        request, (sequence,) = state.request, state.sequences
        assert isinstance(request, TextRequest), "pictures have their own prefill"
        if budget <= 0:
            return 0
        first = sequence.num_computed
        end = min(len(sequence.tokens), first + budget)
        for index, image in enumerate(request.images):
            touches = image.first < end and image.first + image.num_tokens > first
            if not touches or index in state.embedded:
                continue
            runs_tower = not self._is_embedded(request.tenant, image)
            num_runs = sum(encode.runs_tower for encode in plan.encodes)
            if runs_tower and num_runs >= self._settings.encodes_per_step:
                end = image.first
                break
            plan.encodes.append(Encode(state, index, runs_tower))
        if end <= first:
            return 0
        plan.add_prefill(state, sequence, end - first)
        if end == len(sequence.tokens):
            plan.sampling.append(state)
        return end - first

    # ---- the two kinds --------------------------------------------------------------------------

    def _kinds(self) -> tuple["_Kind", "_Kind"]:
        return self._texts, self._images

    def _kind_of(self, state: RequestState) -> "_Kind":
        return self._images if state.is_image else self._texts

    def _running(self) -> Iterator[RequestState]:
        yield from self._texts.running
        yield from self._images.running


class _Kind:
    """The requests of one kind, text or pictures, and what they may take of the pool.

    A kind never takes the share reserved for the other one, unless nothing of its own is running
    (what fits the pool must be able to run) or the other one, as a `lender`, has no requests.
    """

    def __init__(
        self,
        settings: EngineSettings,
        pool: SlotPool,
        *,
        reserve_of_others: float,
        lender: "_Kind | None" = None,
    ) -> None:
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        self._lender = lender
        self._max_sequences = int(settings.max_sequences * (1.0 - reserve_of_others))
        self._max_positions = int(pool.num_positions * (1.0 - reserve_of_others))

    @property
    def num_sequences(self) -> int:
        return sum(len(state.sequences) for state in self.running)

    def within_quota(self, num_sequences: int, num_positions: int) -> bool:
        """Whether so much more may be taken."""
        if not self.running:
            return True
        if self._lender is not None and not self._lender.waiting and not self._lender.running:
            return True
        return self._fits_share(num_sequences, num_positions)

    def is_in_debt(self) -> bool:
        """Whether more than the own share is taken, by more than one request."""
        return len(self.running) > 1 and not self._fits_share(0, 0)

    def _fits_share(self, num_sequences: int, num_positions: int) -> bool:
        used = sum(s.slot.capacity for state in self.running for s in state.sequences if s.slot)
        return (
            self.num_sequences + num_sequences <= self._max_sequences
            and used + num_positions <= self._max_positions
        )

    def backlog_tokens(self) -> int:
        """Tokens to prefill before all running requests decode."""
        return sum(
            sequence.num_pending - 1 for state in self.running for sequence in state.sequences
        )

    def blocked_since(self) -> int | None:
        """The step since which the first request in need of room waits for it."""
        waiting = (self.waiting[place] for place in range(min(len(self.waiting), LOOK_AHEAD)))
        return next((s.blocked_since for s in waiting if s.blocked_since is not None), None)


def _plan_image_prefill(plan: StepPlan, state: RequestState, budget: int) -> int:
    """Plan chunks of at most `budget` tokens for all sequences of a picture.

    They may be of different lengths (a prefix hit of one), but end in the same step: until all can
    end, each keeps its last token back.
    """
    pending = [sequence.num_pending for sequence in state.sequences]
    if sum(pending) <= budget:
        for sequence, num_tokens in zip(state.sequences, pending, strict=True):
            plan.add_prefill(state, sequence, num_tokens)
        plan.sampling.append(state)
        return sum(pending)
    left = budget
    for sequence, num_pending in zip(state.sequences, pending, strict=True):
        num_tokens = min(num_pending - 1, left)
        if num_tokens > 0:
            plan.add_prefill(state, sequence, num_tokens)
            left -= num_tokens
    return budget - left


_order = attrgetter("order")
