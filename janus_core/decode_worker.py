"""The process in which images are decoded: `python -m janus_core.decode_worker SETTINGS`.

Owns its own confinement: a bound on memory, a bound on the CPU time of each image, no files to
write, no signal but the kernel's; it has one descriptor, the connection to the server, and ends
when that does. Knows jobs, nothing of the server. Invariant: what exceeds a bound ends this process
and nothing else.
"""

import importlib
import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

from PIL import Image

from janus_core.decode_frames import FrameError, Header, receive_frame, send_frame
from janus_core.errors import ImageInputError
from janus_core.image_decoder import run_job
from janus_core.images import ImageLimits

NICENESS = 5
"""Behind the compute threads, as the threads that wait for this process are."""

WALL_FACTOR = 2.0
"""An image may take so many times its CPU time in all: it is behind others."""


def main() -> None:
    """Serve jobs from the socket that is standard input, until it ends."""
    settings = json.loads(sys.argv[1])
    limits = ImageLimits(**settings["limits"])
    connection = socket.socket(fileno=0)
    _load_decoders()
    _confine(int(settings["memory_bytes"]))
    with suppress(FrameError, OSError):
        send_frame(connection, {"ready": True}, [])
        while True:
            header, files = receive_frame(connection)
            reply, blobs = _answer(header, files, limits, time_s=settings["time_s"])
            send_frame(connection, reply, blobs)
            if reply.get("last"):
                return


def _answer(
    header: Header, files: list[bytearray], limits: ImageLimits, *, time_s: float
) -> tuple[Header, list[bytes]]:
    """The reply to one job: arrays, or an error."""
    # The default action of both is to end the process, wherever it is.
    signal.setitimer(signal.ITIMER_PROF, time_s)
    signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * time_s)
    try:
        arrays = run_job(
            header["job"],  # type: ignore[arg-type]  # the server's word is taken
            [bytes(file) for file in files],
            limits,
            params=header["params"],  # type: ignore[arg-type]
            options=header["options"],  # type: ignore[arg-type]
        )
    except ImageInputError as error:
        said = {"message": error.message, "param": error.param, "code": error.code}
        # What is left of memory may be in pieces.
        return {"error": said, "last": isinstance(error.__cause__, MemoryError)}, []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"shapes": [array.shape for array in arrays]}, [array.tobytes() for array in arrays]


def _load_decoders() -> None:
    """Whatever Pillow imports for a format it imports now: later no file can be opened."""
    for name in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP"):  # EXIF is a TIFF
        importlib.import_module(f"PIL.{name}ImagePlugin")
    Image.preinit()


def _confine(memory_bytes: int) -> None:
    with suppress(OSError):
        os.nice(NICENESS)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # it ends when the server does, not before
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    now_bytes = _address_space_bytes()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (now_bytes + memory_bytes,) * 2)


def _address_space_bytes() -> int:
    """What this process has mapped already."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**30


if __name__ == "__main__":
    main()
