"""Row 11: clients that leave at each of eight stages of their request."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from tests.hardening.injection import ask_all, drawing, image_question, question
from tests.hardening.target import Target

AT_ONCE = 20
GONE_S = 5.0
"""From the last departure until nothing of them is left."""

SPARE_FDS = 4


def send(connection: socket.socket, request: tuple, *, share: float = 1.0) -> None:
    """The head of a request and a share of its body."""
    path, fields = request
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[: int(share * len(body))])


def read_until(connection: socket.socket, words: bytes) -> None:
    """All up to these words, or to the end."""
    seen = b""
    while words not in seen and (piece := connection.recv(65_536)):
        seen += piece


def at_headers(connection: socket.socket, seed: int) -> None:
    send(connection, question(seed), share=0.0)
    time.sleep(0.01)


def at_half_the_body(connection: socket.socket, seed: int) -> None:
    send(connection, image_question(seed), share=0.5)
    time.sleep(0.01)


def in_the_queue(connection: socket.socket, seed: int) -> None:
    """Four at once from every client are more than run."""
    send(connection, question(seed, n=4, max_tokens=800))
    time.sleep(0.1)


def in_prefill(connection: socket.socket, seed: int) -> None:
    """A long prompt, and a pause that ends before, within or after its computation."""
    words = f"{seed} " + "a large red circle to the left of a small blue square " * 12
    send(connection, question(seed, words=words))
    time.sleep(0.002 * (seed % 25))


def in_decode(connection: socket.socket, seed: int) -> None:
    send(connection, question(seed, stream=True, max_tokens=800))
    read_until(connection, b"data: ")


def at_some_code(connection: socket.socket, seed: int) -> None:
    """At the first sign of a picture: half drawn, or where that was left out under load, whole."""
    send(connection, drawing(seed, stream=True, n=2, partial_images=3))
    read_until(connection, b"event: ")


def in_vq_decoding(connection: socket.socket, seed: int) -> None:
    """The first picture is there: the others of the request are drawn or being decoded."""
    send(connection, drawing(seed, stream=True, n=4))
    read_until(connection, b"completed")


def in_the_response(connection: socket.socket, seed: int) -> None:
    """Of a large answer, a few bytes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    send(connection, drawing(seed, size="1024x1024", output_format="png"))
    connection.recv(1000)


STAGES: dict[str, Callable[[socket.socket, int], None]] = {
    "headers": at_headers,
    "body": at_half_the_body,
    "queued": in_the_queue,
    "prefill": in_prefill,
    "decode": in_decode,
    "code": at_some_code,
    "vq": in_vq_decoding,
    "response": in_the_response,
}
ENGINE_IS_ASKED = ("queued", "decode")
"""Where it is certain that the engine has something to cancel: this model's pictures are drawn
within milliseconds."""


def leave(target: Target, stage: Callable[[socket.socket, int], None], *, times: int) -> None:
    def client(seed: int) -> None:
        with suppress(ConnectionError), target.connect() as connection:
            stage(connection, seed)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(client, range(times)):
            pass


def cancelled(target: Target) -> float:
    return sum(v for name, v in target.metrics().items() if "requests_cancelled_total" in name)


def seconds_until_idle(target: Target) -> float:
    begun = time.monotonic()
    while busy := target._busy():
        assert time.monotonic() - begun < target.patience_s, f"still busy: {busy}"
        time.sleep(0.02)
    return time.monotonic() - begun


@pytest.fixture
def stayer(target: Target) -> Iterator[None]:
    """Somebody who stays gets what it would have got alone."""
    requests = [question(1, max_tokens=200), drawing(2), image_question(3, stream=True)]
    before = [seen.text for seen in ask_all(target, requests)]
    yield
    assert [seen.text for seen in ask_all(target, requests)] == before


def check_leaving(target: Target, name: str, *, times: int) -> None:
    # Threads and connections that exist anyway do by now.
    leave(target, STAGES[name], times=AT_ONCE)
    seconds_until_idle(target)
    process = psutil.Process(target.pid)
    num_fds, num_threads, before = process.num_fds(), process.num_threads(), cancelled(target)
    leave(target, STAGES[name], times=times)
    assert seconds_until_idle(target) < GONE_S
    begun = time.monotonic()
    target.answer()
    assert time.monotonic() - begun < GONE_S
    if name in ENGINE_IS_ASKED:
        assert cancelled(target) >= before + times // 2
    deadline = time.monotonic() + GONE_S
    while process.num_fds() > num_fds + SPARE_FDS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.num_fds() <= num_fds + SPARE_FDS
    assert process.num_threads() <= num_threads


@pytest.mark.usefixtures("stayer")
@pytest.mark.parametrize("name", STAGES)
def test_leaving_frees_everything(target: Target, name: str) -> None:
    check_leaving(target, name, times=AT_ONCE)


@pytest.mark.slow
@pytest.mark.usefixtures("stayer")
@pytest.mark.parametrize("name", STAGES)
def test_leaving_two_hundred_times_frees_everything(target: Target, name: str) -> None:
    check_leaving(target, name, times=200)
