"""The Dockerfile and the compose file: what can be said of them without an engine.

`docker/prove.sh` carries the Dockerfile out (docs/operations.md says how that was checked).
"""

import re
import subprocess
from pathlib import Path

import yaml

from server.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"))
    text = re.sub(r"\\\n\s*", "", text)
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def _services() -> dict[str, dict]:
    return yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]


def test_there_is_an_image_for_each_kind_of_device_and_the_small_one_is_the_default():
    stages = [rest.rpartition(" AS ")[2] for name, rest in _instructions() if name == "FROM"]
    assert {"cpu", "cuda"} <= set(stages)
    assert stages[-1] == "cpu"


def _stage(name: str) -> list[tuple[str, str]]:
    """The instructions of one stage, without those of its parent."""
    instructions, found = _instructions(), []
    for index, (instruction, rest) in enumerate(instructions):
        if instruction == "FROM" and rest.endswith(f" AS {name}"):
            for each in instructions[index + 1 :]:
                if each[0] == "FROM":
                    break
                found.append(each)
    return found


def test_triton_can_compile_and_load_what_it_needs_at_the_first_launch():
    """`triton/runtime/build.py`: a C compiler with its headers, and a cache to load from."""
    stage = _stage("cuda")
    (installed,) = [rest for name, rest in stage if name == "RUN"]
    assert {"gcc", "libc6-dev"} <= set(installed.split())
    assert [rest for name, rest in stage if name == "USER"] == ["0", "1000"]
    (env,) = [rest for name, rest in _instructions() if name == "ENV"]
    (cache,) = re.findall(r"TRITON_CACHE_DIR=(\S+)", env)
    (tmpfs,) = _services()["janus-gpu"]["tmpfs"]
    place, _, options = tmpfs.partition(":")
    assert cache.startswith(f"{place}/")
    assert "exec" in options.split(",")


def test_the_image_runs_without_rights_and_says_how_it_is():
    words = dict(_instructions())
    assert words["USER"] == "1000"
    assert "healthcheck.py" in words["HEALTHCHECK"]
    assert words["STOPSIGNAL"] == "SIGTERM"
    assert "org.opencontainers.image.title" in words["LABEL"]


def test_variables_of_the_image_are_settings():
    (env,) = [rest for name, rest in _instructions() if name == "ENV"]
    names = re.findall(rf"\b{ENV_PREFIX}(\w+)=", env)
    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for name, rest in _instructions():
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source


def test_the_proof_knows_every_instruction():
    script = (DOCKER / "prove.sh").read_text("utf-8")
    cases = set(re.findall(r"^ {12}([A-Z |]+)\)", script, re.M))
    known = {word.strip() for case in cases for word in case.split("|")} | {"FROM"}
    assert {name for name, _ in _instructions()} <= known


def test_scripts_are_bash():
    for script in DOCKER.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


def test_compose_starts_one_server_per_kind_of_device_beside_what_watches_it():
    services = _services()
    profiles = {name: service["profiles"] for name, service in services.items()}
    assert profiles == {
        "janus-cpu": ["cpu"],
        "janus-gpu": ["gpu"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }
    stages = {rest.rpartition(" AS ")[2] for name, rest in _instructions() if name == "FROM"}
    for name in ("janus-cpu", "janus-gpu"):
        service = services[name]
        assert service["build"]["target"] in stages
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        names = {key.removeprefix(ENV_PREFIX).lower() for key in service["environment"]}
        assert names <= Settings.model_fields.keys()
        grace_s = int(service["stop_grace_period"].removesuffix("s"))
        assert grace_s > Settings.model_fields["grace_s"].default


def test_nothing_of_compose_is_open_to_the_network():
    for service in _services().values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_files_that_compose_mounts_are_there():
    for service in _services().values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DOCKER / source).exists(), volume
    config = yaml.safe_load((DOCKER / "monitoring" / "prometheus.yml").read_text("utf-8"))
    (scrape,) = config["scrape_configs"]
    alias, _, port = scrape["static_configs"][0]["targets"][0].partition(":")
    server = _services()["janus-cpu"]
    assert alias in server["networks"]["default"]["aliases"]
    assert port == server["environment"]["JANUS_METRICS_PORT"]
