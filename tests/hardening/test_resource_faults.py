"""No more files, no more room on the disk: in every situation who is connected is served, and when
it is over everything is as before.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from tests.hardening.injection import Asked, Faults
from tests.hardening.situations import (
    DRAIN,
    EXIT_S,
    SITUATIONS,
    SLOWLY,
    cases,
    drain,
    golden_of,
    in_flight,
)
from tests.hardening.target import Target

FILES, DISK = "no_files", "no_disk"
SPIN_S = 2.0
QUICK = {FILES: "idle full", DISK: "streams"}


@pytest.fixture(scope="module")
def house(_make_target, tmp_path_factory):
    faults = Faults(tmp_path_factory.mktemp("faults") / "rules")
    target: Target = _make_target(env=faults.env)
    yield target, faults, golden_of(target)
    target.stop()


@contextmanager
def lacking(target: Target, kind: str) -> Iterator[None]:
    """No file may be opened (EMFILE), or none written, which is what a full disk does: nothing but
    the log ever is."""
    process = psutil.Process(target.pid)
    what, limit = {
        FILES: (resource.RLIMIT_NOFILE, process.num_fds() + 3),
        DISK: (resource.RLIMIT_FSIZE, 1),
    }[kind]
    limits = process.rlimit(what)
    process.rlimit(what, (limit, limits[1]))
    try:
        yield
    finally:
        if process.is_running():
            process.rlimit(what, limits)


def check_spinning(target: Target) -> None:
    """Connections that cannot be accepted wake up nobody again and again."""
    process = psutil.Process(target.pid)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(target.connect())
        before = sum(process.cpu_times()[:2])
        time.sleep(SPIN_S)
        assert sum(process.cpu_times()[:2]) - before < SPIN_S / 2, "it spins"


def served_lacking(target: Target, kind: str, asked: Asked) -> list[str]:
    """What those get who are connected already, one of them by a question that comes now."""
    with target.client() as client:
        assert client.get("/livez").status_code == 200
        with lacking(target, kind):
            if kind == FILES:
                check_spinning(target)
            path, body = SITUATIONS["one"][0]
            reply = client.post(path, json=body)
            texts = [seen.text for seen in asked.answers()]
    return [*texts, reply.json()["choices"][0]["message"]["content"]]


@pytest.mark.parametrize(
    ("kind", "situation"),
    cases(QUICK, [name for name in SITUATIONS if name != "draining"], QUICK),
)
def test_who_is_connected_is_served(house, kind: str, situation: str) -> None:
    target, faults, golden = house
    faults.arm(SLOWLY)
    asked = in_flight(target, SITUATIONS[situation])
    texts = served_lacking(target, kind, asked)
    faults.disarm()
    assert texts == [*golden[situation], *golden["one"]]
    target.check_p0()


@pytest.mark.parametrize(("kind", "situation"), cases(QUICK, ["draining"], QUICK))
def test_a_drain_comes_to_its_end(start_target, tmp_path, house, kind: str, situation: str) -> None:
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(env=faults.env, **DRAIN)
    faults.arm(SLOWLY)
    asked = in_flight(target, SITUATIONS[situation])
    drain(target)
    with lacking(target, kind):
        texts = [seen.text for seen in asked.answers()]
        assert texts == house[2][situation]
        assert target.wait(EXIT_S) == 0
