"""Row 6: the engine hangs, or is gone."""

import signal
import time

import psutil
import pytest

from tests.hardening.injection import NOT_MET, Asked, Faults, ask, ask_all, drawing, question
from tests.hardening.target import Target

MAX_STEP_S, WATCHDOG_S = 1.0, 2.0
SLACK_S = 4.0
"""For a busy machine, and half a second between two looks."""

EXIT_ENGINE = 70


@pytest.fixture
def faults(tmp_path) -> Faults:
    return Faults(tmp_path / "rules")


@pytest.fixture
def start(start_target, faults):
    """A server with a short watchdog."""

    def start(**settings: object) -> Target:
        limits = {"max_step_s": MAX_STEP_S, "watchdog_s": WATCHDOG_S} | settings
        return start_target(env=faults.env, p0=False, **limits)

    return start


def in_flight(target: Target) -> Asked:
    """A full batch, half of it streaming; its answers would take far longer than the watchdog."""
    streaming = [question(seed, stream=True, max_tokens=800) for seed in range(4)]
    waiting = [question(seed, max_tokens=800) for seed in range(4)]
    asked = Asked(target, streaming)
    asked.wait_until_begun(target.patience_s)
    asked.add([*waiting, drawing(1)])
    return asked


def seconds_until_not_ready(target: Target) -> float:
    begun = time.monotonic()
    with target.client() as client:
        while client.get("/readyz").status_code == 200:
            assert time.monotonic() - begun < target.patience_s, "ready all the time"
            time.sleep(0.05)
    return time.monotonic() - begun


@pytest.mark.parametrize("kind", ["hang", "queue_exception", "sticky"])
def test_everybody_is_told_and_the_process_ends_for_its_supervisor(
    start, faults: Faults, kind: str
) -> None:
    target = start()
    children = target.processes()
    asked = in_flight(target)
    begun = time.monotonic()
    faults.arm(f"step:1:{kind}")
    faults.wait_until_met(kind, target.patience_s)
    assert seconds_until_not_ready(target) <= 2 * WATCHDOG_S
    late = ask(target, question(5))
    assert (late.status, late.error) == (503, "engine_dead")
    assert late.headers["x-should-retry"] == "true"
    assert int(late.headers["retry-after"]) <= 120
    for seen in asked.answers():
        assert not seen.broke, "silence instead of an end"
        # The picture, which is short, may have been there before.
        assert seen.error == "engine_dead" or (seen.error is None and len(seen.text) > 500)
        assert seen.status in (200, 503)
    assert target.wait() == EXIT_ENGINE
    assert time.monotonic() - begun <= MAX_STEP_S + WATCHDOG_S + SLACK_S
    reason = "A step has been running" if kind == "hang" else "The engine has failed"
    assert reason in target.log_text().splitlines()[-1] or reason in target.log_text()
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, f"left behind: {alive}"
    del gone


def test_an_interpreter_that_stands_still_ends_too(start, faults: Faults) -> None:
    """Nothing of the server's own can run then, not even to say so."""
    target = start()
    asked = in_flight(target)
    begun = time.monotonic()
    faults.arm("step:1:hang_gil")
    faults.wait_until_met("hang_gil", target.patience_s)
    assert target.wait() == 1
    assert time.monotonic() - begun <= MAX_STEP_S + WATCHDOG_S + SLACK_S
    assert "Timeout" in target.log_text()
    assert "sitecustomize" in target.log_text(), "the traceback says where"
    asked.answers()


def test_a_step_that_comes_back_is_forgiven(start, faults: Faults) -> None:
    target = start(watchdog_s=30)
    alone = ask(target, question(5))
    asked = in_flight(target)
    faults.arm("step:1:sleep:3")
    faults.wait_until_met("sleep", target.patience_s)
    assert seconds_until_not_ready(target) <= MAX_STEP_S + SLACK_S
    assert {seen.error for seen in asked.answers()} <= {"engine_dead", None}
    time.sleep(2.5)
    target.check_p0()
    assert ask(target, question(5)).text == alone.text


def test_a_stopped_process_is_no_hung_one(start, faults: Faults) -> None:
    """Stopped within a step, for longer than a step may take."""
    target = start(watchdog_s=20)
    faults.arm("step:1:slow:0.2")
    asked = Asked(target, [question(seed, stream=True) for seed in range(4)])
    asked.wait_until_begun(target.patience_s)
    target.process.send_signal(signal.SIGSTOP)
    time.sleep(4 * MAX_STEP_S)
    target.process.send_signal(signal.SIGCONT)
    assert [seen.error for seen in asked.answers()] == [None] * 4
    faults.disarm()
    target.check_p0()


def test_busy_is_not_hung(start, faults: Faults) -> None:
    """Steps of half the limit, all slots taken and a queue, for several times the limit."""
    target = start()
    faults.arm(f"step:1:slow:{MAX_STEP_S / 2}")
    asked = Asked(target, [question(seed, max_tokens=8) for seed in range(40)])
    begun, num_asked = time.monotonic(), 0
    with target.client() as client:
        while time.monotonic() - begun < 4 * MAX_STEP_S:
            assert client.get("/readyz").status_code == 200, "a false alarm"
            num_asked += 1
            time.sleep(0.1)
    assert num_asked > 10
    assert "slow" in faults.met(), NOT_MET
    faults.disarm()
    assert [seen.error for seen in asked.answers()] == [None] * 40
    target.check_p0()


@pytest.mark.slow
def test_sixty_seconds_of_full_load_raise_no_alarm(start, faults: Faults) -> None:
    del faults
    target = start()
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        asked = Asked(target, [question(s, max_tokens=100) for s in range(30)] + [drawing(1)] * 6)
        with target.client() as client:
            for _ in range(5):
                assert client.get("/readyz").status_code == 200, "a false alarm"
                time.sleep(0.1)
        assert {seen.error for seen in asked.answers()} == {None}
    target.check_p0()


@pytest.mark.slow
def test_a_stop_of_ten_seconds_with_the_default_limits(start_target) -> None:
    target: Target = start_target()
    asked = Asked(target, [question(s, stream=True, max_tokens=900) for s in range(8)])
    asked.wait_until_begun(target.patience_s)
    target.process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    target.process.send_signal(signal.SIGCONT)
    assert [seen.error for seen in asked.answers()] == [None] * 8
    assert ask_all(target, [question(1)])[0].error is None
