"""The requests of one kind, text or pictures: who waits, who runs, and what they may take.

Owns the running requests of a kind and its share of the pool, and has the queue before them; knows
slots by their sizes only. Invariant: a
kind never takes the share reserved for the other one, unless nothing of its own is running (what
fits the pool must be able to run) or the other one, as a `lender`, has no requests.
"""

from janus_core.engine.fair_queue import FairQueue
from janus_core.engine.forecast import Drawing
from janus_core.engine.plan import StepPlan
from janus_core.engine.sequence import RequestState
from janus_core.engine.settings import EngineSettings
from janus_core.engine.slots import SlotPool, round_up

LOOK_AHEAD = 8
"""Waiting requests of a kind examined per admission: those behind one that waits for its prefix."""


class Kind:
    """`reserve_of_others` is the fraction of sequences and positions kept from this kind."""

    def __init__(
        self,
        settings: EngineSettings,
        pool: SlotPool,
        *,
        reserve_of_others: float,
        lender: "Kind | None" = None,
    ) -> None:
        self.waiting = FairQueue()
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

    def capacity(self, num_sequences: int, num_positions: int) -> int:
        """How many requests of so many sequences, each of so many positions, the share holds.
        Thread-safe."""
        by_rows = self._max_sequences // num_sequences
        by_room = self._max_positions // (num_sequences * round_up(num_positions))
        return max(1, min(by_rows, by_room))

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

    def prompt_tokens(self, decoding: set[RequestState]) -> int:
        """Tokens to prefill of the running requests that are not `decoding`."""
        return sum(
            sequence.num_pending
            for state in self.running
            if state not in decoding
            for sequence in state.sequences
        )

    def blocked_since(self) -> int | None:
        """The step since which the first request in need of room waits for it."""
        waiting = self.waiting.first(LOOK_AHEAD)
        return next((s.blocked_since for s in waiting if s.blocked_since is not None), None)


def drawing_of(state: RequestState, *, num_codes: int) -> Drawing:
    """A picture, which has `num_codes`, as a forecast sees it."""
    return Drawing(
        state.id,
        num_rows=len(state.sequences),
        num_left=state.num_to_draw(num_codes),
        num_prompt=0 if state.is_decoding else state.sequences[0].num_pending,
        context=state.sequences[0].num_computed,
    )


def plan_image_prefill(plan: StepPlan, state: RequestState, budget: int) -> int:
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
