"""Every request ends exactly once, in the log and in the counters alike, whoever leaves and
whatever fails: started == ok + client_error + server_error + cancelled.
"""

import json
import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.hardening.injection import CHAT, IMAGES, Faults, Seen, ask, drawing, question
from tests.hardening.target import Target

NUM_REQUESTS, AT_ONCE = 2400, 24
MAX_WAITING = 4
"""So that some find no place."""

POISON = {900: "error", 901: "oom", 902: "nan"}
LEFT = "left"
"""A request whose client did not wait for its end."""


def some_request(rng: random.Random) -> tuple:
    """Good ones of every form, wrong ones, and some whose step fails."""
    stream = rng.random() < 0.5
    kinds = ["answer"] * 5 + ["picture", "wrong", "poison", "unknown"]
    match rng.choice(kinds):
        case "answer":
            return question(rng.randrange(100), stream=stream, max_tokens=rng.randrange(1, 60))
        case "picture":
            return drawing(rng.randrange(100), stream=stream)
        case "wrong":
            return question(1, top_p=7)
        case "poison":
            return question(rng.choice(list(POISON)), stream=stream)
    return question(1, model="nobody-knows-it")


def leave(target: Target, request: tuple, request_id: str, *, after_s: float) -> str:
    """Send all of it and go, before or after something of the answer has come."""
    path, body = request
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"x-request-id: {request_id}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    with suppress(ConnectionError), target.connect() as connection:
        connection.sendall(head.encode() + data)
        time.sleep(after_s)
        connection.shutdown(socket.SHUT_RDWR)
    return LEFT


def http_counts(target: Target) -> Counter:
    """Ended requests of the two routes, by status."""
    found: Counter = Counter()
    for series, value in target.metrics().items():
        if series.startswith("http_requests_total") and (CHAT in series or IMAGES in series):
            found[int(series.split('status="')[1].split('"')[0])] += int(value)
    return found


def lines_of(target: Target) -> dict[str, list[int]]:
    """The status of every line that tells the end of one of these requests."""
    found: dict[str, list[int]] = {}
    for line in target.log_text().splitlines():
        with suppress(ValueError):
            fields = json.loads(line)
            if str(fields.get("request_id", "")).startswith("once-") and "status" in fields:
                found.setdefault(fields["request_id"], []).append(fields["status"])
    return found


@pytest.mark.slow
def test_thousands_of_requests_end_once_each(start_target, tmp_path) -> None:
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(env=faults.env, log_format="json", max_waiting=MAX_WAITING)
    before = http_counts(target)
    faults.arm(*[f"seed:{seed}:{kind}" for seed, kind in POISON.items()])

    def client(number: int) -> Seen | str:
        rng, request_id = random.Random(number), f"once-{number}"
        request = some_request(rng)
        if rng.random() < 0.3:
            return leave(target, request, request_id, after_s=rng.random() * rng.choice((0, 0.1)))
        return ask(target, request, headers={"x-request-id": request_id})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(client, range(NUM_REQUESTS)))
    assert not target._wait_until_idle()
    counted = http_counts(target) - before
    lines = lines_of(target)
    faults.disarm()

    assert lines.keys() == {f"once-{number}" for number in range(NUM_REQUESTS)}
    assert all(len(statuses) == 1 for statuses in lines.values()), "ended twice"
    logged = Counter(status for (status,) in lines.values())
    assert logged == counted
    for number, each in enumerate(seen):
        if each != LEFT:
            # `ask` has seen that a stream has one end.
            assert not each.broke
            assert lines[f"once-{number}"] == [each.status]
    ended = {
        "ok": logged[200],
        "client_error": sum(logged[status] for status in range(400, 499)),
        "server_error": sum(logged[status] for status in range(500, 600)),
        "cancelled": logged[499],
    }
    assert sum(ended.values()) == NUM_REQUESTS
    assert all(ended.values()), f"not everything has happened: {ended}"
