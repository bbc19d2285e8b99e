"""When pictures will be done: estimates against what then happens, on a played clock."""

from dataclasses import replace
from itertools import pairwise

import pytest

from janus_core.engine.forecast import Horizon, Outlook, forecast
from janus_core.engine.request import SamplingParams
from janus_core.engine.step_model import StepLoad
from tests.core.engine.house import NUM_CODES, Clock, cpu, image, text
from tests.core.engine.support import ImageProgress, Requests, run


def taught(house: Clock) -> Clock:
    """The clock after enough work of all kinds that its durations are known."""
    house.add(text("w", 20, max_tokens=30, first=300), image("v", 12, first=400))
    house.add(*[image(f"u{n}", 12, first=500 + 20 * n) for n in range(4)])
    while house.scheduler.has_work:
        house.tick()
    return house


def horizon_of(house: Clock) -> Horizon:
    room_for_images = house.scheduler.room_for_images
    return Horizon(house.pace, house.model, num_codes=NUM_CODES, room_for_images=room_for_images)


def outlook(house: Clock) -> Outlook:
    return house.scheduler.outlook(house.now_s, num_codes=NUM_CODES, num_rendering=0)


@pytest.mark.parametrize("num_pictures", [1, 3, 12])
def test_pictures_are_done_when_it_was_said(num_pictures: int) -> None:
    house = taught(Clock(cpu, max_images=4))
    house.add(*[image(f"i{n}", 12, first=100 + 15 * n) for n in range(num_pictures)])
    for _ in range(3):
        house.tick()
    estimates = forecast(outlook(house), house.pace, house.model)
    said_s = {name: house.now_s + each.remaining_s for name, each in estimates.items()}
    now_s = house.now_s
    assert [estimates[f"i{n}"].position for n in range(num_pictures)] == [
        max(0, n - 4) for n in range(num_pictures)
    ]
    while house.scheduler.has_work:
        house.tick()
    for name, said in said_s.items():
        done_s = house.times[name][-1]
        assert said - now_s == pytest.approx(done_s - now_s, rel=0.1)


def test_only_codes_that_are_drawn_take_time() -> None:
    """Forced codes are computed together, as a prompt is."""
    num_drawn = 5
    house = taught(Clock(cpu))
    horizon = horizon_of(house)
    forced = (*[7] * (NUM_CODES - 2 * num_drawn), *[None, 8] * num_drawn)
    house.add(image("i", 12, first=100, forced_codes=forced))
    house.tick()
    said = forecast(outlook(house), house.pace, house.model)["i"]
    now_s = house.now_s
    while house.scheduler.has_work:
        house.tick()
    assert len(house.sampled_at["i"]) == num_drawn
    assert said.remaining_s == pytest.approx(house.now_s - now_s, rel=0.3)
    whole_s = horizon.of_more(1).remaining_s
    assert horizon.of_more(1, num_codes=num_drawn).remaining_s < whole_s / 2


def test_answers_and_pixels_count() -> None:
    house = taught(Clock(cpu))
    house.add(text("t", 10, max_tokens=300), image("i", 12, first=100))
    for _ in range(3):
        house.tick()
    seen = outlook(house)
    (busy,) = forecast(seen, house.pace, house.model).values()
    left = NUM_CODES - house.states["i"].num_output
    step_s = cpu(StepLoad(rows=3, context=70))
    assert busy.remaining_s == pytest.approx(left * step_s, rel=0.05)
    rendering = Outlook(
        answers=seen.answers, drawings=seen.drawings, num_running=1, num_rendering=2, render_s=9.0
    )
    (later,) = forecast(rendering, house.pace, house.model).values()
    assert later.remaining_s == pytest.approx(27.0, rel=0.01)


def test_pictures_that_answers_hold_back_take_longer() -> None:
    """Beside answers only so many go on in a step, so the others are said to come later."""
    house = taught(Clock(cpu, chat_slowdown=1.3))
    house.add(text("t", 5, max_tokens=400))
    house.add(*[image(f"i{n}", 12, first=100) for n in range(4)])
    for _ in range(12):
        house.tick()
    estimates = forecast(outlook(house), house.pace, house.model)
    now_s = house.now_s
    while any(f"i{n}" not in house.ended_at for n in range(4)):
        house.tick()
    for name, estimate in estimates.items():
        done_s = house.times[name][-1] - now_s
        assert estimate.remaining_s == pytest.approx(done_s, rel=0.3)


def test_nothing_is_said_before_anything_was_measured() -> None:
    house = Clock(cpu)
    horizon = horizon_of(house)
    assert horizon.of_more(1) is None
    assert horizon.of("i") is None
    taught(house)
    estimate = horizon.of_more(1)
    step_s = cpu(StepLoad(rows=2, context=16))
    assert estimate.remaining_s == pytest.approx(NUM_CODES * step_s, rel=0.05)
    assert estimate.wait_s == 0.0


