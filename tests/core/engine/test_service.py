"""The engine's thread: commands from anywhere, one sink, and no request without an end."""

import threading
import time

import pytest
import torch

from janus_core.engine import render
from janus_core.engine.events import Failed, Finished, Preview, TextDelta
from janus_core.engine.request import SamplingParams
from janus_core.errors import (
    DrainingError,
    EngineDeadError,
    QueueFullError,
    StepError,
)
from tests.core.engine.service_house import LONG, TIMEOUT_S, ServiceHouse
from tests.core.engine.support import Requests, run


def test_answers_are_those_of_the_engine_itself(
    house: ServiceHouse, requests_for: Requests
) -> None:
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
        house = ServiceHouse(requests_for, threaded_rendering=True)
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


def test_it_sleeps_when_there_is_nothing_to_do(house: ServiceHouse, requests_for: Requests) -> None:
    house.service.submit(requests_for.text("t"))
    house.wait(house.has("t", Finished))
    num_steps = house.service.stats().num_steps
    time.sleep(0.05)
    assert house.service.stats().num_steps == num_steps
    assert house.service.beat_s is None
    house.service.submit(requests_for.text("u"))
    house.wait(house.has("u", Finished))


def test_a_renderer_that_hangs_does_not_beat(
    house: ServiceHouse, requests_for: Requests, monkeypatch: pytest.MonkeyPatch
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


def test_cancelling_ends_a_running_request(house: ServiceHouse, requests_for: Requests) -> None:
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


def test_many_threads_submit_and_cancel(house: ServiceHouse, requests_for: Requests) -> None:
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


def test_draining_finishes_what_runs_and_refuses_the_rest(
    house: ServiceHouse, requests_for: Requests
) -> None:
    house.service.submit(requests_for.image("i"))
    assert house.service.drain(TIMEOUT_S)
    assert isinstance(house.log["i"].end, Finished)
    with pytest.raises(DrainingError):
        house.service.submit(requests_for.image("j"))


def test_draining_gives_up_in_time_and_stopping_fails_the_rest(
    house: ServiceHouse, requests_for: Requests
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
    house = ServiceHouse(requests_for)
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
    house = ServiceHouse(requests_for, threaded_rendering=True)
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
    house = ServiceHouse(requests_for, threaded_rendering=True, max_pending_previews=1)
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
    house = ServiceHouse(requests_for, threaded_rendering=True, max_sequences=4, max_waiting=64)
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
    house = ServiceHouse(requests_for, threaded_rendering=True)
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
    house = ServiceHouse(requests_for, threaded_rendering=True)
    house.service.start()
    house.service.submit(requests_for.image("i"))
    house.wait(house.has("i", Finished))
    house.service.stop()
