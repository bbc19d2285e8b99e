"""What whoever runs the server does to it: sleep, wake, abort, caches, log level, state."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.serving import ServerInThread, wait_until

ADMIN = {"authorization": "Bearer sk-of-the-admin"}
ANN = {"authorization": "Bearer sk-of-ann"}
LONG = {
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "temperature": 1,
    "n": 4,
}
PICTURE = {"prompt": "a red circle", "seed": 5}


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(
        model=str(tiny_checkpoint), api_keys="ann:sk-of-ann", admin_key="sk-of-the-admin"
    ) as running:
        yield running


@pytest.fixture
def admin(server: ServerInThread) -> Iterator[httpx2.Client]:
    with server.client() as client:
        client.headers.update(ADMIN)
        yield client


def picture(server: ServerInThread) -> str:
    reply = httpx2.post(f"{server.url}/v1/images/generations", json=PICTURE, headers=ANN)
    assert reply.status_code == 200, reply.text
    return reply.json()["data"][0]["b64_json"]


class Asking(threading.Thread):
    """Asks something long in a thread of its own."""

    def __init__(self, server: ServerInThread, request_id: str, **fields: object) -> None:
        super().__init__()
        self._server, self._request_id, self._body = server, request_id, LONG | fields
        self.reply: httpx2.Response | None = None
        self.start()

    def run(self) -> None:
        self.reply = httpx2.post(
            f"{self._server.url}/v1/chat/completions",
            json=self._body,
            headers=ANN | {"x-request-id": self._request_id},
            timeout=60,
        )

    def answer(self) -> httpx2.Response:
        self.join(60)
        assert self.reply is not None, "no answer"
        return self.reply


def live_ids(admin: httpx2.Client) -> list[str]:
    return [each["request_id"] for each in admin.get("/admin/state").json()["requests"]]


@pytest.mark.parametrize("level", [1, 2])
def test_asleep_it_is_not_ready_and_refuses_work(
    server: ServerInThread, admin: httpx2.Client, level: int
) -> None:
    before = picture(server)
    reply = admin.post("/admin/sleep", params={"level": level})
    assert reply.json() == {"state": "asleep", "level": level}
    try:
        ready = admin.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "asleep")
        assert admin.get("/livez").status_code == 200
        assert admin.get("/metrics").status_code == 200
        assert admin.get("/v1/models").status_code == 200
        codes = [[0] * server.context.pipeline.config.vq.num_codes]
        for path, body in {
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
            "/v1/images/generations": PICTURE,
            "/v1/images/decode": {"codes": codes},
        }.items():
            reply = admin.post(path, json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "asleep"), path
            assert 1 <= int(reply.headers["retry-after"]) <= 120
    finally:
        reply = admin.post("/admin/wake")
    assert reply.json() == {"state": "awake", "level": None}
    assert admin.get("/readyz").status_code == 200
    assert picture(server) == before
    wait_until(server.is_idle)


def test_running_requests_end_before_it_sleeps(
    server: ServerInThread, admin: httpx2.Client
) -> None:
    asking = Asking(server, "polite", max_tokens=60)
    wait_until(lambda: live_ids(admin) == ["polite"])
    try:
        assert admin.post("/admin/sleep").json()["state"] == "asleep"
        assert asking.answer().status_code == 200
    finally:
        admin.post("/admin/wake")


def test_it_stays_awake_if_work_does_not_end_in_time(
    server: ServerInThread, admin: httpx2.Client
) -> None:
    asking = Asking(server, "endless")
    wait_until(lambda: live_ids(admin) == ["endless"])
    reply = admin.post("/admin/sleep", params={"timeout_s": 0})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "still_busy")
    assert admin.get("/readyz").status_code == 200
    try:
        assert admin.post("/admin/sleep", params={"force": True}).status_code == 200
        error = asking.answer()
        assert (error.status_code, error.json()["error"]["code"]) == (503, "aborted")
        assert error.headers["x-should-retry"] == "false"
    finally:
        admin.post("/admin/wake")
    picture(server)


def test_two_who_sleep_and_wake_at_once_do_not_meet(
    server: ServerInThread, admin: httpx2.Client
) -> None:
    before = picture(server)

    def toggle() -> None:
        for path in ("/admin/sleep", "/admin/wake"):
            assert httpx2.post(f"{server.url}{path}", headers=ADMIN, timeout=60).status_code == 200

    threads = [threading.Thread(target=toggle) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    admin.post("/admin/wake")
    assert picture(server) == before


def test_only_the_request_with_exactly_this_id_is_aborted(
    server: ServerInThread, admin: httpx2.Client
) -> None:
    ids = ["a", "ab", "abc", "b"]
    asking = {request_id: Asking(server, request_id, n=1) for request_id in ids}
    wait_until(lambda: sorted(live_ids(admin)) == ids)
    assert admin.post("/admin/abort", params={"request_id": "ab"}).json() == {"aborted": 1}
    assert asking["ab"].answer().json()["error"]["code"] == "aborted"
    # The answer may arrive a moment before the request is off the list.
    wait_until(lambda: sorted(live_ids(admin)) == ["a", "abc", "b"])
    assert admin.post("/admin/abort", params={"request_id": "z"}).json() == {"aborted": 0}
    assert admin.post("/admin/abort", params={"all": True}).json() == {"aborted": 3}
    for each in asking.values():
        assert each.answer().status_code == 503
    wait_until(server.is_idle)


def test_a_stream_that_is_aborted_ends_with_an_error(
    server: ServerInThread, admin: httpx2.Client
) -> None:
    asking = Asking(server, "stream", stream=True)
    wait_until(lambda: live_ids(admin) == ["stream"])
    admin.post("/admin/abort", params={"request_id": "stream"})
    frames = asking.answer().text.strip().split("\n\n")
    assert '"code": "aborted"' in frames[-1]
    assert "[DONE]" not in frames[-1]


@pytest.mark.parametrize("params", [{}, {"request_id": "a", "all": True}, {"request_id": ""}])
def test_abort_wants_to_know_what(admin: httpx2.Client, params: dict) -> None:
    assert admin.post("/admin/abort", params=params).status_code == 400


@pytest.mark.parametrize("params", [{"level": 3}, {"level": "x"}, {"timeout_s": "nan"}])
def test_sleep_refuses_what_means_nothing(admin: httpx2.Client, params: dict) -> None:
    assert admin.post("/admin/sleep", params=params).status_code == 400
    assert admin.get("/readyz").status_code == 200


def test_caches_are_forgotten(server: ServerInThread, admin: httpx2.Client) -> None:
    picture(server)
    assert admin.get("/admin/state").json()["engine"]["kv_cached"] > 0
    assert admin.post("/admin/reset_caches").status_code == 200
    assert admin.get("/admin/state").json()["engine"]["kv_cached"] == 0


def test_the_log_level_can_be_changed(admin: httpx2.Client) -> None:
    before = logging.getLogger().level
    try:
        for level in ("debug", "error", "info"):
            assert admin.post("/admin/log_level", params={"level": level}).json() == {
                "level": level
            }
            assert admin.get("/admin/log_level").json() == {"level": level}
            assert logging.getLogger("server.access").isEnabledFor(logging.INFO) == (
                level != "error"
            )
        assert admin.post("/admin/log_level", params={"level": "loud"}).status_code == 400
    finally:
        logging.getLogger().setLevel(before)


def test_the_state_says_who_is_being_answered(server: ServerInThread, admin: httpx2.Client) -> None:
    asking = Asking(server, "state", n=3)
    wait_until(lambda: live_ids(admin) == ["state"])
    state = admin.get("/admin/state").json()
    admin.post("/admin/abort", params={"all": True})
    asking.answer()
    (live,) = state["requests"]
    assert (live["task"], live["key"], live["num_choices"]) == ("chat", "ann", 3)
    assert live["age_s"] >= 0
    assert (state["state"], state["draining"]) == ("awake", False)
    assert state["engine"]["num_running"] + state["engine"]["num_waiting"] == 3
    assert "hello" not in str(state)
