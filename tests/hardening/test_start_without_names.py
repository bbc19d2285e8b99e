"""A start asks nobody for anything: no name is looked up and no connection is made.

The system calls are what `strace` sees of all threads and children, so that no library can do it
behind Python's back.
"""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.serving import JANUS, ROOT, wait_until

TRACE = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o")


def _traced(out: Path, *command: str) -> list[str]:
    return [*TRACE, str(out), *command]


def _calls_abroad(out: Path) -> list[str]:
    """Connections and datagrams by a network, and questions to the resolver of the machine. Not to
    nscd: what looks up a user asks it first, and a name that it does not know goes by a network."""
    lines = out.read_text("utf-8", errors="replace").splitlines()
    return [line for line in lines if re.search(r"AF_INET6?|systemd[/.]resolve", line)]


@pytest.fixture
def strace(tmp_path: Path) -> Path:
    """A folder for traces, where there is the right to make some; they show what they should."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    out = tmp_path / "control"
    code = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    done = subprocess.run(_traced(out, sys.executable, "-c", code), capture_output=True)
    if done.returncode != 0:
        pytest.skip("no right to trace")
    assert _calls_abroad(out), "the trace shows nothing"
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("model", ["embedded", "directory"])
def test_a_start_looks_up_no_name(strace: Path, tiny_checkpoint: Path, model: str) -> None:
    out, log = strace / "trace", strace / "log"
    models = [] if model == "embedded" else [str(tiny_checkpoint)]
    flags = ["--port", "0", "--threads", "1", "--drain-delay-s", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            _traced(out, str(JANUS), "serve", *models, *flags), cwd=ROOT, stderr=file
        )
    try:
        wait_until(lambda: b"Listening on" in log.read_bytes(), 120)
        assert _calls_abroad(out) == []
        url = re.search(r"Listening on (http\S+)", log.read_text("utf-8"))[1]
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
            body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert _calls_abroad(out) == []
    finally:
        # The tracer ends with what it traces.
        for server in psutil.Process(process.pid).children():
            server.send_signal(signal.SIGTERM)
        process.wait(60)
