"""Every parameter of every endpoint with values at the edges of what a number, a text or a list can
be: alone, and in pairs of what is accepted alone. The answer is 200 or 400, never more.

The parameters come from the server's own OpenAPI schema, so that none is left out (E7 of the list
of attacks; rare combinations have killed engines, as CVE-2026-44223 and CVE-2026-105756).
"""

import itertools
import json
import math
from collections.abc import Iterator

import httpx2
import pytest

from tests.hardening.target import GOOD_IMAGE, Target, png_url

ENDPOINTS = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
        "seed": 1,
    },
    "/v1/responses": {"input": "hello", "max_output_tokens": 4, "seed": 1},
    "/v1/images/generations": {"prompt": "a red circle", "seed": 1},
    "/v1/images/edits": {
        "prompt": "a red circle",
        "images": [{"image_url": png_url(GOOD_IMAGE)}],
        "seed": 1,
    },
    "/v1/images/encode": {"images": [png_url(GOOD_IMAGE)]},
    "/v1/images/decode": {"codes": [[0] * 16]},
    "/sdapi/v1/txt2img": {"prompt": "a red circle", "seed": 1},
}

EDGES = (
    None, True, False,
    0, 1, 2, -1, 3, 2**31, 2**63, -(2**63), 10**400,
    0.5, 1.0, -0.0, 5e-324, 1e308, 1e-46, math.pi,
    "", " ", "x", "auto", "1", "\x00", "\U0001f600", "x" * 40_000,
    [], [0], [1, 1], ["x"], [None], [[]], list(range(200)),
    {}, {"type": "x"}, {"0": 1}, {"x": {"x": {}}},
)  # fmt: skip

# What a guess would not hit, and the engine has to be right about.
SENSIBLE = {
    "temperature": (0, 1e-45, 2.0),
    "top_p": (1e-300, 1.0),
    "top_k": (1, -1, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logit_bias": ({"0": 100, "319": -100}, {str(i): -100 for i in range(320)}),
    "stop": (["\n", " ", "a", "\ufffd"],),
    "bad_words": (["a", "b"],),
    "stop_token_ids": ([0, 319],),
    "min_tokens": (4,),
    "n": (2,),
    "logprobs": (True,),
    "top_logprobs": (20,),
    "stream": (True,),
    "stream_options": ({"include_usage": True},),
    "response_format": ({"type": "json_object"}, "b64_json", "url"),
    "guided_regex": ("[ab]{3}",),
    "guided_choice": (["yes", "no"],),
    "modalities": (["text", "image"],),
    "guidance_scale": (0.0, 1.0, 100.0),
    "size": ("1x1", "16x16", "31x17"),
    "negative_prompt": ("blue",),
    "output_format": ("jpeg", "webp"),
    "output_compression": (0, 100),
    "partial_images": (0, 16),
    "strength": (0.0, 1.0),
    "codes": ([[0] * 16] * 2, [0, None, 5]),
    "seed": (0, 2**63 - 2, [5, 6]),
    "tools": ([{"type": "image_generation"}],),
    "include": (["message.output_text.logprobs"],),
}


@pytest.fixture(scope="module")
def schema(target: Target) -> dict:
    with target.client() as client:
        return client.get("/openapi.json").json()


def parameters_of(schema: dict, path: str) -> list[str]:
    """All fields of a JSON body, as the schema names them."""
    found = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in found:
        found = schema["components"]["schemas"][found["$ref"].rpartition("/")[2]]
    return sorted(found["properties"])


def send(client: httpx2.Client, path: str, body: dict) -> int:
    """The status; a stream is read to its end, and an error in it is one."""
    reply = client.post(path, json=body)
    if reply.status_code == 200 and "event-stream" in reply.headers["content-type"]:
        assert '"error"' not in reply.text.replace('"error":null', ""), reply.text[-500:]
    elif reply.status_code != 200:
        (error,) = reply.json().values()
        assert error.keys() == {"message", "type", "param", "code"}
        assert len(reply.content) < 1500, "input was echoed"
    return reply.status_code


def check_values(target: Target, schema: dict, path: str, *, every: int) -> None:
    """Send each sensible value of each parameter, and one in `every` of the edges: others for
    each parameter, so that all edges are seen."""
    good, bad = ENDPOINTS[path], []
    with target.client() as client:
        seen = {send(client, path, good)}
        for index, name in enumerate(parameters_of(schema, path)):
            for value in (*SENSIBLE.get(name, ()), *EDGES[index % every :: every]):
                status = send(client, path, good | {name: value})
                seen.add(status)
                if status not in (200, 400, 404):  # 404 is a model's name
                    bad.append((name, repr(value)[:60], status))
    assert not bad
    assert {200, 400} <= seen


@pytest.mark.parametrize("path", ENDPOINTS)
def test_some_values_of_every_parameter(target: Target, schema: dict, path: str) -> None:
    check_values(target, schema, path, every=7)


@pytest.mark.slow
@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_value_of_every_parameter(target: Target, schema: dict, path: str) -> None:
    check_values(target, schema, path, every=1)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/responses",
        *(pytest.param(path, marks=pytest.mark.slow) for path in ENDPOINTS if "images" in path),
        pytest.param("/sdapi/v1/txt2img", marks=pytest.mark.slow),
    ],
)
def test_accepted_values_in_pairs(target: Target, schema: dict, path: str) -> None:
    """Whatever is accepted alone may be refused together, but not fail."""
    good, bad, num_good = ENDPOINTS[path], [], 0
    with target.client() as client:
        accepted = {
            name: [value for value in values if send(client, path, good | {name: value}) == 200]
            for name in parameters_of(schema, path)
            if (values := SENSIBLE.get(name))
        }
        for body in pairwise({name: values for name, values in accepted.items() if values}):
            status = send(client, path, good | body)
            num_good += status == 200
            if status not in (200, 400):
                bad.append((json.dumps(body)[:300], status))
    assert not bad
    assert num_good or len(accepted) < 2


