"""The engine's thread: commands from anywhere, one sink, and no request without an end."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from janus_core.engine import render
from janus_core.engine.events import Failed, Finished, Preview, TextDelta
from janus_core.engine.forecast import Estimate
from janus_core.engine.request import SamplingParams
from janus_core.engine.service import EngineService
from janus_core.errors import (
    ContextLengthError,
    DrainingError,
    EngineDeadError,
    QueueFullError,
    StepError,
)
from tests.core.engine.support import Log, Requests, finish, run

LONG = SamplingParams(seed=0, logit_bias=((40, 100.0),))  # never ends by itself
TIMEOUT_S = 20.0


class House:
    """A service whose events are collected under a lock."""

    def __init__(self, make: Requests, **settings) -> None:
        self.log = Log()
        self.threads: set[str] = set()
        self.changed = threading.Condition()
        self.engine = make.engine(**settings)
        self.service = EngineService(self.engine, self.sink)

    def sink(self, events) -> None:
        with self.changed:
            self.threads.add(threading.current_thread().name)
            self.log.add(list(events))
            self.changed.notify_all()

    def wait(self, predicate: Callable[[Log], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: predicate(self.log), TIMEOUT_S), "timed out"

    def has(self, request_id: str, kind: type) -> Callable[[Log], bool]:
        return lambda log: request_id in log.outcomes and bool(log[request_id].of_type(kind))


@pytest.fixture
def house(requests_for: Requests) -> Iterator[House]:
    house = House(requests_for, max_waiting=8, max_sequences=8, threaded_rendering=True)
    house.service.start()
    yield house
    house.service.stop()


def test_answers_are_those_of_the_engine_itself(house: House, requests_for: Requests) -> None:
    requests = [
        requests_for.text("t", images=(1,)),
        requests_for.image("i", preview_at=(8,), sampling=SamplingParams(seed=3)),
    ]
    for request in requests:
        house.service.submit(request)
    house.wait(lambda log: house.has("t", Finished)(log) and house.has("i", Finished)(log))
    expected = run(requests_for.engine(), *requests)
    assert house.log["t"].ids == expected["t"].ids
    assert house.log["i"].codes == expected["i"].codes
    assert (house.log["i"].end.pixels == expected["i"].end.pixels).all()
    assert len(house.log["i"].of_type(Preview)) == 1
    assert house.threads == {"engine"}


def test_the_renderer_does_not_take_the_engines_threads(requests_for: Requests) -> None:
    """torch's number of threads is a thread's own, but new threads inherit the last one set."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        house = House(requests_for, threaded_rendering=True)
        seen = []
        step = house.engine.step
        house.engine.step = lambda: (seen.append(torch.get_num_threads()), step())[1]
        house.service.start()
        for number in range(2):
            house.service.submit(requests_for.image(f"i{number}"))
            house.wait(house.has(f"i{number}", Finished))
        house.service.stop()
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {before + 1}


def test_it_sleeps_when_there_is_nothing_to_do(house: House, requests_for: Requests) -> None:
    house.service.submit(requests_for.text("t"))
    house.wait(house.has("t", Finished))
    num_steps = house.service.stats().num_steps
    time.sleep(0.05)
    assert house.service.stats().num_steps == num_steps
    assert house.service.beat_s is None
    house.service.submit(requests_for.text("u"))
    house.wait(house.has("u", Finished))


