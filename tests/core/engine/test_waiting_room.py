"""The bounds of the queue: by places, by bytes, and beside other tenants; and how fast it moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_core.engine.queue_pace import QueuePace
from janus_core.engine.settings import EngineSettings
from janus_core.engine.waiting_room import WaitingRoom, num_bytes_of
from tests.core.engine.house import image, seen, text


def room_of(num_places: int = 8, *, num_bytes: int = 2**20) -> WaitingRoom:
    return WaitingRoom(EngineSettings(max_waiting=num_places, max_waiting_bytes=num_bytes))


def fill(room: WaitingRoom, tenant: str, *, most: int = 1000) -> int:
    """Let a tenant's requests wait until one is refused; how many do."""
    for number in range(most):
        if room.refusal(tenant, is_image=False) is not None:
            return number
        room.enter(text(f"{tenant}-{room.num_waiting}", tenant=tenant))
    return most


def test_without_names_the_whole_queue_is_everybodys() -> None:
    room = room_of(8)
    assert fill(room, "") == 8
    assert "8 answers are waiting already" in room.refusal("", is_image=False)


def test_pictures_and_text_take_no_places_from_each_other() -> None:
    """Of nobody and of a tenant; bytes are counted together."""
    for tenant, most in (("", 8), ("a", 6)):
        room = room_of(8)
        assert fill(room, tenant) == most
        for number in range(most):
            assert room.refusal(tenant, is_image=True) is None
            room.enter(image(f"i{number}", tenant=tenant))
        assert "pictures" in room.refusal(tenant, is_image=True)
        room.leave("i0")
        assert room.refusal(tenant, is_image=True) is None
        assert room.refusal(tenant, is_image=False) is not None


def test_one_tenant_leaves_places_to_others_and_they_to_yet_others() -> None:
    room = room_of(64)
    counts = [fill(room, tenant) for tenant in "abcd"]
    assert counts == [48, 12, 3, 1]
    room = room_of(256)
    assert fill(room, "a") == 192


def test_even_the_smallest_queue_has_a_place() -> None:
    for num_places in (1, 2, 3):
        assert fill(room_of(num_places), "a") >= 1


def test_a_place_is_free_again_once_its_request_begins_or_ends() -> None:
    room = room_of(4)
    assert fill(room, "a") == 3
    room.leave("a-0")
    room.leave("a-0")
    room.leave("unknown")
    assert room.num_waiting == 2
    assert room.refusal("a", is_image=False) is None


def test_bytes_count() -> None:
    heavy = text("a", 40, images=(seen(1),))
    each = num_bytes_of(heavy)
    assert each > 3 * 8 * 8 * 4
    room = room_of(100, num_bytes=3 * each)
    for number in range(3):
        assert room.refusal("", is_image=False, num_bytes=each) is None
        room.enter(text(f"t{number}", 40, images=(seen(1),)))
    assert room.num_bytes == 3 * each
    assert "bytes" in room.refusal("", is_image=False, num_bytes=each)
    room.leave("t1")
    assert room.refusal("", is_image=False, num_bytes=each) is None


def test_what_is_larger_than_the_room_waits_alone() -> None:
    """It could never wait otherwise, whenever its client comes back."""
    room = room_of(num_bytes=100)
    assert room.refusal("a", is_image=False, num_bytes=10**6) is None
    room.enter(text("t", 40, tenant="a"))
    assert room.refusal("a", is_image=False, num_bytes=10**6) is not None


def test_bytes_are_left_to_others_too() -> None:
    each = num_bytes_of(text("t"))
    room = room_of(1000, num_bytes=8 * each)
    num = 0
    while room.refusal("a", is_image=False, num_bytes=each) is None:
        room.enter(text(f"a{num}", tenant="a"))
        num += 1
    assert num == 6
    assert room.refusal("b", is_image=False, num_bytes=each) is None


def test_a_pair_holds_both_prompts_and_its_codes() -> None:
    assert num_bytes_of(image("i", 20)) == 2 * num_bytes_of(image("j", 20, guided=False))
    forced = (7,) * 15 + (None,)
    assert num_bytes_of(image("k", 20, forced_codes=forced)) > num_bytes_of(image("i", 20))


def test_tenants_take_turns() -> None:
    room = room_of(64)
    for number in range(10):
        room.enter(image(f"a{number}", tenant="a"))
    for number in range(2):
        room.enter(image(f"b{number}", tenant="b"))
    ahead = {
        (tenant, more): room.num_ahead(tenant, is_image=True, num_more=more)
        for tenant in "abc"
        for more in (1, 3)
    }
    assert ahead == {
        ("a", 1): 10 + 2,
        ("a", 3): 12 + 2,
        ("b", 1): 2 + 3,
        ("b", 3): 4 + 5,
        ("c", 1): 1 + 1,
        ("c", 3): 2 + 3 + 2,
    }
    assert room.num_ahead("a", is_image=False) == 0


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.booleans()), max_size=80))
def test_the_books_are_right_whoever_comes_and_goes(script: list[tuple[str, bool]]) -> None:
    room = room_of(6, num_bytes=3000)
    inside: list[str] = []
    for number, (tenant, leaves) in enumerate(script):
        request = text(f"r{number}", tenant=tenant)
        if room.refusal(tenant, is_image=False, num_bytes=num_bytes_of(request)) is None:
            room.enter(request)
            inside.append(request.id)
        if leaves and inside:
            room.leave(inside.pop(0))
        assert room.num_waiting == len(inside) <= 6
        assert room.num_bytes <= 3000
    for request_id in inside:
        room.leave(request_id)
    assert room.num_bytes == room.num_ahead("a", is_image=False) == 0


def test_the_pace_of_a_queue_is_that_of_its_starts() -> None:
    pace = QueuePace()
    assert pace.interval_s is None
    for second in range(60):
        pace.note(float(second), 2, is_waiting=True)
    assert pace.interval_s == pytest.approx(0.5, rel=0.05)


def test_times_without_a_queue_do_not_count() -> None:
    pace = QueuePace()
    for second in range(10):
        pace.note(float(second), 1, is_waiting=second < 9)
    before = pace.interval_s
    pace.note(1000.0, 1, is_waiting=False)
    assert pace.interval_s == before == pytest.approx(1.0)


def test_a_queue_that_stands_still_becomes_slower() -> None:
    pace = QueuePace()
    for second in range(10):
        pace.note(float(second), 1, is_waiting=True)
    pace.note(100.0, 0, is_waiting=True)
    assert pace.interval_s > 10.0
    for second in range(101, 300):
        pace.note(float(second), 1, is_waiting=True)
    assert pace.interval_s == pytest.approx(1.0, rel=0.1)
