"""Row 14: giant or endless heads, chunks, parts and nesting are refused, and cost next to nothing.

One huge header ended servers, unauthenticated (CVE-2025-48956); a million chunks made others
grow (Triton's own test, whose figure this one has).
"""

import time
from contextlib import suppress

import psutil
import pytest

from tests.hardening.target import MIB, Target

CHAT = "/v1/chat/completions"
PATHS = (b"/livez", b"/no/such/path", b"/v1/chat/completions")
RSS_GROWTH_BYTES = 16 * MIB


def status_of(received: bytes) -> int:
    """0 is a connection that was closed without an answer."""
    return int(received.split(None, 2)[1]) if received.startswith(b"HTTP/1.1 ") else 0


def send(target: Target, data: bytes, *, times: int = 1) -> int:
    """Send `data` over and over, and return the status of what comes back."""
    received = b""
    with target.connect() as connection:
        with suppress(OSError):
            for _ in range(times):
                connection.sendall(data)
        with suppress(OSError):
            while piece := connection.recv(2**16):
                received += piece
                if b"\r\n\r\n" in received:
                    break
    return status_of(received)


def cpu_s(target: Target) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in target.processes())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["one of 8 MB", "50,000", "101", "33 kB", "a target of 8 MB"])
def test_a_giant_head_is_431(target: Target, path: bytes, kind: str) -> None:
    start = b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n"
    heads = {
        "one of 8 MB": start + b"x: " + b"y" * 8 * MIB,
        "50,000": start + b"".join(b"x%d: y\r\n" % i for i in range(50_000)) + b"\r\n",
        "101": start + b"".join(b"x%d: y\r\n" % i for i in range(100)) + b"\r\n",
        "33 kB": start + b"x: " + b"y" * 33_000 + b"\r\n\r\n",
        "a target of 8 MB": b"GET " + path + b"?" + b"x" * 8 * MIB,
    }
    before = target.rss_bytes()
    assert send(target, heads[kind]) == 431
    assert target.rss_bytes() - before < RSS_GROWTH_BYTES


@pytest.mark.parametrize("size", [1, 2])
def test_a_million_chunks_take_no_memory(target: Target, size: int) -> None:
    start = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % CHAT.encode()
    chunk = b"%x\r\n%s\r\n" % (size, b" " * size)
    before, worked = target.rss_bytes(), cpu_s(target)
    for _ in range(5):
        with target.connect() as connection:
            connection.sendall(start + b"transfer-encoding: chunked\r\n\r\n")
            received = b""
            with suppress(OSError):
                for _ in range(100):
                    connection.sendall(chunk * 10_000)
            with suppress(OSError):
                received = connection.recv(2**16)
        assert status_of(received) in (400, 413)
    assert target.rss_bytes() - before < 8 * MIB
    assert cpu_s(target) - worked < 15


@pytest.mark.parametrize(
    "ending", [b"x" * 2**20, b"x: " + b"y" * 2**20, b"0;" + b"x" * 2**20, b"f" * 2**20]
)
def test_what_ends_a_body_is_bounded(target: Target, ending: bytes) -> None:
    """Trailers, extensions of a chunk, its length."""
    start = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % CHAT.encode()
    start += b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"
    for last in (b"", b"0\r\n"):
        assert send(target, start + last + ending) in (0, 400, 413, 431)


