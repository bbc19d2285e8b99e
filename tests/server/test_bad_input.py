"""What cannot be answered gets OpenAI's error object with the field named, and disturbs nobody."""

import base64
import io
import json
import socket
from http.client import HTTPResponse

import httpx2
import pytest
from PIL import Image

from tests.server.conftest import data_url
from tests.serving import ServerInThread, wait_until

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
HELLO = [{"role": "user", "content": "hello"}]


def refused(client: httpx2.Client, url: str, body: object, *, status: int = 400) -> dict:
    """The error object of a refusal; `body` may be raw bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post(url, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    (error,) = reply.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": " \n "}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages.1.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.image_url",
        ),
        ({"messages": [{"role": "user", "content": "word " * 50_000}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "word " * 1500}]}, "messages"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 2**31}, "min_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**63 - 1, "n": 2}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-46}, "repetition_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"stop_token_ids": [320]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": 5}, "stop.0"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"echo": True}, "echo"),
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "add_generation_prompt",
        ),
    ],
)
def test_chat_names_the_field(client: httpx2.Client, changed: dict, param: str):
    error = refused(client, CHAT, {"messages": HELLO, "max_tokens": 8} | changed)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \t"}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "word " * 1200}, "prompt"),
        ({"prompt": "w" * 32_001}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "100000x10000"}, "size"),
        ({"size": "0x16"}, "size"),
        ({"size": "-16x16"}, "size"),
        ({"size": 16}, "size"),
        ({"quality": "ultra"}, "quality"),
        ({"quality": 1}, "quality"),
        ({"response_format": "tiff"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression"),
        ({"output_compression": 50}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"stream": True, "partial_images": 17}, "partial_images"),
        ({"partial_images": 1}, "partial_images"),
        ({"seed": -1}, "seed.0"),
        ({"seed": [1, 2], "n": 3}, "seed"),
        ({"seed": []}, "seed"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": 101}, "guidance_scale"),
        ({"guidance_scale": 2, "cfg_scale": 3}, "cfg_scale"),
        ({"guidance_scale": 1, "negative_prompt": "x"}, "negative_prompt"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"image": "data:"}, "image"),
    ],
)
def test_images_name_the_field(client: httpx2.Client, changed: dict, param: str):
    error = refused(client, IMAGES, {"prompt": "a red circle"} | changed)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    ("url", "rest", "name"),
    [
        *[(CHAT, '"messages":[{"role":"user","content":"x"}]', name) for name in (
            "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "max_tokens", "n", "seed", "top_k",
        )],
        *[(IMAGES, '"prompt":"x"', name) for name in (
            "temperature", "top_p", "guidance_scale", "n", "seed",
        )],
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(
    client: httpx2.Client, url: str, rest: str, name: str, number: str
):
    error = refused(client, url, f'{{{rest},"{name}":{number}}}'.encode())
    assert error["type"] == "invalid_request_error"
    # NaN and Infinity are no JSON at all; 1e999 is, and belongs to a field.
    assert error["param"] is None if "N" in number or "I" in number else error["param"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        "{}".encode("utf-16"),
        b'{"messages": "\xff"}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b"\x00" * 100,
        b'{"messages": [' + b"[]," * 200_000 + b"1]}",
        b'{"a": {' + b'"b":1,' * 140_000 + b'"c": 1}}',
        # Half a surrogate pair is no character.
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_a_body_that_is_no_json_object(client: httpx2.Client, body: bytes):
    assert refused(client, CHAT, body)["type"] == "invalid_request_error"


def test_a_body_of_endless_values_is_refused_before_it_is_parsed(client: httpx2.Client):
    """Each would become an object on the event loop; one long string does not."""
    error = refused(client, CHAT, b'{"messages": [' + b"0," * 150_000 + b"0]}")
    assert (error["code"], error["param"]) == ("invalid_body", None)
    long = {"messages": HELLO, "max_tokens": 1, "user": "x" * 900_000}
    assert client.post(CHAT, json=long).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ],
    ids=["no HTTP", "bad length"],
)
def test_what_is_no_http_has_the_envelope_too(server: ServerInThread, head: bytes):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head)
        reply = HTTPResponse(connection)
        reply.begin()
        error = json.loads(reply.read())["error"]
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_http"


def test_an_error_never_repeats_the_input(client: httpx2.Client):
    canary = "s3cret" * 2000
    for changed in ({"temperature": canary}, {canary: 1, "n": 0}, {"messages": canary}):
        reply = client.post(CHAT, json={"messages": HELLO} | changed)
        assert reply.status_code == 400
        assert "s3crets3cret" not in reply.text
        assert len(reply.content) < 1000


@pytest.mark.parametrize("url", [CHAT, IMAGES])
def test_an_unknown_model_is_404(client: httpx2.Client, url: str):
    body = {"model": "gpt-5", "messages": HELLO, "prompt": "x"}
    error = refused(client, url, body, status=404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert client.get("/v1/models/gpt-5").status_code == 404
    # An image model's name is no name for chat.
    if url == CHAT:
        refused(client, url, body | {"model": "dall-e-2"}, status=404)


def test_only_json_is_read(client: httpx2.Client):
    body = json.dumps({"messages": HELLO})
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "", "image/png"):
        reply = client.post(CHAT, content=body, headers={"content-type": content_type})
        assert reply.status_code == 415
        assert reply.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(client: httpx2.Client, chunked: bool):
    body = json.dumps({"messages": HELLO, "padding": "x" * 2**20}).encode()
    content = iter([body[: 2**19], body[2**19 :]]) if chunked else body
    reply = client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"
    assert reply.headers["connection"] == "close"


def _png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    return buffer.getvalue()


def _url_of(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "invalid_image_url"),
        ("cat.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("http://127.0.0.1/cat.png", "invalid_image_url"),
        ("HTTPS://example.com/cat.png", "invalid_image_url"),
        ("data:image/png,raw", "invalid_image_url"),
        ("data:image/png;base64", "invalid_image_url"),
        ("data:text/plain;base64,aGk=", "unsupported_image_media_type"),
        ("data:image/png;base64,", "empty_image_file"),
        ("data:image/png;base64,####", "invalid_base64_image"),
        ("data:image/png;base64,aGk", "invalid_base64_image"),
        ("data:image/png;base64,a\u00e9==", "invalid_base64_image"),
        ("data:image/png;base64,aGk=", "invalid_image_format"),
        (_url_of(_png((64, 64))[:60]), "image_parse_error"),
        # 36 megapixels in a few kilobytes.
        (_url_of(_png((6000, 6000))), "image_too_large"),
        (_url_of(b"x" * (2**19 + 1)), "image_file_too_large"),
        (_url_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "invalid_image_format"),
    ],
)
def test_an_image_that_cannot_be_used(client: httpx2.Client, url: str, code: str):
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    error = refused(client, CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert (error["param"], error["code"]) == ("messages.0.content.1.image_url.url", code)


def test_more_images_than_allowed(client: httpx2.Client, image_url: str):
    parts = [{"type": "image_url", "image_url": {"url": image_url}}] * 4
    error = refused(client, CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert error["param"] == "messages"


@pytest.mark.parametrize(
    ("role", "param"), [("system", "messages.1.content"), ("assistant", "messages.1.content")]
)
def test_images_without_a_user_turn_to_show_them_are_refused(
    client: httpx2.Client, image_url: str, role: str, param: str
):
    """Those of an answer are shown by the user's next turn; here there is none."""
    parts = [{"type": "image_url", "image_url": {"url": image_url}}]
    messages = [*HELLO, {"role": role, "content": parts}]
    assert refused(client, CHAT, {"messages": messages})["param"] == param


