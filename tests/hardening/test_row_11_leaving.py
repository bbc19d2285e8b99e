"""Row 11: clients that leave at each of eight stages of their request.

The model here is so small that whatever nobody cancels has ended by itself before anybody looks: so
its steps, or its pictures' pixels, are slowed down, and what was saved is counted.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest

from tests.hardening.injection import NOT_MET, Faults, ask_all, drawing, image_question, question
from tests.hardening.target import Target

AT_ONCE = 20
GONE_S = 5.0
"""From the last departure until nothing of them is left."""

SPARE_FDS = 4
STEP_S, TOKENS_A_STEP = 0.05, 64
STEPS = "janus:step_seconds_count"
FURTHER_STEPS = 2
"""That the engine may compute for somebody who has left."""


def send(connection: socket.socket, request: tuple, *, share: float = 1.0) -> None:
    """The head of a request and a share of its body."""
    path, fields = request
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[: int(share * len(body))])


def read_until(connection: socket.socket, words: bytes) -> None:
    """All up to these words, or to the end."""
    seen = b""
    while words not in seen and (piece := connection.recv(65_536)):
        seen += piece


def at_headers(connection: socket.socket, seed: int) -> None:
    send(connection, question(seed), share=0.0)
    time.sleep(0.01)


def at_half_the_body(connection: socket.socket, seed: int) -> None:
    send(connection, image_question(seed), share=0.5)
    time.sleep(0.01)


def in_the_queue(connection: socket.socket, seed: int) -> None:
    """Four at once from every client are more than run."""
    send(connection, question(seed, n=4, max_tokens=800))
    time.sleep(0.1)


def in_prefill(connection: socket.socket, seed: int) -> None:
    """A long prompt, of which a step computes a part."""
    words = f"{seed} " + "a large red circle to the left of a small blue square " * 12
    send(connection, question(seed, words=words))
    time.sleep(0.1 + 0.01 * (seed % 10))


def in_decode(connection: socket.socket, seed: int) -> None:
    send(connection, question(seed, stream=True, max_tokens=800))
    read_until(connection, b"data: ")


def at_some_code(connection: socket.socket, seed: int) -> None:
    """At the first part of a picture, or where that was left out under load, a whole one."""
    send(connection, drawing(seed, stream=True, n=2, partial_images=3))
    read_until(connection, b"event: ")


def in_vq_decoding(connection: socket.socket, seed: int) -> None:
    """The first picture is there: the others of the request are being decoded."""
    send(connection, drawing(seed, stream=True, n=4, partial_images=0))
    read_until(connection, b"completed")


def in_the_response(connection: socket.socket, seed: int) -> None:
    """Of several large pictures, the first bytes of the first."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    send(connection, drawing(seed, stream=True, n=3, partial_images=0, size="1024x1024"))
    read_until(connection, b"b64_json")


@dataclass(frozen=True)
class Stage:
    """How a client comes to leave, which fault slows what it leaves, and of what at least one for
    each of them is counted then."""

    reach: Callable[[socket.socket, int], None]
    fault: str = ""
    counted: str = ""
    of_task: str = ""


SLOW = f"step:1:slow:{STEP_S}"
CANCELLED, CUT_SHORT = "janus:requests_cancelled_total", "janus:client_disconnects_total"
STAGES = {
    "headers": Stage(at_headers),
    "body": Stage(at_half_the_body),
    "queued": Stage(in_the_queue, SLOW, CANCELLED, "chat"),
    "prefill": Stage(in_prefill, SLOW, CANCELLED, "chat"),
    "decode": Stage(in_decode, SLOW, CANCELLED, "chat"),
    "code": Stage(at_some_code, SLOW, CANCELLED, "image"),
    "vq": Stage(in_vq_decoding, "step:1:render_slow:0.1", CANCELLED, "image"),
    "response": Stage(in_the_response, "", CUT_SHORT),
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults") / "rules")


@pytest.fixture(scope="module")
def target(_make_target: Callable[..., Target], faults: Faults) -> Iterator[Target]:
    """Long prompts take several steps."""
    slowed = _make_target(env=faults.env, step_token_budget=TOKENS_A_STEP)
    yield slowed
    slowed.stop()


def leave(target: Target, stage: Callable[[socket.socket, int], None], *, times: int) -> None:
    def client(seed: int) -> None:
        with suppress(ConnectionError), target.connect() as connection:
            stage(connection, seed)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(client, range(times)):
            pass


def counted(target: Target, name: str, task: str = "") -> float:
    """The sum of a metric's series, or of those of one task."""
    series = target.metrics().items()
    is_of = f'task="{task}"' if task else ""
    return sum(value for key, value in series if key.startswith(name) and is_of in key)


def seconds_until_idle(target: Target) -> float:
    begun = time.monotonic()
    while busy := target._busy():
        assert time.monotonic() - begun < target.patience_s, f"still busy: {busy}"
        time.sleep(0.02)
    return time.monotonic() - begun


@pytest.fixture
def stayer(target: Target, faults: Faults) -> Iterator[None]:
    """Somebody who stays gets what it would have got alone."""
    requests = [question(1, max_tokens=200), drawing(2), image_question(3, stream=True)]
    before = [seen.text for seen in ask_all(target, requests)]
    yield
    faults.disarm()
    assert [seen.text for seen in ask_all(target, requests)] == before


def check_leaving(target: Target, faults: Faults, name: str, *, times: int) -> None:
    stage = STAGES[name]
    # Threads and connections that exist anyway do by now.
    leave(target, stage.reach, times=AT_ONCE)
    seconds_until_idle(target)
    process = psutil.Process(target.pid)
    num_fds, num_threads = process.num_fds(), process.num_threads()
    before = counted(target, stage.counted, stage.of_task)
    faults.arm(*filter(None, [stage.fault]))
    leave(target, stage.reach, times=times)
    num_steps = counted(target, STEPS)
    assert seconds_until_idle(target) < GONE_S
    assert counted(target, STEPS) <= num_steps + FURTHER_STEPS
    assert not stage.counted or counted(target, stage.counted, stage.of_task) >= before + times
    assert not stage.fault or faults.met(), NOT_MET
    faults.disarm()
    begun = time.monotonic()
    target.answer()
    assert time.monotonic() - begun < GONE_S
    deadline = time.monotonic() + GONE_S
    while process.num_fds() > num_fds + SPARE_FDS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.num_fds() <= num_fds + SPARE_FDS
    assert process.num_threads() <= num_threads


@pytest.mark.usefixtures("stayer")
@pytest.mark.parametrize("name", STAGES)
def test_leaving_frees_everything(target: Target, faults: Faults, name: str) -> None:
    check_leaving(target, faults, name, times=AT_ONCE)


@pytest.mark.slow
@pytest.mark.usefixtures("stayer")
@pytest.mark.parametrize("name", STAGES)
def test_leaving_two_hundred_times_frees_everything(
    target: Target, faults: Faults, name: str
) -> None:
    check_leaving(target, faults, name, times=200)