PART = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
END = b"\r\n--edge--\r\n"
FORMS = {
    "preamble of CR": (b"edge", b"\r" * 32 * MIB + PART + b"x" + END),
    "preamble of lines": (b"edge", b"\r\n" * 16 * MIB + PART + b"x" + END),
    "a million parts": (b"edge", (PART + b"x\r\n") * 400_000 + END),
    "header of 1 MB": (b"edge", b"--edge\r\nX: " + b"y" * MIB + b"\r\n\r\nx" + END),
    "many headers": (b"edge", b"--edge\r\n" + b"X: y\r\n" * 200_000 + b"\r\nx" + END),
    "boundary of 10 kB": (b"e" * 10_000, b"--" + b"e" * 10_000 + b"\r\n\r\nx"),
    "no end": (b"edge", PART + b"x" * MIB),
    "boundaries that are none": (b"edge", PART + b"\r\n--edg" * 2**21 + END),
    "epilogue": (b"edge", PART + b"x" + END + b"\r\n" * 16 * MIB),
    "dashes": (b"edge-", PART + b"-" * 16 * MIB),
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_giant_form_is_400(target: Target, kind: str) -> None:
    boundary, body = FORMS[kind]
    headers = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    before, worked = target.rss_bytes(), cpu_s(target)
    with target.client() as client:
        reply = client.post("/v1/ask", content=body, headers=headers)
    assert reply.status_code == 400, reply.text[:300]
    assert cpu_s(target) - worked < 0.3 + 0.05 * len(body) / 1e6
    time.sleep(0.1)
    # The allocator may keep what one body took.
    assert target.rss_bytes() - before < 3 * len(body) + RSS_GROWTH_BYTES


JSONS = {
    "250,000 lists": b"[" * 250_000,
    "100,000 objects": b'{"a":' * 100_000,
    "33 lists": b'{"messages": ' + b"[" * 33 + b"]" * 33 + b"}",
    "a million keys": b"{" + b",".join(b'"k%d":1' % i for i in range(10**6)) + b"}",
    "a million values": b'{"messages": [' + b"1," * 10**6 + b"1]}",
    "5000 digits": b'{"n": ' + b"9" * 5000 + b"}",
    "a key of 1 MB": b'{"' + b"k" * MIB + b'": 1}',
    "UTF-16": '{"messages": []}'.encode("utf-16"),
    "UTF-32": '{"messages": []}'.encode("utf-32-le"),
    "BOM": b'\xef\xbb\xbf{"messages": []}',
    "key twice": b'{"messages": [{"role": "user", "content": "x"}], "n": 1, "n": 1}',
}


@pytest.mark.parametrize("kind", JSONS)
def test_giant_json_is_400_at_once(target: Target, kind: str) -> None:
    body = JSONS[kind]
    before, worked = target.rss_bytes(), cpu_s(target)
    with target.client() as client:
        headers = {"content-type": "application/json"}
        reply = client.post(CHAT, content=body, headers=headers)
    assert reply.status_code == 400
    assert len(reply.content) < 1000
    assert cpu_s(target) - worked < 0.2 + 0.05 * len(body) / 1e6
    assert target.rss_bytes() - before < 3 * len(body) + RSS_GROWTH_BYTES


@pytest.mark.parametrize("path", [CHAT, "/v1/ask", "/v1/images/edits"])
def test_a_body_that_says_it_is_too_large_is_never_read(target: Target, path: str) -> None:
    for kind in ("application/json", "multipart/form-data; boundary=edge"):
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n"
        head += f"content-length: {65 * MIB}\r\nexpect: 100-continue\r\n\r\n"
        assert send(target, head.encode()) in ((413,) if path != CHAT else (413, 415))


def test_a_body_that_turns_out_too_large_is_413(target: Target) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += "transfer-encoding: chunked\r\n\r\n"
    before = target.rss_bytes()
    with target.connect() as connection:
        connection.sendall(head.encode())
        received = b""
        with suppress(OSError):
            for _ in range(80):
                connection.sendall(b"100000\r\n" + b" " * MIB + b"\r\n")
        with suppress(OSError):
            received = connection.recv(2**16)
    assert status_of(received) == 413
    assert target.rss_bytes() - before < 150 * MIB


def test_without_a_descriptor_left_it_answers_and_does_not_spin(start_target) -> None:
    target = start_target()
    process = psutil.Process(target.pid)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 8,) * 2)
    connections = []
    try:
        for _ in range(200):
            connections.append(target.connect())
        worked = cpu_s(target)
        time.sleep(2)
        assert cpu_s(target) - worked < 1
        with target.connect() as one_more:
            with suppress(OSError):
                one_more.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert status_of(one_more.recv(2**16)) == 503
    finally:
        for connection in connections:
            connection.close()
    time.sleep(1)
    with target.client() as client:
        assert client.get("/livez").status_code == 200
