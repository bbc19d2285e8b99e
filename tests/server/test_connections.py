"""Connections within their limits: heads, bodies, readers."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx2
import pytest

from server.h11_protocol import LINGER_S
from server.listener import Listener, allow_connections, bind
from tests.serving import ServerInThread, repeating, wait_until

CHAT = b"/v1/chat/completions"
LIMITS = {
    "max_header_bytes": 4096,
    "max_headers": 20,
    "header_timeout_s": 0.5,
    "body_timeout_s": 0.5,
    "write_timeout_s": 0.5,
    "min_bytes_per_s": 10_000,
    "max_chunks": 100,
    "max_body_bytes": 2**20,
    "max_held_bytes": 2**20 + 100_000,
    "max_json_depth": 8,
    "max_json_values": 1000,
    "max_form_parts": 8,
    "keep_alive_s": 1,
}


@pytest.fixture(scope="module")
def strict(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(model=str(tiny_checkpoint), served_model_name="tiny", **LIMITS) as running:
        yield running


@contextlib.contextmanager
def connected(server: ServerInThread, *, receive_buffer: int | None = None):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(20)
        connection.connect((host, int(port)))
        yield connection


def answered(connection: socket.socket) -> tuple[int, dict, bytes]:
    reply = HTTPResponse(connection)
    reply.begin()
    return reply.status, dict(reply.headers), reply.read()


def ask(server: ServerInThread, request: bytes) -> tuple[int, str | None]:
    """The status, and the code of the error if it is one."""
    with connected(server) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
        status, headers, body = answered(connection)
        if status < 400:
            return status, None
        assert headers["content-type"] == "application/json"
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return status, error["code"]


def head(*fields: bytes, path: bytes = b"/livez", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"host: x", *fields, b"", b""])


def ends(connection: socket.socket) -> bool:
    """Whether the server has closed."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(2**16):
            pass
    return True


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("path", [b"/livez", b"/no/such/path"])
def test_the_limit_of_a_head_is_exact(strict: ServerInThread, path: bytes, excess: int):
    empty = head(b"x: ", path=path)
    # The empty line at the end is not counted.
    padding = LIMITS["max_header_bytes"] + excess - (len(empty) - 2)
    status, code = ask(strict, head(b"x: " + b"y" * padding, path=path))
    assert (status == 431) == (excess > 0)
    assert (code == "header_too_large") == (excess > 0)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_limit_of_header_fields_is_exact(strict: ServerInThread, excess: int):
    fields = [b"x%d: y" % i for i in range(LIMITS["max_headers"] + excess - 1)]  # and host
    assert ask(strict, head(*fields))[0] == (431 if excess > 0 else 200)


def test_a_head_without_end_is_refused_while_it_comes(strict: ServerInThread):
    assert ask(strict, b"GET /livez HTTP/1.1\r\nx: " + b"y" * 2**22) == (431, "header_too_large")


@pytest.mark.parametrize(
    "fields",
    [
        [b"content-length: 2", b"transfer-encoding: chunked"],
        [b"transfer-encoding: chunked", b"content-length: 2"],
        [b"content-length: 2", b"content-length: 3"],
        [b"transfer-encoding: chunked, identity"],
        [b"transfer-encoding: chunked", b"transfer-encoding: chunked"],
        [b"content-length: -1"],
        [b"content-length: +2"],
        [b"content-length: 2, 3"],
        [b"content-length : 2"],
    ],
)
def test_a_body_of_doubtful_length_isrefused(strict: ServerInThread, fields: list[bytes]):
    """What two parties read differently is a way to hide a request in another's body."""
    with connected(strict) as connection:
        hidden = head(path=b"/version")
        request = head(*fields, path=CHAT, method=b"POST") + b"0\r\n\r\n" + hidden
        connection.sendall(request)
        status, headers, _ = answered(connection)
        assert (status, headers["connection"]) == (400, "close")
        assert ends(connection)


@pytest.mark.parametrize("fold", [b"\r\n ", b"\r\n\t", b"\n ", b"\r\n \r\n\t"])
def test_a_field_over_several_lines_isrefused(strict: ServerInThread, fold: bytes):
    """RFC 9112, 5.2. Whatever is read line by line takes its rest for something else."""
    folded = head(b"x: a" + fold + b"b")
    assert ask(strict, folded) == (400, "invalid_http")
    with connected(strict) as connection:
        for byte in folded:
            connection.sendall(bytes([byte]))
        assert answered(connection)[0] == 400
    # Behind a head, lines may begin with what they like.
    body = b"{}" + fold
    fields = [b"content-type: application/json", b"content-length: %d" % len(body)]
    assert ask(strict, head(*fields, path=CHAT, method=b"POST") + body)[1] != "invalid_http"


