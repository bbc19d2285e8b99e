"""`janus bench` and `janus bench serve`, as a user runs them."""

import json
import sys
from pathlib import Path

import pytest

import server.cli
from tests.serving import ServerInThread


@pytest.fixture
def janus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `janus bench` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["janus", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            server.cli.main()
        out, err = capsys.readouterr()
        return raised.value.code or 0, out, err

    monkeypatch.delenv("JANUS_MODEL", raising=False)
    monkeypatch.setenv("JANUS_THREADS", "1")  # as all tests do
    return run


def test_the_engine_is_timed(janus, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    code, out, _ = janus("-m", tiny_checkpoint, "--rounds", 1, "-o", path)
    assert code == 0
    report = json.loads(path.read_text())
    assert report["rounds"] == 1
    for name, figures in report["figures"].items():
        assert 0 < figures["p50"] <= figures["max"], name
        assert name in out
    assert {"one picture", "8 pictures at once", "first word about an image"} <= {
        *report["figures"]
    }


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--attention", "triton"), "attention"),
        (("--deterministic",), "deterministic"),
        (("--deterministic", "--no-cuda-graphs"), "cuda_graphs"),
    ],
)
def test_what_needs_a_gpu_is_refused_by_name(
    janus, tiny_checkpoint: Path, words: tuple[str, ...], named: str
) -> None:
    code, out, err = janus("-m", tiny_checkpoint, "--device", "cpu", *words)
    assert code != 0
    assert named in err
    assert not out


def test_a_server_is_timed(janus, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with ServerInThread(model=str(tiny_checkpoint)) as running:
        words = ("-n", 6, "--max-tokens", 4, "--goodput", "e2el:60000", "--seed", 3)
        code, out, _ = janus("serve", running.url, *words, "-o", path)
    assert code == 0
    report = json.loads(path.read_text())
    assert (report["completed"], report["failed"], report["slo_attainment"]) == (6, 0, 1.0)
    assert report["settings"]["concurrency"] == 8
    assert "6 of 6 requests" in out
    assert "image_latency" in out


def test_failed_requests_fail_the_command(janus, tiny_checkpoint: Path) -> None:
    with ServerInThread(model=str(tiny_checkpoint)) as running:
        code, out, _ = janus("serve", running.url, "-n", 2, "--model", "another", "--warmups", 0)
    assert code == 1
    assert "0 of 2 requests" in out
    assert "failed: The model asked for does not exist" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("serve", "http://127.0.0.1:9"), 1, "No server answers"),
        (("serve", "--workload", "video"), 2, "workload must be one of"),
        (("serve", "--goodput", "speed:1"), 2, "is not a goal"),
        (("serve", "https://127.0.0.1"), 2, "is not an address"),
        (("--rounds", "0"), 2, "rounds"),
    ],
)
def test_errors_are_one_line(janus, words: tuple[str, ...], code: int, said: str) -> None:
    assert janus(*words)[0] == code
    assert said in "".join(janus(*words)[1:])
