"""The store of pictures behind URLs: expiry, bound, ids."""

import pytest

from janus_core.errors import RequestError
from server.results import ResultStore


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_file_is_there_until_it_expires():
    clock = Clock()
    store = ResultStore(max_bytes=100, ttl_s=60, now_s=clock)
    id = store.put(b"abc", "image/png")
    clock.now_s += 59
    picture = store.get(id)
    assert (picture.data, picture.media_type, store.remaining_s(picture)) == (
        b"abc",
        "image/png",
        1,
    )
    clock.now_s += 1
    assert store.get(id) is None
    assert store.num_bytes == 0


def test_the_oldest_make_room_and_the_bound_holds():
    store = ResultStore(max_bytes=10, ttl_s=60)
    ids = [store.put(bytes(4), "image/png") for _ in range(3)]
    assert [store.get(id) is not None for id in ids] == [False, True, True]
    assert store.num_bytes == 8
    last = store.put(bytes(10), "image/png")
    assert [store.get(id) for id in ids] == [None] * 3
    assert store.get(last) is not None
    with pytest.raises(RequestError):
        store.put(bytes(11), "image/png")
    assert store.get(last) is not None, "what cannot fit pushes nothing out"


def test_ids_are_long_and_never_the_same():
    store = ResultStore(max_bytes=1000, ttl_s=60)
    ids = {store.put(b"x", "image/png") for _ in range(50)}
    assert len(ids) == 50
    assert min(map(len, ids)) >= 32
    assert store.get("img_") is None