def pairwise(values: dict[str, list[object]]) -> Iterator[dict[str, object]]:
    """Bodies in which every two values of different parameters meet. Each body has two or three
    parameters: with all of them at once, the first contradiction would hide the rest."""
    open_pairs = [
        {one: a, other: b}
        for one, other in itertools.combinations(values, 2)
        for a, b in itertools.product(values[one], values[other])
    ]
    while open_pairs:
        body = open_pairs.pop()
        # A third value, so that one request shows three pairs.
        for index, pair in enumerate(open_pairs[-200:], max(0, len(open_pairs) - 200)):
            if len(body.keys() & pair.keys()) == 1 and all(
                body.get(name, value) == value for name, value in pair.items()
            ):
                body |= open_pairs.pop(index)
                break
        yield body


def test_fields_that_nobody_knows_change_nothing(target: Target) -> None:
    """Also those that make other servers run templates, load processors or key their caches."""
    body = ENDPOINTS["/v1/chat/completions"]
    unknown = {
        "mm_processor_kwargs": {"size": 10**9},
        "cache_salt": "\x00",
        "mm_hashes": ["x"],
        "documents": [{"text": "{{ 7 * 7 }}"}],
        "lora_path": "/etc/passwd",
        "kv_transfer_params": {"do_remote_prefill": True},
        "vllm_xargs": {"x": "y"},
        "trust_remote_code": True,
    }
    with target.client() as client:
        usual = client.post("/v1/chat/completions", json=body).json()["choices"]
        for name, value in unknown.items():
            reply = client.post("/v1/chat/completions", json=body | {name: value})
            assert reply.status_code in (200, 400), name
            assert reply.status_code == 400 or reply.json()["choices"] == usual, name


@pytest.mark.parametrize("name", ["chat_template", "chat_template_kwargs"])
def test_a_client_brings_no_template(target: Target, name: str) -> None:
    value = "{{ 7 * 7 }}" if name == "chat_template" else {"tools": "{{ 7 * 7 }}"}
    body = ENDPOINTS["/v1/chat/completions"] | {name: value}
    with target.client() as client:
        reply = client.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)
