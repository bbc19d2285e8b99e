"""Faults for a server under test: put this folder on the PYTHONPATH of its process.

Python imports `sitecustomize` at its start. This one waits until the engine's modules are imported
and puts faults in front of their functions; nothing of it is in the product. The file that
`FAULTS_FILE` names holds one rule a line, and is read again whenever it has changed:

    step:K:KIND[:ROW]      in the K-th pass from then on; with a row, whenever the request in that
                           row is computed from then on, else once
    seed:S:KIND            whenever a request with that seed is computed that has two tokens
                           (for encode_fail: always)

Kinds: error, forged_error (whose text looks like a line of the log), oom, cpu_oom, sticky, nan,
encode_fail raise or spoil what is computed; sleep:S once and slow:S from then on delay it; hang and
hang_gil (which holds the interpreter) never return;
segv and kill end the process; alloc_fail finds no slot, render_fail spoils a picture's pixels,
render_slow:S delays those of every one from then on, and queue_exception breaks the scheduler
itself.

What was met is noted beside the file, as `.met`.
"""

import contextlib
import importlib.abc
import importlib.util
import math
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

RENDER_ATTEMPTS = 2
PROBE = "probe"
FORGED_LINE = "2026-01-01 00:00:00 ERROR server.app: INJECTED"


class Rule:
    """One line of the file."""

    def __init__(self, line: str) -> None:
        self.by, number, self.kind, *rest = line.split(":")
        assert self.by in ("step", "seed"), line
        self.number = int(number)
        takes_seconds = self.kind in ("sleep", "slow", "render_slow")
        self.seconds = float(rest[0]) if takes_seconds else 0.0
        self.row = int(rest[0]) if rest and not takes_seconds else None
        self.culprit: str | None = None
        self.is_spent = False

    def meets(self, num_passes: int, states: list) -> bool:
        """Whether this pass is one to fail, and remembers whose fault that is."""
        if self.by == "seed":
            least = 0 if self.kind == "encode_fail" else 2
            return any(
                state.request.sampling.seed == self.number and state.num_output >= least
                for state in states
            )
        if self.culprit is not None:
            return any(state.id == self.culprit for state in states)
        if self.is_spent or num_passes < self.number:
            return False
        if self.row is not None:
            if len(states) <= self.row:
                return False
            self.culprit = states[self.row].id
        elif self.kind not in ("slow", "render_slow"):
            self.is_spent = True
        return True

    def guilty(self, states: list) -> list:
        """Whose rows are spoilt: the culprit's, or all."""
        if self.by == "seed":
            return [s for s in states if s.request.sampling.seed == self.number]
        return [s for s in states if self.culprit in (None, s.id)]


