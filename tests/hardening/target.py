"""A server process under attack, and what must hold of it after every attack.

Owns starting and ending the process, the clients that look at every body for leaks, the two good
requests with their golden results, and the standing postcondition P0. Knows no attack. Invariant:
a target talks to its process by HTTP, sockets and signals only, so that any server with the same
paths can take its place.
"""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
from PIL import Image

from tests.serving import JANUS, ROOT

HOST = "127.0.0.1"
START_S = 60.0
MODEL = "tiny"
MIB = 2**20
RSS_BOUND_BYTES = 256 * MIB
"""How much more than before a row of attacks a server may hold when one of them is over."""

RSS_BOUND_OF_ALL_BYTES = 2 * RSS_BOUND_BYTES
"""How much more than after its start, however many rows it has been through: what the allocator
keeps of large buffers of several threads. That nothing grows for ever is what the soak shows."""

# An object's address, a path of this machine, a stack. What a client may never see.
LEAK = re.compile(
    rf"0x[0-9a-f]{{6,}}|/home/|site-packages|Traceback|{re.escape(str(ROOT))}|File \\?\"/"
)
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/]{256,}={0,2}")
"""A file, in which anything may stand."""
_SCANNED = ("application/json", "text/", "application/problem")

_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


def leaks_in(body: bytes) -> list[str]:
    """Every sign of a server's inside, with what stands around it."""
    text = _BASE64_RUN.sub("", body.decode(errors="replace"))
    found = LEAK.finditer(text)
    return [text[max(0, match.start() - 60) : match.end() + 60] for match in found]


def png_bytes(image: Image.Image) -> bytes:
    """`image` as a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def png_url(image: Image.Image) -> str:
    """`image` as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


GOOD_IMAGE = Image.radial_gradient("L").convert("RGB").resize((40, 30))
GOOD_QUESTION = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": png_url(GOOD_IMAGE)}},
                {"type": "text", "text": "What is in the picture?"},
            ],
        }
    ],
    "temperature": 0,
    "max_tokens": 8,
}
GOOD_PROMPT = {"prompt": "a large red circle", "seed": 7, "response_format": "b64_json"}


