"""A client that leaves: its work is cancelled, its slots are free, nobody else notices."""

import json
import socket
import threading
from pathlib import Path

import httpx2
import pytest

from server.pictures import PictureFormat
from tests.serving import ServerInThread, wait_until

# Long enough that no test machine finishes it before the client has left.
LONG = {
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "temperature": 1,
    "n": 4,
}


def raw_post(
    server: ServerInThread, path: str, body: dict, *, missing_bytes: int = 0
) -> socket.socket:
    """Send a request (all but its last bytes) and return the socket without waiting for an
    answer."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content) + missing_bytes}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def cancelled(server: ServerInThread, task: str) -> float:
    text = httpx2.get(f"{server.url}/metrics").text
    name = f'janus:requests_cancelled_total{{model_name="tiny",task="{task}"}} '
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def num_running(server: ServerInThread) -> int:
    return server.context.dispatcher.service.stats().num_running


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_cancels_all_choices(server: ServerInThread, stream: bool):
    wait_until(server.is_idle)
    before = cancelled(server, "chat")
    connection = raw_post(server, "/v1/chat/completions", LONG | {"stream": stream})
    wait_until(lambda: num_running(server) == 4)
    connection.close()
    wait_until(server.is_idle, timeout_s=5)
    wait_until(lambda: cancelled(server, "chat") == before + 4, timeout_s=5)


def test_leaving_in_the_middle_of_a_stream_cancels(server: ServerInThread):
    wait_until(server.is_idle)
    before = cancelled(server, "chat")
    with (
        server.client() as client,
        client.stream(
            "POST", "/v1/chat/completions", json=LONG | {"stream": True, "n": 1}
        ) as reply,
    ):
        lines = reply.iter_lines()
        for _ in range(6):
            next(lines)
    wait_until(server.is_idle, timeout_s=5)
    wait_until(lambda: cancelled(server, "chat") == before + 1, timeout_s=5)


def test_those_who_stay_get_what_they_would_get_alone(server: ServerInThread):
    body = LONG | {"n": 1, "seed": 3, "max_tokens": 150}
    with server.client() as client:
        alone = client.post("/v1/chat/completions", json=body).json()["choices"]
        leaving = [raw_post(server, "/v1/chat/completions", LONG) for _ in range(3)]
        wait_until(lambda: num_running(server) >= 12)
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            for connection in leaving:
                connection.close()
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    text = "".join(json.loads(item)["choices"][0]["delta"].get("content", "") for item in data[:-1])
    assert text == alone[0]["message"]["content"]
    wait_until(server.is_idle)


@pytest.mark.parametrize("missing_bytes", [0, 1])
def test_a_client_that_left_is_logged_as_499(
    server: ServerInThread, caplog: pytest.LogCaptureFixture, missing_bytes: int
):
    """Whether it left after its request or in the middle of it."""
    with caplog.at_level("INFO", logger="server.access"):
        raw_post(server, "/v1/chat/completions", LONG, missing_bytes=missing_bytes).close()
        wait_until(lambda: any("status=499" in r.getMessage() for r in caplog.records), timeout_s=5)
    wait_until(server.is_idle)


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_waiting_for_a_slot(tiny_checkpoint: Path, stream: bool):
    """No byte has been sent and none will be for long: only the connection itself can tell."""
    limits = {"max_sequences": 2, "served_model_name": "tiny"}
    with ServerInThread(model=str(tiny_checkpoint), **limits) as server:
        service = server.context.dispatcher.service
        running = raw_post(server, "/v1/chat/completions", LONG | {"n": 2})
        wait_until(lambda: service.num_live == 2)
        waiting = raw_post(server, "/v1/chat/completions", LONG | {"n": 1, "stream": stream})
        wait_until(lambda: service.num_live == 3)
        waiting.close()
        wait_until(lambda: cancelled(server, "chat") == 1, timeout_s=10)
        running.close()
        wait_until(server.is_idle)


def hold(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> tuple[threading.Event, threading.Semaphore]:
    """Let every call of a method wait for an event; a semaphore counts those that have begun."""
    gate, begun = threading.Event(), threading.Semaphore(0)
    method = getattr(owner, name)

    def held(*args: object, **kwargs: object) -> object:
        begun.release()
        gate.wait()
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, held)
    return gate, begun


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_the_request_is_prepared(
    server: ServerInThread, monkeypatch: pytest.MonkeyPatch, stream: bool
):
    """What has begun ends unused, and what still waits for a thread never begins."""
    wait_until(server.is_idle)
    offload = server.context.offload
    gate, begun = hold(monkeypatch, type(server.context.pipeline), "text_requests")
    body = LONG | {"stream": stream}
    before = cancelled(server, "chat")
    connections = [raw_post(server, "/v1/chat/completions", body) for _ in range(4)]
    num_threads = server.settings.media_threads
    for _ in range(num_threads):
        assert begun.acquire(timeout=30)
    wait_until(lambda: offload._num_pending == 4)
    for connection in connections:
        connection.close()
    wait_until(lambda: offload._num_pending == 0, timeout_s=10)
    gate.set()
    short = LONG | {"max_tokens": 1, "n": 1}
    assert httpx2.post(f"{server.url}/v1/chat/completions", json=short).status_code == 200
    assert begun.acquire(timeout=30)
    assert not begun.acquire(blocking=False), "a job of a client that left was begun"
    assert cancelled(server, "chat") == before, "the engine was asked for a client that left"


def test_leaving_while_images_are_decoded(
    server: ServerInThread, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, image_url: str
):
    """The places are free at once; the image at hand is decoded to its end, and no other."""
    wait_until(server.is_idle)
    decoding = server.context.decoding
    gate, begun = hold(monkeypatch, type(server.context.pipeline), "prepare_image")
    part = {"type": "image_url", "image_url": {"url": image_url}}
    asked = [{"role": "user", "content": [part, part]}]
    body = LONG | {"n": 1, "max_tokens": 1, "messages": asked}
    connections = [raw_post(server, "/v1/chat/completions", body) for _ in range(4)]
    for _ in range(server.settings.decode_workers):
        assert begun.acquire(timeout=30)
    wait_until(lambda: decoding._num_pending == 8)
    # Nobody who says something waits for them.
    short = LONG | {"max_tokens": 1, "n": 1}
    assert client.post("/v1/chat/completions", json=short).status_code == 200
    for connection in connections:
        connection.close()
    wait_until(lambda: decoding._num_pending == 0, timeout_s=10)
    gate.set()
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    for _ in range(2):
        assert begun.acquire(timeout=30)
    assert not begun.acquire(blocking=False), "an image of a client that left was begun"


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_the_picture_is_encoded(
    server: ServerInThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
):
    gate, begun = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> bytes:
        begun.set()
        gate.wait()
        return b""

    monkeypatch.setattr(PictureFormat, "file", slow)
    body = {"prompt": "a star", "stream": stream}
    with caplog.at_level("INFO", logger="server.access"):
        connection = raw_post(server, "/v1/images/generations", body)
        assert begun.wait(30)
        connection.close()
        wait_until(lambda: any("status=499" in r.getMessage() for r in caplog.records), timeout_s=5)
    gate.set()
    wait_until(server.is_idle)
