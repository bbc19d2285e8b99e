"""A state machine over scheduler, slot pool, queue and its bounds: everything that can happen to a
request, in any order, and what must be true after each of it.

Its control is `test_planted_bugs`: a machine that finds nothing in broken code says nothing of
sound code.
"""

import itertools

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
from janus_core.engine.slots import BLOCK_TOKENS
from janus_core.engine.waiting_room import WaitingRoom
from tests.core.engine.house import NUM_CODES, House, image, seen, text
from tests.core.engine.waits import Wait

MAX_WAITING = 6
"""Of either kind."""
PATIENCE_STEPS = 20
LONGEST = 60
LARGEST = 2 * LONGEST
"""Tokens of a request at most: of an answer its prompt and what is said, of a picture both of its
sequences."""
MAX_SEQUENCES = 8

TENANTS = ("", "a", "b")


class World(House):
    """A house whose slots remember what was written to them, and whose requests end once."""

    def __init__(self, **fields) -> None:
        super().__init__(
            max_waiting=MAX_WAITING,
            max_waiting_bytes=40_000,
            patience_steps=PATIENCE_STEPS,
            max_sequences=MAX_SEQUENCES,
            **fields,
        )
        self.memory: list[tuple[str, int] | None] = [None] * self.settings.kv_positions
        self.room = WaitingRoom(self.settings)
        self.ends: dict[str, str] = {}
        self.deadlines: dict[str, int] = {}
        self.waits: dict[str, Wait] = {}

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
        if deadline_steps is not None:
            self.deadlines[request.id] = self.num_steps + deadline_steps
        ahead = self.live
        self.add(request)
        state = self.states[request.id]
        for wait in self.waits.values():
            wait.come(state)
        queue = self.scheduler._kind_of(state).waiting
        self.waits[request.id] = Wait(
            state,
            ahead,
            queue,
            at_set_backs=self.scheduler.num_set_backs,
        )

    def end(self, request_id: str, reason: str) -> None:
        assert request_id not in self.ends, "a request ended twice"
        self.ends[request_id] = reason
        self.room.leave(request_id)
        self.deadlines.pop(request_id, None)
        self.waits.pop(request_id, None)

    def abort(self, state: RequestState, reason: str, *, keep_prefix: bool = True) -> None:
        num_charged = state.num_charged
        self.scheduler.remove(state, keep_prefix=keep_prefix)
        self.end(state.id, reason)
        for wait in self.waits.values():
            wait.refund(state.tenant, num_charged - state.num_charged)

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

    def check_waits(self, plan: StepPlan) -> None:
        """Nobody starves, however many come after it."""
        for state, wait in itertools.product(plan.started, self.waits.values()):
            if wait.is_before(state) and self.awaits_prefix(wait.state):
                wait.excuse(state)
        for chunk, wait in itertools.product(plan.chunks, self.waits.values()):
            wait.count(chunk)
        for wait in self.waits.values():
            again = (self.scheduler.num_set_backs - wait.at_set_backs) * LARGEST
            # A picture is charged at its start, an answer as it is said.
            one_more = LARGEST if wait.state.is_image else (1 + MAX_SEQUENCES) * LARGEST
            for tenant, num_tokens in wait.computed.items():
                most = wait.most(tenant, one_more=one_more) + again
                assert num_tokens <= most, (
                    f"starved: {num_tokens} tokens for later ones of {tenant}"
                )

    def awaits_prefix(self, state: RequestState) -> bool:
        """Whether a request lets others start because its own prefix is being computed."""
        found = [self.pool.find_prefix(each.keys, each.salt) for each in state.sequences]
        return any(each.num_promised - each.num_ready >= BLOCK_TOKENS for each in found)

    def check(self, plan: StepPlan) -> None:
        """Carry out the plan in the memory: what a chunk builds on must be its own prefix."""
        super().check(plan)
        assert plan.chunks, "requests wait or run, and nothing is computed"
        for state in plan.started:
            self.waits.pop(state.id, None)
        self.check_waits(plan)
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

    @rule(tenant=st.sampled_from(TENANTS), is_image=st.booleans())
    def flood(self, tenant: str, is_image: bool) -> None:
        """One tenant asks for as much as may wait, and no two of it have a prefix in common."""
        for _ in range(MAX_WAITING):
            id, first = self._next_id(), 500 + 5 * self.num_added
            make = image if is_image else text
            self.world.arrive(make(id, 12, first=first, tenant=tenant), None)

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
    def forget_cached(self) -> None:
        """An administrator, or a server that falls asleep, gives up all prefixes and embeddings."""
        self.world.pool.forget_cached()
        self.world.embedded.clear()
        assert self.world.pool.num_cached == 0

    @rule()
    def free_memory(self) -> None:
        """A step found too little memory: the embeddings go, the prefixes stay."""
        self.world.embedded.clear()

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
