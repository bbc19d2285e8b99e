"""Who is refused before there is a request gets an id as well, which the log has, too."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from server.listener import NUM_SPARE, TOO_MANY_CODE, bind
from tests.server.test_connections import connected, head
from tests.serving import ServerInThread, wait_until

CHAT = b"/v1/chat/completions"
LIMITS = {
    "max_header_bytes": 4096,
    "header_timeout_s": 0.5,
    "max_chunks": 10,
}
CHUNKED = [b"content-type: application/json", b"transfer-encoding: chunked"]
CHUNKS = b"1\r\n \r\n" * 20


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(model=str(tiny_checkpoint), **LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def refusal(connection: socket.socket) -> tuple[int, str, dict[str, str]]:
    """Status, code and headers."""
    reply = HTTPResponse(connection)
    reply.begin()
    code = json.loads(reply.read())["error"]["code"]
    return reply.status, code, {name.lower(): value for name, value in reply.headers.items()}


def lines(caplog: pytest.LogCaptureFixture, request_id: str) -> list[dict]:
    """The fields of the lines with this id; written after the answer is out."""

    def found() -> list[dict]:
        records = [each for each in caplog.records if each.name == "server.access"]
        return [each.fields for each in records if each.fields["request_id"] == request_id]

    wait_until(found)
    return found()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "invalid_http"),
        (head(b"x: " + b"y" * 5000), 431, "header_too_large"),
        (b"GET /livez HTTP/1.1\r\nx: y", 408, "request_timeout"),
        (head(*CHUNKED, path=CHAT, method=b"POST") + CHUNKS, 413, "request_too_large"),
    ],
    ids=["400", "431", "408", "413"],
)
def test_what_is_no_request_has_an_id_and_a_line(
    server: ServerInThread,
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
    status: int,
    code: str,
) -> None:
    ids = set()
    for _ in range(2):
        with connected(server) as connection:
            connection.sendall(sent)
            *found, headers = refusal(connection)
        assert found == [status, code]
        request_id = headers["x-request-id"]
        (line,) = lines(caplog, request_id)
        assert (line["status"], line["reason"]) == (status, code)
        ids.add(request_id)
    assert len(ids) == 2


def test_a_request_cut_off_keeps_its_id(
    server: ServerInThread, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(server) as connection:
        fields = [*CHUNKED, b"x-request-id: its-own"]
        connection.sendall(head(*fields, path=CHAT, method=b"POST"))
        time.sleep(0.3)  # until it waits for its body
        connection.sendall(CHUNKS)
        status, _, headers = refusal(connection)
    assert (status, headers["x-request-id"]) == (413, "its-own")
    wait_until(lambda: len(lines(caplog, "its-own")) == 2)
    assert {line["status"] for line in lines(caplog, "its-own")} == {413, 499}


def test_what_comes_behind_a_request_is_not_that_request(server: ServerInThread) -> None:
    with connected(server) as connection:
        connection.sendall(head(b"x-request-id: its-own"))
        reply = HTTPResponse(connection)
        reply.begin()
        assert reply.read()
        assert reply.headers["x-request-id"] == "its-own"
        connection.sendall(b"nonsense\r\n\r\n")
        status, _, headers = refusal(connection)
    assert status == 400
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("given", [b"its-own", b"two words"])
def test_a_request_of_a_connection_too_many(
    server: ServerInThread,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    given: bytes,
) -> None:
    monkeypatch.setattr(server._listener, "max_connections", 0)
    with connected(server) as connection:
        connection.sendall(head(b"x-request-id: " + given, path=b"/version"))
        status, code, headers = refusal(connection)
    assert (status, code) == (503, TOO_MANY_CODE)
    assert (headers["retry-after"], headers["x-should-retry"]) == ("1", "true")
    assert (headers["x-request-id"] == "its-own") == (given == b"its-own")
    (line,) = lines(caplog, headers["x-request-id"])
    assert (line["status"], line["reason"]) == (503, TOO_MANY_CODE)


def test_a_connection_without_a_place(caplog: pytest.LogCaptureFixture) -> None:
    with bind("127.0.0.1", port=0) as listener:
        listener.listen()
        listener.max_connections = 0
        listener.num_open, listener.spare = NUM_SPARE, set(range(10**6, 10**6 + NUM_SPARE))
        with socket.create_connection(listener.getsockname(), timeout=20) as connection:
            with pytest.raises(BlockingIOError):
                listener.accept()
            status, code, headers = refusal(connection)
    assert (status, code) == (503, TOO_MANY_CODE)
    assert (headers["retry-after"], headers["x-should-retry"]) == ("1", "true")
    assert headers["connection"] == "close"
    (line,) = lines(caplog, headers["x-request-id"])
    assert (line["status"], line["reason"]) == (503, TOO_MANY_CODE)
