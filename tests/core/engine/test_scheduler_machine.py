"""A state machine over scheduler, slot pool, queue and its bounds: everything that can happen to a
request, in any order, and what must be true after each of it.

Its control is `test_planted_bugs`: a machine that finds nothing in broken code says nothing of
sound code.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from janus_core.engine.plan import StepPlan
from janus_core.engine.request import ImageRequest
from janus_core.engine.sequence import RequestState
from janus_core.engine.waiting_room import WaitingRoom
from tests.core.engine.house import NUM_CODES, House, image, seen, text

MAX_WAITING = 6
"""Of either kind."""
PATIENCE_STEPS = 20
LONGEST = 60
MAX_WAIT_STEPS = 1200
"""Nobody waits longer, although the machine lets twelve others wait whose work takes up to 120
steps each: the starvation bound."""

TENANTS = ("", "a", "b")


class World(House):
    """A house whose slots remember what was written to them, and whose requests end once."""

    def __init__(self, **fields) -> None:
        super().__init__(
            max_waiting=MAX_WAITING,
            max_waiting_bytes=40_000,
            patience_steps=PATIENCE_STEPS,
            max_sequences=8,
            **fields,
        )
        self.memory: list[tuple[str, int] | None] = [None] * self.settings.kv_positions
        self.room = WaitingRoom(self.settings)
        self.ends: dict[str, str] = {}
        self.deadlines: dict[str, int] = {}
        self.added_at: dict[str, int] = {}

    @property
    def live(self) -> list[RequestState]:
        return [state for id, state in self.states.items() if id not in self.ends]

    def arrive(self, request, deadline_steps: int | None) -> None:
        """Admit a request if the bounds allow."""
        is_image = isinstance(request, ImageRequest)
        if self.room.refusal(request.tenant, is_image=is_image) is not None:
            assert self.room.num_waiting > 0, "an empty room refuses"
            return
        self.room.enter(request)
        self.added_at[request.id] = self.num_steps
        if deadline_steps is not None:
            self.deadlines[request.id] = self.num_steps + deadline_steps
        self.add(request)

    def end(self, request_id: str, reason: str) -> None:
        assert request_id not in self.ends, "a request ended twice"
        self.ends[request_id] = reason
        self.room.leave(request_id)
        self.deadlines.pop(request_id, None)

    def abort(self, state: RequestState, reason: str, *, keep_prefix: bool = True) -> None:
        self.scheduler.remove(state, keep_prefix=keep_prefix)
        self.end(state.id, reason)

    def advance(self) -> StepPlan:
        plan = self.step()
        for state in plan.started:
            self.room.leave(state.id)
        for request_id in self.ended_at.keys() - self.ends.keys():
            self.end(request_id, "stop")
        for request_id, at in list(self.deadlines.items()):
            if at <= self.num_steps:
                self.abort(self.states[request_id], "deadline")
        return plan

    def check(self, plan: StepPlan) -> None:
        """Carry out the plan in the memory: what a chunk builds on must be its own prefix."""
        super().check(plan)
        assert plan.chunks, "requests wait or run, and nothing is computed"
        for copy in plan.copies:
            taken = self.memory[copy.source : copy.source + copy.length]
            self.memory[copy.target : copy.target + copy.length] = taken
        for chunk in plan.chunks:
            sequence, slot = chunk.sequence, chunk.sequence.slot
            end = slot.num_computed + chunk.num_tokens
            written = fingerprints(sequence.keys[:end], sequence.salt)
            found = self.memory[slot.start : slot.start + slot.num_computed]
            assert found == written[: slot.num_computed], "a sequence builds on another's prefix"
            self.memory[slot.start + slot.num_computed : slot.start + end] = written[len(found) :]


def fingerprints(keys: list[int], salt: str) -> list[tuple[str, int]]:
    """What each position holds: it depends on everything before it."""
    made, link = [], 0
    for key in keys:
        link = hash((link, key))
        made.append((salt, link))
    return made


class SchedulerMachine(RuleBasedStateMachine):
    """The rules are what can happen; the invariants hold after each of them."""

    world: World

    @initialize(
        kv_positions=st.sampled_from([160, 256, 512]),
        budget=st.sampled_from([10, 24, 64]),
        growth=st.sampled_from([1, 16]),
        prefix_cache=st.sampled_from([True, True, False]),
    )
    def build(self, kv_positions: int, budget: int, growth: int, prefix_cache: bool) -> None:
        self.world = World(
            kv_positions=kv_positions,
            step_token_budget=budget,
            text_growth_tokens=growth,
            prefix_cache=prefix_cache,
        )
        self.num_added = 0

    def _next_id(self) -> str:
        self.num_added += 1
        return f"r{self.num_added}"

    @rule(
        num_prompt=st.integers(1, LONGEST),
        max_tokens=st.integers(1, LONGEST),
        first=st.sampled_from([10, 10, 300]),
        tenant=st.sampled_from(TENANTS),
        has_image=st.booleans(),
        deadline=st.sampled_from([None, None, 1, 7, 40]),
    )
    def ask(self, num_prompt, max_tokens, first, tenant, has_image, deadline) -> None:
        """Prompts of one `first` are prefixes of each other: later ones hit."""
        images = (seen(1),) if has_image and num_prompt > 22 else ()
        request = text(
            self._next_id(),
            num_prompt,
            max_tokens=max_tokens,
            first=first,
            tenant=tenant,
            images=images,
        )
        self.world.arrive(request, deadline)

    @rule(
        num_prompt=st.integers(2, 40),
        first=st.sampled_from([10, 300]),
        guided=st.booleans(),
        num=st.integers(1, 4),
        tenant=st.sampled_from(TENANTS),
        deadline=st.sampled_from([None, None, 3, 20]),
    )
    def draw(self, num_prompt, first, guided, num, tenant, deadline) -> None:
        """`num` pictures of one prompt: the others fork from the first one's pair."""
        for _ in range(num):
            request = image(self._next_id(), num_prompt, first=first, guided=guided, tenant=tenant)
            self.world.arrive(request, deadline)

    @rule(num_steps=st.sampled_from([1, 1, 2, 3, 8, 25]))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if self.world.scheduler.has_work:
                self.world.advance()

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), keep_prefix=st.booleans())
    def abort(self, data, keep_prefix: bool) -> None:
        """A client leaves (what was computed stays as a prefix), or a step failed (it does not)."""
        state = data.draw(st.sampled_from(self.world.live), label="who")
        self.world.abort(state, "abort", keep_prefix=keep_prefix)

    @rule()
    def run_out_of_room(self) -> None:
        """As many answers as may run grow as long as may be: some are set back, prefixes go."""
        for n in range(8):
            self.world.arrive(
                text(self._next_id(), 8, max_tokens=LONGEST, first=400 + 20 * n), None
            )

    @rule()
    def drain(self) -> None:
        """Take nothing new and go on to the end, which must come."""
        world = self.world
        left = sum(
            2 * state.max_positions + (NUM_CODES if state.is_image else 0) for state in world.live
        )
        set_backs = world.scheduler.num_set_backs
        first = world.num_steps
        while world.scheduler.has_work:
            world.advance()
            again = (world.scheduler.num_set_backs - set_backs) * 2 * LONGEST
            assert world.num_steps - first <= left + again, "draining does not come to an end"
        assert world.ends.keys() == world.states.keys(), "a request was lost"
        assert world.pool.num_used == 0, "a slot is left in use"
        assert world.room.num_waiting == world.room.num_bytes == 0

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.drain()

    # ---- what is true after every rule ----------------------------------------------------------

    @invariant()
    def slots_are_whose_they_are(self) -> None:
        """Counted here, from the requests: the pool's own books are checked beside it."""
        world = self.world
        world.scheduler.check_integrity()
        running = [state for state in world.live if state.is_running]
        owned: set[int] = set()
        for state in running:
            assert all(sequence.slot is not None for sequence in state.sequences), "half a pair"
            for sequence in state.sequences:
                positions = range(sequence.slot.start, sequence.slot.end)
                assert owned.isdisjoint(positions), "a position has two owners"
                owned.update(positions)
        assert len(owned) == world.pool.num_used, "positions in use belong to nobody"
        assert world.pool.num_used + world.pool.num_cached <= world.settings.kv_positions
        assert not any(
            sequence.slot
            for state in world.states.values()
            if state.id in world.ends
            for sequence in state.sequences
        ), "a request that ended has a slot"

    @invariant()
    def everybody_waits_or_runs(self) -> None:
        world = self.world
        kinds = (world.scheduler._texts, world.scheduler._images)
        waiting = [state.id for kind in kinds for state in kind.waiting]
        running = [state.id for kind in kinds for state in kind.running]
        listed = waiting + running
        assert sorted(listed) == sorted(state.id for state in world.live), "lost, or there twice"
        assert all(world.states[id].is_running for id in running)

    @invariant()
    def the_queue_is_bounded(self) -> None:
        world = self.world
        unstarted = [s for s in world.live if s.id not in world.started_at]
        num_images = sum(state.is_image for state in unstarted)
        assert max(num_images, len(unstarted) - num_images) <= MAX_WAITING
        assert world.room.num_bytes <= world.settings.max_waiting_bytes or (
            world.room.num_waiting == 1
        )
        assert world.room.num_waiting == len(unstarted), "the room counts others than who waits"

    @invariant()
    def nobody_starves(self) -> None:
        world = self.world
        for state in world.live:
            if state.id not in world.started_at:
                assert world.num_steps - world.added_at[state.id] <= MAX_WAIT_STEPS, "starved"


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def run_machine(*, max_examples: int, **options) -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=QUIET,
            **options,
        ),
    )


def test_whatever_happens_to_requests_the_books_are_right() -> None:
    run_machine(max_examples=40)


@pytest.mark.slow
def test_whatever_happens_to_many_requests_the_books_are_right() -> None:
    run_machine(max_examples=1500)
