"""Row 22: what stays behind after many requests, and a process that has no descriptor left.

Expected: memory, descriptors and threads do not grow with the number of requests, whatever became
of them; without descriptors the server neither spins nor gives up, and recovers by itself from
connections that say nothing.
"""

import resource
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil

from tests.hardening.target import GOOD_PROMPT, GOOD_QUESTION, MIB, Target

CHAT = "/v1/chat/completions"
DRAW = "/v1/images/generations"

NUM_ROUNDS = 60
MAX_GROWTH_BYTES = 8 * MIB
"""Over 300 requests. A picture's pixels that stay behind would be more."""


def one_of_each(client: httpx2.Client, number: int) -> None:
    """Five requests with five ends: answered, drawn, refused, unknown, abandoned."""
    question = GOOD_QUESTION | {"max_tokens": 2}
    assert client.post(CHAT, json=question).status_code == 200
    assert client.post(DRAW, json=GOOD_PROMPT | {"seed": number}).status_code == 200
    assert client.post(CHAT, json={"messages": number}).status_code == 400
    assert client.get(f"/nothing/{number}").status_code == 404
    body = GOOD_QUESTION | {"stream": True, "max_tokens": 200}
    with client.stream("POST", CHAT, json=body) as reply:
        next(reply.iter_bytes())


def footprint(target: Target) -> tuple[int, int]:
    """Descriptors and threads."""
    process = psutil.Process(target.pid)
    return process.num_fds(), process.num_threads()


def settled(target: Target) -> tuple[int, int]:
    """The same, when what clients left behind has been cleared away."""
    target.check_p0()
    least, deadline = footprint(target), time.monotonic() + 5
    while time.monotonic() < deadline:
        least = min(least, footprint(target))
        time.sleep(0.1)
    return least


def question_until_answered(target: Target) -> None:
    """Ask until there is an answer; until then a refusal, or no connection, but nothing else."""
    deadline = time.monotonic() + target.patience_s
    status = 503
    while status == 503:
        assert time.monotonic() < deadline, "it does not recover"
        with target.client() as client:
            status = client.post(CHAT, json=GOOD_QUESTION).status_code
        time.sleep(0.2)
    assert status == 200


def warm_up(target: Target) -> None:
    """Several at once: threads are made when the others have something to do."""

    def some(first: int) -> None:
        with target.client() as client:
            for number in range(first, first + 5):
                one_of_each(client, number)

    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(some, range(0, 40, 5)))


def test_nothing_stays_behind(target: Target):
    warm_up(target)
    before, rss_bytes = settled(target), target.rss_bytes()
    with target.client() as client:
        for number in range(NUM_ROUNDS):
            one_of_each(client, number)
    after = settled(target)
    assert after[0] <= before[0], f"{after[0] - before[0]} descriptors stay behind"
    assert after[1] <= before[1], f"{after[1] - before[1]} threads stay behind"
    grown = target.rss_bytes() - rss_bytes
    assert grown <= MAX_GROWTH_BYTES, f"{grown / MIB:.1f} MiB stay behind"


def test_a_server_without_descriptors_recovers(start_target: Callable[..., Target]):
    target = start_target(header_timeout_s=2)
    process = psutil.Process(target.pid)
    num_files = process.num_fds() + 40
    _, hard = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (num_files, hard))
    silent = [socket.create_connection((target.host, target.port)) for _ in range(150)]
    try:
        time.sleep(0.5)
        assert process.num_fds() >= num_files - 5, "the descriptors are not used up"
        cpu_before = sum(process.cpu_times()[:2])
        time.sleep(1)
        assert sum(process.cpu_times()[:2]) - cpu_before < 0.8, "it spins"
        # The silent ones stay where they are; it is the server that has to let go of them.
        question_until_answered(target)
    finally:
        for connection in silent:
            connection.close()
        process.rlimit(resource.RLIMIT_NOFILE, (hard, hard))
