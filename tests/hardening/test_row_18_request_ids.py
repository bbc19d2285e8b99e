"""Row 18: what a client calls its request decides nothing, least of all about other requests.

CVE-2026-112266: a one-character id aborted everybody whose id began with it. CVE-2026-105755: an id
was the key of a cache.
"""

import asyncio
import json
import re
import uuid
from collections.abc import Callable

import httpx2

from tests.hardening.target import GOOD_QUESTION, Target

PLAIN_IDS = [
    "a",
    "ab",
    "abc",
    "0",
    "-",
    "req_",
    "___decode_addr_1.2.3.4:5",
    "a" * 128,
    "chatcmpl-a",
]
HOSTILE_IDS = [
    "",
    " ",
    "a" * 129,
    "a b",
    '"},{"x":"',
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "a%0d%0aset-cookie:x",
    "\x1b[31mred",
    "ä",
    "a\tb",
    "*",
    "%",
    "{}",
    "$(id)",
]
REFUSED_IN_A_BODY = ["", "*"]
NUM_TOGETHER = 200


def answered_id(target: Target, given: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to an id as it is, sent by no library that would refuse."""
    head = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: "
    reply = target.exchange(head + given.encode() + b"\r\n\r\n").split(b"\r\n\r\n")[0].decode()
    status, *lines = reply.split("\r\n")
    headers = (line.split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), {name.lower(): value for name, value in headers}


def test_plain_ids_are_echoed_and_no_others(target: Target) -> None:
    for given in PLAIN_IDS:
        assert answered_id(target, given)[1]["x-request-id"] == given
    seen = []
    for given in HOSTILE_IDS:
        status, headers = answered_id(target, given)
        assert "set-cookie" not in headers
        if status == 400:  # no header at all, for the parser
            continue
        assert status == 200
        seen.append(headers["x-request-id"])
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", id) for id in seen), seen
    assert len(set(seen)) == len(seen) >= len(HOSTILE_IDS) - 3, "each gets one of its own"


async def ask(client: httpx2.AsyncClient, request_id: str, *, leave: bool) -> str | None:
    """The answer, or None of who left after its beginning."""
    body = GOOD_QUESTION | {"stream": True}
    if request_id not in REFUSED_IN_A_BODY:
        body |= {"request_id": request_id}
    headers = {"x-request-id": request_id}
    if leave:
        body |= {"max_tokens": 400, "ignore_eos": True}
    text = ""
    stream = client.stream("POST", "/v1/chat/completions", json=body, headers=headers)
    async with stream as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if leave and line:
                return None
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
    raise AssertionError("the answer has no end")


def test_who_leaves_ends_nobody_elses_request(target: Target) -> None:
    """Half of them leave, under the ids of those who stay and under beginnings of these."""
    ids = ["a", "ab", "abc", "abcd", "dup", *REFUSED_IN_A_BODY]
    with target.client() as client:
        for id in REFUSED_IN_A_BODY:
            reply = client.post("/v1/chat/completions", json=GOOD_QUESTION | {"request_id": id})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "request_id")
    golden = target.answer()

    async def all_of_them() -> list[str | None]:
        # One client: to make one for each would take longer than an answer.
        async with target.async_client() as client:
            return await asyncio.gather(
                *(
                    ask(client, ids[number // 2 % len(ids)], leave=number % 2 == 1)
                    for number in range(NUM_TOGETHER)
                )
            )

    answers = asyncio.run(all_of_them())
    assert answers[1::2] == [None] * (NUM_TOGETHER // 2)
    assert answers[0::2] == [golden] * (NUM_TOGETHER // 2)


def test_an_id_is_the_key_to_no_cache(target: Target) -> None:
    """The same id with another question gets another question's answer."""
    request_id = uuid.uuid4().hex
    golden = target.answer()
    other = {"messages": [{"role": "user", "content": "Name a color."}], "max_tokens": 8}
    with target.client(headers={"x-request-id": request_id}) as client:
        first, second, third = (
            client.post("/v1/chat/completions", json=body | {"request_id": request_id}).json()
            for body in (GOOD_QUESTION, other, GOOD_QUESTION)
        )
    texts = [each["choices"][0]["message"]["content"] for each in (first, second, third)]
    assert texts[0] == texts[2] == golden
    assert second["usage"]["prompt_tokens"] != first["usage"]["prompt_tokens"]


def test_an_administrator_ends_exactly_what_is_named(start_target: Callable[..., Target]) -> None:
    target = start_target(
        admin_key="sk-row-eighteen", headers={"authorization": "Bearer sk-row-eighteen"}
    )
    body = GOOD_QUESTION | {"max_tokens": 400, "ignore_eos": True}

    async def attack() -> tuple[list[int], int]:
        async with target.async_client() as client:
            asking = asyncio.ensure_future(
                client.post("/v1/chat/completions", json=body, headers={"x-request-id": "abc"})
            )
            while not (await client.get("/admin/state")).json()["requests"]:
                await asyncio.sleep(0.01)
            numbers = []
            for id in ("a", "ab", "*", "%", "ab*", "abcd", "ABC", "abc"):
                reply = await client.post("/admin/abort", params={"request_id": id})
                numbers.append(reply.json()["aborted"])
            return numbers, (await asking).status_code

    assert asyncio.run(attack()) == ([0] * 7 + [1], 503)
