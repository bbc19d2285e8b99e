"""A frame claims what it likes; no more is received than a job or its answer can be."""

import json
import socket
import struct
from collections.abc import Sequence

import pytest

from janus_core.decode_frames import (
    MAX_BLOBS,
    MAX_BLOBS_BYTES,
    FrameError,
    receive_frame,
    send_frame,
)


def claimed(sizes: Sequence[int], body: bytes) -> tuple[type[Exception] | None, int]:
    """What a frame that claims blobs of these sizes is refused with, and how many of the bytes of
    its `body` are left."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        head = json.dumps({"shapes": [], "sizes": sizes}).encode()
        theirs.sendall(struct.pack("!I", len(head)) + head + body)
        theirs.shutdown(socket.SHUT_WR)
        ours.settimeout(20)
        error = None
        try:
            receive_frame(ours)
        except FrameError as caught:
            error = type(caught)
        return error, len(ours.recv(len(body)))


@pytest.mark.parametrize(
    "sizes",
    [
        [1] * (MAX_BLOBS + 1),
        [1] * 10_000,
        [1, MAX_BLOBS_BYTES],
        [MAX_BLOBS_BYTES, 1],
        [MAX_BLOBS_BYTES + 1],
        [10**30],
        [MAX_BLOBS_BYTES + 5, -10],
    ],
)
def test_too_much_is_refused_before_any_of_it_is_received(sizes: list[int]) -> None:
    assert claimed(sizes, b"x" * 100) == (FrameError, 100)


@pytest.mark.parametrize("sizes", [[-1], [5, -5]])
def test_less_than_nothing_is_refused(sizes: list[int]) -> None:
    error, _ = claimed(sizes, b"x" * 100)
    assert error is FrameError


@pytest.mark.parametrize("head", [b'{"sizes": [1e999]}', b"[" * 50_000])
def test_what_python_cannot_read_is_a_frame_that_is_none(head: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("!I", len(head)) + head)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(FrameError):
            receive_frame(ours)


def test_as_many_as_may_come_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        blobs = [b"x" * 1000, b""]
        assert len(blobs) == MAX_BLOBS
        send_frame(theirs, {"job": "edited"}, blobs)
        assert receive_frame(ours) == ({"job": "edited"}, [bytearray(blob) for blob in blobs])