def test_no_length_by_chunks_before_http_1_1(strict: ServerInThread):
    request = head(b"transfer-encoding: chunked", path=CHAT, method=b"POST")
    assert ask(strict, request.replace(b"HTTP/1.1", b"HTTP/1.0"))[0] == 400


def test_silence_is_closed_and_a_slow_head_is_408(strict: ServerInThread):
    with connected(strict) as silent, connected(strict) as slow, connected(strict) as later:
        started = time.monotonic()
        slow.sendall(b"GET /livez HTTP/1.1\r\n")
        later.sendall(head())
        assert answered(later)[0] == 200
        later.sendall(b"GET /livez")  # a second request, which does not go on

        def trickle() -> None:
            with contextlib.suppress(OSError):
                slow.send(b"x")

        with repeating(trickle, every_s=0.05):
            status, _, body = answered(slow)
            assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
            assert silent.recv(1) == b""
            assert answered(later)[0] == 408
            assert time.monotonic() - started < 3
    for reason in ("silent", "request_timeout"):
        assert refused(strict, reason)


def test_a_slow_body_is_408_and_a_steady_one_is_waited_for(strict: ServerInThread):
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
    body += b" " * 20_000

    def post(piece: int, pause_s: float, path: bytes) -> int:
        fields = [b"content-type: application/json", b"content-length: %d" % len(body)]
        with connected(strict) as connection:
            connection.sendall(head(*fields, path=path, method=b"POST"))
            for first in range(0, len(body), piece):
                time.sleep(pause_s)
                try:
                    connection.sendall(body[first : first + piece])
                except OSError:
                    break
            return answered(connection)[0]

    # 20,000 bytes at 20,000 a second take longer than the timeout alone.
    assert post(2000, 0.1, CHAT) == 200
    assert post(1, 0.1, CHAT) == 408
    assert post(1, 0.1, b"/no/such/path") == 404


def test_a_body_nobody_reads_does_not_keep_the_connection(strict: ServerInThread):
    fields = [b"content-length: %d" % 2**30]
    with connected(strict) as connection:
        connection.sendall(head(*fields, path=b"/no/such/path", method=b"POST") + b"x" * 1000)
        status, headers, _ = answered(connection)
        assert (status, headers["connection"]) == (404, "close")
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < started + 20:
                connection.sendall(b"x" * 2**16)
                time.sleep(0.05)
        assert time.monotonic() < started + LINGER_S + 3


def test_a_large_upload_gets_its_413(strict: ServerInThread):
    """The client sends the whole of it before it reads."""
    with connected(strict) as connection:
        fields = [b"content-type: application/json", b"content-length: %d" % 2**24]
        connection.sendall(head(*fields, path=CHAT, method=b"POST"))
        connection.sendall(b"x" * 2**24)
        assert answered(connection)[0] == 413


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_limit_of_chunks_is_exact(strict: ServerInThread, excess: int):
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
    body += b" " * (LIMITS["max_chunks"] + excess - len(body))
    fields = [b"content-type: application/json", b"transfer-encoding: chunked"]
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    found = ask(strict, head(*fields, path=CHAT, method=b"POST") + chunks)
    assert found == ((413, "request_too_large") if excess > 0 else (200, None))


def test_many_chunks_come_whole(tiny_checkpoint: Path):
    """Over several turns of the event loop, with another request behind."""
    messages = [{"role": "user", "content": "x"}]
    body = json.dumps({"messages": messages, "max_tokens": 1, "user": "y" * 5000}).encode()
    fields = [b"content-type: application/json", b"transfer-encoding: chunked"]
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with ServerInThread(model=str(tiny_checkpoint)) as server, connected(server) as connection:
        connection.sendall(head(*fields, path=CHAT, method=b"POST") + chunks + head())
        assert answered(connection)[0] == 200
        assert answered(connection)[0] == 200


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_limits_of_json_are_exact(strict: ServerInThread, excess: int):
    rest = '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "user": %s}'

    def post(extra: str) -> tuple[int, str | None]:
        headers = {"content-type": "application/json"}
        with strict.client() as client:
            reply = client.post(CHAT.decode(), content=rest % extra, headers=headers)
        return reply.status_code, reply.json().get("error", {}).get("code")

    wanted = (400, "invalid_body") if excess > 0 else (200, None)
    depth = LIMITS["max_json_depth"] + excess - 1  # within the body
    assert post("[" * depth + "]" * depth) == wanted
    assert post('{"a":' * depth + "1" + "}" * depth) == wanted
    num_values = LIMITS["max_json_values"] + excess - sum(map(rest.count, ",[{"))
    assert post("[1" + ",1" * (num_values - 1) + "]") == wanted


