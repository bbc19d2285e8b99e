"""What goes between a server and the processes that decode its images.

Owns the format of a frame: a length, a header in JSON, and blobs whose lengths the header names. No
pickles: a decoder that an image has taken over can say nothing but bytes and text. Invariant: no
more is read or reserved than the bounds here, whatever a frame claims.
"""

import json
import socket
import struct
from collections.abc import Sequence

_LENGTH = struct.Struct("!I")
MAX_HEADER_BYTES = 2**24
"""Texts of a PNG are within an array; a header is a few hundred bytes."""
MAX_BLOBS = 2
"""A picture and its mask go there; a square and what is marked of it come back."""
MAX_BLOBS_BYTES = 2**28
"""Of all blobs of a frame together."""

Header = dict[str, object]

# The last two: an infinite size, and lists within each other without end.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class FrameError(Exception):
    """The other side has gone, or does not keep to the format."""


def send_frame(connection: socket.socket, header: Header, blobs: Sequence[bytes]) -> None:
    """Send one frame. Raises OSError, TimeoutError among it."""
    head = json.dumps(header | {"sizes": [len(blob) for blob in blobs]}).encode()
    connection.sendall(_LENGTH.pack(len(head)) + head)
    for blob in blobs:
        connection.sendall(blob)


def receive_frame(connection: socket.socket) -> tuple[Header, list[bytearray]]:
    """Receive one frame. Raises OSError, and FrameError at the end of the stream."""
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, limit=_LENGTH.size))
    try:
        header = json.loads(_receive(connection, length, limit=MAX_HEADER_BYTES))
        sizes = [int(size) for size in header.pop("sizes")]
    except _UNREADABLE as error:
        raise FrameError("the header of a frame cannot be read") from error
    # Before the first of them is received: a header has room for millions.
    if len(sizes) > MAX_BLOBS or sum(sizes) > MAX_BLOBS_BYTES:
        raise FrameError(f"{len(sizes)} blobs of {sum(sizes)} bytes are too many")
    return header, [_receive(connection, size, limit=MAX_BLOBS_BYTES) for size in sizes]


def _receive(connection: socket.socket, num_bytes: int, *, limit: int) -> bytearray:
    if not 0 <= num_bytes <= limit:
        raise FrameError(f"{num_bytes} bytes are none or too many")
    data = bytearray(num_bytes)
    view = memoryview(data)
    while view:
        num_received = connection.recv_into(view)
        if not num_received:
            raise FrameError("the stream has ended")
        view = view[num_received:]
    return data
