"""Images decoded in processes of their own, which an image can at worst end.

Owns the processes: how many, how they start, when one is killed and replaced. Knows the jobs of
`image_decoder` by name only. Invariants: a process holds one image at a time, inherits nothing but
its connection, sees neither the environment nor the files of the server that it could do without,
and ends with the server; whatever happens to it, the request gets an ImageInputError.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from janus_core.decode_frames import FrameError, Header, receive_frame, send_frame
from janus_core.decode_worker import WALL_FACTOR
from janus_core.errors import CapacityError, ImageInputError
from janus_core.image_decoder import Bytes, ImageDecoder, Params
from janus_core.images import ImageLimits

logger = logging.getLogger(__name__)

START_S = 30.0
"""For the imports of a process; a tenth of a second on an idle machine."""

REASONS = ("timeout", "memory", "crash", "killed", "start")
"""Why a process ended before its time: its image took too long, or too much memory; a fault of a
decoder; a SIGKILL that was not ours, from the kernel or from somebody; or it could not begin."""

_ALARMS = (-signal.SIGPROF, -signal.SIGALRM)
"""The exit status of a process that ended itself, out of time."""

ROOT = Path(__file__).parents[1]

MAX_MESSAGE_CHARS = 500

_CANNOT = "The image cannot be decoded within the limits of time and memory."


class DecodePool(ImageDecoder):
    """At most `num_workers` processes, each with `memory_bytes` on top of its own size and `time_s`
    of CPU time for an image."""

    def __init__(
        self, limits: ImageLimits, *, num_workers: int, time_s: float, memory_bytes: int
    ) -> None:
        super().__init__(limits)
        self._time_s = time_s
        self._settings = json.dumps(
            {"limits": asdict(limits), "time_s": time_s, "memory_bytes": memory_bytes}
        )
        self._turns = threading.Semaphore(num_workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._num_lost = dict.fromkeys(REASONS, 0)
        self._is_closed = False

    def start(self) -> None:
        """Let one process begin to load, so that the first image finds it ready. Others start when
        they are needed."""
        with suppress(CapacityError):  # what fails now can succeed when an image comes
            worker = self._new()
            with self._lock:
                self._idle.append(worker)

    def close(self) -> None:
        """End all processes. One at work is dropped by the thread that waits for it."""
        with self._lock:
            self._is_closed = True
            idle, busy = list(self._idle), self._all.difference(self._idle)
        for worker in busy:
            worker.kill()
        for worker in idle:
            self._drop(worker)

    @property
    def pids(self) -> list[int]:
        """The processes there are."""
        with self._lock:
            return [worker.pid for worker in self._all]

    @property
    def num_lost(self) -> dict[str, int]:
        """As the base class says; by `REASONS`."""
        with self._lock:
            return dict(self._num_lost)

    def run(
        self, job: str, files: Sequence[bytes], *, params: Params, **options: object
    ) -> list[Bytes]:
        """As the base class, in a process. Raises CapacityError if none can be started."""
        header: Header = {"job": job, "params": list(params), "options": options}
        with self._turns:
            worker = self._take()
            try:
                reply, blobs = worker.ask(header, files, timeout_s=WALL_FACTOR * self._time_s + 1)
                outcome = _outcome(reply, blobs)
            except (OSError, FrameError) as error:
                self._drop(worker)
                self._count(worker.reason(error))
                logger.warning("An image has ended its decoder: %s", worker.end(error))
                raise ImageInputError(_CANNOT, param=params[0], code="invalid_image") from None
            if reply.get("last"):
                self._drop(worker)
                self._count("memory")
            else:
                with self._lock:
                    self._idle.append(worker)
        if isinstance(outcome, ImageInputError):
            raise outcome
        return outcome

    def _take(self) -> "_Worker":
        """A process that is alive and ready."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            worker = worker or self._new()
            try:
                if worker.is_alive():
                    worker.wait_until_ready()
                    return worker
            except (OSError, FrameError) as error:
                self._drop(worker)
                self._count("start")
                logger.error("A decoder of images does not start: %s", worker.end(error))
                raise _unavailable() from error
            self._drop(worker)
            self._count(worker.reason())

    def _new(self) -> "_Worker":
        with self._lock:
            if self._is_closed:
                raise _unavailable()
            try:
                worker = _Worker(self._settings)
            except OSError as error:
                self._num_lost["start"] += 1
                logger.error("A decoder of images cannot be started: %s", error)
                raise _unavailable() from error
            self._all.add(worker)
            return worker

    def _drop(self, worker: "_Worker") -> None:
        worker.kill()
        worker.disconnect()
        with self._lock:
            self._all.discard(worker)
            if worker in self._idle:
                self._idle.remove(worker)

    def _count(self, reason: str) -> None:
        with self._lock:
            if not self._is_closed:
                self._num_lost[reason] += 1


class _Worker:
    """One process and the connection to it."""

    def __init__(self, settings: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # No terminal's signal reaches a session of its own.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "janus_core.decode_worker", settings],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        self._connection = ours
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Raises OSError, FrameError."""
        if not self._is_ready:
            self._connection.settimeout(START_S)
            receive_frame(self._connection)
            self._is_ready = True

    def ask(
        self, header: Header, files: Sequence[bytes], *, timeout_s: float
    ) -> tuple[Header, list[bytearray]]:
        """Raises OSError, FrameError."""
        deadline = time.monotonic() + timeout_s
        self._connection.settimeout(timeout_s)
        send_frame(self._connection, header, files)
        self._connection.settimeout(max(0.001, deadline - time.monotonic()))
        return receive_frame(self._connection)

    def kill(self) -> None:
        """End it; harmless if it has ended."""
        self._process.kill()
        self._process.wait()

    def disconnect(self) -> None:
        """Only where no thread waits for it."""
        self._connection.close()

    def reason(self, error: Exception | None = None) -> str:
        """Why it ended, one of `REASONS`, whatever was last heard of it."""
        status = self._process.returncode
        if isinstance(error, TimeoutError) or status in _ALARMS:
            return "timeout"
        return "killed" if status == -signal.SIGKILL else "crash"

    def end(self, error: Exception) -> str:
        """How it ended, or why it was ended."""
        status = self._process.returncode
        return f"{type(error).__name__}, exit status {status}"


def _outcome(reply: Header, blobs: Sequence[bytearray]) -> list[Bytes] | ImageInputError:
    """What the process found: arrays, or why there are none. Raises FrameError for what is neither,
    because an image may have taken the process over."""
    try:
        if "error" in reply:
            return _error(reply["error"])
        shapes = reply["shapes"]
        if not isinstance(shapes, list):
            raise TypeError("shapes are a list")
        return [
            np.frombuffer(blob, dtype=np.uint8).reshape(shape)
            for blob, shape in zip(blobs, shapes, strict=True)
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise FrameError("a reply cannot be read") from error


def _error(said: object) -> ImageInputError:
    if not isinstance(said, dict):
        raise TypeError("an error is an object")
    message, param, code = said["message"], said["param"], said["code"]
    if not isinstance(message, str) or not all(isinstance(x, str | None) for x in (param, code)):
        raise TypeError("an error is said in words")
    return ImageInputError(message[:MAX_MESSAGE_CHARS], param=param, code=code)


def _unavailable() -> CapacityError:
    return CapacityError("No image can be decoded now.", retry_after_s=1.0)


def _environment() -> dict[str, str]:
    """What Python needs to find our code and its libraries; no keys, no proxies, one thread."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "LC_"))}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
