"""A network that resets, cuts into single bytes or swallows what was sent, at every stage.

Whatever happens to one connection, the standing postcondition holds for everybody else.
"""

import base64
import io
import json
from collections.abc import Callable

import httpx2
import pytest
from PIL import Image

from tests.hardening.target import GOOD_PROMPT, GOOD_QUESTION, Target
from tests.hardening.toxic_proxy import ToxicProxy, Toxics

CHAT, DRAW = "/v1/chat/completions", "/v1/images/generations"
NUM_BYTES = len(json.dumps(GOOD_QUESTION))

# In the first line, in the head, at its end, in the body, before its last byte.
REQUEST_AT = [0, 1, 20, 150, 400, NUM_BYTES // 2, NUM_BYTES]
# In the status line, the head and the body of a stream.
RESPONSE_AT = [0, 1, 40, 200, 500, 900]


def _client(proxy: ToxicProxy, timeout_s: float = 20.0) -> httpx2.Client:
    return httpx2.Client(base_url=proxy.url, timeout=timeout_s, trust_env=False)


@pytest.mark.parametrize("at", REQUEST_AT)
def test_a_reset_in_the_midst_of_a_request(target: Target, at: int) -> None:
    toxics, breaks = Toxics(reset_request_at=at), pytest.raises(httpx2.TransportError)
    with ToxicProxy(target.port, toxics) as proxy, _client(proxy) as client, breaks:
        client.post(CHAT, json=GOOD_QUESTION)


@pytest.mark.parametrize("path", [CHAT, DRAW])
@pytest.mark.parametrize("at", RESPONSE_AT)
def test_a_reset_in_the_midst_of_a_stream(target: Target, at: int, path: str) -> None:
    body = GOOD_QUESTION | {"max_tokens": 200, "ignore_eos": True}
    if path == DRAW:
        body = GOOD_PROMPT | {"partial_images": 2}
    toxics, breaks = Toxics(reset_response_at=at), pytest.raises(httpx2.TransportError)
    with ToxicProxy(target.port, toxics) as proxy, _client(proxy) as client, breaks:
        client.post(path, json=body | {"stream": True})


def test_single_bytes_in_both_directions_change_nothing(target: Target) -> None:
    with ToxicProxy(target.port, Toxics(segment_bytes=1)) as proxy, _client(proxy, 60) as client:
        for _ in range(2):
            reply = client.post(CHAT, json=GOOD_QUESTION)
            assert reply.json()["choices"][0]["message"]["content"] == target.answer()
        drawn = client.post(DRAW, json=GOOD_PROMPT).json()["data"][0]["b64_json"]
    with Image.open(io.BytesIO(base64.b64decode(drawn))) as image:
        assert image.tobytes() == target.picture()


@pytest.mark.parametrize("at", [0, 20, NUM_BYTES // 2])
def test_a_request_that_is_swallowed_is_given_up(
    start_target: Callable[..., Target], at: int
) -> None:
    target = start_target(header_timeout_s=1, body_timeout_s=1, keep_alive_s=1)
    toxics = Toxics(blackhole_request_at=at)
    with ToxicProxy(target.port, toxics) as proxy, _client(proxy) as client:
        try:
            assert client.post(CHAT, json=GOOD_QUESTION).status_code == 408
        except httpx2.RemoteProtocolError:
            assert at == 0, "only who has said nothing is left without an answer"


def test_a_stream_that_is_swallowed_ends_with_its_client(target: Target) -> None:
    toxics = Toxics(blackhole_response_at=300)
    body = GOOD_QUESTION | {"max_tokens": 900, "ignore_eos": True, "stream": True}
    gives_up = pytest.raises(httpx2.TimeoutException)
    with ToxicProxy(target.port, toxics) as proxy, _client(proxy, 2.0) as client, gives_up:
        client.post(CHAT, json=body)
