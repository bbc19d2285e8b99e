"""Row 9: a small request that asks for a huge amount of work is refused at once, and
what does nothing costs next to nothing.

`n` of a million ended servers before anything was scheduled (CVE-2026-34756), a list of prompts
did the same (PYSEC-2026-3704).
"""

import time

import httpx2
import pytest

from tests.hardening.target import GOOD_IMAGE, MIB, Target, png_url

CHAT, IMAGES, RESPONSES = "/v1/chat/completions", "/v1/images/generations", "/v1/responses"
X = {"role": "user", "content": "x"}
TEXT = {"type": "text", "text": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": png_url(GOOD_IMAGE)}}
ASK = {"messages": [X]}
SD = {"prompt": "x"}

HUGE = [
    *[(CHAT, ASK | {"n": n}) for n in (10**6, 2**31, 2**63, 2**64, -1, 0)],
    *[(CHAT, ASK | {"max_tokens": m}) for m in (2**31, 2**63, 10**30, -2, 0)],
    (CHAT, ASK | {"max_completion_tokens": 2**40}),
    (CHAT, ASK | {"min_tokens": 2**40}),
    (CHAT, ASK | {"best_of": 10**6}),
    (CHAT, ASK | {"top_logprobs": 10**9, "logprobs": True}),
    (CHAT, ASK | {"stop": ["x"] * 100_000}),
    (CHAT, ASK | {"stop_token_ids": [1] * 100_000}),
    (CHAT, ASK | {"logit_bias": {str(i): 1 for i in range(40_000)}}),
    (CHAT, ASK | {"bad_words": ["x"] * 100_000}),
    (CHAT, {"messages": [X] * 10_000}),
    (CHAT, {"messages": [X] * 30_000}),
    (CHAT, {"messages": [{"role": "user", "content": [TEXT] * 30_000}]}),
    (CHAT, {"messages": [{"role": "user", "content": [TEXT] * 100_000}]}),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE] * 1000}]}),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 200_000}]}),
    (CHAT, {"messages": [{"role": "user", "content": "\u0300" * 500_000}]}),
    *[(IMAGES, {"prompt": "x", "n": n}) for n in (10**6, 2**63, 0, -1)],
    *[
        (IMAGES, {"prompt": "x", "size": size})
        for size in ("100000x10000", "999999x999999", "1x1000000", "0x0", "9" * 4000 + "x1")
    ],
    (IMAGES, {"prompt": ["x"] * 10_000}),
    (IMAGES, {"prompt": "x" * 10**6}),
    (IMAGES, {"prompt": "x", "negative_prompt": "x" * 10**6}),
    (IMAGES, {"prompt": "x", "seed": list(range(100_000)), "n": 2}),
    (IMAGES, {"prompt": "x", "stream": True, "partial_images": 10**9}),
    (RESPONSES, {"input": "x", "max_output_tokens": 2**63}),
    (RESPONSES, {"input": [X] * 20_000}),
    ("/sdapi/v1/txt2img", SD | {"batch_size": 10**6}),
    ("/sdapi/v1/txt2img", SD | {"n_iter": 10**6, "batch_size": 10**6}),
    ("/sdapi/v1/txt2img", SD | {"width": 10**6, "height": 10**6}),
    ("/v1/images/decode", {"codes": [[0] * 16] * 1000}),
    ("/v1/images/decode", {"codes": [[0] * 100_000]}),
    ("/v1/images/encode", {"images": [png_url(GOOD_IMAGE)] * 1000}),
]
IDLE = {
    "tools": [{"type": "function", "function": {"name": "f"}}] * 10_000,
    "functions": [{"name": "f"}] * 10_000,
    "metadata": {str(i): "x" for i in range(10_000)},
    "prediction": {"type": "content", "content": "x" * 10**6},
    "nobody_knows_me": [[]] * 50_000,
}
"""What is documented as without effect, or unknown."""


def _name(case: tuple[str, dict]) -> str:
    path, body = case
    return f"{path.rpartition('/')[2]} {str(body)[-40:]}".encode("ascii", "replace").decode()


def quickest(client: httpx2.Client, path: str, body: dict) -> tuple[httpx2.Response, float]:
    """The last answer of three, and the seconds of the quickest."""
    best_s = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        reply = client.post(path, json=body)
        best_s = min(best_s, time.perf_counter() - started)
    return reply, best_s


@pytest.mark.parametrize("case", HUGE, ids=_name)
def test_a_huge_request_is_refused_at_once(target: Target, case: tuple[str, dict]) -> None:
    path, body = case
    before = target.rss_bytes()
    with target.client() as client:
        _, refusal_s = quickest(client, CHAT, {})
        reply, took_s = quickest(client, path, body)
    assert reply.status_code == 400, reply.text[:300]
    # Beside a small refusal; a body of a megabyte takes some of it to write, to send and to read.
    num_bytes = len(reply.request.content)
    assert took_s < max(0.05, 5 * refusal_s) + num_bytes / 4e6
    assert target.rss_bytes() - before < 64 * MIB


@pytest.mark.parametrize("field", IDLE)
def test_what_has_no_effect_costs_next_to_nothing(target: Target, field: str) -> None:
    plain = ASK | {"max_tokens": 1}
    before = target.rss_bytes()
    with target.client() as client:
        _, plain_s = quickest(client, CHAT, plain)
        reply, took_s = quickest(client, CHAT, plain | {field: IDLE[field]})
    assert reply.status_code == 200, reply.text[:300]
    assert took_s < max(0.05, 5 * plain_s) + len(reply.request.content) / 4e6
    assert target.rss_bytes() - before < 64 * MIB
