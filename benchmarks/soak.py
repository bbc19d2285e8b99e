"""A soak: half an hour of mixed traffic, watched, and every number compared at the end.

    python -m benchmarks.soak --minutes 30 --out benchmarks/results

Starts the server as a process of its own, and a real Prometheus that scrapes it each second.
Afterwards the totals in Prometheus must be those of the clients' own ledger, exactly; memory must
not grow with the number of requests; threads and descriptors must be back to their start; and
`promtool check metrics` must find nothing. Owns the run and the verdict; the traffic is in
`soak_clients`, what must be equal in `soak_books`. Invariant: a check that was not made is a
failure.
"""

import argparse
import asyncio
import datetime
import http.server
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

import psutil

from benchmarks import machine
from benchmarks.prometheus import Prometheus, complaints, is_installed
from benchmarks.serving import started
from benchmarks.soak_books import totals
from benchmarks.soak_clients import MIX, Clients, picture_bytes

MIB = 2**20
MAX_GROWTH_MIB = 1.0
"""Per 1,000 requests, after the first quarter."""
SETTLE_S = 60.0

# Caches that are full within minutes, so that what grows afterwards is no cache.
SETTINGS = {
    "port": "0",
    "served-model-name": "soak",
    "media-urls": "http",
    "allowed-media-networks": "127.0.0.0/8",
    "vision-cache-bytes": str(MIB),
    "result-store-bytes": str(MIB),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long, how hard, and what is soaked: `command` and `SETTINGS` start the server."""

    minutes: float
    model: str | None = None
    workers: int = 6
    sample_s: float = 10.0
    warm_up_rounds: int = 10
    seed: int = 0
    command: Sequence[str] = (sys.executable, "-m", "server", "serve")


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at one moment; `num_tasks` are those of the event loop, as Prometheus saw.
    `children_rss_bytes` is the memory of its helpers, who are replaced from time to time."""

    time_s: float
    num_requests: int
    rss_bytes: int
    num_fds: int
    num_threads: int
    num_tasks: int
    children_rss_bytes: int = 0


@dataclass(slots=True)
class Report:
    """What was seen. `differences` are the totals in which Prometheus and the ledger differ."""

    num_requests: int = 0
    duration_s: float = 0.0
    growth_mib: float = float("nan")
    start: Sample | None = None
    end: Sample | None = None
    samples: list[Sample] = field(default_factory=list)
    num_totals: int = 0
    differences: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    exit_code: int | None = None

    def failures(self) -> list[str]:
        """Why the soak is not passed; empty if it is."""
        assert self.start is not None
        assert self.end is not None
        checks = {
            f"memory grows by {self.growth_mib:.2f} MiB per 1,000 requests": (
                self.growth_mib < MAX_GROWTH_MIB  # false for NaN, too
            ),
            f"{self.end.num_threads} threads, {self.start.num_threads} at the start": (
                self.end.num_threads <= self.start.num_threads
            ),
            f"{self.end.num_fds} descriptors, {self.start.num_fds} at the start": (
                self.end.num_fds <= self.start.num_fds
            ),
            f"{self.end.num_tasks} tasks, {self.start.num_tasks} at the start": (
                self.end.num_tasks <= self.start.num_tasks
            ),
            f"totals differ: {self.differences}": not self.differences,
            "no totals were compared": self.num_totals > 0,
            f"surprises: {self.surprises[:5]}": not self.surprises,
            f"promtool complains: {self.complaints}": not self.complaints,
            f"the server ended with {self.exit_code}": self.exit_code == 0,
        }
        return [text for text, is_good in checks.items() if not is_good]


def main(words: Sequence[str] | None = None) -> int:
    """Run, print, write the reports; 1 if a check failed."""
    parser = argparse.ArgumentParser(description="A soak: mixed traffic, and the books compared.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", help="checkpoint; the embedded one if none is named")
    parser.add_argument("--workers", type=int, default=6, help="requests at any time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the dated JSON and Markdown reports")
    given = parser.parse_args(words)
    if not is_installed():
        parser.error("this needs the program prometheus (Debian: apt install prometheus)")
    options = Options(
        minutes=given.minutes, model=given.model, workers=given.workers, seed=given.seed
    )
    report = soak(options)
    about = machine.describe()
    if given.out:
        stem = given.out / f"{datetime.date.today()}-soak"
        content = {"options": asdict(options), "machine": about, "report": asdict(report)}
        content["options"]["command"] = "janus serve"
        stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        stem.with_suffix(".md").write_text(markdown(report, options), "utf-8")
    print(markdown(report, options))
    return 1 if report.failures() else 0


def soak(options: Options) -> Report:
    """Start everything, send the traffic, compare the books, stop everything."""
    with tempfile.TemporaryDirectory() as temporary, picture_host() as image_url:
        folder = Path(temporary)
        flags = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
        server = started(
            [*options.command, *([options.model] if options.model else []), *flags],
            log_path=folder / "server.log",
            environment={"OMP_NUM_THREADS": "1"},
        )
        with server as (process, url):
            with Prometheus(url.removeprefix("http://"), folder) as prometheus:
                report = asyncio.run(_drive(options, process, url, image_url, prometheus))
            process.terminate()
            report.exit_code = process.wait(SETTLE_S)
    return report


async def _drive(
    options: Options,
    process: subprocess.Popen[bytes],
    url: str,
    image_url: str,
    prometheus: Prometheus,
) -> Report:
    clients = Clients(url, image_url, seed=options.seed)
    report, ledger = Report(), clients.ledger
    started_s = time.monotonic()

    def sample() -> Sample:
        watched = psutil.Process(process.pid)
        return Sample(
            round(time.monotonic() - started_s, 1),
            ledger.num_requests,
            watched.memory_info().rss,
            watched.num_fds(),
            watched.num_threads(),
            int(prometheus.number("janus:event_loop_tasks")),
            _children_rss_bytes(watched),
        )

    async def settled_sample() -> Sample:
        """When nothing is at hand any more, neither there nor on the way."""
        await clients.close()
        await asyncio.to_thread(_wait_until_idle, prometheus)
        return sample()

    async def work(until_s: float) -> None:
        while time.monotonic() < until_s:
            await clients.one()

    # Every thread that is made on demand has been made then, and most caches are full.
    for _ in range(options.warm_up_rounds):
        at_once = [clients.one(kind) for kind in MIX for _ in range(options.workers)]
        await asyncio.gather(*at_once)
    report.start = await settled_sample()
    clients.reopen(url)
    end_s = time.monotonic() + 60 * options.minutes
    workers = asyncio.gather(*(work(end_s) for _ in range(options.workers)))
    while not workers.done():
        await asyncio.wait([workers], timeout=options.sample_s)
        report.samples.append(await asyncio.to_thread(sample))
    await workers
    report.duration_s = time.monotonic() - started_s
    report.end = await settled_sample()
    report.num_requests = ledger.num_requests
    report.surprises = ledger.surprises
    report.growth_mib = growth_mib(report.samples)
    expected = totals(ledger)
    report.num_totals = len(expected)
    report.differences = [
        f"{query} is {found:g}, the clients have {ours:g}"
        for query, ours in expected.items()
        if (found := prometheus.number(query)) != ours
    ]
    report.complaints = complaints(_page(url))
    return report


def growth_mib(samples: Sequence[Sample]) -> float:
    """MiB per 1,000 requests by Theil and Sen: the median slope between any two samples, of those
    after the first quarter. NaN if there are too few."""
    if not samples:
        return float("nan")
    quarter = samples[-1].num_requests / 4
    later = [each for each in samples if each.num_requests >= quarter]
    slopes = [
        (b.rss_bytes - a.rss_bytes) / MIB / (b.num_requests - a.num_requests) * 1000
        for a, b in combinations(later, 2)
        if b.num_requests > a.num_requests
    ]
    return median(slopes) if len(later) >= 8 and slopes else float("nan")


def markdown(report: Report, options: Options) -> str:
    """The report for people."""
    assert report.start is not None
    assert report.end is not None
    failures = report.failures()
    start, end = report.start, report.end
    rows = [
        ("requests", report.num_requests, ""),
        ("minutes", f"{report.duration_s / 60:.1f}", ""),
        ("requests at any time", options.workers, ""),
        (
            "memory per 1,000 requests",
            f"{report.growth_mib:+.3f} MiB",
            f"less than {MAX_GROWTH_MIB:g} MiB",
        ),
        ("resident memory", f"{start.rss_bytes / MIB:.0f} -> {end.rss_bytes / MIB:.0f} MiB", ""),
        (
            "resident memory of its children",
            f"{start.children_rss_bytes / MIB:.0f} -> {end.children_rss_bytes / MIB:.0f} MiB",
            "",
        ),
        ("descriptors", f"{start.num_fds} -> {end.num_fds}", "back to the start"),
        ("threads", f"{start.num_threads} -> {end.num_threads}", "back to the start"),
        ("tasks of the event loop", f"{start.num_tasks} -> {end.num_tasks}", "back to the start"),
        (
            "totals equal to the clients' own",
            f"{report.num_totals - len(report.differences)} of {report.num_totals}",
            "all",
        ),
        ("unexpected answers", len(report.surprises), "none"),
        ("complaints of promtool", len(report.complaints), "none"),
        ("exit code", report.exit_code, "0"),
    ]
    mix = ", ".join(f"{kind.replace('_', ' ')} {share:.0%}" for kind, share in MIX.items())
    lines = [
        "# Soak",
        "",
        f"Mixed traffic against one server ({mix}), scraped by Prometheus each second.",
        "",
        "| what | value | bar |",
        "|---|---|---|",
        *(f"| {what} | {value} | {bar} |" for what, value, bar in rows),
        "",
        "Passed." if not failures else "Failed:",
        *(f"- {failure}" for failure in failures),
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def picture_host() -> Iterator[str]:
    """Where the server can fetch pictures, on loopback; every path is another one."""

    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = picture_bytes(int(self.path.strip("/").removesuffix(".png")))
            self.send_response(200)
            self.send_header("content-type", "image/png")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as host:
        thread = threading.Thread(target=host.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()


def _wait_until_idle(prometheus: Prometheus) -> None:
    """Until two scrapes in a row see no request, and have seen the end of the last."""
    busy = "janus:num_requests_running + janus:num_requests_waiting"
    deadline = time.monotonic() + SETTLE_S
    num_idle = 0
    while num_idle < 2:
        prometheus.wait_for_scrapes(1)
        num_idle = num_idle + 1 if prometheus.number(busy) == 0 else 0
        if time.monotonic() > deadline:
            raise RuntimeError("the server does not become idle")


def _children_rss_bytes(process: psutil.Process) -> int:
    total = 0
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended since
            total += child.memory_info().rss
    return total


def _page(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        return reply.read().decode()


if __name__ == "__main__":
    sys.exit(main())
