"""Full queues, deadlines and estimates, as a client sees them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from server.admission import ASKING, DRAWING, TIMEOUT_HEADER
from tests.serving import ServerInThread, wait_until

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
LONG = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True, "temperature": 1}
PICTURE = {"prompt": "a red circle"}
MAX_WAITING = 4


@pytest.fixture(scope="module")
def small(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    """Two sequences run, four requests of each kind wait."""
    with ServerInThread(
        model=str(tiny_checkpoint),
        served_model_name="tiny",
        max_sequences=2,
        max_waiting=MAX_WAITING,
        request_timeout_s=60,
    ) as running:
        yield running


class Crowd:
    """Clients that wait in threads of their own, until the server has nothing left to do."""

    def __init__(self, server: ServerInThread) -> None:
        self._server = server
        self._threads: list[threading.Thread] = []
        self._clients: list[httpx2.Client] = []
        self.statuses: list[int] = []

    def send(self, num: int, path: str, body: dict, **headers: str) -> None:
        for _ in range(num):
            client = self._server.client()
            self._clients.append(client)
            args = (client, path, body, headers)
            self._threads.append(threading.Thread(target=self._post, args=args))
            self._threads[-1].start()

    def _post(self, client: httpx2.Client, path: str, body: dict, headers: dict) -> None:
        try:
            self.statuses.append(client.post(path, json=body, headers=headers).status_code)
        except httpx2.TransportError:
            self.statuses.append(0)

    def join(self) -> list[int]:
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()
        return self.statuses


def counts(server: ServerInThread) -> tuple[int, int]:
    """Running and waiting."""
    stats = server.context.dispatcher.service.stats()
    return stats.num_running, stats.num_waiting


@pytest.fixture
def full(small: ServerInThread) -> Iterator[Crowd]:
    """As much running and waiting as may."""
    wait_until(small.is_idle)
    crowd = Crowd(small)
    body = LONG | {"max_tokens": 900}
    crowd.send(2, CHAT, body)
    wait_until(lambda: counts(small) == (2, 0))
    crowd.send(MAX_WAITING, CHAT, body)
    crowd.send(MAX_WAITING, IMAGES, PICTURE)
    # Text is set back for pictures, so that it varies how many run.
    wait_until(lambda: sum(counts(small)) == 2 + 2 * MAX_WAITING)
    yield crowd
    for request_id in list(small.context.dispatcher._handles):
        small.context.dispatcher.service.cancel(request_id)
    crowd.join()


def metric(server: ServerInThread, name: str, **labels: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith(name) and all(each in line for each in wanted)
    )


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("path", [CHAT, IMAGES, "/v1/ask", "/sdapi/v1/txt2img"])
def test_a_full_queue_is_told_at_once_whatever_was_sent(small: ServerInThread, path: str) -> None:
    before = metric(small, "janus:requests_rejected_total", reason="queue_full")
    by_route = {"handler": path, "status": "429"}
    refused = metric(small, "http_requests_total", **by_route)
    with small.client() as client:
        reply = client.post(path, json=PICTURE | LONG)
        assert reply.status_code == 429
        assert reply.json()["error"]["code"] == "queue_full"
        assert 1 <= int(reply.headers["retry-after"]) <= 120
        # The connection goes on, although nobody has read the body.
        assert client.post(path, content=b"x" * 100_000).status_code == 429
        assert client.get("/v1/models").status_code == 200
    assert metric(small, "janus:requests_rejected_total", reason="queue_full") == before + 2
    assert metric(small, "http_requests_total", **by_route) == refused + 2
    assert sum(counts(small)) == 2 + 2 * MAX_WAITING


def test_every_route_to_the_engine_is_known_to_the_door(small: ServerInThread) -> None:
    """What is listed exists, and of what is not, nothing submits to the engine."""
    paths = small.app.openapi()["paths"]
    posts = {path for path, operations in paths.items() if "post" in operations}
    assert posts >= DRAWING | ASKING
    others = posts - DRAWING - ASKING
    assert {path for path in others if "/v1/images" in path} == {
        "/v1/images/encode",
        "/v1/images/decode",
    }
    assert not {path for path in others if "chat" in path or "2img" in path}


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e3", "soon", "", "1 2", "9" * 40])
def test_a_deadline_is_a_number_of_seconds(small: ServerInThread, value: str) -> None:
    with small.client() as client:
        reply = client.post(IMAGES, json=PICTURE, headers={TIMEOUT_HEADER: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == TIMEOUT_HEADER


def test_who_runs_past_its_deadline_is_ended_and_nobody_else(small: ServerInThread) -> None:
    wait_until(small.is_idle)
    before = metric(small, "janus:deadline_misses_total", stage="running")
    failures = metric(small, "janus:request_failure_total", task="chat")
    body = LONG | {"seed": 3, "max_tokens": 200}
    with small.client() as client:
        alone = client.post(CHAT, json=body).json()["choices"]
        crowd = Crowd(small)
        crowd.send(1, CHAT, LONG | {"max_tokens": 1000}, **{TIMEOUT_HEADER: "0.5"})
        beside = client.post(CHAT, json=body).json()["choices"]
    assert beside == alone
    assert crowd.join() == [504]
    wait_until(small.is_idle, timeout_s=5)
    assert metric(small, "janus:deadline_misses_total", stage="running") == before + 1
    assert metric(small, "janus:request_failure_total", task="chat") == failures + 1


def test_who_waits_past_its_deadline_may_come_again(small: ServerInThread) -> None:
    wait_until(small.is_idle)
    before = metric(small, "janus:deadline_misses_total", stage="queued")
    crowd = Crowd(small)
    crowd.send(2, CHAT, LONG | {"max_tokens": 300})
    wait_until(lambda: counts(small) == (2, 0))
    with small.client() as client:
        reply = client.post(CHAT, json=LONG, headers={TIMEOUT_HEADER: "0.05"})
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "deadline_exceeded"
    assert 1 <= int(reply.headers["retry-after"]) <= 120
    assert metric(small, "janus:deadline_misses_total", stage="queued") == before + 1
    assert crowd.join() == [200, 200]
    wait_until(small.is_idle, timeout_s=5)


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, LONG | {"max_tokens": 1000}), (IMAGES, PICTURE | {"n": 4})]
)
def test_a_stream_says_that_its_deadline_has_passed(
    small: ServerInThread, path: str, body: dict
) -> None:
    wait_until(small.is_idle)
    headers = {TIMEOUT_HEADER: "0.02"}
    with (
        small.client() as client,
        client.stream("POST", path, json=body | {"stream": True}, headers=headers) as reply,
    ):
        text = reply.read().decode()
    if reply.status_code == 200:
        assert text.count("deadline_exceeded") == 1
        assert "deadline_exceeded" in text.strip().splitlines()[-1]
        assert "[DONE]" not in text
    else:  # it had passed before the stream began, or was seen to pass before it would begin
        expected = {503: "deadline_exceeded", 429: "queue_full"}[reply.status_code]
        assert reply.json()["error"]["code"] == expected
    wait_until(small.is_idle, timeout_s=5)


def test_an_official_client_is_not_made_to_compute_it_thrice(small: ServerInThread) -> None:
    wait_until(small.is_idle)
    before = metric(small, "http_requests_total", handler=CHAT, status="504")
    with (
        openai.OpenAI(base_url=f"{small.url}/v1", api_key="x") as client,
        pytest.raises(openai.InternalServerError) as failure,
    ):
        client.chat.completions.create(
            model="tiny",
            messages=LONG["messages"],
            max_tokens=1000,
            extra_body={"ignore_eos": True},
            extra_headers={TIMEOUT_HEADER: "0.5"},
        )
    assert failure.value.status_code == 504
    assert failure.value.code == "deadline_exceeded"
    assert metric(small, "http_requests_total", handler=CHAT, status="504") == before + 1


def test_the_servers_own_limit_wins(tiny_checkpoint: Path) -> None:
    with (
        ServerInThread(model=str(tiny_checkpoint), request_timeout_s=0.5) as server,
        server.client() as client,
    ):
        body = LONG | {"max_tokens": 1000, "n": 8}
        started_s = time.monotonic()
        reply = client.post(CHAT, json=body, headers={TIMEOUT_HEADER: "50"})
        assert reply.status_code == 504
        assert time.monotonic() - started_s < 5
        assert "0.5 s" in reply.json()["error"]["message"]


def test_asking_when_a_picture_would_be_there_draws_none(small: ServerInThread) -> None:
    wait_until(small.is_idle)
    with small.client() as client:
        drawn = client.post(IMAGES, json=PICTURE)
        assert drawn.status_code == 200
        assert 0 <= float(client.post(IMAGES, json=PICTURE).headers["x-janus-estimated-s"]) < 60
        before = metric(small, "janus:images_generated_total")
        one, four = (
            client.post(IMAGES, json=PICTURE | {"n": n, "estimate_only": True}).json()
            for n in (1, 4)
        )
        assert one["object"] == "image_generation.estimate"
        assert 0 < one["estimated_s"] < four["estimated_s"] < 60
        assert one["position"] == 0
        assert one["wait_s"] == 0
        # One picture at a time, so the last of four waits for three.
        assert 0 < four["wait_s"] < four["estimated_s"]
    assert metric(small, "janus:images_generated_total") == before


@pytest.mark.usefixtures("full")
def test_what_would_be_refused_is_not_estimated(small: ServerInThread) -> None:
    with small.client() as client:
        reply = client.post(IMAGES, json=PICTURE | {"estimate_only": True})
    assert reply.status_code == 429


def test_a_picture_that_would_wait_too_long_is_refused_with_its_time(
    tiny_checkpoint: Path,
) -> None:
    with (
        ServerInThread(
            model=str(tiny_checkpoint), max_images=1, max_queue_s=0.01, max_pictures=50
        ) as server,
        server.client() as client,
    ):
        client.post(IMAGES, json=PICTURE)
        reply = client.post(IMAGES, json=PICTURE | {"n": 50})
        assert reply.status_code == 429
        assert "would begin in about" in reply.json()["error"]["message"]
        assert 1 <= int(reply.headers["retry-after"]) <= 120
        wait_until(server.is_idle)
        assert client.post(IMAGES, json=PICTURE).status_code == 200
