"""Row 5: NaN, infinities, halves of characters and strings for numbers are 400, never 500.

NaN passes every check made of `<` and `>` (CVE-2026-54235), and a handler that echoes it fails to
write its own answer.
"""

import json

import pytest

from tests.hardening.target import GOOD_IMAGE, Target, png_bytes

CHAT, IMAGES, RESPONSES = "/v1/chat/completions", "/v1/images/generations", "/v1/responses"
REQUIRED = {
    CHAT: '"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 1',
    IMAGES: '"prompt": "x"',
    RESPONSES: '"input": "x"',
    "/sdapi/v1/txt2img": '"prompt": "x"',
}
NUMBERS = {
    CHAT: (
        "temperature", "top_p", "top_k", "min_p", "n", "seed", "presence_penalty", "max_tokens",
        "frequency_penalty", "repetition_penalty", "min_tokens", "top_logprobs",
    ),
    IMAGES: ("n", "seed", "guidance_scale", "temperature", "top_p", "output_compression"),
    RESPONSES: ("temperature", "top_p", "max_output_tokens"),
    "/sdapi/v1/txt2img": ("cfg_scale", "seed", "width", "height", "batch_size", "n_iter"),
}  # fmt: skip
NO_NUMBERS = (
    "NaN", "-NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"NaN"', '"3"', '"0x1"', "true",
    "[1]", "{}", "1e308", "-1e308", "9" * 400, "0x10", "1_000", "\u0663", "1.5e", "--1",
)  # fmt: skip
# Where they are numbers, or lists of them, that the field takes.
ALLOWED = {(IMAGES, "seed", "[1]")}


@pytest.mark.parametrize(("path", "name"), [(p, n) for p, names in NUMBERS.items() for n in names])
def test_what_is_no_number_is_refused(target: Target, path: str, name: str) -> None:
    with target.client() as client:
        for value in NO_NUMBERS:
            body = f'{{{REQUIRED[path]}, "{name}": {value}}}'.encode()
            reply = client.post(path, content=body, headers={"content-type": "application/json"})
            wanted = 200 if (path, name, value) in ALLOWED else 400
            assert reply.status_code == wanted, (value, reply.text[:300])
            if wanted == 400:
                error = reply.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}
                assert error["param"] is None or error["param"].startswith(name), value


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-Infinity", "1e999", "x", "[]"])
def test_nor_is_it_a_number_in_a_form(target: Target, value: str) -> None:
    upload = {"image": ("x.png", png_bytes(GOOD_IMAGE), "image/png")}
    with target.client() as client:
        for name in ("temperature", "top_p", "max_tokens", "seed"):
            data = {"question": "x", name: value}
            reply = client.post("/v1/ask", files=upload, data=data)
            assert reply.status_code == 400, (name, reply.text)
            assert reply.json()["error"]["param"] == name


# Numbers at the end of what their kind can hold.
@pytest.mark.parametrize("value", [-0.0, 5e-324, 2.2e-308, 1e-40, 1.7e308])
@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_extreme_numbers_are_taken_or_refused(target: Target, name: str, value: float) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, name: value}
    with target.client() as client:
        reply = client.post(CHAT, json=body)
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 400:
        assert reply.json()["error"]["param"] == name


@pytest.mark.parametrize("path", REQUIRED)
def test_half_a_character_is_refused_wherever_it_stands(target: Target, path: str) -> None:
    for text in ("\\ud800", "\\udc00x", "x\\ud83d"):
        for body in (
            f'{{{REQUIRED[path]}, "temperature": "{text}"}}',
            f'{{{REQUIRED[path]}, "model": "{text}"}}',
            f'{{{REQUIRED[path]}, "{text}": 1}}',
            REQUIRED[path].replace('"x"', f'"{text}"').join("{}"),
        ):
            with target.client() as client:
                headers = {"content-type": "application/json"}
                reply = client.post(path, content=body.encode(), headers=headers)
            assert reply.status_code == 400, reply.text
            json.loads(reply.content)["error"]["message"].encode()
