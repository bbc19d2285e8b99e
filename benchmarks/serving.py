"""A server to be measured, in a process of its own.

Owns its start and its end, and its log, which goes to a file: a pipe that nobody reads would stop
it. Knows nothing of what is measured. Invariant: the process is gone when the context ends.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_S = 120.0
ANNOUNCEMENT = "Listening on "
COMMAND = (sys.executable, "-m", "server", "serve", "--port", "0")


@contextmanager
def started(
    command: Sequence[str], *, log_path: Path, environment: Mapping[str, str] = {}
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server's process, and its address once it listens. Killed at the end, if it has not ended
    by then; RuntimeError if it does not start."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | dict(environment)
        )
    try:
        deadline_s = time.monotonic() + START_S
        while ANNOUNCEMENT not in (text := log_path.read_text("utf-8")):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the server did not start:\n{text}")
            time.sleep(0.05)
        yield process, text.partition(ANNOUNCEMENT)[2].split()[0]
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(*words: str) -> Iterator[str]:
    """The address of a server with these words on its command line, on a free port. It ends as it
    would for its users."""
    with (
        tempfile.TemporaryDirectory() as folder,
        started((*COMMAND, *words), log_path=Path(folder) / "log") as (process, url),
    ):
        try:
            yield url
        finally:
            process.terminate()
            process.wait()
