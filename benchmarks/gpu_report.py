"""What the checks on a GPU share: where things run, the lines of the report, bars, and timing.

Owns the verdicts: a line of a check or a bar that fails is counted. Knows nothing of what is
checked. Invariant: a line is in the report as soon as it was said, so that a check that is stopped
or dies leaves what it had found.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

import torch

from benchmarks.gpu_model import SLOT
from janus_core.engine.graphs import Capture, CudaCapture, StepGraphs
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.models.rows import RowsModel
from janus_core.ops.cuda.decode_ops import DecodeOps


@dataclass
class Check:
    """Where things run, and what was found. `card` is the device's name."""

    device: torch.device
    ops: DecodeOps
    is_rehearsal: bool
    card: str = ""
    output: TextIO | None = None
    lines: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)
    num_failed: int = 0

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)
        if self.output is not None:
            print(line, file=self.output, flush=True)

    def part(self, name: str, work: Callable[[], None]) -> None:
        """One part of the check; the others go on if it raises, but for what ends the process."""
        try:
            work()
        except Exception as error:
            self.num_failed += 1
            self.say(f"\n**FAILED**: {name}: {type(error).__name__}: {error}\n")

    def expect(self, name: str, error: float, limit: float) -> None:
        """One line of the table of checks; errors that are not numbers fail."""
        is_right = error <= limit
        self.num_failed += not is_right
        self.say(f"| {name} | {error:.2e} | {limit:.0e} | {'ok' if is_right else '**FAILED**'} |")

    def bar(
        self,
        name: str,
        value: float,
        *,
        at_least: float = float("-inf"),
        at_most: float = float("inf"),
        card: str = "",
    ) -> None:
        """A line of the table of bars. One for another `card` than this, and any in a rehearsal, is
        shown and not judged."""
        is_met = at_least <= value <= at_most
        if self.is_rehearsal or card not in self.card:
            verdict = "not judged: a rehearsal" if self.is_rehearsal else f"not judged: for {card}"
        else:
            self.num_failed += not is_met
            verdict = "met" if is_met else "**MISSED**"
        limit = f"at least {at_least:g}" if at_least > float("-inf") else f"at most {at_most:g}"
        self.bars.append(f"| {name} | {value:.3g} | {limit} | {verdict} |")

    def say_bars(self) -> None:
        """The table of bars so far."""
        self.say("\n## Bars\n\n| bar | measured | limit | |\n|---|---|---|---|")
        for line in self.bars:
            self.say(line)

    def graphs(
        self,
        model: JanusModel,
        num_slots: int,
        *,
        is_deterministic: bool = False,
        capture: Capture | None = None,
    ) -> StepGraphs:
        """Over a pool of its own; `capture` is by default what this device has."""
        if capture is None:
            capture = remember if self.is_rehearsal else CudaCapture(self.device)
        kv = KvPool.allocate(
            model.config, num_slots * SLOT + 32, device=self.device, dtype=model.kv_dtype
        )
        return StepGraphs(
            RowsModel(model, kv, ops=self.ops),
            capture=capture,
            spare_start=num_slots * SLOT,
            is_deterministic=is_deterministic,
        )


def remember(work: Callable[[], None]) -> Callable[[], None]:
    """Instead of a capture: runs `work` whenever it is to be replayed."""
    work()
    return work


def median_s(check: Check, work: Callable[[], object]) -> float:
    """Median of several runs after two that warm up."""
    seconds = []
    for run in range(3 if check.is_rehearsal else 12):
        wait(check)
        started_s = time.perf_counter()
        work()
        wait(check)
        if run >= 2:
            seconds.append(time.perf_counter() - started_s)
    return sorted(seconds)[len(seconds) // 2]


def wait(check: Check) -> None:
    if check.device.type == "cuda":
        torch.cuda.synchronize(check.device)


def largest(values: torch.Tensor) -> float:
    return float(values.float().abs().max())
