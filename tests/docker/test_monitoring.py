"""Alerts and dashboard: they speak of metrics that exist, and Prometheus can evaluate them.

The last test starts a server and a Prometheus and executes every query of the dashboard.
"""

import json
import math
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from benchmarks.prometheus import Prometheus, is_installed
from server import metrics
from tests.server.conftest import data_url
from tests.serving import ServerInThread
from tests.test_docs import PROCESS_METRICS

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "janus.json"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"

KNOWN = (
    {metrics.PREFIX + name for name in (*metrics.ENGINE_GAUGES, *metrics.INFOS)}
    | {metrics.PREFIX + metrics.MEMORY, metrics.PREFIX + metrics.EVENT_LOOP_TASKS}
    | {metrics.PREFIX + metrics.SLEEP}
    | {f"{metrics.PREFIX}{name}_total" for name in (*metrics.ENGINE_COUNTERS, *metrics.COUNTERS)}
    | {
        f"{metrics.PREFIX}{name}_{part}"
        for name in metrics.HISTOGRAMS
        for part in ("bucket", "sum", "count")
    }
    | {f"{metrics.HTTP_COUNTER}_total", "up"}
    | PROCESS_METRICS
)

# What a healthy server without a GPU need not have: refusals, fetched images, clients that left.
MAY_BE_EMPTY = re.compile(
    "_rejected|_rejections|connections_refused|image_fetch|gpu_memory_bytes|cancelled_steps_saved"
)

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def _names(expression: str) -> set[str]:
    """The metrics of an expression."""
    return set(re.findall(r"(?:janus:|http_requests|process_)\w+|\bup\b", expression))


def _panels() -> list[dict]:
    return [
        each for each in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if "targets" in each
    ]


def _queries() -> list[tuple[str, str]]:
    return [(panel["title"], each["expr"]) for panel in _panels() for each in panel["targets"]]


def _alerts() -> dict[str, dict]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_alerts_and_panels_speak_of_metrics_that_exist():
    expressions = [rule["expr"] for rule in _alerts().values()]
    for expression in (*expressions, *(query for _, query in _queries())):
        assert _names(expression), expression
        assert _names(expression) <= KNOWN, expression


def test_every_alert_says_how_urgent_it_is_and_is_documented():
    text = OPERATIONS.read_text("utf-8")
    table = dict(re.findall(r"^\| `(Janus\w+)` \| (\w+) \|", text, re.M))
    assert table == {name: rule["labels"]["severity"] for name, rule in _alerts().items()}
    assert set(table.values()) == {"page", "ticket"}


@needs_promtool
def test_every_alert_fires_when_it_should_and_only_then():
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text("utf-8"))["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checks if "exp_alerts" in check} == set(_alerts())


@needs_promtool
def test_the_configuration_of_prometheus_is_one():
    subprocess.run(["promtool", "check", "config", MONITORING / "prometheus.yml"], check=True)


def test_the_dashboard_is_one_that_grafana_can_place():
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert variables == {"datasource", "model_name"}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for each in (panel, *panel.get("targets", [])):
            if "datasource" in each:
                assert each["datasource"]["uid"] == "${datasource}"


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="prometheus is not installed (Debian: prometheus)")
def test_prometheus_executes_every_query_of_the_dashboard(tiny_checkpoint: Path, tmp_path: Path):
    server = ServerInThread(model=str(tiny_checkpoint), served_model_name="tiny")
    with server, Prometheus(server.url.removeprefix("http://"), tmp_path) as prometheus:
        end_s = time.monotonic() + 12
        with server.client() as client:
            while time.monotonic() < end_s:
                _traffic(client)
        prometheus.wait_for_scrapes(1)
        for title, query in _queries():
            query = query.replace("$model_name", "tiny").replace("$__rate_interval", "10s")
            assert "$" not in query
            values = [value for _, value in prometheus.query(query)]
            has_data = any(not math.isnan(value) for value in values)
            assert has_data or MAY_BE_EMPTY.search(query), f"{title}: {query}"
        for rule in _alerts().values():
            assert prometheus.query(rule["expr"]) == [], rule["alert"]


def _traffic(client) -> None:
    """Something for every panel; a picture that was not seen before."""
    image = Image.new("RGB", (40, 30), (time.monotonic_ns() % 256, 0, 0))
    content = [
        {"type": "text", "text": f"{time.monotonic()}"},
        {"type": "image_url", "image_url": {"url": data_url(image)}},
    ]
    question = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    assert client.post("/v1/chat/completions", json=question).status_code == 200
    drawing = {"prompt": "a circle", "stream": True, "partial_images": 1}
    assert client.post("/v1/images/generations", json=drawing).status_code == 200
