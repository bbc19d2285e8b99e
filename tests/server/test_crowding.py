"""Ready or not, by whether there is room; with a clock of the test's own, and over HTTP."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.crowding import PAUSE_S, Crowding
from tests.serving import ServerInThread, wait_until

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
LONG = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True, "max_tokens": 900}
LIMIT_S = 10.0


class Queue:
    """Room by kind, and the time."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.room = {False: True, True: True}
        self.now_s = 0.0
        self.crowding = Crowding(
            lambda *, is_image: self.room[is_image], limit_s=limit_s, clock=lambda: self.now_s
        )

    def fill(self) -> None:
        self.room = {False: False, True: False}

    def refuse(self, *kinds: bool) -> None:
        for is_image in kinds:
            self.crowding.refused(is_image=is_image)


def test_a_queue_is_full_once_both_kinds_were_refused_for_long_enough():
    queue = Queue()
    queue.fill()
    queue.refuse(False, True)
    assert not queue.crowding.is_full()
    queue.now_s = LIMIT_S - 0.1
    assert not queue.crowding.is_full()
    queue.now_s = LIMIT_S
    assert queue.crowding.is_full()


@pytest.mark.parametrize("kind", [False, True])
def test_room_for_either_kind_is_room_at_once(kind: bool):
    queue = Queue()
    queue.fill()
    queue.refuse(False, True)
    queue.now_s = 2 * LIMIT_S
    assert queue.crowding.is_full()
    queue.room[kind] = True
    assert not queue.crowding.is_full()
    queue.room[kind] = False
    assert queue.crowding.is_full(), "a place that was taken at once is no relief"


def test_both_kinds_must_have_been_refused_for_so_long():
    queue = Queue()
    queue.fill()
    queue.refuse(False)
    queue.now_s = LIMIT_S
    queue.refuse(False, True)
    assert not queue.crowding.is_full()
    queue.now_s = 2 * LIMIT_S
    assert queue.crowding.is_full()


def test_after_a_pause_the_time_begins_anew():
    queue = Queue()
    queue.refuse(False, True)
    queue.now_s = PAUSE_S + 1
    queue.fill()
    assert not queue.crowding.is_full()


def test_where_probes_have_sent_everybody_away_they_still_see_that_it_is_full():
    """Twenty seconds apart, with no request between them."""
    queue = Queue()
    queue.fill()
    found = []
    for _ in range(6):
        found.append(queue.crowding.is_full())
        queue.now_s += 20.0
    assert found == [False] + [True] * 5


def test_zero_is_never_full():
    queue = Queue(limit_s=0.0)
    queue.fill()
    queue.refuse(False, True)
    queue.now_s = 1000.0
    assert not queue.crowding.is_full()


@pytest.fixture
def small(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(
        model=str(tiny_checkpoint),
        served_model_name="tiny",
        max_sequences=2,
        max_waiting=1,
        full_queue_s=0.3,
    ) as running:
        yield running


def _post(server: ServerInThread, path: str, body: dict) -> None:
    with server.client() as client:
        client.post(path, json=body)


def test_a_full_server_is_not_ready_but_healthy_and_ready_again_once_there_is_room(
    small: ServerInThread,
):
    service = small.context.dispatcher.service
    picture = {"prompt": "a red circle"}
    wanted = [(CHAT, LONG), (CHAT, LONG), (CHAT, LONG), (IMAGES, picture), (IMAGES, picture)]
    with small.client() as client:
        assert client.get("/readyz").status_code == 200
        release = threading.Event()
        # Nobody leaves the queue while the engine's thread is held up.
        held = service.call(lambda: release.wait(30))
        wait_until(held.running)
        crowd = [threading.Thread(target=_post, args=(small, *each)) for each in wanted]
        for thread in crowd:
            thread.start()
        wait_until(lambda: not any(service.has_room(is_image=each) for each in (False, True)))
        assert client.post(CHAT, json=LONG).json()["error"]["code"] == "queue_full"
        wait_until(lambda: client.get("/readyz").status_code == 503, 10)
        assert client.get("/readyz").json() == {"status": "queue full"}
        for path in ("/livez", "/health"):
            assert client.get(path).status_code == 200
        assert client.get("/load").json()["status"] == "ok"
        release.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        for request_id in list(small.context.dispatcher._handles):
            service.cancel(request_id)
        for thread in crowd:
            thread.join()
        wait_until(small.is_idle)
        assert client.get("/readyz").status_code == 200
