"""What planning costs: little beside the fastest step, and no more per request in a large batch."""

import time
from collections.abc import Callable
from statistics import median

from janus_core.engine.forecast import forecast
from janus_core.engine.step_model import MAX_KINDS, StepLoad, StepModel
from tests.core.engine.house import NUM_CODES, House, cpu, image, text

FASTEST_STEP_S = 0.010
"""About what a step of 64 rows takes on a large GPU."""


def planning_s(house: House, *, num_steps: int = 30) -> float:
    """Median processor time of `plan`, by the clock of this thread: neighbours do not count."""
    plan = house.scheduler.plan
    taken_s: list[float] = []

    def timed():
        started_s = time.thread_time()
        made = plan()
        taken_s.append(time.thread_time() - started_s)
        return made

    house.scheduler.plan = timed
    for _ in range(num_steps):
        house.step()
    return median(taken_s)


def busy(num_requests: int, *, num_waiting: int) -> House:
    """Half of the requests answer, half draw, and others wait behind them."""
    house = House(
        kv_positions=2**17, max_sequences=2 * num_requests, step_token_budget=4096, step_s=cpu
    )
    for n in range((num_requests + num_waiting) // 2):
        prompt = {"num_prompt": 200, "first": 10 + n}
        house.add(text(f"t{n}", max_tokens=3000, **prompt), image(f"i{n}", **prompt))
    for _ in range(8):
        house.step()
    return house


def least(make: Callable[[], House]) -> float:
    return min(planning_s(make()) for _ in range(2))


def test_planning_for_64_requests_is_a_small_part_of_a_step() -> None:
    house = busy(64, num_waiting=256)
    assert house.scheduler.num_running > 40
    assert planning_s(house) < FASTEST_STEP_S / 4


def test_it_grows_with_the_requests_and_not_faster() -> None:
    few, many = (least(lambda n=n: busy(n, num_waiting=4 * n)) for n in (16, 64))
    assert many < 3 * 4 * few


def test_learning_costs_little_however_many_kinds_of_step_are_known() -> None:
    model = StepModel()
    loads = [
        StepLoad(rows, tokens, 2**n)
        for rows in range(8)
        for tokens in (0, 9, 30)
        for n in range(17)
    ]
    for load in loads * 9:
        model.observe(load, cpu(load))
    assert len(model._kinds) == MAX_KINDS
    started_s = time.thread_time()
    for load in loads:
        model.observe(load, cpu(load))
    assert (time.thread_time() - started_s) / len(loads) < FASTEST_STEP_S / 10


def test_a_long_queue_is_forecast_within_a_step() -> None:
    """Whoever asks for a picture is told when it will be there: that often it is calculated."""
    house = busy(64, num_waiting=512)
    outlook = house.scheduler.outlook(0.0, num_codes=NUM_CODES, num_rendering=0)
    assert len(outlook.drawings) > 256
    taken_s = []
    for _ in range(5):
        started_s = time.thread_time()
        assert len(forecast(outlook, house.pace, house.model)) == len(outlook.drawings)
        taken_s.append(time.thread_time() - started_s)
    assert median(taken_s) < FASTEST_STEP_S