def test_a_picture_behind_others_waits_for_a_place() -> None:
    house = taught(Clock(cpu, max_images=1))
    horizon = horizon_of(house)
    house.add(image("a", 12), image("b", 12))
    house.tick()
    horizon.look(lambda _: outlook(house), num_images=2)
    first, second, third = horizon.of("a"), horizon.of("b"), horizon.of_more(1)
    assert (first.position, second.position, third.position) == (0, 0, 1)
    assert first.wait_s == 0.0


def test_the_next_to_begin_waits_for_the_one_that_is_drawn() -> None:
    """However many wait behind it."""
    house = taught(Clock(lambda load: 10.0 * cpu(load), max_images=1))
    horizon = horizon_of(house)
    house.add(*[image(name, 12) for name in "abcd"])
    house.tick()

    def seen(time_s: float) -> Outlook:
        return house.scheduler.outlook(time_s, num_codes=NUM_CODES, num_rendering=0)

    horizon.look(seen, num_images=4)
    next_s, last = horizon.next_start_s(), horizon.of("d")
    assert next_s == pytest.approx(last.wait_s / 3, rel=0.2)
    assert next_s == pytest.approx(horizon.of("b").wait_s, rel=0.05)


def test_nothing_begins_next_where_nothing_waits() -> None:
    house = taught(Clock(cpu, max_images=1))
    horizon = horizon_of(house)
    assert horizon.next_start_s() is None
    house.add(image("a", 12))
    house.tick()
    horizon.look(lambda _: outlook(house), num_images=1)
    assert horizon.next_start_s() is None


def test_progress_says_what_remains(requests_for: Requests) -> None:
    engine = requests_for.engine()
    run(engine, requests_for.image("warm"))
    wanted = requests_for.image("i", progress=True, sampling=SamplingParams(seed=1))
    log = run(engine, wanted)
    remaining = [event.remaining_s for event in log["i"].of_type(ImageProgress)]
    assert remaining
    assert all(value is not None and 0.0 <= value < 60.0 for value in remaining)
    assert engine.estimate("i") is None
    assert engine.estimate(requests_for.text("t")) is None
    assert engine.estimate(wanted).remaining_s > 0.0
    stats = engine.stats()
    assert 0.0 < stats.image_eta_s < 60.0
    assert stats.image_wait_s == 0.0
    assert stats.image_s > 0.0


def test_an_idle_engine_knows_how_many_it_can_draw_at_once() -> None:
    house = taught(Clock(cpu, max_sequences=4, text_reserve=0.5))
    horizon = horizon_of(house)
    one, two = horizon.of_more(1), horizon.of_more(2)
    assert two.wait_s == pytest.approx(one.remaining_s, rel=0.05)
    assert horizon.of_place(1, is_image=True).wait_s == pytest.approx(two.wait_s, rel=0.05)


@pytest.mark.parametrize("num_waiting", [0, 1, 6])
def test_whoever_comes_begins_when_it_was_said(num_waiting: int) -> None:
    """At every place of the queue and behind it, whoever is ahead."""
    ahead = [*range(num_waiting + 1), num_waiting + 20]
    for num_ahead in ahead:
        house = taught(Clock(cpu, max_images=2))
        house.add(*[image(f"i{n}", 12, first=100 + 15 * n) for n in range(2 + num_waiting)])
        for _ in range(3):
            house.tick()
        horizon = horizon_of(house)
        seen = outlook(house)
        horizon.look(lambda time_s, seen=seen: replace(seen, time_s=time_s), num_images=2)
        said_s = horizon.of_place(num_ahead, is_image=True).wait_s
        now_s = house.now_s
        more = max(0, num_ahead - num_waiting)
        house.add(*[image(f"m{n}", 12, first=300 + 15 * n) for n in range(more)])
        # Whoever has fewer ahead of it is another tenant's.
        house.add(image("new", 12, first=700, tenant="" if num_ahead >= num_waiting else "b"))
        while "new" not in house.started_at:
            house.tick()
        if num_ahead in (num_waiting, num_waiting + 20):
            one_s = NUM_CODES * cpu(StepLoad(rows=4, context=100))
            assert said_s == pytest.approx(house.now_s - now_s, rel=0.15, abs=0.5 * one_s)
    starts_s = [horizon.of_place(n, is_image=True).wait_s for n in range(num_waiting + 30)]
    # The clock goes on while they are asked for.
    assert all(after > before - 0.01 for before, after in pairwise(starts_s))
    assert starts_s[-1] > starts_s[0] + 5.0
