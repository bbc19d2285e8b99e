"""Fixtures of the attacks: servers to attack, and the check after each of them.

Every test is followed by `check_p0` on each server it may have used. `--target naive` puts a naive
demo in the place of the server; there, tests wait less, and a row of which one has failed is done.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hardening.target import Target

PATIENCE_S = {"janus": 30.0, "naive": 4.0}

_failed_rows = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_failed_rows] = set()


def row_of(nodeid: str) -> str | None:
    """The number of the row that a test belongs to, as its file's name says."""
    match = re.search(r"test_row_(\d\d)_", nodeid)
    return match[1] if match else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    is_naive = item.config.getoption("target") == "naive"
    if is_naive and row_of(item.nodeid) in item.config.stash[_failed_rows]:
        pytest.skip("the naive demo has failed this row already")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    row = row_of(item.nodeid)
    if report.failed and report.when != "setup" and row:
        item.config.stash[_failed_rows].add(row)
    return report


@pytest.fixture(scope="session")
def target_kind(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("target")


@pytest.fixture(scope="session")
def patience_s(target_kind: str) -> float:
    """How long to wait for what must come: short where it will not."""
    return PATIENCE_S[target_kind]


@pytest.fixture(scope="session")
def _module_targets() -> list[Target]:
    """All that were made, but the one of all modules. A module stops its own at its end."""
    return []


@pytest.fixture(scope="session")
def _make_target(
    target_kind: str,
    patience_s: float,
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _module_targets: list[Target],
) -> Callable[..., Target]:
    logs = tmp_path_factory.mktemp("logs")
    num_made = 0

    def make(
        *,
        env: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        p0: bool = True,
        model: Path | str = tiny_checkpoint,
        **settings: object,
    ) -> Target:
        nonlocal num_made
        num_made += 1
        target = Target(
            target_kind,
            log_path=logs / f"{num_made}.log",
            checkpoint=Path(model),
            patience_s=patience_s,
            settings=settings,
            env=env,
            headers=headers,
            p0=p0,
        )
        _module_targets.append(target)
        return target

    return make


@pytest.fixture(scope="session")
def _running(
    _make_target: Callable[..., Target], _module_targets: list[Target]
) -> Iterator[Target]:
    target = _make_target()
    _module_targets.remove(target)
    yield target
    target.stop()


@pytest.fixture(scope="module")
def target(_running: Target) -> Target:
    """A server with the default settings. Whatever it has been through in other modules, it is as
    good as new, or P0 would have failed and it would be a new one."""
    _running.new_module()
    return _running


@pytest.fixture
def start_target(_make_target: Callable[..., Target]) -> Iterator[Callable[..., Target]]:
    """Starts servers of the test's own: `start_target(max_waiting=2, env={...})`.

    `headers` go with every request of its clients. `p0=False` for settings under which the
    postcondition cannot hold; a target that was told to end by `signal` is not checked either.
    """
    started: list[Target] = []

    def start(**options: object) -> Target:
        started.append(_make_target(**options))
        return started[-1]

    yield start
    try:
        for target in started:
            if target.wants_p0:
                target.check_p0()
    finally:
        for target in started:
            target.stop()


@pytest.fixture(autouse=True)
def _p0(request: pytest.FixtureRequest, _module_targets: list[Target]) -> Iterator[None]:
    """After every test: the postcondition of its servers that live on, those of its module and the
    one of all modules; a new process if it does not hold."""
    shared = [request.getfixturevalue("target")] if "target" in request.fixturenames else []
    yield
    errors = []
    for target in {id(each): each for each in [*shared, *_module_targets]}.values():
        if target.is_stopped or not target.wants_p0:
            continue
        try:
            target.check_p0()
        except BaseException as error:
            target.restart()
            errors.append(error)
    if errors:
        raise errors[0]
