"""Faults that end the process, in every situation: whoever waits is told or cut off, at once."""

import signal

import psutil
import pytest

from tests.hardening.injection import NOT_MET, Faults
from tests.hardening.situations import (
    DRAIN,
    EXIT_S,
    SITUATIONS,
    SLOWLY,
    cases,
    drain,
    in_flight,
)
from tests.hardening.target import Target

FATAL = {
    "sticky": ("engine_dead", 70),
    "queue_exception": ("engine_dead", 70),
    "hang": ("engine_dead", 70),
    "segv": (None, -signal.SIGSEGV),
    "kill": (None, -signal.SIGKILL),
}
"""What each one that waits is told, None where nobody can, and how the process ends."""

QUICK = {
    "sticky": "full",
    "queue_exception": "idle",
    "hang": "streams",
    "segv": "one",
    "kill": "draining",
}


@pytest.mark.parametrize(("kind", "situation"), cases(FATAL, SITUATIONS, QUICK))
def test_what_ends_the_process_ends_every_wait(
    start_target, tmp_path, kind: str, situation: str
) -> None:
    """An idle server meets it with its next request. One that was told to stop has stopped: with 0,
    unless it was killed."""
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(env=faults.env, p0=False, max_step_s=2, watchdog_s=1, **DRAIN)
    processes = target.processes()
    faults.arm(SLOWLY)
    asked = in_flight(target, SITUATIONS[situation])
    drains = situation == "draining"
    if drains:
        drain(target)
    faults.arm(f"step:1:{kind}")
    asked.add(SITUATIONS["one"] if situation == "idle" else [])
    code, status = FATAL[kind]
    for seen in asked.answers():
        assert (seen.error, seen.broke) == (code, code is None)
    assert faults.met() == [kind], NOT_MET
    assert target.wait(EXIT_S) == (0 if drains and code else status)
    _, alive = psutil.wait_procs(processes, timeout=EXIT_S)
    assert not alive