def test_a_renderer_that_hangs_does_not_beat(
    house: House, requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While steps go on, and when nothing else is left to do."""
    gate, begun = threading.Event(), threading.Event()
    decode = render._decode

    def hang(*args: object) -> list:
        begun.set()
        gate.wait(TIMEOUT_S)
        return decode(*args)

    monkeypatch.setattr(render, "_decode", hang)
    house.service.submit(requests_for.image("i"))
    house.service.submit(requests_for.text("t", max_tokens=40, sampling=LONG))
    assert begun.wait(TIMEOUT_S)
    beat_s = house.service.beat_s
    assert beat_s is not None
    house.wait(house.has("t", Finished))
    time.sleep(0.05)
    assert house.service.beat_s == house.engine.render_beat_s
    assert house.service.beat_s >= beat_s
    gate.set()
    house.wait(house.has("i", Finished))
    assert house.engine.render_beat_s is None


def test_cancelling_ends_a_running_request(house: House, requests_for: Requests) -> None:
    house.service.submit(requests_for.text("t", max_tokens=900, sampling=LONG))
    house.wait(house.has("t", TextDelta))
    house.service.cancel("t")
    house.service.cancel("t")
    house.wait(house.has("t", Finished))
    assert house.log["t"].end.reason == "cancelled"
    house.service.cancel("t")
    house.service.submit(requests_for.text("u"))
    house.wait(house.has("u", Finished))
    assert house.service.num_live == 0


def test_many_threads_submit_and_cancel(house: House, requests_for: Requests) -> None:
    def client(number: int) -> None:
        for turn in range(4):
            request_id = f"{number}-{turn}"
            make = requests_for.image if turn % 2 else requests_for.text
            while True:
                try:
                    house.service.submit(make(request_id))
                    break
                except QueueFullError:
                    time.sleep(0.005)
            if turn == number % 4:
                house.service.cancel(request_id)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert house.service.drain(TIMEOUT_S)
    assert len(house.log.outcomes) == 24
    assert all(isinstance(outcome.end, Finished) for outcome in house.log.outcomes.values())
    assert house.service.stats().kv_usage == 0


def test_a_full_queue_and_an_impossible_request_are_refused_at_once(
    house: House, requests_for: Requests
) -> None:
    with pytest.raises(ContextLengthError):
        house.service.submit(requests_for.text("t", max_tokens=10**6))

    def flood() -> None:
        for number in range(100):
            request = requests_for.text(f"t{number}", max_tokens=900, sampling=LONG)
            house.service.submit(request)

    with pytest.raises(QueueFullError) as refusal:
        flood()
    assert 1.0 <= refusal.value.retry_after_s <= 120.0


@pytest.mark.parametrize(
    ("forecast_s", "has_text", "interval_s", "expected_s"),
    [
        (20.0, False, 3.0, 20.0),  # pictures leave the queue when it is forecast
        (20.0, True, 3.0, 3.0),  # an answer may leave it sooner
        (2.0, True, 30.0, 2.0),
        (None, True, 3.0, 3.0),  # answers alone, or nothing measured yet
        (0.0, False, 3.0, 1.0),
        (4000.0, False, 3.0, 120.0),
    ],
)
def test_who_is_refused_hears_when_a_place_is_free(
    requests_for: Requests,
    monkeypatch: pytest.MonkeyPatch,
    forecast_s: float | None,
    has_text: bool,
    interval_s: float,
    expected_s: float,
) -> None:
    house = House(requests_for, max_waiting=1)
    engine = type(house.engine)
    monkeypatch.setattr(engine, "next_start_s", property(lambda _: forecast_s))
    monkeypatch.setattr(engine, "has_waiting_text", property(lambda _: has_text))
    house.service._mean_interval_s = interval_s
    house.service.submit(requests_for.text("t"))
    with pytest.raises(QueueFullError) as refusal:
        house.service.submit(requests_for.text("u"))
    assert refusal.value.retry_after_s == expected_s
    house.service.stop()


def test_pictures_wait_as_long_as_the_engine_forecasts(requests_for: Requests) -> None:
    """One at a time: the second one's start is the end of the first, in the engine's own words."""
    engine = requests_for.engine(max_images=1)
    run(engine, requests_for.image("warm"))
    assert engine.next_start_s is None
    for number in range(3):
        engine.submit(requests_for.image(f"i{number}"))
    engine.step()
    assert not engine.has_waiting_text
    assert 0.0 < engine.next_start_s <= engine.estimate("i1").wait_s + 0.5
    assert engine.next_start_s < engine.estimate("i2").wait_s
    engine.submit(requests_for.text("t"))
    assert engine.has_waiting_text
    finish(engine)
    assert engine.next_start_s is None
    assert not engine.has_waiting_text


def test_an_accepted_request_keeps_its_place_when_the_queue_fills_behind_it(
    requests_for: Requests,
) -> None:
    """Text that is set back waits again, beyond what the queue may take of new requests."""
    house = House(requests_for, max_waiting=1)
    house.service.submit(requests_for.text("t"))
    house.engine.submit(requests_for.text("waits again"))
    house.service.start()
    house.wait(house.has("t", Finished))
    house.wait(house.has("waits again", Finished))
    assert house.service.healthy
    house.service.stop()


def test_draining_finishes_what_runs_and_refuses_the_rest(
    house: House, requests_for: Requests
) -> None:
    house.service.submit(requests_for.image("i"))
    assert house.service.drain(TIMEOUT_S)
    assert isinstance(house.log["i"].end, Finished)
    with pytest.raises(DrainingError):
        house.service.submit(requests_for.image("j"))


def test_draining_gives_up_in_time_and_stopping_fails_the_rest(
    house: House, requests_for: Requests
) -> None:
    house.service.submit(requests_for.text("t", max_tokens=900, sampling=LONG))
    assert not house.service.drain(0.05)
    assert house.service.healthy
    house.service.stop()
    assert isinstance(house.log["t"].end, Failed)
    assert isinstance(house.log["t"].end.error, DrainingError)
    assert not house.service.healthy
    with pytest.raises(DrainingError):
        house.service.submit(requests_for.text("u"))


def test_a_dead_engine_fails_everyone_and_says_so(requests_for: Requests) -> None:
    house = House(requests_for)
    step = house.engine.step

    def break_down() -> list:
        if house.engine.stats().num_steps >= 2:
            raise RuntimeError("the device is gone")
        return step()

    house.engine.step = break_down
    house.service.start()
    for name in "ab":
        house.service.submit(requests_for.text(name, max_tokens=900, sampling=LONG))
    house.wait(lambda log: house.has("a", Failed)(log) and house.has("b", Failed)(log))
    assert isinstance(house.log["a"].end.error, EngineDeadError)
    house.service._thread.join(TIMEOUT_S)
    assert not house.service.healthy
    with pytest.raises(EngineDeadError):
        house.service.submit(requests_for.text("c"))
    house.service.stop()


def test_a_picture_lost_in_rendering_ends_the_wait(requests_for: Requests) -> None:
    house = House(requests_for, threaded_rendering=True)
    requests_for.model.decode_codes = lambda _: (_ for _ in ()).throw(RuntimeError("no memory"))
    try:
        house.service.start()
        house.service.submit(requests_for.image("i"))
        house.wait(house.has("i", Failed))
    finally:
        del requests_for.model.decode_codes  # the class's shows again
        house.service.stop()
    assert isinstance(house.log["i"].end.error, StepError)


def test_a_slow_renderer_delays_no_step_and_drops_previews(requests_for: Requests) -> None:
    house = House(requests_for, threaded_rendering=True, max_pending_previews=1)
    decode, release = requests_for.model.decode_codes, threading.Event()

    def slow(codes):
        assert release.wait(TIMEOUT_S)
        return decode(codes)

    requests_for.model.decode_codes = slow
    try:
        house.service.start()
        house.service.submit(requests_for.image("i", preview_at=(2, 6, 10)))
        house.service.submit(requests_for.text("t", max_tokens=30))
        house.wait(house.has("t", Finished))
        house.wait(lambda _: house.service.stats().num_rendering == 1)
        assert house.service.stats().kv_usage == 0
        release.set()
        house.wait(house.has("i", Finished))
    finally:
        release.set()
        del requests_for.model.decode_codes  # the class's shows again
        house.service.stop()
    assert len(house.log["i"].of_type(Preview)) == 1
    assert house.service.stats().num_dropped_previews == 2


def test_pictures_do_not_pile_up_before_a_slow_renderer(requests_for: Requests) -> None:
    house = House(requests_for, threaded_rendering=True, max_sequences=4, max_waiting=64)
    decode, most = requests_for.model.decode_codes, 0

    def slow(codes):
        nonlocal most
        time.sleep(0.05)
        most = max(most, house.service.stats().num_rendering)
        return decode(codes)

    requests_for.model.decode_codes = slow
    names = [f"i{seed}" for seed in range(24)]
    try:
        house.service.start()
        for seed, name in enumerate(names):
            house.service.submit(requests_for.image(name, sampling=SamplingParams(seed=seed)))
        house.wait(lambda log: all(house.has(name, Finished)(log) for name in names))
    finally:
        del requests_for.model.decode_codes  # the class's shows again
        house.service.stop()
    # Those that were drawn already, and those that were being drawn.
    assert most <= 4 + 2


def test_what_nobody_waits_for_is_not_rendered(requests_for: Requests) -> None:
    house = House(requests_for, threaded_rendering=True)
    decode, release, drawn = requests_for.model.decode_codes, threading.Event(), []

    def slow(codes):
        assert release.wait(TIMEOUT_S)
        drawn.append(codes[0].tolist())
        return decode(codes)

    requests_for.model.decode_codes = slow
    try:
        house.service.start()
        for seed, name in enumerate(["first", "gone", "last"]):
            house.service.submit(requests_for.image(name, sampling=SamplingParams(seed=seed)))
        house.wait(lambda _: house.service.stats().num_rendering == 3)
        house.service.cancel("gone")
        house.wait(house.has("gone", Finished))
        release.set()
        house.wait(house.has("last", Finished))
    finally:
        release.set()
        del requests_for.model.decode_codes  # the class's shows again
        house.service.stop()
    assert house.log["gone"].end.reason == "cancelled"
    assert drawn == [house.log["first"].codes, house.log["last"].codes]


def test_pictures_are_rendered_where_niceness_is_forbidden(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: int) -> None:
        raise PermissionError("not in this container")

    monkeypatch.setattr("os.setpriority", forbid)
    house = House(requests_for, threaded_rendering=True)
    house.service.start()
    house.service.submit(requests_for.image("i"))
    house.wait(house.has("i", Finished))
    house.service.stop()


class Forecast:
    """An engine's forecast, played."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch, *, each_s: float) -> None:
        def estimate_place(_, *, is_image: bool, num_ahead: int) -> Estimate:
            assert is_image
            return Estimate(num_ahead, each_s * num_ahead, each_s * (num_ahead + 1))

        monkeypatch.setattr(type(house.engine), "estimate_place", estimate_place)


def test_what_would_begin_too_late_is_refused_and_told_when_to_come_back(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(requests_for, max_queue_s=25.0)
    Forecast(house, monkeypatch, each_s=10.0)
    for number in range(3):
        house.service.submit(requests_for.image(f"i{number}"))
    with pytest.raises(QueueFullError) as refusal:
        house.service.submit(requests_for.image("i3"))
    assert refusal.value.retry_after_s == pytest.approx(5.0)
    assert "would begin in about 30.0 s" in refusal.value.message
    house.service.stop()


def test_nobody_waits_for_what_would_begin_behind_its_deadline(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(requests_for)
    Forecast(house, monkeypatch, each_s=10.0)
    house.service.submit(requests_for.image("i0"), patience_s=1.0)  # begins at once
    house.service.submit(requests_for.image("i1"))
    with pytest.raises(QueueFullError):
        house.service.submit(requests_for.image("i2"), patience_s=15.0)
    house.service.submit(requests_for.image("i2"), patience_s=31.0)
    house.service.stop()


def test_nobody_waits_for_what_would_be_done_behind_its_deadline(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is read as well."""
    house = House(requests_for)
    Forecast(house, monkeypatch, each_s=10.0)
    house.service.submit(requests_for.image("i0"))
    with pytest.raises(QueueFullError) as refusal:
        house.service.submit(requests_for.image("i1"), patience_s=18.0)
    assert "would be done in about 20.0 s" in refusal.value.message
    assert refusal.value.retry_after_s == pytest.approx(2.0)
    with pytest.raises(QueueFullError):
        house.service.check_room("", draws=True, patience_s=18.0)
    house.service.check_room("", draws=True, patience_s=21.0)
    house.service.stop()


def test_another_tenants_queue_is_no_reason_to_refuse(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tenants take turns, so whoever has nothing waiting begins soon."""
    house = House(requests_for, max_queue_s=100.0)
    Forecast(house, monkeypatch, each_s=10.0)
    for number in range(11):
        house.service.submit(requests_for.image(f"a{number}", tenant="a"))
    with pytest.raises(QueueFullError):
        house.service.check_room("a", draws=True)
    house.service.check_room("b", draws=True)
    house.service.submit(requests_for.image("b0", tenant="b"))
    house.service.stop()


def test_a_queue_of_text_is_bounded_by_its_pace(requests_for: Requests) -> None:
    house = House(requests_for, max_queue_s=25.0)
    pace = house.engine._horizon.pace_of_text
    for second in range(0, 60, 10):
        pace.note(float(second), 1, is_waiting=True)
    assert pace.has_queue
    for number in range(3):
        house.service.submit(requests_for.text(f"t{number}"))
    with pytest.raises(QueueFullError) as refusal:
        house.service.submit(requests_for.text("t3"))
    assert refusal.value.retry_after_s == pytest.approx(5.0, abs=2.0)
    house.service.stop()


def test_places_are_given_back_by_whoever_begins_or_leaves(
    house: House, requests_for: Requests
) -> None:
    for turn in range(3):
        names = [f"{turn}-{number}" for number in range(8)]
        for name in names:
            house.service.submit(requests_for.text(name, max_tokens=3))
        house.service.cancel(names[-1])
        house.wait(lambda log, names=names: all(house.has(n, Finished)(log) for n in names))
    with house.service._changed:
        assert house.service._waiting.num_waiting == 0
        assert house.service._waiting.num_bytes == 0


def test_refusing_is_cheap(requests_for: Requests) -> None:
    """A long queue of pictures is forecast once, not once for each that is refused."""
    house = House(requests_for, max_sequences=8, max_queue_s=0.0, max_images=1)
    run(house.engine, requests_for.image("warm"))
    for number in range(200):
        house.engine.accept(requests_for.image(f"i{number}"), None)
    house.engine.step()
    taken_s = []
    for _ in range(50):
        started_s = time.thread_time()
        with pytest.raises(QueueFullError):
            house.service.check_room("", draws=True)
        taken_s.append(time.thread_time() - started_s)
    assert sorted(taken_s)[40] < 0.001
    house.service.stop()
