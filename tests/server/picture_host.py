"""Hosts of pictures on addresses of the loopback, honest ones and hostile ones.

Owns what each path answers; knows nothing of who asks. Raw sockets, so that it can lie. Every
connection is remembered, so that a test can show that nobody came.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable

PNG_HEADER = "Content-Type: image/png\r\n"


class PictureHost:
    """Answers `GET path` with `answers[path]`: bytes, or a function that is given the socket."""

    def __init__(self, address: str, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, bytes | Callable[[socket.socket], None]] = {}
        self.requests: list[str] = []
        self.num_connections = 0
        self._tls = tls
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family, backlog=64)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "PictureHost":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave `accept` waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.num_connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.settimeout(20)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(65_536)
                if not received:
                    return
                head += received
            self.requests.append(head.decode("latin-1"))
            answer = self.answers.get(head.split()[1].decode("latin-1"), reply(b"", status=404))
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)
            if self._tls is not None:
                connection.close()


def announced(num_bytes: int) -> bytes:
    """The head of an answer of so many bytes."""
    return f"HTTP/1.1 200 OK\r\n{PNG_HEADER}Content-Length: {num_bytes}\r\n\r\n".encode()


def reply(body: bytes, headers: str = PNG_HEADER, *, status: int = 200) -> bytes:
    """A complete answer."""
    return f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    """An answer that sends the client elsewhere."""
    return reply(b"elsewhere", f"Location: {location}\r\n", status=status)


def trickle(connection: socket.socket) -> None:
    """A byte every now and then, for longer than anybody should wait."""
    connection.sendall(announced(1000))
    for _ in range(1000):
        connection.sendall(b"x")
        time.sleep(0.05)


def endless(connection: socket.socket) -> None:
    """Chunk after chunk."""
    head = f"HTTP/1.1 200 OK\r\n{PNG_HEADER}Transfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head.encode())
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")


def cut_short(connection: socket.socket) -> None:
    """Less than was announced."""
    connection.sendall(announced(99) + b"xx")


def silent(connection: socket.socket) -> None:
    """Not a word."""
    time.sleep(20)
    connection.close()
