"""Counters over a restart, and a server that is gone, as a real Prometheus sees them.

The clients' ledger is exact: what a process has counted when it ends was scraped, and the next one
begins at nothing.
"""

import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from benchmarks.prometheus import Prometheus, is_installed
from tests.hardening.target import GOOD_QUESTION, Target
from tests.serving import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="prometheus is not installed"),
]

ANSWERS = 'sum without (finished_reason) (janus:request_success_total{task="chat"})'
NUM_GOLDEN = 1
"""Answers that a target asks for at its start."""
LONG = GOOD_QUESTION | {"max_tokens": 600, "ignore_eos": True}
INTERVAL_S = 1


@pytest.fixture
def metrics_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_answer_is_lost_or_counted_twice_over_a_restart(
    start_target: Callable[..., Target], metrics_port: int, tmp_path: Path
) -> None:
    target = start_target(metrics_port=metrics_port, drain_delay_s=3 * INTERVAL_S, p0=False)
    with Prometheus(f"127.0.0.1:{metrics_port}", tmp_path, interval_s=INTERVAL_S) as prometheus:
        prometheus.wait_for_scrapes(1)  # Prometheus takes its time to begin
        for _ in range(3):
            target.answer()
        statuses: list[int] = []

        def ask() -> None:
            with target.client() as client:
                statuses.append(client.post("/v1/chat/completions", json=LONG).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: _num_running(metrics_port) == 1)
        target.signal(signal.SIGTERM)
        assert target.wait() == 0
        asking.join()
        assert statuses == [200]
        first = NUM_GOLDEN + 3 + 1
        assert prometheus.number(f"max_over_time({ANSWERS}[5m:1s])") == first
        target.restart()
        target.answer()
        wait_until(lambda: prometheus.number(ANSWERS) == NUM_GOLDEN + 1, 10)
        prometheus.wait_for_scrapes(2)
        assert prometheus.number(ANSWERS) == NUM_GOLDEN + 1
        assert prometheus.number(f"max_over_time({ANSWERS}[5m:1s])") == first
        counter = 'janus:request_success_total{task="chat",finished_reason="length"}'
        assert prometheus.number(f"resets({counter}[5m])") == 1
        assert prometheus.number("changes(process_start_time_seconds[5m])") == 1


def test_who_was_killed_is_down_within_two_scrapes(
    start_target: Callable[..., Target], metrics_port: int, tmp_path: Path
) -> None:
    target = start_target(metrics_port=metrics_port, p0=False)
    with Prometheus(f"127.0.0.1:{metrics_port}", tmp_path, interval_s=INTERVAL_S) as prometheus:
        prometheus.wait_for_scrapes(2)
        assert prometheus.number("up") == 1
        target.signal(signal.SIGKILL)
        killed_s = time.time()
        wait_until(lambda: prometheus.number("up") == 0, 10)
        assert prometheus.number("timestamp(up == 0)") - killed_s <= 2 * INTERVAL_S + 0.2


def _num_running(port: int) -> float:
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return float(re.search(r"^janus:num_requests_running\S* (\S+)$", text, re.MULTILINE)[1])
