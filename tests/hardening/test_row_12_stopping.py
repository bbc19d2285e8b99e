"""Row 12: SIGTERM under load, a second one, SIGINT, SIGKILL, and signals during the start."""

import re
import signal
import socket
import subprocess
import time

import httpx2
import psutil

from tests.hardening.injection import CHAT, Asked, ask, ask_all, drawing, question
from tests.hardening.target import COMMANDS, Target

EXIT_S = 15.0
"""For the interpreter to take itself apart on a busy machine."""

LONG = 900
"""Tokens that take far longer than what a test waits for."""


def load(*, max_tokens: int = 300, num: int = 10) -> list[tuple]:
    """Streams, whole answers and pictures; more than run at once."""
    streams = [question(seed, stream=True, max_tokens=max_tokens) for seed in range(num)]
    whole = [question(seed, max_tokens=max_tokens) for seed in range(num, 2 * num)]
    return [*streams, *whole, drawing(1), drawing(2)]


def assert_nobody_is_left(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=EXIT_S)
    assert not alive, f"left behind: {alive}"


def refused_while_draining(target: Target) -> None:
    """Not ready, still alive, and no new work."""
    with target.client() as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert client.get("/livez").status_code == 200
        late = client.post(CHAT, json=question(5)[1])
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "draining"
    assert 1 <= int(late.headers["retry-after"]) <= 120
    assert late.headers["connection"] == "close"


def test_what_runs_is_finished_and_what_comes_is_refused(start_target) -> None:
    delay_s = 3.0
    target: Target = start_target(drain_delay_s=delay_s, grace_s=60)
    expected = [seen.text for seen in ask_all(target, load())]
    processes, asked = target.processes(), Asked(target, load())
    asked.wait_until_begun(target.patience_s)
    begun = time.monotonic()
    target.signal(signal.SIGTERM)
    while "draining" not in target.log_text():
        assert time.monotonic() - begun < target.patience_s
        time.sleep(0.01)
    # As long as something runs, and for the delay even if nothing does any more.
    num_refused = 0
    while time.monotonic() - begun < delay_s - 0.5:
        refused_while_draining(target)
        num_refused += 1
        time.sleep(0.2)
    assert num_refused > 1
    seen = asked.answers()
    # Those that had not been submitted when the signal came are refused; a client may retry them.
    for each, text in zip(seen, expected, strict=True):
        assert not each.broke
        assert each.error in (None, "draining")
        assert each.error or each.text == text
    assert sum(each.error is None for each in seen) >= 10, "every stream had begun"
    assert target.wait(EXIT_S) == 0
    assert_nobody_is_left(processes)


def test_each_request_ends_once_in_the_log(start_target) -> None:
    """Those that ended well, those that were refused, left, or met the end of the grace time."""
    target: Target = start_target(drain_delay_s=0, grace_s=2)
    requests = load(num=20, max_tokens=LONG)
    asked = Asked(target, requests[:20])
    asked.wait_until_begun(target.patience_s)
    early = ask_all(target, [question(seed, max_tokens=4) for seed in range(5)])
    with target.connect() as leaving:
        leaving.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000\r\n\r\n{"
        )
        time.sleep(0.2)
    target.signal(signal.SIGTERM)
    seen = [*early, *asked.answers()]
    assert target.wait(EXIT_S) == 0
    ids = [each.headers["x-request-id"] for each in seen if "x-request-id" in each.headers]
    assert len(ids) == len(seen)
    text = target.log_text()
    for request_id in ids:
        lines = re.findall(rf"request_id\W+{re.escape(request_id)}\b.*status", text)
        assert len(lines) == 1, request_id


def test_what_does_not_end_in_time_ends_with_an_error(start_target) -> None:
    grace_s = 1.0
    target: Target = start_target(drain_delay_s=0.5, grace_s=grace_s)
    requests = load(max_tokens=LONG, num=16)
    processes, asked = target.processes(), Asked(target, requests)
    asked.wait_until_begun(target.patience_s)
    begun = time.monotonic()
    target.signal(signal.SIGTERM)
    seen = asked.answers()
    assert time.monotonic() - begun < grace_s + EXIT_S
    for each in seen:
        assert not each.broke, "silence instead of an end"
        assert each.error in (None, "draining")
    assert any(each.error for each in seen[:16]), "an error event in a stream"
    assert any(each.error and each.status == 503 for each in seen[16:]), "an error in JSON"
    assert target.wait(EXIT_S) == 0
    assert_nobody_is_left(processes)


def test_a_second_sigterm_does_not_wait(start_target) -> None:
    target: Target = start_target(drain_delay_s=600, grace_s=3600)
    processes, asked = target.processes(), Asked(target, load(max_tokens=LONG, num=16))
    asked.wait_until_begun(target.patience_s)
    target.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert target.process.poll() is None
    target.signal(signal.SIGTERM)
    assert target.wait(EXIT_S) == 0
    asked.answers()
    assert_nobody_is_left(processes)


def test_sigint_skips_the_delay_and_finishes_what_runs(start_target) -> None:
    target: Target = start_target(drain_delay_s=600, grace_s=3600)
    expected = ask(target, question(1, stream=True, max_tokens=300)).text
    asked = Asked(target, [question(1, stream=True, max_tokens=300)])
    asked.wait_until_begun(target.patience_s)
    target.signal(signal.SIGINT)
    assert [seen.text for seen in asked.answers()] == [expected]
    assert target.wait(EXIT_S) == 0


def test_sigkill_leaves_nothing_behind(start_target) -> None:
    target: Target = start_target()
    processes, address = target.processes(), (target.host, target.port)
    asked = Asked(target, load(max_tokens=LONG))
    asked.wait_until_begun(target.patience_s)
    target.signal(signal.SIGKILL)
    assert target.wait(EXIT_S) == -signal.SIGKILL
    # A connection that breaks off is no end: nobody takes a half for a whole.
    assert all(seen.broke for seen in asked.answers()[:10])
    assert_nobody_is_left(processes)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)


def test_signals_are_heard_while_the_model_is_loaded(
    target_kind: str, tiny_checkpoint, tmp_path
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(COMMANDS[target_kind](tiny_checkpoint), stderr=file)
    try:
        deadline = time.monotonic() + 30
        while "Loading" not in log.read_text():
            assert time.monotonic() < deadline, "it does not say that it loads"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(EXIT_S) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_dead_parent_changes_nothing(target_kind: str, tiny_checkpoint, tmp_path) -> None:
    """As under a shell that was closed."""
    log = tmp_path / "log"
    command = " ".join(COMMANDS[target_kind](tiny_checkpoint))
    shell = subprocess.run(
        ["sh", "-c", f"{command} >{log} 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    server = psutil.Process(int(shell.stdout))
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Listening on (http\S+)\s", log.read_text())):
            assert time.monotonic() < deadline, "it does not start"
            time.sleep(0.05)
        assert httpx2.get(f"{found[1]}/readyz", trust_env=False).status_code == 200
        server.send_signal(signal.SIGTERM)
        assert_nobody_is_left([server])
        assert "Drained" in log.read_text()
    finally:
        if server.is_running():
            server.kill()