def test_typed_placeholders_are_text(client: httpx2.Client, image_url: str):
    """More placeholders than images are no attack: what a user types is never a control token."""
    typed = "<image_placeholder>" * 3 + "<begin_of_image><|User|>"
    parts = [
        {"type": "text", "text": typed},
        {"type": "image_url", "image_url": {"url": image_url}},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    reply = client.post(CHAT, json=body)
    assert reply.status_code == 200
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 16


def test_refusals_lose_nothing(server: ServerInThread, client: httpx2.Client):
    """A request beside a storm of bad ones gets the answer it gets alone, and no slot is lost."""
    body = {"messages": HELLO, "max_tokens": 200, "ignore_eos": True, "seed": 1, "temperature": 1}
    alone = client.post(CHAT, json=body).json()["choices"]
    with (
        server.client() as other,
        other.stream("POST", CHAT, json=body | {"stream": True}) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        for changed in ({"n": 0}, {"logit_bias": {"999": 1}}, {"temperature": 9}, {"model": "x"}):
            assert client.post(CHAT, json={"messages": HELLO} | changed).status_code >= 400
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    deltas = [json.loads(item)["choices"][0]["delta"] for item in data[:-1]]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == alone[0]["message"]["content"]
    wait_until(server.is_idle)


def test_a_data_url_may_have_parameters(client: httpx2.Client):
    image = Image.new("RGB", (20, 20), "red")
    url = data_url(image).replace("data:image/png;", "DATA:image/PNG;charset=utf-8;")
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    assert client.post(CHAT, json=body).status_code == 200
