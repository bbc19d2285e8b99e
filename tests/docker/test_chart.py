"""The Helm chart, rendered by Helm itself: `make test-clients`.

Helm runs as a library in an environment of its own (`tests/clients/requirements/helm.txt`); no
cluster is asked.
"""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from server import metrics
from server.settings import Settings, load_settings

pytestmark = pytest.mark.packages

ROOT = Path(__file__).parents[2]
CHART = ROOT / "docker" / "helm"
DASHBOARD = ROOT / "docker" / "monitoring" / "grafana" / "dashboards" / "janus.json"
PYTHON = ROOT / "build" / "clients" / "helm" / "bin" / "python"
RENDER = """
import json, sys
from helm_python import chart
values = json.loads(sys.argv[2])
report = chart.lint(sys.argv[1], values, strict=True)
with chart.Chart.load(sys.argv[1]) as loaded:
    loaded.validate_schema(values)
    manifests = loaded.render(values, name="release", namespace="space")
json.dump({"lint": report, "manifests": manifests}, sys.stdout)
"""


def _helm(values: dict) -> subprocess.CompletedProcess:
    return subprocess.run(
        [PYTHON, "-c", RENDER, str(CHART), json.dumps(values)],
        capture_output=True,
        text=True,
        check=False,
    )


def _render(**values: object) -> dict[str, dict]:
    """The manifests by kind."""
    done = _helm(values)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["lint"]["errors"]
    assert all(message["severity"] <= 1 for message in result["lint"]["messages"])
    documents = [yaml.safe_load(text) for text in result["manifests"].values()]
    return {document["kind"]: document for document in documents if document}


def _container(manifests: dict[str, dict]) -> dict:
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


def _settings(manifests: dict[str, dict], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the server makes of the variables of its container."""
    for variable in _container(manifests)["env"]:
        assert set(variable) == {"name", "value"}
        monkeypatch.setenv(variable["name"], variable["value"])
    return load_settings()


def test_by_default_there_is_no_more_than_any_cluster_knows():
    assert set(_render()) == {"Deployment", "Service", "PodDisruptionBudget"}


def test_the_pod_has_no_rights_and_writes_nowhere_but_to_its_volumes():
    manifests = _render()
    pod, container = manifests["Deployment"]["spec"]["template"]["spec"], _container(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/models", "/tmp"}
    names = {volume["name"] for volume in pod["volumes"]}
    assert names == {mount["name"] for mount in container["volumeMounts"]}


def test_probes_ask_where_no_key_is_needed():
    container = _container(_render())
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe, path in (
        ("startupProbe", "/readyz"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert ports == {"http": 8000, "metrics": 9100}


def test_the_server_takes_what_the_chart_gives_it(monkeypatch: pytest.MonkeyPatch):
    values = {"max_body_bytes": 67_108_864, "prefix_cache": False, "image_share": 0.5}
    manifests = _render(settings=values | {"log_level": "debug"}, model="a/b")
    settings = _settings(manifests, monkeypatch)
    assert settings.model == "a/b"
    assert (settings.host, settings.port, settings.metrics_port) == ("0.0.0.0", 8000, 9100)
    assert settings.max_body_bytes == 67_108_864
    assert (settings.prefix_cache, settings.image_share) == (False, 0.5)
    grace_s = manifests["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > settings.grace_s


def test_keys_are_a_file_of_a_secret():
    manifests = _render(existingKeySecret="keys")
    env = {each["name"]: each["value"] for each in _container(manifests)["env"]}
    assert env["JANUS_API_KEYS_FILE"] == "/etc/janus/keys"
    volumes = manifests["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"secretName": "keys", "defaultMode": 0o440} in [each.get("secret") for each in volumes]


def test_the_key_of_the_administrator_is_a_secret():
    env = _container(_render(existingAdminKeySecret="admin"))["env"]
    (found,) = [each for each in env if each["name"] == "JANUS_ADMIN_KEY"]
    assert found["valueFrom"] == {"secretKeyRef": {"name": "admin", "key": "admin-key"}}
    assert not any(each["name"] == "JANUS_ADMIN_KEY" for each in _container(_render())["env"])
    assert "admin_key" in Settings.model_fields


def test_the_dashboard_is_the_one_of_this_directory():
    """Helm reads no file outside of a chart, but follows a link."""
    (manifest,) = [
        each for kind, each in _render(dashboard={"enabled": True}).items() if kind == "ConfigMap"
    ]
    assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(manifest["data"]["janus.json"]) == json.loads(DASHBOARD.read_text("utf-8"))


def test_a_service_finds_its_pods():
    manifests = _render()
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = (
        manifests["Service"]["spec"]["selector"],
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    )
    for selector in selectors:
        assert selector.items() <= labels.items()


def test_autoscaling_asks_for_metrics_that_exist():
    manifests = _render(
        autoscaling={"enabled": True, "maxReplicas": 3}, serviceMonitor={"enabled": True}
    )
    scaled = manifests["ScaledObject"]["spec"]
    name = manifests["Deployment"]["metadata"]["name"]
    assert scaled["scaleTargetRef"] == {"name": name}
    assert "replicas" not in manifests["Deployment"]["spec"], "two would count the pods"
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    assert "janus:num_requests_waiting{" in queries[0]
    assert "num_requests_waiting" in metrics.ENGINE_GAUGES
    assert "janus:request_queue_time_seconds_bucket{" in queries[1]
    assert "request_queue_time_seconds" in metrics.HISTOGRAMS
    assert 'task!="image"' in queries[1]
    assert "janus:image_queue_wait_seconds{" in queries[2]
    assert "image_queue_wait_seconds" in metrics.ENGINE_GAUGES
    assert all(f'namespace="space",service="{name}"' in query for query in queries)
    ports = {port["name"] for port in manifests["Service"]["spec"]["ports"]}
    assert {each["port"] for each in manifests["ServiceMonitor"]["spec"]["endpoints"]} <= ports


@pytest.mark.parametrize(
    "values",
    [
        {"replicaCount": "many"},
        {"replicas": 3},
        {"image": {"pullPolicy": "Sometimes"}},
        {"settings": {"port": 9000}},
        {"settings": {"Max-Sequences": 3}},
        {"autoscaling": {"enabled": True, "prometheus": "nowhere"}},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(values: dict):
    done = _helm(values)
    assert done.returncode != 0
    assert "values" in done.stderr.lower() or "schema" in done.stderr.lower()
