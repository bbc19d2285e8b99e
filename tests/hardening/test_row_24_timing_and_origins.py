"""Row 24: how long a refusal takes tells nothing of the key, and no other page may ask.

CVE-2025-59425: keys were compared byte by byte. CVE-2024-47165: the origin `null` was let in.
"""

import random
import socket
import statistics
import time
from collections.abc import Callable

import pytest

from tests.hardening.target import Target

KEY = "sk-row-twenty-four-0123456789abcdef0123456789abcdef"
OTHERS = ",".join(f"sk-another-of-many-keys-{number}" for number in range(20))
NUM_SAMPLES = 2500
"""Of each class."""
CROPPED = 0.1
"""Of the samples, the slowest: of the machine's other work they tell, and nothing of the key."""
LIMIT_T = 4.5

ORIGINS = [
    "null",
    "https://evil.example",
    "http://127.0.0.1",
    "http://localhost:3000",
    "https://127.0.0.1.evil.example",
    "file://",
    "*",
]


def refused_after_s(connection: socket.socket, key: str) -> float:
    """Time to the refusal of a key, over a connection that stays."""
    request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    started_s = time.perf_counter()
    connection.sendall(request)
    reply = connection.recv(65_536)
    took_s = time.perf_counter() - started_s
    assert reply.startswith(b"HTTP/1.1 401"), reply[:200]
    while not reply.endswith(b"}"):
        piece = connection.recv(65_536)
        assert piece, f"cut short: {reply[-200:]!r}"
        reply += piece
    return took_s


def welch_t(one: list[float], other: list[float]) -> float:
    """Of the difference of the means, whose samples may scatter differently."""
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.fmean(one) - statistics.fmean(other)) / spread**0.5


def test_welch_t_finds_a_difference() -> None:
    rng = random.Random(0)
    slow, fast = ([rng.gauss(mean, 1.0) for _ in range(NUM_SAMPLES)] for mean in (0.2, 0.0))
    assert welch_t(slow, fast) > LIMIT_T
    assert abs(welch_t(fast, [rng.gauss(0.0, 1.0) for _ in range(NUM_SAMPLES)])) < LIMIT_T


def test_time_tells_nothing_of_the_key(start_target: Callable[..., Target]) -> None:
    """Keys that differ in their last byte against keys that differ in their first, interleaved."""
    target = start_target(api_keys=f"{OTHERS},{KEY}", headers={"authorization": f"Bearer {KEY}"})
    classes = {"near": f"{KEY[:-1]}x", "far": f"x{KEY[1:]}"}
    samples: dict[str, list[float]] = {name: [] for name in classes}
    rng = random.Random(24)
    with target.connect() as connection:
        for name in classes:
            for _ in range(100):
                refused_after_s(connection, classes[name])
        for _ in range(NUM_SAMPLES):
            for name in rng.sample(sorted(classes), k=2):
                samples[name].append(refused_after_s(connection, classes[name]))
    limit_s = statistics.quantiles(
        [s for each in samples.values() for s in each], n=round(1 / CROPPED)
    )[-1]
    kept = {name: [s for s in each if s <= limit_s] for name, each in samples.items()}
    assert abs(welch_t(kept["near"], kept["far"])) < LIMIT_T


@pytest.mark.parametrize("origin", ORIGINS)
def test_no_page_of_another_site_is_let_in(target: Target, origin: str) -> None:
    asking = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    with target.client() as client:
        replies = [
            client.options("/v1/chat/completions", headers=asking),
            client.get("/v1/models", headers={"origin": origin, "cookie": "a=b"}),
            client.post("/v1/chat/completions", json={}, headers={"origin": origin}),
            client.get("/nowhere", headers={"origin": origin}),
        ]
    for reply in replies:
        assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_no_page_of_another_site_can_post_without_asking(target: Target) -> None:
    """What a browser sends without asking first: a form, or JSON under the name of a text."""
    foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    body = b'{"messages": [{"role": "user", "content": "hello"}]}'
    with target.client() as client:
        for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
            reply = client.post(
                "/v1/chat/completions", content=body, headers=foreign | {"content-type": media_type}
            )
            assert reply.status_code == 415
        assert client.post("/sdapi/v1/interrupt", headers=foreign).status_code == 403
        assert client.post("/v1/ask", data={"question": "x"}, headers=foreign).status_code == 403


def test_only_the_pages_on_the_list_are_let_in(start_target: Callable[..., Target]) -> None:
    page = "https://page.example.com"
    target = start_target(
        api_keys=KEY, allowed_origins=page, headers={"authorization": f"Bearer {KEY}"}
    )
    with target.client() as client:
        reply = client.get("/v1/models", headers={"origin": page})
        assert reply.headers["access-control-allow-origin"] == page
        assert "access-control-allow-credentials" not in reply.headers
        for origin in ORIGINS:
            reply = client.get("/v1/models", headers={"origin": origin})
            assert "access-control-allow-origin" not in reply.headers
