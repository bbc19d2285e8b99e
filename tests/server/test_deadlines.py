"""The deadline holds from a request's first byte: while its body comes, an image is fetched or
decoded, and it waits for a thread."""

import asyncio
import concurrent.futures
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx2
import pytest

from server.admission import TIMEOUT_HEADER
from server.pictures import PictureFormat
from tests.serving import ServerInThread

CHAT, ENCODE = "/v1/chat/completions", "/v1/images/encode"
DEADLINE_S = 0.4
MARGIN_S = 1.5
HELD_S = 20.0
"""How long what must not be waited for takes at most."""
HURRY = {TIMEOUT_HEADER: str(DEADLINE_S)}


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    settings = {"media_urls": "http", "media_threads": 1, "decode_workers": 1}
    with ServerInThread(
        model=str(tiny_checkpoint), served_model_name="tiny", admin_key="sk-admin", **settings
    ) as running:
        yield running


class Gate:
    """What methods wait for before they begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._is_open = threading.Event()

    def close_before(self, owner: type, name: str) -> threading.Event:
        """Hold up a method; the event tells whether anybody called it."""
        original, was_called = getattr(owner, name), threading.Event()

        def held(*args: object, **kwargs: object) -> object:
            was_called.set()
            self._is_open.wait(HELD_S)
            return original(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, held)
        return was_called

    def open(self) -> None:
        """Let everybody through."""
        self._is_open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    closed = Gate(monkeypatch)
    yield closed
    closed.open()


def counted(client: httpx2.Client, name: str, label: str) -> float:
    line = re.compile(rf"^{name}{{[^}}]*{label}[^}}]*}} (.+)$", re.M)
    found = line.search(client.get("/metrics").text)
    return float(found[1]) if found else 0.0


def question(url: str | None = None) -> dict:
    parts = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "x"}]}]
    return {"messages": messages, "max_tokens": 1}


def check_missed(reply: httpx2.Response) -> None:
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "deadline_exceeded"
    assert 1 <= int(reply.headers["retry-after"]) <= 120
    assert reply.headers["x-should-retry"] == "true"
    assert reply.headers["x-request-id"]
    assert reply.elapsed.total_seconds() < DEADLINE_S + MARGIN_S


def test_a_slow_decode(server: ServerInThread, gate: Gate, image_url: str) -> None:
    was_called = gate.close_before(type(server.context.pipeline), "prepare_image")
    names = (
        ("janus:deadline_misses_total", 'stage="queued"'),
        ("janus:requests_rejected_total", 'reason="deadline_exceeded"'),
    )
    with server.client() as client:
        before = [counted(client, *each) for each in names]
        check_missed(client.post(CHAT, json=question(image_url), headers=HURRY))
        assert was_called.is_set()
        assert [counted(client, *each) for each in names] == [each + 1 for each in before]
    assert server.context.decoding._num_pending == 0


def test_a_turn_to_be_decoded(server: ServerInThread, gate: Gate, image_url: str) -> None:
    """The one process has another client's image, who is in no hurry. Text does not wait for it."""
    was_called = gate.close_before(type(server.context.pipeline), "prepare_image")
    with server.client() as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            patient = pool.submit(client.post, CHAT, json=question(image_url))
            assert was_called.wait(HELD_S)
            check_missed(client.post(CHAT, json=question(image_url), headers=HURRY))
            check_missed(client.post(ENCODE, json={"images": [image_url]}, headers=HURRY))
            assert client.post(CHAT, json=question()).status_code == 200
            assert not patient.done()
        finally:
            gate.open()
        assert patient.result().status_code == 200


def test_a_place_in_the_queue(server: ServerInThread, gate: Gate) -> None:
    """The one thread has another client's prompt, who is in no hurry."""
    was_called = gate.close_before(type(server.context.pipeline), "text_requests")
    with server.client() as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            patient = pool.submit(client.post, CHAT, json=question())
            assert was_called.wait(HELD_S)
            check_missed(client.post(CHAT, json=question(), headers=HURRY))
            check_missed(client.post("/v1/images/generations", json={"prompt": "x"}, headers=HURRY))
            form = {"files": {"image": b"x"}, "data": {"question": "x"}}
            check_missed(client.post("/v1/ask", **form, headers=HURRY))
            assert not patient.done()
        finally:
            gate.open()
        assert patient.result().status_code == 200


def test_a_slow_autoencoder(server: ServerInThread, gate: Gate, image_url: str) -> None:
    was_called = gate.close_before(type(server.context.pipeline), "encode_picture")
    with server.client() as client:
        check_missed(client.post(ENCODE, json={"images": [image_url]}, headers=HURRY))
    assert was_called.is_set()


def test_a_slow_host(server: ServerInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch_all(*_: object, **__: object) -> dict[str, bytes]:
        await asyncio.sleep(HELD_S)
        return {}

    monkeypatch.setattr(type(server.context.fetcher), "fetch_all", fetch_all)
    with server.client() as client:
        url = "http://example.com/a.png"
        check_missed(client.post(CHAT, json=question(url), headers=HURRY))


def test_a_slow_body(server: ServerInThread) -> None:
    """Long before it would be too slow for itself."""
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: 100\r\n{TIMEOUT_HEADER}: {DEADLINE_S}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), HELD_S) as connection:
        started = time.monotonic()
        connection.sendall(head.encode() + b'{"messages": ')
        reply = HTTPResponse(connection)
        reply.begin()
        assert time.monotonic() - started < DEADLINE_S + MARGIN_S
        assert (reply.status, reply.headers["connection"]) == (503, "close")
        assert b"deadline_exceeded" in reply.read()


def test_the_second_part_of_a_drawing(server: ServerInThread, gate: Gate, image_url: str) -> None:
    """A picture from an image without a prompt: described first, then encoded, then drawn."""
    was_called = gate.close_before(type(server.context.pipeline), "encode_picture")
    with server.client() as client:
        body = {"init_images": [image_url], "prompt": ""}
        misses = ("janus:deadline_misses_total", 'stage="running"')
        before, started = counted(client, *misses), time.monotonic()
        reply = client.post("/sdapi/v1/img2img", json=body, headers={TIMEOUT_HEADER: "3"})
        assert time.monotonic() - started < 3 + MARGIN_S
        assert was_called.is_set()
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "deadline_exceeded"
        assert reply.headers["x-should-retry"] == "false"
        assert counted(client, *misses) == before + 1


def test_what_is_drawn_is_sent(server: ServerInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file can be late: it would only be drawn again."""
    original, timeout_s = PictureFormat.file, 2.0

    def slow(self: PictureFormat, *args: object, **kwargs: object) -> bytes:
        time.sleep(timeout_s + 0.2)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PictureFormat, "file", slow)
    headers = {TIMEOUT_HEADER: str(timeout_s)}
    with server.client() as client:
        reply = client.post("/sdapi/v1/txt2img", json={"prompt": "x"}, headers=headers)
    assert reply.status_code == 200
    assert reply.elapsed.total_seconds() > timeout_s


def test_an_administrator_has_the_time_it_takes(server: ServerInThread) -> None:
    headers = {"authorization": "Bearer sk-admin", TIMEOUT_HEADER: "0.000001"}
    with server.client() as client:
        for path in ("/admin/sleep", "/admin/wake"):
            assert client.post(path, headers=headers).status_code == 200
        assert client.post(CHAT, json=question()).status_code == 200