class Faults:
    """The rules of the file and what has come of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._met = os.open(path.with_suffix(".met"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._stamp: tuple[int, int] | None = None
        self.rules: list[Rule] = []
        self.num_passes = 0
        self.spoilt: list = []
        self.encoding_fails = False
        self.num_renders_to_fail = 0
        self.render_s = 0.0
        self.num_allocations_to_fail = 0

    def before_plan(self) -> None:
        """At the beginning of a step, outside of every request."""
        self._read()
        for rule in self.rules:
            if rule.kind == "queue_exception" and rule.meets(self.num_passes + 1, []):
                self._note(rule.kind)
                raise LookupError("the queue is broken")

    def before_pass(self, states: list) -> None:
        """Before some requests are computed together."""
        self.spoilt, self.encoding_fails = [], False
        if [state.id for state in states] == [PROBE]:
            return
        self.num_passes += 1
        for rule in self.rules:
            if rule.kind != "queue_exception" and rule.meets(self.num_passes, states):
                self._act(rule, states)

    def _act(self, rule: Rule, states: list) -> None:
        import torch

        kind = rule.kind
        self._note(kind)
        if kind == "error":
            raise ValueError("an injected fault")
        if kind == "forged_error":
            raise ValueError(f"an injected fault\n{FORGED_LINE}\x1b[2J\r\n{FORGED_LINE}")
        if kind == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if kind == "cpu_oom":
            torch.empty(2**60, dtype=torch.uint8)
        if kind == "sticky":
            raise RuntimeError("CUDA error: device-side assert triggered")
        if kind in ("sleep", "slow"):
            time.sleep(rule.seconds)
        elif kind == "hang":
            threading.Event().wait()
        elif kind == "hang_gil":
            re.match("(a*)*b", "a" * 64)
        elif kind in ("segv", "kill"):
            os.kill(os.getpid(), signal.SIGSEGV if kind == "segv" else signal.SIGKILL)
        elif kind == "nan":
            self.spoilt += rule.guilty(states)
        elif kind == "encode_fail":
            self.encoding_fails = True
        elif kind == "render_fail":
            self.num_renders_to_fail = RENDER_ATTEMPTS
        elif kind == "render_slow":
            self.render_s = rule.seconds
        elif kind == "alloc_fail":
            self.num_allocations_to_fail = 1
        else:
            raise AssertionError(f"no such fault: {kind}")

    def _note(self, kind: str) -> None:
        """Tell the test before it happens, because some end the process. By a file that is open
        already, and if it can be written: there are tests in which files cannot."""
        with contextlib.suppress(OSError):
            os.write(self._met, f"{kind}\n".encode())

    def _read(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        if (stamp := (stat.st_mtime_ns, stat.st_size)) != self._stamp:
            self._stamp = stamp
            lines = self._path.read_text().split()
            self.rules, self.num_passes = [Rule(line) for line in lines], 0
            self.render_s = 0.0


def hook_runner(module, faults: Faults) -> None:
    run, forward = module.Runner.run, module.Runner._forward

    def faulty_run(self, plan):
        faults.before_pass(plan.states())
        return run(self, plan)

    def faulty_forward(self, plan):
        batch, pictures, hidden_TD = forward(self, plan)
        first = 0
        for chunk in plan.chunks:
            if chunk.state in faults.spoilt:
                hidden_TD[first : first + chunk.num_tokens] = math.nan
            first += chunk.num_tokens
        return batch, pictures, hidden_TD

    module.Runner.run, module.Runner._forward = faulty_run, faulty_forward


def hook_model(module, faults: Faults) -> None:
    encode, decode = module.JanusModel.encode_images, module.JanusModel.decode_codes

    def faulty_encode(self, pixels):
        if faults.encoding_fails:
            raise RuntimeError("an injected fault of the tower")
        return encode(self, pixels)

    def faulty_decode(self, codes):
        if faults.num_renders_to_fail:
            faults.num_renders_to_fail -= 1
            raise RuntimeError("an injected fault of the picture's decoder")
        time.sleep(faults.render_s)
        return decode(self, codes)

    module.JanusModel.encode_images = faulty_encode
    module.JanusModel.decode_codes = faulty_decode


def hook_scheduler(module, faults: Faults) -> None:
    plan = module.Scheduler.plan

    def faulty_plan(self, **options):
        faults.before_plan()
        return plan(self, **options)

    module.Scheduler.plan = faulty_plan


def hook_slots(module, faults: Faults) -> None:
    acquire = module.SlotPool.acquire

    def faulty_acquire(self, *args, **options):
        if faults.num_allocations_to_fail:
            faults.num_allocations_to_fail -= 1
            return None
        return acquire(self, *args, **options)

    module.SlotPool.acquire = faulty_acquire


HOOKS = {
    "janus_core.engine.runner": hook_runner,
    "janus_core.engine.scheduler": hook_scheduler,
    "janus_core.engine.slots": hook_slots,
    "janus_core.models.janus": hook_model,
}


class HookingFinder(importlib.abc.MetaPathFinder):
    """Finds the modules to hook as Python would, and hooks them once they are executed."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._is_asking = False

    def find_spec(self, name, _path=None, _target=None):
        hook = HOOKS.get(name)
        if hook is None or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_asking = False
        execute = spec.loader.exec_module

        def execute_and_hook(module):
            execute(module)
            hook(module, self._faults)

        spec.loader.exec_module = execute_and_hook
        return spec


if "FAULTS_FILE" in os.environ:
    sys.meta_path.insert(0, HookingFinder(Faults(Path(os.environ["FAULTS_FILE"]))))
