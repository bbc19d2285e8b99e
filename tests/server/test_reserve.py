"""How many connections there may be, and what becomes of those beyond: probes are answered."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.access import PROBES
from server.listener import NUM_SPARE
from server.reserve import NUM_KEPT
from tests.server.test_connections import answered, ask, connected, ends, head, refused
from tests.serving import ServerInThread, repeating, wait_until

MOST = 5


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(model=str(tiny_checkpoint)) as running:
        running._listener.max_connections = MOST
        yield running


@pytest.fixture
def kept(server: ServerInThread) -> Iterator[list[socket.socket]]:
    """As many connections as there may be, which say nothing."""
    listener = server._listener
    wait_until(lambda: listener.num_open == 0)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connected(server)) for _ in range(MOST)]
    wait_until(lambda: listener.num_open == 0)
    assert not listener.spare


def num_regular(server: ServerInThread) -> int:
    return server._listener.num_open - len(server._listener.spare)


def test_connections_beyond_the_limit_are_answered(
    server: ServerInThread, kept: list[socket.socket]
):
    with connected(server) as connection:
        connection.sendall(head(path=b"/version"))
        status, headers, body = answered(connection)
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (503, "too_many_connections")
        assert error.keys() == {"message", "type", "param", "code"}
        assert (headers["retry-after"], headers["connection"]) == ("1", "close")
        assert ends(connection)
    kept[0].sendall(head(path=b"/version"))
    assert answered(kept[0])[0] == 200
    kept[1].close()
    wait_until(lambda: server._listener.num_open == MOST - 1)
    assert ask(server, head(path=b"/version"))[0] == 200
    kept[2].close()
    wait_until(lambda: server._listener.num_open <= MOST - 2)
    assert refused(server, "too_many_connections")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("path", sorted(PROBES))
def test_probes_are_answered_by_a_full_server(server: ServerInThread, path: str):
    with connected(server) as connection:
        connection.sendall(head(path=path.encode()))
        status, headers, body = answered(connection)
        assert (status, json.loads(body)) == (200, {"status": "ok"})
        assert headers["connection"] == "close"
        assert headers["x-request-id"]
        assert ends(connection)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "path", [b"/livez/", b"//livez", b"/LIVEZ", b"/version?/livez", b"/livez/../version", b"/"]
)
def test_nothing_else_is(server: ServerInThread, path: bytes):
    assert ask(server, head(path=path)) == (503, "too_many_connections")


@pytest.mark.usefixtures("kept")
def test_there_is_one_answer_and_no_body_is_read(server: ServerInThread):
    with connected(server) as connection:
        connection.sendall(head() + head() + head(path=b"/version"))
        assert answered(connection)[0] == 200
        assert ends(connection)
    fields = [b"content-length: %d" % 2**30, b"content-type: application/json"]
    with connected(server) as connection:
        connection.sendall(head(*fields, path=b"/v1/chat/completions", method=b"POST"))
        connection.sendall(b"x" * 100_000)
        assert answered(connection)[0] == 503
    assert server.is_idle()


def test_the_reserve_keeps_nobody_from_a_free_place(
    server: ServerInThread, kept: list[socket.socket]
):
    with contextlib.ExitStack() as stack:
        for _ in range(NUM_KEPT):
            stack.enter_context(connected(server))
        wait_until(lambda: len(server._listener.spare) == NUM_KEPT)
        kept.pop().close()
        wait_until(lambda: num_regular(server) == MOST - 1)
        assert ask(server, head(path=b"/version"))[0] == 200


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "said",
    [b"", b"GET /livez HTTP/1.1\r\nx: " + b"y" * 30_000, head(b"content-length: 9", path=b"/x")],
    ids=["silence", "half a head", "a body to come"],
)
def test_the_oldest_give_way(server: ServerInThread, said: bytes):
    """A probe gets through while others come, stay and say little; and there are never more."""
    listener, opened, most = server._listener, [], 0

    def crowd() -> None:
        with contextlib.suppress(OSError):
            opened.append(socket.create_connection(listener.getsockname(), timeout=20))
            opened[-1].sendall(said)

    try:
        for _ in range(NUM_SPARE):
            crowd()
        wait_until(lambda: len(listener.spare) == NUM_KEPT)
        with repeating(crowd, every_s=0.005):
            for _ in range(50):
                assert ask(server, head()) == (200, None)
                assert ask(server, head(path=b"/readyz")) == (200, None)
                most = max(most, len(listener.spare))
        assert NUM_KEPT <= most <= NUM_SPARE
        assert listener.num_open <= MOST + NUM_SPARE
        if said != head(b"content-length: 9", path=b"/x"):
            assert opened[0].recv(2**16).startswith(b"HTTP/1.1 503 ")
        assert ends(opened[0])
    finally:
        for connection in opened:
            connection.close()
