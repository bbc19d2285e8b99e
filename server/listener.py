"""The listening socket, and how many connections it lets in.

Owns its address and the bound; knows no HTTP but one answer, and imports nothing heavy.
Invariants: an address in use is an error before the model is loaded, which can take minutes, not
after; a connection too many is answered and closed at once, also when the process has no file
descriptor left for it, instead of waiting in the kernel while the event loop is woken in vain. A
few are let in all the same, but marked as spare: what they may do is not decided here.
"""

import errno
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from janus_core.errors import ParameterError
from server.access_line import request_id, write_early_line

NUM_SPARE = 64
"""Connections beyond the limit, among which probes find a place."""

RESERVED_FILES = 32 + NUM_SPARE
"""File descriptors that stay free of clients: images from addresses, decoders, the system's, and
those of spare connections."""

TOO_MANY_CODE = "too_many_connections"
TOO_MANY_BODY = (
    b'{"error": {"message": "The server has as many connections as it takes.", '
    b'"type": "service_unavailable", "param": null, "code": "%s"}}' % TOO_MANY_CODE.encode()
)
TOO_MANY_HEADERS = {"retry-after": "1", "x-should-retry": "true"}

OnRefusal = Callable[[str], None]


def bind(host: str, *, port: int) -> "Listener":
    """Reserve an address; port 0 picks a free one. Raises ParameterError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = Listener(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ParameterError(
            f"Cannot listen on {host}:{port}: {error.strerror}.", param="port"
        ) from error
    return listener


def too_many_connections() -> bytes:
    """The answer to one connection too many, which is in the log from now on."""
    id = request_id()
    write_early_line(id, status=503, code=TOO_MANY_CODE)
    headers = TOO_MANY_HEADERS | {
        "content-type": "application/json",
        "content-length": str(len(TOO_MANY_BODY)),
        "connection": "close",
        "x-request-id": id,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n".encode() + TOO_MANY_BODY


def url_of(listener: socket.socket) -> str:
    """Where to connect to."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allow_connections(wanted: int, *, beside: int = 0) -> int:
    """Raise the process's limit of file descriptors for so many connections, as far as it may be;
    return how many fit, at least one. `beside` are those of other listeners."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + beside + _num_open_files() + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - needed + wanted))


class Listener(socket.socket):
    """A listening socket that counts the connections it has accepted and that are still open.
    `spare` has the descriptors of those that were more than `max_connections`."""

    def __init__(self, family: int) -> None:
        # By its protocol's name asyncio knows a connection that must not wait for the client's
        # acknowledgement of the head (40 ms) before it sends the body.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.max_connections: int | None = None
        self.num_open = 0
        self.spare: set[int] = set()
        self.on_refusal: OnRefusal = _ignore
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        """Given up for a moment where no other descriptor is left."""

    def accept(self) -> tuple[socket.socket, object]:
        """As any socket's; raises BlockingIOError instead of returning a connection too many for
        which no place is spare."""
        try:
            descriptor, address = self._accept()  # type: ignore[attr-defined]  # as socket.accept
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or self._spare is None:
                raise
            self._refuse_with_spare()
            raise BlockingIOError("no file descriptor is left") from None
        connection = _Connection(self, descriptor)
        num_regular = self.num_open - len(self.spare)
        if self.max_connections is not None and num_regular > self.max_connections:
            if len(self.spare) >= NUM_SPARE:
                self._refuse(connection)
                raise BlockingIOError("too many connections")
            self.spare.add(descriptor)
        return connection, address

    def close(self) -> None:
        """As any socket's."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        super().close()

    def _refuse_with_spare(self) -> None:
        assert self._spare is not None
        os.close(self._spare)
        self._spare = None
        with suppress(OSError):
            descriptor, _ = self._accept()  # type: ignore[attr-defined]
            self._refuse(_Connection(self, descriptor))
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _refuse(self, connection: socket.socket) -> None:
        """Answer without waiting for anything. What has been sent is read, because the kernel
        would else reset the connection, and its answer could be lost."""
        self.on_refusal(TOO_MANY_CODE)
        with connection, suppress(OSError):
            connection.setblocking(False)
            connection.send(too_many_connections())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(2**16)


class _Connection(socket.socket):
    """An accepted connection, which tells its listener once that it is closed."""

    def __init__(self, listener: Listener, descriptor: int) -> None:
        super().__init__(listener.family, listener.type, listener.proto, fileno=descriptor)
        self._listener: Listener | None = listener
        listener.num_open += 1

    def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.num_open -= 1
            listener.spare.discard(self.fileno())
        super().close()


def _num_open_files() -> int:
    """Descriptors this process has open, as far as the system says."""
    try:
        return len(list(Path("/proc/self/fd").iterdir()))
    except OSError:
        return RESERVED_FILES


def _ignore(_: str) -> None:
    """Nobody counts."""
