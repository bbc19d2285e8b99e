"""A real server on a free port, in a thread of the test process or in a process of its own.

Owns starting and ending it; knows no endpoint. Sockets and streams are real, so that what a test
sees is what a client sees.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from opentelemetry.trace import TracerProvider

from server.app import create_app
from server.lifecycle import DrainingServer, load_pipeline
from server.listener import bind, url_of
from server.settings import Settings

START_S = 60.0
ROOT = Path(__file__).parents[1]


class ServerInThread:
    """A server in this process, which computes with one thread, as all tests do. `client` has its
    address; `context` its parts."""

    def __init__(self, *, tracer_provider: TracerProvider | None = None, **settings: object):
        self.settings = Settings(**{"host": "127.0.0.1", "port": 0, "threads": 1} | settings)
        self._listener = bind("127.0.0.1", port=self.settings.port)
        self.url = url_of(self._listener)
        self.app = create_app(
            load_pipeline(self.settings), self.settings, tracer_provider=tracer_provider
        )
        self._server = DrainingServer(self.app, settings=self.settings)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> "ServerInThread":
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started, "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self.wait()
        self._listener.close()

    @property
    def context(self):
        return self.app.state.context

    def exit_at_once(self) -> None:
        """What the second signal does."""
        self._server.force_exit = self._server.should_exit = True

    def begin_drain(self) -> None:
        """What the first signal does."""
        self._server._loop.call_soon_threadsafe(self._server.begin_drain)

    def wait(self, timeout_s: float = START_S) -> None:
        """Wait for the server to end; fail if it does not."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the server did not end"

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    def is_idle(self) -> bool:
        """Whether the engine has nothing to do and holds no slot, and nobody waits for it."""
        dispatcher = self.context.dispatcher
        stats = dispatcher.service.stats()
        live = (dispatcher.service.num_live, len(dispatcher._handles), stats.num_running)
        return (*live, stats.kv_usage) == (0, 0, 0, 0)


@contextmanager
def repeating(action: Callable[[], object], *, every_s: float) -> Iterator[None]:
    """Do something again and again, in a thread, while the body runs."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(every_s):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def wait_until(condition, timeout_s: float = START_S, *, message: str = "timed out") -> None:
    """Poll until `condition()` holds; fail with `message` if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


JANUS = Path(sys.executable).with_name("janus")
"""The console script, as it was installed."""


@contextmanager
def server_process(
    *flags: str, cwd: Path = ROOT, **environ: str
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`janus serve` with these flags on a free port; yields the process, its URL and what it said
    until it had one."""
    process = subprocess.Popen(
        [JANUS, "serve", "--port", "0", *flags],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "JANUS_DRAIN_DELAY_S": "0"} | environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, *_announced(process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _announced(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The address from the line the server prints once it listens, and all lines up to it."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if match := re.search(r"Listening on (\S+)", line):
            return match[1], "".join(seen)
    raise AssertionError("the server did not start:\n" + "".join(seen))
