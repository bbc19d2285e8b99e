"""Row 7: clients that are slow or silent are closed by a deadline, and cost others nothing.

uvicorn has no deadline for receiving (its issue 157, open since 2018): a byte a second holds a
connection for ever.
"""

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.hardening.target import MIB, Target
from tests.serving import repeating

NUM_CLIENTS = 500
DEADLINE_S = 2.0
MARGIN_S = 3.0
NUM_PLACES = 20
LIMITS = {"header_timeout_s": DEADLINE_S, "body_timeout_s": DEADLINE_S,
          "write_timeout_s": DEADLINE_S, "min_bytes_per_s": 1024}  # fmt: skip

BODY = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
PATHS = (b"/v1/chat/completions", b"/v1/ask", b"/no/such/path", b"/livez")


def post_head(path: bytes, *, length: int = 1000) -> bytes:
    return (
        b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % (path, length)
    )


KINDS: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    # What is sent at first, and then byte by byte.
    "silence": lambda _: (b"", b""),
    "half a head": lambda i: (b"GET %s HTTP/1.1\r\nhost: x\r\n" % PATHS[i % 4], b""),
    "head": lambda i: (b"GET %s HTTP/1.1\r\nx: " % PATHS[i % 4], b"x"),
    "no body": lambda i: (post_head(PATHS[i % 4]), b""),
    "body": lambda i: (post_head(PATHS[i % 4]), b" "),
    # At the least rate it would have a minute.
    "a burst, then silence": lambda i: (
        post_head(PATHS[i % 4], length=MIB) + b" " * (60 * LIMITS["min_bytes_per_s"]),
        b"",
    ),
    "a burst, then a trickle": lambda i: (
        post_head(PATHS[i % 4], length=MIB) + b" " * (60 * LIMITS["min_bytes_per_s"]),
        b" ",
    ),
    "chunks": lambda i: (
        b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n" % PATHS[i % 4],
        b"1\r\n \r\n",
    ),
}


@contextmanager
def attack(target: Target, kind: str, num_clients: int) -> Iterator[list]:
    """That many clients, which trickle until they are closed; the connections, for their ends."""
    first, drops = zip(*map(KINDS[kind], range(num_clients)), strict=True)
    connections = [target.connect() for _ in range(num_clients)]

    def trickle() -> None:
        for connection, drop in zip(connections, drops, strict=True):
            with suppress(OSError):
                connection.send(drop)

    for connection, data in zip(connections, first, strict=True):
        connection.sendall(data)
    try:
        with repeating(trickle, every_s=0.5):
            yield connections
    finally:
        for connection in connections:
            connection.close()


def quiet_s(target: Target, num_tries: int = 9) -> float:
    """How long a good question takes, in the middle of some."""
    took = []
    for _ in range(num_tries):
        started = time.perf_counter()
        target.answer()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


@pytest.fixture(scope="module")
def strict(_make_target) -> Iterator[Target]:
    target = _make_target(**LIMITS)
    yield target
    target.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_slow_senders_are_closed_and_others_served(strict: Target, kind: str) -> None:
    before_s = quiet_s(strict)
    started = time.monotonic()
    with attack(strict, kind, NUM_CLIENTS) as connections:
        during_s = quiet_s(strict)
        deadline = started + DEADLINE_S + MARGIN_S
        ends = []
        for connection in connections:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            received = b""
            try:
                while piece := connection.recv(4096):
                    received += piece
            except TimeoutError:
                ends.append("open")
                continue
            except OSError:
                pass
            ends.append(received[9:12].decode())
    # 4xx of routes that need no body; closed without a word where nothing was said.
    allowed = {"silence": {""}, "half a head": {"408", ""}, "head": {"408", ""}}
    body_ends = {"408", "404", "405", "415", ""}
    assert set(ends) <= allowed.get(kind, body_ends), {e: ends.count(e) for e in set(ends)}
    assert ends.count("") < NUM_CLIENTS or kind == "silence"
    assert during_s < 2 * before_s + 0.05
    strict.check_p0()


