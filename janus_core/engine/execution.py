"""Carries out a plan and finds the culprit if that raises.

Owns the counts of steps and of failed ones, and the steps that were launched ahead (`ahead.py`);
knows the runner, and of requests only that those that fail must leave the plan. Invariant: a fault
inside a step ends the requests that caused it and no other, and an engine in which nothing succeeds
any more raises instead of going on.
"""

import logging
import time
from dataclasses import dataclass, field

from janus_core.engine.ahead import Flight
from janus_core.engine.events import StepDone
from janus_core.engine.plan import Sample, StepPlan, decode_load
from janus_core.engine.runner import Runner
from janus_core.engine.sequence import RequestState, Role
from janus_core.engine.step_model import StepLoad
from janus_core.errors import EngineDeadError, StepError

MAX_LOST_STEPS = 8
"""Steps in a row in which every request failed, after which the fault is not the requests'."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What a step brought: samples, the requests that failed with their errors, and its duration.

    Not `is_whole`: requests were repeated one by one, so that the duration says nothing of the
    machine.
    """

    samples: list[Sample]
    done: StepDone
    failures: list[tuple[RequestState, StepError]] = field(default_factory=list)
    is_whole: bool = True


class Executor:
    """`num_steps` and `num_failed_steps` count since the start."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.num_steps = 0
        self.num_failed_steps = 0
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

    def run(self, plan: StepPlan, *, num_running: int) -> Outcome:
        """Compute the plan, or read it if it is `pending`; if that raises, compute its requests one
        by one, and take those that raise again out of the plan. Steps may run ahead if it samples
        for all requests that run.

        Raises EngineDeadError after `MAX_LOST_STEPS` lost steps.
        """
        if self._flight is None:
            started_s = time.monotonic()
            self._runner.copy(plan.copies)
        else:
            started_s = self._read_s
        failures: list[tuple[RequestState, StepError]] = []
        is_whole = True
        try:
            is_all = len(plan.sampling) == num_running
            samples = self._compute(plan, is_all=is_all)
        except Exception:
            self._flight = None
            logger.exception("A step failed; its requests are repeated one by one.")
            self.num_failed_steps += 1
            is_whole = False
            samples, failures = self._run_apart(plan)
        self.num_steps += 1
        self._read_s = time.monotonic()
        self._num_lost_steps = self._num_lost_steps + 1 if not plan.chunks else 0
        if self._num_lost_steps >= MAX_LOST_STEPS:
            raise EngineDeadError(f"The last {MAX_LOST_STEPS} steps all failed.")
        roles = [s.role for state in plan.sampling[: plan.num_decoding] for s in state.sequences]
        done = StepDone(
            duration_s=self._read_s - started_s,
            num_text_rows=roles.count(Role.TEXT),
            num_cond_rows=roles.count(Role.COND),
            num_uncond_rows=roles.count(Role.UNCOND),
            num_prefill_tokens=plan.num_prefill_tokens,
        )
        return Outcome(samples, done, failures, is_whole)

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

    def _run_apart(
        self, plan: StepPlan
    ) -> tuple[list[Sample], list[tuple[RequestState, StepError]]]:
        """Run the plan request by request; those that raise leave the plan."""
        samples: list[Sample] = []
        failures: list[tuple[RequestState, StepError]] = []
        for state in plan.states():
            try:
                samples += self._runner.run(plan.only(state))
            except Exception as error:
                logger.exception("Request %s failed in a step of its own.", state.id)
                plan.chunks = [chunk for chunk in plan.chunks if chunk.state is not state]
                failures.append((state, StepError(f"The request failed in the engine: {error}")))
        return samples, failures
