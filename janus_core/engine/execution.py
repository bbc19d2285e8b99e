"""Carries out a plan and finds the culprits if that fails.

Owns the counts of steps and of failed ones, and the steps that were launched ahead (`ahead.py`);
knows the runner, and of requests only that those that fail must leave the plan. Invariant: a fault
inside a step ends the requests that caused it and no other, and an engine that cannot compute
anything any more raises instead of going on.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from janus_core.engine.ahead import Flight
from janus_core.engine.events import StepDone
from janus_core.engine.faults import Fault, error_of, fault_of, no_fault_of_the_request
from janus_core.engine.plan import Sample, StepPlan, decode_load
from janus_core.engine.runner import Runner
from janus_core.engine.sequence import RequestState, Role
from janus_core.engine.step_model import StepLoad
from janus_core.errors import EngineDeadError, StepError

MAX_LOST_STEPS = 8
"""Steps in a row in which every request failed and the probe after them did too: by then the fault
is not the requests'."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What a step brought: samples, the requests that failed with their errors, and its duration.

    Not `is_usual`: parts of the step were repeated, or a graph was captured in it, so that the
    duration says nothing of the next step of its kind.
    """

    samples: list[Sample]
    done: StepDone
    failures: list[tuple[RequestState, StepError]] = field(default_factory=list)
    is_usual: bool = True


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What came of computing some requests together: samples, and whom the fault concerns."""

    samples: list[Sample]
    suspects: list[RequestState]
    fault: Fault | None = None


