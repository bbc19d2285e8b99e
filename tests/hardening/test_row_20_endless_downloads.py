"""Row 20: an address whose picture is endless, slow, compressed or of another length than it says
costs at most the limit, and at most the deadline.

As CVE-2026-0599 (a link in a prompt, fetched without a limit) and CVE-2026-100650.
"""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.hardening.target import GOOD_IMAGE, MIB, Target, png_bytes

CHAT = "/v1/chat/completions"
LIMITS = {
    "media_urls": "http",
    "allowed_media_networks": "127.0.0.1/32",
    "max_image_bytes": MIB,
    "media_url_timeout_s": 1.5,
}
KERNEL_BYTES = 8 * MIB
"""What a host can write that nobody has read: the buffers of both ends."""

GOOD = png_bytes(GOOD_IMAGE)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n"
BOMB = gzip.compress(bytes(64 * MIB))


class Host:
    """A host of pictures that answers by `play`; counts what it has sent, and to how many."""

    def __init__(self, play: Callable[["Host", socket.socket], None]) -> None:
        self._play = play
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/cat.png"
        self.num_bytes = self.num_requests = 0
        self.heads: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)
        self.num_bytes += len(data)

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, suppress(OSError):
            self.heads.append(connection.recv(2**16))
            self.num_requests += 1
            self._play(self, connection)


def endless(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"\r\n")
    while True:
        host.send(to, b"x" * 2**16)


def endless_chunks(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"transfer-encoding: chunked\r\n\r\n")
    while True:
        host.send(to, b"10000\r\n" + b"x" * 2**16 + b"\r\n")


def tiny_chunks(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"transfer-encoding: chunked\r\n\r\n")
    while True:
        host.send(to, b"1\r\nx\r\n" * 1000)


def a_byte_a_moment(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"content-length: 100000\r\n\r\n")
    while True:
        host.send(to, b"x")
        time.sleep(0.2)


def slow_head(host: Host, to: socket.socket) -> None:
    while True:
        host.send(to, b"H")
        time.sleep(0.2)


def silent(_: Host, __: socket.socket) -> None:
    time.sleep(5)


def endless_head(host: Host, to: socket.socket) -> None:
    host.send(to, OK)
    while True:
        host.send(to, b"x: " + b"y" * 1000 + b"\r\n")


def many_headers(host: Host, to: socket.socket) -> None:
    headers = b"".join(b"x%d: y\r\n" % i for i in range(10_000))
    host.send(to, OK + headers + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD)


def gzip_bomb(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB) + BOMB)


def length_too_long(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"content-length: %d\r\n\r\n" % (len(GOOD) + 10) + GOOD)


def length_too_short(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"content-length: 10\r\n\r\n" + GOOD)


def length_huge(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"content-length: %d\r\n\r\n" % 10**15 + GOOD)


def reset(host: Host, to: socket.socket) -> None:
    host.send(to, OK + b"content-length: 10000\r\n\r\n" + GOOD[:50])
    to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def page(host: Host, to: socket.socket) -> None:
    host.send(to, b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>")


def failure(host: Host, to: socket.socket) -> None:
    host.send(to, b"HTTP/1.1 500 No\r\ncontent-type: image/png\r\n\r\n" + GOOD)


def no_http(host: Host, to: socket.socket) -> None:
    host.send(to, b"SSH-2.0-OpenSSH_9.2\r\n" * 1000)


def circle(host: Host, to: socket.socket) -> None:
    host.send(to, b"HTTP/1.1 302 Found\r\nlocation: %s\r\n\r\n" % host.url.encode())


PLAYS = (
    endless, endless_chunks, tiny_chunks, a_byte_a_moment, slow_head, silent, endless_head,
    many_headers, gzip_bomb, length_too_long, length_too_short, length_huge, reset, page, failure,
    no_http, circle,
)  # fmt: skip
CODES = {
    "failed_to_download_image", "image_file_too_large", "unsupported_image_media_type",
    "image_parse_error", "invalid_image_format", "invalid_image_url",
}  # fmt: skip


@pytest.fixture(scope="module")
def fetching(_make_target) -> Iterator[Target]:
    target = _make_target(**LIMITS)
    yield target
    target.stop()


def question(*urls: str) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    text = {"type": "text", "text": "x"}
    return {"messages": [{"role": "user", "content": [*parts, text]}], "max_tokens": 1}


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: play.__name__)
def test_a_bad_host_costs_its_limit(fetching: Target, play) -> None:
    host = Host(play)
    try:
        before = fetching.rss_bytes()
        started = time.monotonic()
        with fetching.client() as client:
            reply = client.post(CHAT, json=question(host.url))
        took_s = time.monotonic() - started
    finally:
        host.close()
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] in CODES
    assert took_s < LIMITS["media_url_timeout_s"] + 0.5
    assert host.num_bytes < LIMITS["max_image_bytes"] + KERNEL_BYTES
    assert host.num_requests <= 4
    assert fetching.rss_bytes() - before < 32 * MIB
    fetching.check_p0()


def test_a_good_host_is_asked_for_the_plain_picture(fetching: Target) -> None:
    def serve(host: Host, to: socket.socket) -> None:
        host.send(to, OK + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD)

    host = Host(serve)
    with fetching.client() as client:
        reply = client.post(CHAT, json=question(host.url))
    host.close()
    assert reply.status_code == 200, reply.text
    head = host.heads[0].lower()
    assert b"accept-encoding: identity" in head
    assert b"cookie" not in head
    assert b"authorization" not in head


def test_too_many_images_are_refused_before_the_first_is_fetched(fetching: Target) -> None:
    host = Host(endless)
    with fetching.client() as client:
        reply = client.post(CHAT, json=question(*[f"{host.url}?{i}" for i in range(17)]))
    host.close()
    assert reply.status_code == 400
    assert host.num_requests == 0


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("says_length", [True, False])
def test_the_limit_is_exact(fetching: Target, excess: int, says_length: bool) -> None:
    file = GOOD + bytes(LIMITS["max_image_bytes"] + excess - len(GOOD))

    def serve(host: Host, to: socket.socket) -> None:
        length = b"content-length: %d\r\n" % len(file) if says_length else b""
        host.send(to, OK + length + b"\r\n" + file)

    host = Host(serve)
    with fetching.client() as client:
        reply = client.post(CHAT, json=question(host.url))
    host.close()
    assert reply.status_code == (400 if excess > 0 else 200), reply.text
