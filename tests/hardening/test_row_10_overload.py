"""Row 10: more than the server can do. Exactly what fits is taken, the rest is told so at once, and
when the crowd is gone everything is as before.

Most peers let everything wait; then every client gives up before its answer comes.
"""

import asyncio
import time

import httpx2
import pytest

from tests.hardening.target import Target

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
LONG = {
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "temperature": 1,
    "max_tokens": 400,
}
CAPACITY, PLACES = 2, 4
REFUSED_WITHIN_S = 0.05
RECOVERS_WITHIN_S = 5.0


def gauge(target: Target, name: str) -> float:
    return sum(value for series, value in target.metrics().items() if name in series)


def wait_for(target: Target, *, running: int, waiting: int) -> None:
    deadline = time.monotonic() + target.patience_s
    while True:
        seen = (gauge(target, "num_requests_running"), gauge(target, "num_requests_waiting"))
        if seen == (running, waiting):
            return
        assert time.monotonic() < deadline, f"running and waiting are {seen}"
        time.sleep(0.01)


@pytest.fixture
def small(start_target) -> Target:
    return start_target(max_sequences=CAPACITY, max_waiting=PLACES)


async def post(client: httpx2.AsyncClient, path: str, body: dict) -> tuple[httpx2.Response, float]:
    started_s = time.monotonic()
    reply = await client.post(path, json=body)
    return reply, time.monotonic() - started_s


async def fill(target: Target, client: httpx2.AsyncClient) -> list[asyncio.Task]:
    """As many requests as run and wait; not one more."""
    tasks = []
    for num, waiting in ((CAPACITY, 0), (PLACES, PLACES)):
        tasks += [asyncio.create_task(post(client, CHAT, LONG)) for _ in range(num)]
        await asyncio.to_thread(wait_for, target, running=CAPACITY, waiting=waiting)
    return tasks


async def test_what_fits_is_answered_and_the_rest_refused_at_once(small: Target) -> None:
    async with small.async_client() as client:
        accepted = await fill(small, client)
        took_s = []
        for number in range(40):
            reply, refused_s = await post(client, RESPONSES if number % 2 else CHAT, LONG)
            if all(task.done() for task in accepted):
                break
            assert reply.status_code in (200, 400, 429)
            if reply.status_code != 429:
                break  # a place has become free
            assert 1 <= int(reply.headers["retry-after"]) <= 120
            assert reply.json()["error"]["code"] == "queue_full"
            took_s.append(refused_s)
        answers = [reply for reply, _ in await asyncio.gather(*accepted)]
    assert [reply.status_code for reply in answers] == [200] * (CAPACITY + PLACES)
    assert len(took_s) >= 5
    assert sorted(took_s)[len(took_s) * 9 // 10] < REFUSED_WITHIN_S


async def test_a_crowd_of_five_times_as_many_gets_as_many_answers(small: Target) -> None:
    """At the same moment: exactly those are answered that find a place."""
    async with small.async_client() as client:
        accepted = await fill(small, client)
        num_more = 4 * (CAPACITY + PLACES)
        crowd = await asyncio.gather(*[post(client, CHAT, LONG) for _ in range(num_more)])
        answers = await asyncio.gather(*accepted)
    statuses = [reply.status_code for reply, _ in [*answers, *crowd]]
    assert set(statuses) == {200, 429}
    assert {reply.status_code for reply, _ in answers} == {200}
    assert statuses.count(200) <= CAPACITY + 2 * PLACES


async def test_it_recovers(small: Target) -> None:
    """Two seconds of clients that come again at once, and then silence."""
    until_s = time.monotonic() + 2.0
    short = LONG | {"max_tokens": 40}

    async def insist(client: httpx2.AsyncClient) -> list[int]:
        statuses = []
        while time.monotonic() < until_s:
            reply, _ = await post(client, CHAT, short)
            statuses.append(reply.status_code)
            await asyncio.sleep(0.02)
        return statuses

    async with small.async_client() as client:
        found = await asyncio.gather(*[insist(client) for _ in range(5 * (CAPACITY + PLACES))])
        statuses = [status for each in found for status in each]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= CAPACITY + PLACES
        started_s = time.monotonic()
        reply, _ = await post(client, CHAT, short)
        assert reply.status_code == 200
        assert time.monotonic() - started_s < RECOVERS_WITHIN_S
