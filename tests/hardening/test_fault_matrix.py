"""Every kind of fault in every situation: idle, one in flight, a full batch, streams, and a drain.

What a fault does to the request it belongs to is said by `EXPECTED`; what it must not do to the
others is that they get, to the letter, what they get without it.
"""

import resource
import signal
import time

import psutil
import pytest

from tests.hardening.injection import (
    Asked,
    Faults,
    ask,
    ask_all,
    drawing,
    image_question,
    question,
)
from tests.hardening.target import Target

POISON = 900
EXPECTED = {
    "error": (500, "step_failed"),
    "nan": (500, "step_failed"),
    "oom": (503, "server_is_overloaded"),
    "cpu_oom": (503, "server_is_overloaded"),
    "encode_fail": (500, "step_failed"),
}
HARMLESS = ("sleep:0.3", "slow:0.01", "alloc_fail")
SITUATIONS = {
    "idle": [],
    "one": [question(1)],
    "full": [*[question(s) for s in range(12)], *[drawing(s) for s in range(3)]],
    "streams": [
        *[question(s, stream=True) for s in range(6)],
        *[drawing(s, stream=True) for s in range(3)],
    ],
}
EXIT_S = 20.0


@pytest.fixture(scope="module")
def house(_make_target, tmp_path_factory):
    faults = Faults(tmp_path_factory.mktemp("faults") / "rules")
    target: Target = _make_target(env=faults.env)
    yield target, faults
    target.stop()


@pytest.fixture(scope="module")
def golden(house) -> dict[str, list[str]]:
    target, _ = house
    return {
        name: [ask(target, request).text for request in requests]
        for name, requests in SITUATIONS.items()
    }


@pytest.fixture
def under_fault(house):
    target, faults = house
    yield target, faults
    faults.disarm()
    target.check_p0()


def poison(kind: str, seed: int = POISON, *, stream: bool = False) -> tuple:
    """The request that a fault of this kind belongs to."""
    if kind == "encode_fail":
        # The width is the picture's own, so that no cache knows it.
        return image_question(seed, side_px=50 + seed % 50, stream=stream)
    return question(seed, stream=stream)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", EXPECTED)
def test_a_fault_is_its_requests_own(
    under_fault: tuple[Target, Faults], golden, kind: str, situation: str
) -> None:
    target, faults = under_fault
    stream = situation == "streams"
    faults.arm(f"seed:{POISON}:{kind}")
    *others, failed = ask_all(target, [*SITUATIONS[situation], poison(kind, stream=stream)])
    status, code = EXPECTED[kind]
    assert (failed.status, failed.error) == (200 if stream else status, code)
    assert [seen.text for seen in others] == golden[situation]
    assert all(seen.error is None for seen in others)


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "idle"])
@pytest.mark.parametrize("kind", HARMLESS)
def test_a_fault_that_only_costs_time_fails_nobody(
    under_fault: tuple[Target, Faults], golden, kind: str, situation: str
) -> None:
    target, faults = under_fault
    faults.arm(f"step:3:{kind}")
    seen = ask_all(target, SITUATIONS[situation])
    assert [each.text for each in seen] == golden[situation]


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "idle"])
def test_pixels_that_cannot_be_made_concern_one_picture(
    under_fault: tuple[Target, Faults], golden, situation: str
) -> None:
    target, faults = under_fault
    if situation == "one":
        faults.arm("step:1:render_fail")
        lost = ask(target, drawing(1))
        assert (lost.status, lost.error) == (500, "step_failed")
        return
    # Whichever picture, or half-drawn one, meets it; the one that does loses, and no other.
    faults.arm("step:8:render_fail")
    seen = ask_all(target, SITUATIONS[situation])
    lost = [each for each in seen if each.error]
    assert len(lost) == 1
    assert lost[0].error == "step_failed"
    pairs = zip(seen, golden[situation], strict=True)
    assert all(each.text == text for each, text in pairs if not each.error)


