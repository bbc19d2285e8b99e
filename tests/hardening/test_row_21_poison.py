"""Row 21: a request that fails its step every time, and a client that sends it again."""

import time

import httpx2
import pytest

from tests.hardening.injection import CHAT, NOT_MET, Faults, ask, question
from tests.hardening.target import Target

POISON = 900
NUM_POISON = 30
"""More than the steps in a row after which the engine would give up on a broken machine."""


@pytest.fixture
def under_fault(start_target, tmp_path):
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(env=faults.env)
    faults.arm(f"seed:{POISON}:error")
    yield target
    assert set(faults.met()) == {"error"}, NOT_MET
    faults.disarm()


def send_as_openai_does(target: Target, body: dict) -> list[httpx2.Response]:
    """What OpenAI's client does with an answer: up to two retries, unless it is told otherwise
    (`openai-python`, `_base_client.py`, `_should_retry`)."""
    replies = []
    with target.client() as client:
        while len(replies) < 3:
            replies.append(client.post(CHAT, json=body))
            hint = replies[-1].headers.get("x-should-retry")
            retryable = replies[-1].status_code in (408, 409, 429) or (
                replies[-1].status_code >= 500
            )
            if hint == "false" or (hint != "true" and not retryable):
                break
            time.sleep(0.05)
    return replies


def test_a_client_that_obeys_sends_poison_once(under_fault: Target) -> None:
    _, body = question(POISON)
    reply, *retries = send_as_openai_does(under_fault, body)
    assert not retries, "poison was sent again"
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "step_failed"


def test_one_that_does_not_obey_trips_no_restart_and_blocks_nobody(under_fault: Target) -> None:
    target = under_fault
    alone = ask(target, question(1))
    for _ in range(NUM_POISON):
        seen = ask(target, question(POISON))
        assert (seen.status, seen.error) == (500, "step_failed")
    assert target.process.poll() is None
    assert ask(target, question(1)).text == alone.text
    with target.client() as client:
        assert client.get("/readyz").status_code == 200
