"""A Prometheus of one's own for as long as a check takes: scrapes every second, answers queries.

Owns the process and its configuration; knows no metric. Needs the program `prometheus` (Debian:
`apt install prometheus`, which brings `promtool` as well). Invariant: it listens on loopback only,
and its data goes away with its folder.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

START_S = 30.0
CONFIG = """\
global: {{scrape_interval: {interval_s}s, scrape_timeout: {interval_s}s}}
scrape_configs:
- job_name: janus
  static_configs: [{{targets: ["{target}"]}}]
"""

# What `promtool check metrics` says of a prefix parted by a colon, the habit of this field.
ALLOWED = ("metric names should not contain ':'",)

Sample = tuple[dict[str, str], float]


def is_installed() -> bool:
    """Whether the program is there."""
    return shutil.which("prometheus") is not None


class Prometheus:
    """Scrapes `target`, `host:port`, while the block runs."""

    def __init__(self, target: str, folder: Path, *, interval_s: int = 1) -> None:
        self._folder = folder
        self._port = _free_port()
        self._config = folder / "prometheus.yml"
        self._config.write_text(
            CONFIG.format(target=target, interval_s=interval_s), encoding="utf-8"
        )
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "Prometheus":
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError((self._folder / "prometheus.log").read_text("utf-8"))
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def query(self, expression: str) -> list[Sample]:
        """The labels and the value of every series of an instant query now.

        Raises RuntimeError with Prometheus' own words for an expression that it cannot evaluate.
        """
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                data = json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{expression}: {error.read().decode()}") from error
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def number(self, expression: str) -> float:
        """The value of a query with one series; 0 if there is none."""
        samples = self.query(expression)
        assert len(samples) <= 1, f"{expression} has {len(samples)} series"
        return samples[0][1] if samples else 0.0

    def wait_for_scrapes(self, num_scrapes: int = 2, *, timeout_s: float = 30.0) -> None:
        """Until so many more scrapes have begun and ended well."""
        first = self._last_scrape_s()
        deadline = time.monotonic() + timeout_s
        for _ in range(num_scrapes):
            while (last := self._last_scrape_s()) <= first:
                if time.monotonic() > deadline:
                    raise RuntimeError("Prometheus does not scrape.")
                time.sleep(0.1)
            first = last

    def _last_scrape_s(self) -> float:
        return self.number('timestamp(up{job="janus"} == 1)')

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as reply:
                return reply.status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False


def complaints(exposition: str, *, allowed: tuple[str, ...] = ALLOWED) -> list[str]:
    """What `promtool check metrics` has against a page of metrics, but what is allowed."""
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0 or lines, f"promtool ended with {done.returncode}"
    return [line for line in lines if not any(each in line for each in allowed)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