class Executor:
    """`num_steps` and `num_failed_steps` count since the start; `beat_s` is when the pass at hand
    began, on the monotonic clock. `probe` makes the plan of a step that must succeed."""

    def __init__(self, runner: Runner, *, probe: Callable[[], StepPlan]) -> None:
        self._runner = runner
        self._probe = probe
        self.num_steps = 0
        self.num_failed_steps = 0
        self.beat_s = 0.0
        self._num_lost_steps = 0
        self._flight: Flight | None = None
        self._plan = StepPlan()
        self._is_settled = True
        self._read_s = 0.0

    def replan(self) -> None:
        """A request came or ended: launch nothing more before there is a new plan."""
        self._is_settled = False

    def pending(self) -> StepPlan | None:
        """The plan of a step that is launched and not read, less the requests that have ended; None
        if there is none."""
        if self._flight is None:
            return None
        live = [state for state in self._plan.sampling if state.is_running]
        if not live:
            self._flight = None
            return None
        self._plan = StepPlan(
            chunks=[chunk for chunk in self._plan.chunks if chunk.state.is_running],
            sampling=live,
            num_decoding=len(live),
            load=sum(map(decode_load, live), start=StepLoad()),
        )
        return self._plan

    def land(self) -> None:
        """Forget what was launched and not read; every request of it has ended."""
        plan = self.pending()
        assert plan is None, "requests are live"

    def run(self, plan: StepPlan, *, num_running: int) -> Outcome:
        """Compute the plan, or read it if it is `pending`; if that fails, compute it in parts until
        it is clear whose fault it is, and take those out of the plan. Steps may run ahead if it
        samples for all requests that run.

        Raises EngineDeadError if the device is lost, and after `MAX_LOST_STEPS` lost steps.
        """
        if self._flight is None:
            started_s = time.monotonic()
            self._runner.copy(plan.copies)
        else:
            started_s = self._read_s
        is_all = len(plan.sampling) == num_running
        num_graphs = self._runner.num_graphs
        attempt = self._attempt(plan.states(), partial(self._compute, plan, is_all=is_all))
        samples, failures = attempt.samples, []
        if attempt.fault is not None:
            self._flight = None
            self.num_failed_steps += 1
            failures = self._repeat(plan, attempt, samples)
        self.num_steps += 1
        self._read_s = time.monotonic()
        if failures:
            failed = {state for state, _ in failures}
            plan.chunks = [chunk for chunk in plan.chunks if chunk.state not in failed]
            if not plan.chunks and not self._works():
                failures = [(state, no_fault_of_the_request()) for state, _ in failures]
        roles = [s.role for state in plan.sampling[: plan.num_decoding] for s in state.sequences]
        done = StepDone(
            duration_s=self._read_s - started_s,
            num_text_rows=roles.count(Role.TEXT),
            num_cond_rows=roles.count(Role.COND),
            num_uncond_rows=roles.count(Role.UNCOND),
            num_prefill_tokens=plan.num_prefill_tokens,
        )
        is_usual = attempt.fault is None and self._runner.num_graphs == num_graphs
        return Outcome(samples, done, failures, is_usual=is_usual)

    def _compute(self, plan: StepPlan, *, is_all: bool) -> list[Sample]:
        """The plan's samples; where steps may run ahead, the next step is launched before."""
        if self._flight is None:
            self._is_settled = True
            flight = self._runner.fly(plan) if is_all else None
            if flight is None:
                return self._runner.run(plan)
            flight.launch()
            self._plan, self._flight = plan, flight
        flight = self._flight
        if self._is_settled and flight.may_launch:
            flight.launch()
        samples = flight.read()
        if not flight.num_pending:
            self._flight = None
        return samples

    # ---- faults ---------------------------------------------------------------------------------

    def _attempt(self, states: list[RequestState], compute: Callable[[], list[Sample]]) -> _Attempt:
        """Compute `states`. Returns without the exception: its traceback would keep tensors alive
        that the next attempt needs the memory of."""
        self.beat_s = time.monotonic()
        try:
            samples = compute()
        except Exception as error:
            fault = fault_of(error)
            logger.exception("A step of %d requests failed (%s).", len(states), fault.value)
            if fault is Fault.DEVICE:
                raise EngineDeadError("The device is lost; only a new process gets it back.") from (
                    error
                )
            return _Attempt([], states, fault)
        broken = [each.state for each in samples if each.error is None and not each.is_finite]
        if not broken:
            return _Attempt(samples, [])
        logger.error("A step of %d requests gave %d no number.", len(states), len(broken))
        return _Attempt([s for s in samples if s.state not in broken], broken, Fault.NUMBERS)

    def _repeat(
        self, plan: StepPlan, failed: _Attempt, samples: list[Sample]
    ) -> list[tuple[RequestState, StepError]]:
        """Compute the suspects of a failed attempt again, in halves, and the halves that fail again
        in halves of their own: among `n` requests a culprit is found within `2 log2(n)` passes.
        Appends to `samples`; returns the requests that fail alone.

        Repeating is harmless: a pass writes the same keys and values again, and a token is a
        function of logits and seed.
        """
        failures: list[tuple[RequestState, StepError]] = []
        groups = deque(_halves(failed.suspects))
        fault = failed.fault
        while groups:
            group = groups.popleft()
            self._prepare_again(group, fault)
            attempt = self._attempt(group, partial(self._runner.run, plan.only(group)))
            samples += attempt.samples
            if attempt.fault is None:
                continue
            fault = attempt.fault
            if len(group) > 1:
                groups.extendleft(reversed(_halves(attempt.suspects)))
                continue
            (state,) = group
            if fault is Fault.NUMBERS:
                self._runner.clear(state)
            failures.append((state, error_of(fault)))
        return failures

    def _prepare_again(self, group: list[RequestState], fault: Fault | None) -> None:
        """Get rid of what may have caused the fault."""
        if fault is Fault.MEMORY:
            self._runner.free_memory()
        elif fault is Fault.NUMBERS:
            for state in group:
                self._runner.distrust_images(state)

    def _works(self) -> bool:
        """After a step in which every request failed: whether another one can be computed.

        If so it was the requests, and however many of their kind come, the engine goes on.
        """
        plan = self._probe()
        attempt = self._attempt(plan.states(), partial(self._runner.run, plan))
        if attempt.fault is None:
            self._num_lost_steps = 0
            return True
        self._num_lost_steps += 1
        if self._num_lost_steps >= MAX_LOST_STEPS:
            raise EngineDeadError(f"The last {MAX_LOST_STEPS} steps all failed.")
        return False


def _halves(states: list[RequestState]) -> list[list[RequestState]]:
    middle = (len(states) + 1) // 2
    return [half for half in (states[:middle], states[middle:]) if half]