def test_clients_that_do_not_read_are_dropped(strict: Target) -> None:
    """Each asks for more than buffers hold, and reads none of it, or a byte a second."""
    request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 200
    before_s = quiet_s(strict)
    num_before = strict.processes()[0].num_fds()
    connections = []
    for _ in range(50):
        connections.append(strict.connect())
        connections[-1].sendall(request)
    during_s = quiet_s(strict)
    deadline = time.monotonic() + 5 * DEADLINE_S + MARGIN_S
    while time.monotonic() < deadline and strict.processes()[0].num_fds() > num_before + 5:
        time.sleep(0.5)
        for connection in connections[::2]:
            with suppress(OSError):
                connection.recv(1)
    still_open = strict.processes()[0].num_fds() - num_before
    for connection in connections:
        connection.close()
    assert still_open <= 5
    assert during_s < 2 * before_s + 0.2
    strict.check_p0()


def test_probes_get_through_a_full_server(start_target: Callable[..., Target]) -> None:
    """Every place is taken by who says nothing, and more come and stay and never end their heads:
    a server that is full is not one to be killed."""
    target, crowd = start_target(max_connections=NUM_PLACES), []

    def status(path: bytes) -> bytes:
        head = b"GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path
        return target.exchange(head)[9:12]

    def come() -> None:
        crowd.append(target.connect())
        with suppress(OSError):
            crowd[-1].sendall(b"GET /livez HTTP/1.1\r\nx: " + b"x" * 30_000)

    before, fds_before = target.rss_bytes(), target.processes()[0].num_fds()
    try:
        crowd += [target.connect() for _ in range(NUM_PLACES)]
        while status(b"/version") != b"503":
            time.sleep(0.01)
        with repeating(come, every_s=0.01):
            probes = {status(path) for path in (b"/livez", b"/readyz", b"/health") * 50}
            fds = target.processes()[0].num_fds() - fds_before
        assert probes == {b"200"}
        assert status(b"/version") == b"503"
        assert fds <= NUM_PLACES + 64
        assert target.rss_bytes() - before < 32 * MIB
    finally:
        for connection in crowd:
            connection.close()
    while status(b"/version") != b"200":
        time.sleep(0.01)


def test_a_slow_good_client_is_waited_for(strict: Target) -> None:
    """Steady, if slow: faster than the least rate, longer than the deadline."""
    body = BODY + b" " * 10_000
    with strict.connect() as connection:
        connection.sendall(post_head(PATHS[0], length=len(body)))
        for first in range(0, len(body), 500):
            connection.sendall(body[first : first + 500])
            time.sleep(0.15)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


BY_DEFAULT = {"silence": (b"", 10), "head": (b"HTTP/1.1 408", 10), "body": (b"HTTP/1.1 408", 30)}
"""What a client that sends no more gets, and after how many seconds."""


class Watch:
    """Waits in threads for the ends of connections while other tests run."""

    def __init__(self, target: Target, sent: dict[str, bytes]) -> None:
        self._connections = [target.connect(60) for _ in sent]
        self._started = time.monotonic()
        self._ends: dict[str, tuple[bytes, float]] = {}
        self._threads = []
        for (kind, data), connection in zip(sent.items(), self._connections, strict=True):
            connection.sendall(data)
            self._threads.append(threading.Thread(target=self._wait, args=(kind, connection)))
            self._threads[-1].start()

    def ends(self, within_s: float) -> dict[str, tuple[bytes, float]]:
        """What came, and when, of all that have ended `within_s` from the beginning."""
        for thread in self._threads:
            thread.join(max(0.0, self._started + within_s - time.monotonic()))
        return dict(self._ends)

    def close(self) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()

    def _wait(self, kind: str, connection: socket.socket) -> None:
        received = b""
        with suppress(OSError):
            received = connection.recv(4096)
        self._ends[kind] = (received, time.monotonic() - self._started)


@pytest.fixture(scope="module", autouse=True)
def watch(_running: Target) -> Iterator[Watch]:
    """Begins before the first test, because the longest deadline is half a minute."""
    sent = {"silence": b"", "head": b"GET /livez HTTP/1.1\r\n", "body": post_head(PATHS[0])}
    watching = Watch(_running, sent)
    yield watching
    watching.close()


@pytest.mark.usefixtures("target")
def test_the_deadlines_there_are_by_default(watch: Watch) -> None:
    """Silence, a head and a body without end are closed within what the table of limits says."""
    ends = watch.ends(within_s=36)
    assert ends.keys() == BY_DEFAULT.keys()
    for kind, (answer, deadline_s) in BY_DEFAULT.items():
        received, took_s = ends[kind]
        assert received.startswith(answer), kind
        assert bool(received) == bool(answer), kind
        assert deadline_s - 1 < took_s < deadline_s + 5, kind
