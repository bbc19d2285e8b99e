"""Limits of a key: the arithmetic of buckets, and what a client sees of them."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_core.errors import RateLimitError
from server.principal import Limits, Principal
from server.rate_limits import RateLimits
from tests.serving import ServerInThread, wait_until

QUESTION = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
PICTURE = {"prompt": "a red circle"}
LONG = QUESTION | {"max_tokens": 400, "ignore_eos": True}


class Clock:
    """A time that goes on when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def principal(**limits: int) -> Principal:
    return Principal("ann", "ann", Limits(**limits))


def refused_for(limits: RateLimits, who: Principal) -> float:
    with pytest.raises(RateLimitError) as refused:
        limits.enter(who)
    return refused.value.retry_after_s


def test_requests_come_back_with_time() -> None:
    clock, ann = Clock(), principal(requests_per_minute=6)
    limits = RateLimits(clock)
    for _ in range(6):
        limits.enter(ann)
    assert refused_for(limits, ann) == pytest.approx(10)
    clock.now_s += 9.9
    assert refused_for(limits, ann) == pytest.approx(0.1)
    clock.now_s += 0.1
    limits.enter(ann)
    refused_for(limits, ann)
    clock.now_s += 3600
    for _ in range(6):
        limits.enter(ann)
    refused_for(limits, ann)


def test_waiting_as_told_is_enough() -> None:
    clock, ann = Clock(), principal(requests_per_minute=7)
    limits = RateLimits(clock)
    for _ in range(100):
        try:
            limits.enter(ann)
        except RateLimitError as error:
            clock.now_s += error.retry_after_s
            limits.enter(ann)


def test_what_is_not_used_is_given_back() -> None:
    clock, ann = Clock(), principal(tokens_per_minute=100)
    limits = RateLimits(clock)
    limits.reserve(ann, {"a": 60, "b": 30})
    with pytest.raises(RateLimitError):
        limits.reserve(ann, {"c": 20})
    limits.settle(ann, "a", used=20)
    limits.reserve(ann, {"c": 20})
    limits.settle(ann, "a", used=0)  # only once
    limits.settle(ann, "b", used=99)  # and nothing is taken beyond
    assert dict(limits.headers(ann))["x-ratelimit-remaining-tokens"] == "30"


def test_more_than_a_minutes_worth_needs_a_full_bucket_and_leaves_debt() -> None:
    clock, ann = Clock(), principal(tokens_per_minute=60)
    limits = RateLimits(clock)
    limits.reserve(ann, {"a": 90})
    with pytest.raises(RateLimitError) as refused:
        limits.reserve(ann, {"b": 1})
    assert refused.value.retry_after_s == pytest.approx(31)
    assert dict(limits.headers(ann)) == {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m30s",
    }
    clock.now_s += 31
    limits.reserve(ann, {"b": 1})


def test_keys_of_one_name_share_and_others_do_not() -> None:
    limits, ann = RateLimits(Clock()), principal(concurrent_requests=1)
    bob = Principal("bob", "bob", ann.limits)
    limits.enter(ann)
    refused_for(limits, Principal("ann", "ann", ann.limits))
    limits.enter(bob)
    limits.leave(ann)
    limits.enter(ann)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0, 90)), max_size=40))
def test_no_more_is_used_than_time_allows(work: list[tuple[int, int, float]]) -> None:
    """Over any time: what the bucket held, what came, and one debt of the last that was let in."""
    clock, ann, per_minute = Clock(), principal(tokens_per_minute=120), 120
    limits, used, largest = RateLimits(clock), 0, 0
    refused: list[float] = []
    for number, (cost, spent, wait_s) in enumerate(work):
        spent = min(spent, cost)
        try:
            limits.reserve(ann, {str(number): cost})
        except RateLimitError as error:
            refused.append(error.retry_after_s)
        else:
            limits.settle(ann, str(number), used=spent)
            used, largest = used + spent, max(largest, cost)
        clock.now_s += wait_s
    assert all(wait_s > 0 for wait_s in refused)
    assert used <= per_minute + (clock.now_s - 100) * per_minute / 60 + largest + 1e-6


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(
        "few:sk-few-requests requests_per_minute=2\n"
        "small:sk-small-work tokens_per_minute=200\n"
        "one:sk-one-at-a-time concurrent_requests=1\n"
        "free:sk-as-much-as-there-is\n"
    )
    with ServerInThread(model=str(tiny_checkpoint), api_keys_file=keys) as running:
        yield running


def post(server: ServerInThread, key: str, path: str, body: dict) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)


def test_too_many_requests_are_429_and_say_when_to_come_back(server: ServerInThread) -> None:
    for left in (1, 0):
        reply = post(server, "sk-few-requests", "/v1/chat/completions", QUESTION)
        assert reply.status_code == 200
        assert reply.headers["x-ratelimit-limit-requests"] == "2"
        assert reply.headers["x-ratelimit-remaining-requests"] == str(left)
        assert "x-ratelimit-limit-tokens" not in reply.headers
    reply = post(server, "sk-few-requests", "/v1/chat/completions", QUESTION)
    assert reply.status_code == 429
    assert 1 <= int(reply.headers["retry-after"]) <= 30
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert reply.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    # Looking is free, and others are not affected.
    headers = {"authorization": "Bearer sk-few-requests"}
    assert httpx2.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    reply = post(server, "sk-as-much-as-there-is", "/v1/chat/completions", QUESTION)
    assert reply.status_code == 200
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


def test_a_picture_costs_its_codes(server: ServerInThread) -> None:
    num_codes = server.context.pipeline.config.vq.num_codes
    reply = post(server, "sk-small-work", "/v1/images/generations", PICTURE)
    usage = reply.json()["usage"]
    assert usage["output_tokens"] == num_codes
    reply = post(server, "sk-small-work", "/v1/images/generations", {"prompt": "a", "n": 11})
    assert reply.status_code == 400  # refused for itself, before it costs anything
    left = int(
        post(server, "sk-small-work", "/v1/chat/completions", QUESTION).headers[
            "x-ratelimit-remaining-tokens"
        ]
    )
    assert left < 200 - usage["total_tokens"]
    for _ in range(12):
        reply = post(server, "sk-small-work", "/v1/images/generations", PICTURE | {"n": 4})
        if reply.status_code == 429:
            break
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    wait_until(server.is_idle)


def test_one_at_a_time(server: ServerInThread) -> None:
    replies: list[httpx2.Response] = []

    def ask() -> None:
        replies.append(post(server, "sk-one-at-a-time", "/v1/chat/completions", LONG))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: not server.is_idle())
    reply = post(server, "sk-one-at-a-time", "/v1/chat/completions", QUESTION)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    thread.join()
    assert replies[0].status_code == 200
    reply = post(server, "sk-one-at-a-time", "/v1/chat/completions", QUESTION)
    assert reply.status_code == 200


def test_a_client_that_leaves_gives_its_place_back(server: ServerInThread) -> None:
    for _ in range(3):
        with (
            httpx2.Client(base_url=server.url, timeout=60) as client,
            client.stream(
                "POST",
                "/v1/chat/completions",
                json=LONG | {"stream": True},
                headers={"authorization": "Bearer sk-one-at-a-time"},
            ) as reply,
        ):
            assert reply.status_code == 200
            next(reply.iter_lines())
        wait_until(server.is_idle, timeout_s=5)
    accounts = server.app.state.context.dispatcher._limits._accounts
    wait_until(lambda: accounts["one"].num_running == 0)
    assert not accounts["small"].reserved
