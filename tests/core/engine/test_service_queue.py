"""Who may wait for the engine, and who is refused at once."""

import time
from collections.abc import Callable, Iterator

import pytest

from janus_core.engine.events import Finished
from janus_core.engine.forecast import Estimate
from janus_core.errors import (
    ContextLengthError,
    QueueFullError,
)
from tests.core.engine.service_house import LONG, ServiceHouse
from tests.core.engine.support import Requests, finish, run


def test_a_full_queue_and_an_impossible_request_are_refused_at_once(
    house: ServiceHouse, requests_for: Requests
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
    house = ServiceHouse(requests_for, max_waiting=1)
    engine = type(house.engine)
    monkeypatch.setattr(engine, "next_start_s", property(lambda _: forecast_s))
    monkeypatch.setattr(engine, "has_waiting_text", property(lambda _: has_text))
    house.service._mean_interval_s = interval_s
    house.service.submit(requests_for.text("t"))
    with pytest.raises(QueueFullError) as refusal:
        house.service.submit(requests_for.text("u"))
    assert refusal.value.retry_after_s == expected_s
    house.service.stop()


def test_room_is_what_somebody_would_find_who_has_nothing(requests_for: Requests) -> None:
    """A key that has its share is refused, and nobody hears of it: another one would be taken."""
    house, refused = ServiceHouse(requests_for, max_waiting=4), []
    service = house.service
    service.on_refused = lambda *, is_image: refused.append(is_image)
    for number in range(3):
        service.submit(requests_for.text(f"t{number}", tenant="ann"))
    assert service.has_room(is_image=False)
    with pytest.raises(QueueFullError):
        service.submit(requests_for.text("t3", tenant="ann"))
    assert not refused
    service.submit(requests_for.text("u", tenant="ben"))
    with pytest.raises(QueueFullError):
        service.submit(requests_for.text("v", tenant="cy"))
    assert refused == [False]
    assert not service.has_room(is_image=False)
    assert service.has_room(is_image=True)
    service.submit(requests_for.image("i"))
    assert service.has_room(is_image=True)
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
    house = ServiceHouse(requests_for, max_waiting=1)
    house.service.submit(requests_for.text("t"))
    house.engine.submit(requests_for.text("waits again"))
    house.service.start()
    house.wait(house.has("t", Finished))
    house.wait(house.has("waits again", Finished))
    assert house.service.healthy
    house.service.stop()


@pytest.fixture
def forecast_house(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ServiceHouse]]:
    """Makes services, with the settings given, that forecast ten seconds for every picture, one
    after another; none of them runs."""
    houses: list[ServiceHouse] = []

    def estimate_place(_, *, is_image: bool, num_ahead: int) -> Estimate:
        assert is_image
        return Estimate(num_ahead, 10.0 * num_ahead, 10.0 * (num_ahead + 1))

    def make(**settings: object) -> ServiceHouse:
        houses.append(ServiceHouse(requests_for, **settings))
        monkeypatch.setattr(type(houses[-1].engine), "estimate_place", estimate_place)
        return houses[-1]

    yield make
    for house in houses:
        house.service.stop()


def test_what_would_begin_too_late_is_refused_and_told_when_to_come_back(
    forecast_house: Callable[..., ServiceHouse], requests_for: Requests
) -> None:
    house = forecast_house(max_queue_s=25.0)
    for number in range(3):
        house.service.submit(requests_for.image(f"i{number}"))
    with pytest.raises(QueueFullError) as refusal:
        house.service.submit(requests_for.image("i3"))
    assert refusal.value.retry_after_s == pytest.approx(5.0)
    assert "would begin in about 30.0 s" in refusal.value.message


def test_nobody_waits_for_what_would_begin_behind_its_deadline(
    forecast_house: Callable[..., ServiceHouse], requests_for: Requests
) -> None:
    house = forecast_house()
    house.service.submit(requests_for.image("i0"), patience_s=1.0)  # begins at once
    house.service.submit(requests_for.image("i1"))
    with pytest.raises(QueueFullError):
        house.service.submit(requests_for.image("i2"), patience_s=15.0)
    house.service.submit(requests_for.image("i2"), patience_s=31.0)


def test_nobody_waits_for_what_would_be_done_behind_its_deadline(
    forecast_house: Callable[..., ServiceHouse], requests_for: Requests
) -> None:
    """Before it is read as well."""
    house = forecast_house()
    house.service.submit(requests_for.image("i0"))
    with pytest.raises(QueueFullError) as refusal:
        house.service.submit(requests_for.image("i1"), patience_s=18.0)
    assert "would be done in about 20.0 s" in refusal.value.message
    assert refusal.value.retry_after_s == pytest.approx(2.0)
    with pytest.raises(QueueFullError):
        house.service.check_room("", draws=True, patience_s=18.0)
    house.service.check_room("", draws=True, patience_s=21.0)


def test_another_tenants_queue_is_no_reason_to_refuse(
    forecast_house: Callable[..., ServiceHouse], requests_for: Requests
) -> None:
    """Tenants take turns, so whoever has nothing waiting begins soon."""
    house = forecast_house(max_queue_s=100.0)
    for number in range(11):
        house.service.submit(requests_for.image(f"a{number}", tenant="a"))
    with pytest.raises(QueueFullError):
        house.service.check_room("a", draws=True)
    house.service.check_room("b", draws=True)
    house.service.submit(requests_for.image("b0", tenant="b"))


def test_a_queue_of_text_is_bounded_by_its_pace(requests_for: Requests) -> None:
    house = ServiceHouse(requests_for, max_queue_s=25.0)
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
    house: ServiceHouse, requests_for: Requests
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
    house = ServiceHouse(requests_for, max_sequences=8, max_queue_s=0.0, max_images=1)
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
