"""When an engine counts as hung or dead, on a clock of the test's own."""

from dataclasses import dataclass, field

import pytest

from server.watchdog import LINGER_S, WATCH_S, Watchdog


@dataclass
class Engine:
    healthy: bool = True
    beat_s: float | None = None


@dataclass
class House:
    """A watchdog that looks every `WATCH_S`, and what it said."""

    max_step_s: float = 10.0
    watchdog_s: float = 20.0
    engine: Engine = field(default_factory=Engine)
    num_hung: int = 0
    failures: list[str] = field(default_factory=list)
    now_s: float = 1000.0

    def __post_init__(self) -> None:
        self.dog = Watchdog(
            self.engine,
            max_step_s=self.max_step_s,
            watchdog_s=self.watchdog_s,
            on_hung=self._hung,
            on_failure=self.failures.append,
        )
        self.dog.look(self.now_s)

    def _hung(self) -> None:
        self.num_hung += 1

    def let_pass(self, seconds: float) -> None:
        for _ in range(round(seconds / WATCH_S)):
            self.now_s += WATCH_S
            self.dog.look(self.now_s)


def test_an_idle_engine_is_not_hung():
    house = House()
    house.let_pass(1000)
    assert (house.num_hung, house.failures) == (0, [])


def test_a_busy_engine_is_not_hung_however_long_it_is_busy():
    house = House()
    for _ in range(200):
        house.engine.beat_s = house.now_s
        house.let_pass(house.max_step_s - WATCH_S)
    assert (house.num_hung, house.failures) == (0, [])


def test_a_step_that_never_ends_is_noticed_and_then_ends_the_process():
    house = House()
    house.engine.beat_s = house.now_s
    house.let_pass(10)
    assert house.num_hung == 0
    house.let_pass(2)
    assert house.dog.is_hung
    assert house.num_hung > 0
    assert not house.failures
    house.let_pass(18)
    assert not house.failures
    house.let_pass(2)
    assert len(house.failures) == 1
    assert "32 s" in house.failures[0] or "30 s" in house.failures[0] or "31 s" in house.failures[0]
    house.let_pass(100)
    assert len(house.failures) == 1


def test_a_step_that_comes_back_is_forgiven():
    house = House()
    house.engine.beat_s = house.now_s
    house.let_pass(25)
    assert house.dog.is_hung
    house.engine.beat_s = None
    house.let_pass(WATCH_S)
    assert not house.dog.is_hung
    house.engine.beat_s = house.now_s
    house.let_pass(9)
    assert not house.dog.is_hung
    assert not house.failures


@pytest.mark.parametrize("gap_s", [15.0, 3600.0, -3600.0])
def test_time_in_which_the_process_did_not_run_does_not_count(gap_s: float):
    house = House()
    house.engine.beat_s = house.now_s
    house.let_pass(5)
    house.now_s += gap_s
    house.dog.look(house.now_s)
    house.let_pass(3)
    assert not house.dog.is_hung
    house.let_pass(5)
    assert house.dog.is_hung


def test_a_dead_engine_ends_the_process_once_its_clients_know():
    house = House()
    house.engine.healthy = False
    house.let_pass(LINGER_S - WATCH_S)
    assert not house.failures
    house.let_pass(LINGER_S)
    assert house.failures == ["The engine has failed."]


@pytest.mark.parametrize("healthy", [True, False])
def test_zero_never_ends_the_process(healthy: bool):
    house = House(watchdog_s=0.0)
    house.engine.healthy = healthy
    house.engine.beat_s = house.now_s
    house.let_pass(10_000)
    assert not house.failures
    assert bool(house.num_hung) == healthy