@pytest.mark.parametrize(
    "body",
    [
        b'{"n": 1, "n": 2}',
        b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
    ids=["key twice", "inner key twice", "BOM", "UTF-16", "UTF-32", "5000 digits"],
)
def test_json_that_can_be_read_in_two_ways(strict: ServerInThread, body: bytes):
    fields = [b"content-type: application/json", b"content-length: %d" % len(body)]
    assert ask(strict, head(*fields, path=CHAT, method=b"POST") + body)[0] == 400


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_limit_of_form_parts_is_exact(strict: ServerInThread, excess: int):
    files = [("image", ("x.png", b"none"))] * (LIMITS["max_form_parts"] + excess - 1)
    with strict.client() as client:
        reply = client.post("/v1/ask", data={"question": "x"}, files=files)
    assert reply.status_code == 400
    assert (reply.json()["error"]["code"] == "invalid_body") == (excess > 0)


def test_a_client_that_does_not_read_is_dropped(strict: ServerInThread):
    """A stream that nobody reads fills the buffers of both kernels, then ours."""
    body = json.dumps(
        {"messages": [{"role": "user", "content": "x"}], "stream": True, "n": 8,
         "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    ).encode()  # fmt: skip
    fields = [b"content-type: application/json", b"content-length: %d" % len(body)]
    with connected(strict, receive_buffer=4096) as connection:
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(head(*fields, path=CHAT, method=b"POST") + body)
                time.sleep(0.1)
        wait_until(lambda: refused(strict, "slow_reader"), 20)
    wait_until(strict.is_idle)


def test_a_client_that_reads_slowly_but_steadily_is_not(strict: ServerInThread):
    before = refused(strict, "slow_reader")
    with connected(strict, receive_buffer=4096) as connection:
        connection.sendall(head(b"connection: close", path=b"/openapi.json") * 1)
        found = b""
        while piece := connection.recv(2000):
            found += piece
            time.sleep(0.04)
    assert found.endswith(b"}")
    assert refused(strict, "slow_reader") == before


def test_the_bodies_of_all_requests_together_are_bounded(strict: ServerInThread):
    half = b"x" * 600_000
    fields = [b"content-type: application/json", b"content-length: %d" % (len(half) + 1)]
    request = head(*fields, path=CHAT, method=b"POST") + half
    with connected(strict) as first:
        first.sendall(request)
        time.sleep(0.2)
        status, code = ask(strict, request)
        assert (status, code) == (503, "server_is_overloaded")
        first.sendall(b"}")
        assert answered(first)[0] == 400
    assert ask(strict, request + b"}")[0] == 400


def test_without_a_descriptor_left_a_connection_is_answered(monkeypatch: pytest.MonkeyPatch):
    """As accept fails with EMFILE: the spare descriptor is what answers."""
    with bind("127.0.0.1", port=0) as listener:
        listener.listen()
        listener.settimeout(5)
        real, failures = Listener._accept, iter([OSError(24, "too many open files")])

        def accept(self: Listener) -> object:
            for failure in failures:
                raise failure
            return real(self)

        monkeypatch.setattr(Listener, "_accept", accept, raising=False)
        with socket.create_connection(listener.getsockname()) as client:
            with pytest.raises(BlockingIOError):
                listener.accept()
            assert client.recv(2**16).startswith(b"HTTP/1.1 503 ")
            assert listener.num_open == 0
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            assert listener.num_open == 1
            connection.close()
            connection.close()
            assert listener.num_open == 0


def test_no_more_connections_than_files(monkeypatch: pytest.MonkeyPatch):
    import resource

    limits = {}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.update(now=new))
    monkeypatch.setattr("server.listener._num_open_files", lambda: 20)
    for soft, hard, expected in ((1024, 4096, 1000), (128, 128, 12), (64, 4096, 1000), (10, 10, 1)):
        limits["now"] = (soft, hard)
        assert allow_connections(1000) == expected
        limits["now"] = (soft, hard)
        assert allow_connections(1000, beside=10) == (2 if expected == 12 else expected)


def refused(server: ServerInThread, reason: str) -> float:
    with httpx2.Client(base_url=server.url) as client:
        lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if f'refused_total{{model_name="{server.context.model_name}",'
             f'reason="{reason}"}}' in line]  # fmt: skip
    return float(found[0].split()[-1]) if found else 0.0


def test_an_answer_does_not_wait_for_an_acknowledgement(strict: ServerInThread):
    """Where the kernel gathers small writes, the body of every answer on a connection that is kept
    comes 40 ms after its head, when the client acknowledges that."""
    took = []
    with httpx2.Client(base_url=strict.url, trust_env=False) as client:
        for _ in range(20):
            started = time.perf_counter()
            assert client.get("/livez").status_code == 200
            took.append(time.perf_counter() - started)
    assert sorted(took)[len(took) // 4] < 0.03