def test_a_drain_with_every_kind_of_fault_in_flight(start_target, tmp_path) -> None:
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(env=faults.env, drain_delay_s=0, grace_s=60)
    innocent = [question(seed, stream=True, max_tokens=300) for seed in range(6)]
    expected = [seen.text for seen in ask_all(target, innocent)]
    seeds = {kind: POISON + number for number, kind in enumerate(EXPECTED) if kind != "encode_fail"}
    guilty = [question(seed, stream=True, max_tokens=800) for seed in seeds.values()]
    asked = Asked(target, [*innocent, *guilty])
    asked.wait_until_begun(target.patience_s)
    target.signal(signal.SIGTERM)
    faults.arm("step:1:slow:0.002", *[f"seed:{seed}:{kind}" for kind, seed in seeds.items()])
    seen = asked.answers()
    assert [each.text for each in seen[: len(innocent)]] == expected
    assert [each.error for each in seen[len(innocent) :]] == [EXPECTED[kind][1] for kind in seeds]
    assert target.wait(EXIT_S) == 0


FATAL = {
    "sticky": ("engine_dead", 70),
    "queue_exception": ("engine_dead", 70),
    "hang": ("engine_dead", 70),
    "segv": (None, -signal.SIGSEGV),
    "kill": (None, -signal.SIGKILL),
}
SLOW_FATAL = [
    pytest.param(kind, marks=pytest.mark.slow) if kind in ("queue_exception", "kill") else kind
    for kind in FATAL
]


@pytest.mark.parametrize("drains", [False, True])
@pytest.mark.parametrize("kind", SLOW_FATAL)
def test_what_ends_the_process_ends_every_wait(
    start_target, tmp_path, kind: str, drains: bool
) -> None:
    """One in flight, a stream and a picture. A server that was told to stop has stopped: with 0,
    unless it was killed."""
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(
        env=faults.env, p0=False, max_step_s=1, watchdog_s=1, drain_delay_s=0, grace_s=60
    )
    processes = target.processes()
    requests = [question(1, max_tokens=900), question(2, stream=True, max_tokens=900)]
    asked = Asked(target, requests)
    asked.wait_until_begun(target.patience_s)
    asked.wait_until_accepted(target.patience_s)
    if drains:
        target.signal(signal.SIGTERM)
        while "draining" not in target.log_text():
            time.sleep(0.01)
    faults.arm(f"step:1:{kind}")
    code, status = FATAL[kind]
    for seen in asked.answers():
        assert (seen.error, seen.broke) == (code, code is None)
    assert target.wait(EXIT_S) == (0 if drains and code else status)
    _, alive = psutil.wait_procs(processes, timeout=EXIT_S)
    assert not alive


def test_no_more_files_may_be_opened(under_fault: tuple[Target, Faults], golden) -> None:
    """EMFILE: who is connected is served, the process does not spin, and it recovers."""
    target, _ = under_fault
    process = psutil.Process(target.pid)
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    with target.client() as client:
        assert client.get("/livez").status_code == 200
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 3, limits[1]))
        waiting = [target.connect() for _ in range(20)]
        try:
            before = sum(process.cpu_times()[:2])
            time.sleep(2)
            assert sum(process.cpu_times()[:2]) - before < 1.0, "it spins"
            path, body = SITUATIONS["one"][0]
            reply = client.post(path, json=body)
            assert reply.json()["choices"][0]["message"]["content"] == golden["one"][0]
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, limits)
            for connection in waiting:
                connection.close()
    assert [seen.text for seen in ask_all(target, SITUATIONS["full"])] == golden["full"]


def test_a_log_that_cannot_be_written_stops_nobody(
    under_fault: tuple[Target, Faults], golden
) -> None:
    """What a full disk does: nothing else is ever written."""
    target, _ = under_fault
    process = psutil.Process(target.pid)
    limits = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        seen = ask_all(target, SITUATIONS["full"])
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.text for each in seen] == golden["full"]
