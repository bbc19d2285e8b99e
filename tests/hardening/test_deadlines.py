"""Deadlines: a request ends when its client's patience does, and nobody else's."""

import concurrent.futures

import pytest

from tests.hardening.target import Target

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
HEADER = "x-request-timeout-s"
LONG = {
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "temperature": 1,
    "max_tokens": 900,
    "n": 8,
}


def test_one_that_runs_too_long_is_ended_and_not_sent_again(target: Target) -> None:
    with target.client() as client:
        reply = client.post(CHAT, json=LONG, headers={HEADER: "0.3"})
    assert reply.status_code in (503, 504)
    assert reply.json()["error"]["code"] == "deadline_exceeded"
    if reply.status_code == 504:
        assert reply.headers["x-should-retry"] == "false"
    else:
        assert "retry-after" in reply.headers


def test_a_stream_ends_with_an_error(target: Target) -> None:
    body = LONG | {"stream": True}
    with (
        target.client() as client,
        client.stream("POST", CHAT, json=body, headers={HEADER: "0.3"}) as reply,
    ):
        lines = [line for line in reply.read().decode().splitlines() if line]
    assert "deadline_exceeded" in lines[-1]
    assert sum("deadline_exceeded" in line for line in lines) == 1
    assert "data: [DONE]" not in lines


def test_the_deadline_of_one_is_not_anothers(target: Target) -> None:
    short = LONG | {"n": 1, "max_tokens": 100, "seed": 5}
    with target.client() as client:
        alone = client.post(CHAT, json=short).json()["choices"]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            headers = {HEADER: "0.1"}
            late = [pool.submit(client.post, CHAT, json=LONG, headers=headers) for _ in range(2)]
            beside = [client.post(CHAT, json=short).json()["choices"] for _ in range(3)]
            statuses = {each.result().status_code for each in late}
    assert beside == [alone] * 3
    assert statuses <= {503, 504}


@pytest.mark.parametrize("value", ["0", "-5", "nan", "1e9", "999999999999", "soon", "1;2"])
def test_what_is_no_time_is_refused(target: Target, value: str) -> None:
    with target.client() as client:
        reply = client.post(IMAGES, json={"prompt": "a red circle"}, headers={HEADER: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == HEADER