class Target:
    """One server and what was seen of it. Made by the fixtures `target` and `start_target`.

    `kind` is janus or naive. `patience_s` is how long its tests wait for what must come; it is
    the timeout of every client and socket made here.
    """

    def __init__(
        self,
        kind: str,
        *,
        log_path: Path,
        checkpoint: Path,
        patience_s: float,
        settings: Mapping[str, object],
        env: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        p0: bool = True,
    ) -> None:
        self.kind = kind
        self.patience_s = patience_s
        self.wants_p0 = p0
        self._log_path = log_path
        self._command = COMMANDS[kind](checkpoint)
        self._environ = os.environ | {"OMP_NUM_THREADS": "1"}
        self._environ |= {f"JANUS_{name.upper()}": _text(v) for name, v in settings.items()}
        self._environ |= env or {}
        self._headers = dict(headers or {})
        self._start()

    # What tests ask.

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, **options: object) -> httpx2.Client:
        """A client with the server's address; every body it sees is searched for leaks."""
        return httpx2.Client(**self._client_options(options), transport=_Watched(self._scan))

    def async_client(self, **options: object) -> httpx2.AsyncClient:
        """The same for coroutines."""
        return httpx2.AsyncClient(
            **self._client_options(options), transport=_AsyncWatched(self._scan)
        )

    def connect(self, timeout_s: float | None = None) -> socket.socket:
        """A connection that sends what no client library would."""
        return socket.create_connection((self.host, self.port), timeout_s or self.patience_s)

    def exchange(self, data: bytes, timeout_s: float | None = None) -> bytes:
        """Send `data` and return all that comes until the server closes or is silent for
        `timeout_s`."""
        received = bytearray()
        with self.connect(timeout_s) as connection, suppress(TimeoutError, ConnectionError):
            connection.sendall(data)
            while chunk := connection.recv(65_536):
                received += chunk
        self._scan("raw", bytes(received))
        return bytes(received)

    def rss_bytes(self) -> int:
        """Resident memory of the process and its children."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def processes(self) -> list[psutil.Process]:
        """The process and its children; none if it is gone."""
        try:
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def log_text(self) -> str:
        """What the server has logged since the test's module got it."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def metrics(self) -> dict[str, float]:
        """All series of `/metrics`, by name and labels as they are written there."""
        with self.client() as client:
            text = client.get("/metrics").raise_for_status().text
        lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    # The two good requests.

    def answer(self) -> str:
        """What the server says about the good picture."""
        with self.client() as client:
            reply = client.post("/v1/chat/completions", json=GOOD_QUESTION)
        assert reply.status_code == 200, f"a good question got {reply.status_code}: {reply.text}"
        return reply.json()["choices"][0]["message"]["content"]

    def picture(self) -> bytes:
        """The pixels the server draws for the good prompt."""
        with self.client() as client:
            reply = client.post("/v1/images/generations", json=GOOD_PROMPT)
        assert reply.status_code == 200, f"a good prompt got {reply.status_code}: {reply.text}"
        file = base64.b64decode(reply.json()["data"][0]["b64_json"])
        with Image.open(io.BytesIO(file)) as image:
            return image.tobytes()

    # The postcondition.

    def check_p0(self) -> None:
        """The same process is ready, empty, as large as before, and computes what it computed."""
        assert self.process.poll() is None, (
            f"the server has ended with {self.process.poll()}:\n{self.log_text()[-3000:]}"
        )
        busy = self._wait_until_idle()
        assert not busy, f"the server still holds {busy}"
        with self.client() as client:
            ready = client.get("/readyz")
        assert ready.status_code == 200, f"not ready: {ready.text}"
        assert self.answer() == self._golden_answer, "a good question got another answer"
        assert self.picture() == self._golden_picture, "a good prompt got another picture"
        rss = self.rss_bytes()
        grown, grown_in_all = rss - self._base_rss, rss - self._start_rss
        assert grown <= RSS_BOUND_BYTES, f"the server has grown by {grown // MIB} MiB"
        assert grown_in_all <= RSS_BOUND_OF_ALL_BYTES, f"by {grown_in_all // MIB} MiB in all"
        leaks, self._leaks = self._leaks, []
        assert not leaks, f"bodies show what is inside: {leaks[:5]}"

    def _wait_until_idle(self) -> dict[str, float]:
        """What is not zero of the gauges of work, once it is or patience is at its end."""
        deadline = time.monotonic() + self.patience_s
        while busy := self._busy():
            if time.monotonic() > deadline:
                return busy
            time.sleep(0.05)
        return {}

    def _busy(self) -> dict[str, float]:
        found = {
            name: value
            for name, value in self.metrics().items()
            if any(gauge in name for gauge in _GAUGES)
        }
        assert len(found) >= len(_GAUGES), f"gauges are missing: {sorted(found)}"
        return {name: value for name, value in found.items() if value}

    # Start and end.

    def _start(self) -> None:
        self.is_stopped = False
        self._leaks: list[str] = []
        self._log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environ, stdout=log, stderr=log
            )
        try:
            self.url = self._announced()
            address = httpx2.URL(self.url)
            self.host, self.port = address.host, address.port
            self._golden_answer = self.answer()
            self._golden_picture = self.picture()
            self._base_rss = self._start_rss = self.rss_bytes()
        except BaseException:
            self.stop()
            raise

    def _announced(self) -> str:
        """The address from the line the server logs once it listens."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if match := re.search(r"Listening on (http[^\s\"]+)[\s\"]", self.log_text()):
                return match[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError("the server did not start:\n" + self.log_text()[-3000:])

    def new_module(self) -> None:
        """Count memory and log from here on; memory from the start, too."""
        self._log_start = self._log_path.stat().st_size
        self._base_rss = self.rss_bytes()

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Tell the process to end, or what else `number` tells; it will be gone, so P0 cannot
        hold."""
        self.wants_p0 = False
        self.process.send_signal(number)

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code of a process that ends by itself or was told to."""
        self.wants_p0 = False
        return self.process.wait(timeout_s or self.patience_s)

    def restart(self) -> None:
        """A new process in place of one that an attack has ruined."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """Kill the process and all it has started."""
        for process in reversed(self.processes()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.is_stopped = True

    # Clients.

    def _client_options(self, options: Mapping[str, object]) -> dict[str, object]:
        defaults = {
            "base_url": self.url,
            "timeout": self.patience_s,
            "headers": self._headers,
            "trust_env": False,
        }
        return {**defaults, **options}

    def _scan(self, content_type: str, body: bytes) -> None:
        """Remember every sign of the server's inside."""
        if content_type != "raw" and not content_type.startswith(_SCANNED):
            return
        self._leaks += leaks_in(body)


class _Watched(httpx2.HTTPTransport):
    """Shows every body to `scan` once it was read or given up."""

    def __init__(self, scan: Callable[[str, bytes], None]) -> None:
        super().__init__(limits=_LIMITS)
        self._scan = scan

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        response.stream = _WatchedStream(response, self._scan)
        return response


class _AsyncWatched(httpx2.AsyncHTTPTransport):
    def __init__(self, scan: Callable[[str, bytes], None]) -> None:
        super().__init__(limits=_LIMITS)
        self._scan = scan

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        response.stream = _WatchedStream(response, self._scan)
        return response


class _WatchedStream(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, response: httpx2.Response, scan: Callable[[str, bytes], None]) -> None:
        self._stream = response.stream
        self._type = response.headers.get("content-type", "")
        self._scan = scan
        self._seen = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._seen += chunk
            yield chunk

    async def __aiter__(self):
        async for chunk in self._stream:
            self._seen += chunk
            yield chunk

    def close(self) -> None:
        self._stream.close()
        self._scan(self._type, bytes(self._seen))

    async def aclose(self) -> None:
        await self._stream.aclose()
        self._scan(self._type, bytes(self._seen))


_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=None)


def _janus(checkpoint: Path) -> list[str]:
    flags = ["--port", "0", "--host", HOST, "--served-model-name", MODEL, "--threads", "1"]
    return [str(JANUS), "serve", str(checkpoint), *flags]


def _naive(checkpoint: Path) -> list[str]:
    return [sys.executable, "-m", "tests.hardening.naive", str(checkpoint)]


COMMANDS = {"janus": _janus, "naive": _naive}


def _text(value: object) -> str:
    """A setting as its variable says it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
