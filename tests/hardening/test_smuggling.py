"""A request whose end two parsers could see at different places is refused, and its connection
closed: what a proxy takes for a body must never be answered as a request.

Every message below carries a second request where the smuggler wants it read. Shapes after the
http-garden and CVE-2025-43859.
"""

from tests.hardening.target import Target

BODY = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1}'
HIDDEN = b"GET /version HTTP/1.1\r\nHost: smuggled\r\n\r\n"
VERSION_MARK = b"attention_backend"
"""Of the answer to the hidden request."""


def head(*lines: bytes, start: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    fields = (start, b"Host: x", b"Content-Type: application/json", *lines)
    return b"\r\n".join(fields) + b"\r\n\r\n"


def chunked(body: bytes, size: bytes | None = None) -> bytes:
    size = b"%x" % len(body) if size is None else size
    return size + b"\r\n" + body + b"\r\n0\r\n\r\n"


LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"

AMBIGUOUS = {
    "length and chunked": head(LENGTH, CHUNKED) + chunked(BODY),
    "chunked and length": head(CHUNKED, b"Content-Length: 5") + chunked(BODY),
    "length 0 and chunked": head(b"Content-Length: 0", CHUNKED) + chunked(BODY),
    "two lengths": head(LENGTH, b"Content-Length: 5") + BODY,
    "two lengths in one": head(LENGTH + b", 5") + BODY,
    "negative length": head(b"Content-Length: -1") + BODY,
    "signed length": head(b"Content-Length: +%d" % len(BODY)) + BODY,
    "hex length": head(b"Content-Length: 0x%x" % len(BODY)) + BODY,
    "length with underscore": head(b"Content-Length: 5_9") + BODY,
    "length with a space inside": head(b"Content-Length: 5 9") + BODY,
    "length in other digits": head("Content-Length: \u0665\u0669".encode()) + BODY,
    "empty length": head(b"Content-Length:") + BODY,
    "length of 400 digits": head(b"Content-Length: " + b"9" * 400) + BODY,
    "space before the colon": head(b"Content-Length : %d" % len(BODY), CHUNKED) + chunked(BODY),
    "chunked by another name": head(b"Transfer-Encoding : chunked") + chunked(BODY),
    "folded chunked": head(b"Transfer-Encoding:\r\n chunked", LENGTH) + chunked(BODY),
    "folded field": head(b"A: b\r\n Transfer-Encoding: chunked", LENGTH) + BODY,
    "field folded by a tab": head(b"A: b\r\n\tTransfer-Encoding: chunked", LENGTH) + BODY,
    "line of spaces": head(b"A: b\r\n ", LENGTH) + BODY,
    "chunked twice": head(CHUNKED, CHUNKED) + chunked(BODY),
    "chunked, identity": head(b"Transfer-Encoding: chunked, identity") + chunked(BODY),
    "identity, chunked": head(b"Transfer-Encoding: identity, chunked") + chunked(BODY),
    "identity": head(b"Transfer-Encoding: identity", LENGTH) + BODY,
    "gzip, chunked": head(b"Transfer-Encoding: gzip, chunked") + chunked(BODY),
    "xchunked": head(b"Transfer-Encoding: xchunked") + chunked(BODY),
    "chunked with a tab": head(b"Transfer-Encoding: \x0bchunked", LENGTH) + chunked(BODY),
    "quoted chunked": head(b'Transfer-Encoding: "chunked"', LENGTH) + chunked(BODY),
    "negative chunk": head(CHUNKED) + chunked(BODY, b"-1"),
    "chunk of 0x": head(CHUNKED) + chunked(BODY, b"0x%x" % len(BODY)),
    "chunk with a sign": head(CHUNKED) + chunked(BODY, b"+%x" % len(BODY)),
    "endless chunk size": head(CHUNKED) + b"f" * 40_000,
    "chunk ends elsewhere": head(CHUNKED) + b"5\r\n{}   XX0\r\n\r\n",
    "bare carriage return": head(b"A: b\rTransfer-Encoding: chunked", LENGTH) + BODY,
    "nul in a header": head(b"A: b\x00c", LENGTH) + BODY,
    "no colon": head(b"Transfer-Encoding chunked", LENGTH) + BODY,
    "space in a name": head(b"Content Length: 5", LENGTH) + BODY,
    "two hosts": head(b"Host: y", LENGTH) + BODY,
    "HTTP/0.9": b"GET /version\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.1 with a tab": b"GET\t/version\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "a version that is none": b"GET /version HTTP/1.1x\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
}


def answers(received: bytes) -> list[int]:
    """The status of each answer, in order."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_an_ambiguous_end_is_refused_once(target: Target) -> None:
    wrong = {}
    for name, message in AMBIGUOUS.items():
        received = target.exchange(message + HIDDEN, timeout_s=1)
        statuses = answers(received)
        is_refused = all(400 <= status < 500 or status in (501, 505) for status in statuses)
        if len(statuses) > 1 or VERSION_MARK in received or not is_refused:
            wrong[name] = statuses
    assert not wrong


def test_chunks_of_an_old_version_end_the_connection(target: Target) -> None:
    """RFC 9112, 6.1: its framing may be wrong, so it may be answered, but nothing behind it."""
    start = b"POST /v1/chat/completions HTTP/1.0"
    received = target.exchange(head(CHUNKED, start=start) + chunked(BODY) + HIDDEN, timeout_s=1)
    assert len(answers(received)) <= 1
    assert VERSION_MARK not in received


def test_requests_in_a_row_are_answered_in_a_row(target: Target) -> None:
    """The control: unambiguous requests on one connection, behind one another."""
    message = (head(LENGTH) + BODY + head(CHUNKED) + chunked(BODY)) * 2 + HIDDEN
    received = target.exchange(message, timeout_s=1)
    assert answers(received) == [200] * 5
    assert VERSION_MARK in received


def test_an_unread_body_is_no_request(target: Target) -> None:
    """A route that reads no body, and one that refuses it unread: what follows is still a body."""
    for start in (b"GET /livez HTTP/1.1", b"POST /nowhere HTTP/1.1"):
        message = head(b"Content-Length: %d" % len(HIDDEN), start=start) + HIDDEN
        received = target.exchange(message, timeout_s=1)
        assert len(answers(received)) == 1
        assert VERSION_MARK not in received


def test_expect_is_answered_before_the_body(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(head(LENGTH, b"Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
