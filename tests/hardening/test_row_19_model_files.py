"""Row 19: a model's directory is data, and a model's name is a name.

Pickles (as CVE-2025-32434), remote code by `auto_map` (as CVE-2026-27893), damaged weights, and
names that are paths (as CVE-2024-37032).
"""

import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.hardening.target import (
    COMMANDS,
    GOOD_IMAGE,
    GOOD_PROMPT,
    GOOD_QUESTION,
    START_S,
    Target,
    png_bytes,
)
from tests.serving import ROOT


@dataclass(frozen=True)
class Start:
    """How a start ended: `code` is None for a server that had to be killed."""

    code: int | None
    output: str


@pytest.fixture
def start(target_kind: str, patience_s: float) -> Callable[[Path], Start]:
    """Starts a server over a directory that it should refuse."""

    def run(directory: Path) -> Start:
        command = COMMANDS[target_kind](directory)
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"JANUS_LOG_LEVEL": "error"},
                timeout=START_S if target_kind == "janus" else patience_s,
            )
        except subprocess.TimeoutExpired as error:
            return Start(None, (error.output or b"").decode())
        return Start(done.returncode, done.stdout)

    return run


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be poisoned."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


class Planted:
    """Runs when somebody unpickles it."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self._marker,))


def test_a_planted_pickle_does_not_run(start, checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(marker), protocol=2))
    ended = start(checkpoint)
    assert not marker.exists()
    assert ended.code not in (0, None)
    assert _is_one_clean_line(ended.output), ended.output


def test_code_beside_the_weights_does_not_run(
    start_target, checkpoint: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("modeling_x.py", "configuration_x.py", "processing_x.py", "sitecustomize.py"):
        (checkpoint / name).write_text(code)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        values = json.loads((checkpoint / name).read_text())
        values["auto_map"] = {
            "AutoConfig": "configuration_x.Config",
            "AutoModelForCausalLM": "modeling_x.Model",
            "AutoProcessor": "processing_x.Processor",
            "AutoTokenizer": ["modeling_x.Tokenizer", None],
        }
        (checkpoint / name).write_text(json.dumps(values))
    start_target(model=checkpoint, env={"HF_HUB_OFFLINE": "1"})
    assert not marker.exists()


def test_a_damaged_file_ends_the_start_in_one_line(start, checkpoint: Path) -> None:
    """More such files, without a process for each: tests/core/checkpoint/test_header_fuzz.py."""
    file = checkpoint / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])
    ended = start(checkpoint)
    assert ended.code not in (0, None)
    assert _is_one_clean_line(ended.output), ended.output


NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "tiny/../tiny",
    "tiny/",
    "./tiny",
    "tiny\x00",
    "a\x00b",
    "http://127.0.0.1:1/model",
    "file:///etc/passwd",
    "hf.co/deepseek-ai/Janus-Pro-1B",
    "sha256:" + "../" * 20 + "etc/passwd",
    "TINY",
    " tiny",
    "",
    "%2e%2e%2fetc%2fpasswd",
    "x" * 10_000,
    "\u202eynit",
    "${jndi:ldap://x}",
)


def test_a_name_is_only_compared(target: Target) -> None:
    image = {"image": ("x.png", png_bytes(GOOD_IMAGE), "image/png")}
    replies = []
    with target.client() as client:
        for name in NAMES:
            replies += [
                client.post("/v1/chat/completions", json=GOOD_QUESTION | {"model": name}),
                client.post("/v1/images/generations", json=GOOD_PROMPT | {"model": name}),
                client.post("/v1/ask", files=image, data={"question": "what?", "model": name}),
                client.post("/v1/responses", json={"input": "hello", "model": name}),
            ]
    for reply in replies:
        assert reply.status_code == 404, f"{reply.status_code}: {reply.text[:300]}"
        error = reply.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert len(reply.content) < 1000, "the name is not worth repeating"


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "a%00b", "x" * 10_000])
def test_a_name_in_a_path_is_only_compared(target: Target, name: str) -> None:
    with target.client() as client:
        reply = client.get("/v1/models/" + name)
    assert reply.status_code in (404, 414, 431)
    assert "root:" not in reply.text


def _is_one_clean_line(output: str) -> bool:
    """What a start that is refused says: one line, and no stack."""
    return len(output.splitlines()) == 1 and "Traceback" not in output


def test_nothing_listens_but_http(target: Target) -> None:
    """Pickles over sockets were how most of the field's remote code ran."""
    listening = {
        connection.laddr
        for process in target.processes()
        for connection in process.net_connections("all")
        if connection.status == psutil.CONN_LISTEN or connection.family == socket.AF_UNIX
        if connection.laddr
    }
    assert listening == {(target.host, target.port)}
