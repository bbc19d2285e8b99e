"""From start to SIGTERM, with a process of its own, and the drain step by step in this one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest

from janus_core.engine import render
from server import dispatch
from tests.serving import ROOT, ServerInThread, server_process, wait_until

EXIT_S = 60
"""For the interpreter to take itself apart; a busy machine takes several seconds for that."""

CHAT = "/v1/chat/completions"
LONG = {
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "temperature": 1,
    "stream": True,
}


def test_sigterm_finishes_what_runs_and_exits_with_0(tiny_checkpoint: Path):
    named = {"JANUS_SERVED_MODEL_NAME": "mine"}
    with server_process(str(tiny_checkpoint), **named) as (process, url, banner):
        # What was loaded, where it runs, how much it holds, and where to find it.
        assert f"Model mine from {tiny_checkpoint}" in banner
        formats = r"\(.+ weights, .+ KV.*\)"
        device = rf"Device cpu, dtype float32 {formats}, attention \S+, \d+ compute threads"
        assert re.search(device, banner)
        assert re.search(r"KV pool of \d+ positions \(\d+ MiB\), context 1024", banner)
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == "mine"
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=LONG, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length"
        assert process.wait(timeout=EXIT_S) == 0


def test_a_second_signal_ends_the_process_at_once(tiny_checkpoint: Path):
    # Started from another directory, and the model given relative to that.
    with server_process(".", "--grace-s", "3600", cwd=tiny_checkpoint) as (process, url, _):
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == tiny_checkpoint.name
        with httpx2.stream(
            "POST", f"{url}/v1/chat/completions", json=LONG | {"n": 8}, timeout=60
        ) as reply:
            next(reply.iter_lines())
            process.send_signal(signal.SIGTERM)
            assert any("draining" in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            assert any("exiting at once" in line for line in process.stderr)
            assert process.wait(timeout=EXIT_S) == 0


def test_a_second_signal_waits_for_neither_a_hung_step_nor_the_grace_time(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dispatch, "STOP_S", 0.1)
    hung, gate = threading.Event(), threading.Event()
    with ServerInThread(model=str(tiny_checkpoint), grace_s=3600) as server:

        def hang() -> list:
            hung.set()
            gate.wait()
            return []

        monkeypatch.setattr(server.context.pipeline.engine, "step", hang)
        with server.client() as client, client.stream("POST", CHAT, json=LONG) as reply:
            assert reply.status_code == 200
            assert hung.wait(30)
            server.begin_drain()
            wait_until(lambda: server.context.dispatcher.draining)
            server.exit_at_once()
            try:
                server.wait(timeout_s=20)
            finally:
                gate.set()


def test_what_is_not_done_within_the_grace_time_ends_with_an_error(tiny_checkpoint: Path):
    with ServerInThread(model=str(tiny_checkpoint), grace_s=0.2) as server:
        with server.client() as client:
            body = LONG | {"n": 8}
            with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                lines = reply.iter_lines()
                next(lines)
                server.begin_drain()
                data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert json.loads(data[-1])["error"]["type"] == "service_unavailable"
        server.wait()


def test_an_idle_server_does_not_wait_for_the_grace_time(tiny_checkpoint: Path):
    limits = {"grace_s": 3600, "keep_alive_s": 3600}
    # Nor does an idle connection delay the end.
    with ServerInThread(model=str(tiny_checkpoint), **limits) as server, server.client() as client:
        client.get("/livez")
        server.begin_drain()
        server.wait(timeout_s=10)


def test_a_draining_server_refuses_new_work_and_is_not_ready(tiny_checkpoint: Path):
    with (
        ServerInThread(model=str(tiny_checkpoint), grace_s=30) as server,
        server.client() as client,
    ):
        with client.stream(
            "POST", "/v1/chat/completions", json=LONG | {"n": 8, "max_tokens": 300}
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.begin_drain()
            wait_until(lambda: server.context.dispatcher.draining)
            with server.client() as other:
                ready = other.get("/readyz")
                assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
                assert other.get("/livez").status_code == 200
                late = other.post("/v1/chat/completions", json=LONG)
                assert late.status_code == 503
                assert late.json()["error"]["code"] == "draining"
                assert int(late.headers["retry-after"]) >= 1
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"


def test_a_full_queue_is_429_with_a_time_to_come_back(tiny_checkpoint: Path):
    limits = {"max_sequences": 2, "max_waiting": 4}
    with ServerInThread(model=str(tiny_checkpoint), **limits) as server, server.client() as client:
        stats = server.context.dispatcher.service.stats
        with client.stream("POST", CHAT, json=LONG | {"n": 4}):
            wait_until(lambda: (stats().num_running, stats().num_waiting) == (2, 2))
            reply = client.post(CHAT, json=LONG | {"n": 4})
            assert reply.status_code == 429
            error = reply.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert int(reply.headers["retry-after"]) >= 1
            # Those that had been taken before the one too many are taken back.
            wait_until(lambda: stats().num_waiting <= 2)
        wait_until(server.is_idle)
        assert client.post(CHAT, json=LONG | {"max_tokens": 1}).status_code == 200


def test_more_answers_than_the_queue_can_hold_are_not_a_matter_of_load(tiny_checkpoint: Path):
    house = ServerInThread(model=str(tiny_checkpoint), max_waiting=2)
    with house as server, server.client() as client:
        reply = client.post(CHAT, json=LONG | {"n": 3})
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["param"] == "n"
        assert "at most 2" in error["message"]


def test_a_dead_engine_shows_at_once_and_nobody_waits(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    house = ServerInThread(model=str(tiny_checkpoint), watchdog_s=0)
    with house as server, server.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=LONG) as reply:
            lines = reply.iter_lines()
            next(lines)

            def fail(*_: object) -> None:
                raise RuntimeError("out of order")

            monkeypatch.setattr(server.context.pipeline.engine, "step", fail)
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert json.loads(data[-1])["error"]["code"] == "engine_dead"
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 503
        late = client.post("/v1/chat/completions", json=LONG)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "engine_dead")


def test_nobody_waits_for_a_renderer_that_hangs(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    gate, decode = threading.Event(), render._decode
    monkeypatch.setattr(render, "_decode", lambda *args: (gate.wait(60), decode(*args))[1])
    house = ServerInThread(model=str(tiny_checkpoint), max_step_s=2)
    with house as server, server.client() as client:
        reply = client.post("/v1/images/generations", json={"prompt": "a red circle"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
        assert client.get("/readyz").json() == {"status": "engine hung"}
        gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        reply = client.post("/v1/images/generations", json={"prompt": "a red circle"})
        assert reply.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_nobody_waits_for_a_hung_step_and_the_next_request_is_served(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
):
    with (
        ServerInThread(model=str(tiny_checkpoint), max_step_s=2) as server,
        server.client() as client,
    ):
        engine, gate = server.context.pipeline.engine, threading.Event()
        step = engine.step
        monkeypatch.setattr(engine, "step", lambda: (gate.wait(), step())[1])
        reply = client.post(CHAT, json=LONG | {"stream": stream})
        assert reply.status_code == (200 if stream else 503)
        assert client.get("/readyz").json() == {"status": "engine hung"}
        gate.set()
        error = json.loads(reply.text.strip().split("\n")[-1].removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("service_unavailable", "engine_dead")
        wait_until(server.is_idle)
        assert client.post(CHAT, json=LONG | {"max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (("--port", "70000"), {}, "port"),
        ((), {"JANUS_PROT": "1"}, "JANUS_PORT"),
        (("--config", "none.toml"), {}, "none.toml"),
    ],
)
def test_a_bad_start_is_one_clear_line(flags: tuple, environ: dict, words: str):
    result = run_serve(*flags, **environ)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_said_before_the_model_is_read():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run_serve("--port", str(taken.getsockname()[1]))
    assert result.returncode == 2
    assert "Cannot listen on 127.0.0.1" in result.stderr
    assert "loaded" not in result.stderr


def run_serve(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "serve", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
