"""A picture and a question in a form, as `curl -F` sends them."""

import base64
import json
from collections.abc import Callable

import httpx2
import pytest

from tests.server.test_chat import ask as chat
from tests.server.test_chat_turns import QUESTION, shown, token_said
from tests.serving import ServerInThread, wait_until

SHORT = {"max_tokens": "8", "ignore_eos": "true"}
ASK, CAPTION = "/v1/ask", "/v1/caption"
# What each asks, and what it is asked by.
BOTH = pytest.mark.parametrize(
    ("url", "key", "fields", "question"),
    [
        (ASK, "answer", {"question": QUESTION}, QUESTION),
        (CAPTION, "caption", {}, "Describe the image."),
    ],
)


@pytest.fixture
def image(image_url: str) -> bytes:
    return base64.b64decode(image_url.partition(",")[2])


@pytest.fixture
def post(client: httpx2.Client, image: bytes) -> Callable[..., httpx2.Response]:
    def post(url: str, *, files: list | None = None, headers: dict | None = None, **data: str):
        sent = [("image", ("x.png", image))] if files is None else files
        return client.post(url, data=SHORT | data, files=sent, headers=headers)

    return post


def expected(client: httpx2.Client, image_url: str, question: str, **body: object) -> dict:
    parts = [shown(image_url), {"type": "text", "text": question}]
    return chat(client, messages=[{"role": "user", "content": parts}], **body)


@BOTH
def test_the_answer_is_that_of_a_chat(
    client: httpx2.Client, post, image_url: str, url: str, key: str, fields: dict, question: str
):
    reply = post(url, **fields, seed="5", temperature="1.5")
    assert reply.status_code == 200, reply.text
    found, wanted = reply.json(), expected(client, image_url, question, seed=5, temperature=1.5)
    assert found.keys() == {key, "model", "finish_reason", "seed", "usage"}
    assert found[key] == wanted["choices"][0]["message"]["content"]
    assert (found["model"], found["finish_reason"], found["seed"]) == ("tiny", "length", 5)
    assert found["usage"]["completion_tokens"] == 8
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == 16


@BOTH
@pytest.mark.parametrize("by", ["field", "header"])
def test_a_stream_ends_with_the_whole_reply(
    post, url: str, key: str, fields: dict, question: str, by: str
):
    chosen = {"stream": "true"} if by == "field" else {"headers": {"accept": "text/event-stream"}}
    reply = post(url, **fields, **chosen)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [
        frame.split("\n") for frame in reply.text.split("\n\n") if frame not in ("", ": ping")
    ]
    names = [name for name, _ in events]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert set(names[:-1]) == {"event: delta"}
    assert names[-1] == "event: done"
    assert "".join(item["text"] for item in data[:-1]) == data[-1][key]
    whole = post(url, **fields).json()
    assert data[-1][key] == whole[key], question


def test_several_pictures_can_be_asked_about(
    client: httpx2.Client, post, image: bytes, image_url: str
):
    files = [("image", ("a.png", image)), ("image", ("b.png", image))]
    parts = [shown(image_url), shown(image_url), {"type": "text", "text": QUESTION}]
    wanted = chat(client, messages=[{"role": "user", "content": parts}])
    reply = post(ASK, files=files, question=QUESTION).json()
    assert reply["answer"] == wanted["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 1.5, "seed": 3, "top_p": 0.5},
        {"temperature": 1.5, "seed": 3, "top_k": 3},
        {"temperature": 1.5, "seed": 3, "min_p": 0.2},
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"repetition_penalty": 5},
        {"logit_bias": {"5": 100}},
        {"max_tokens": 3},
        {"stop_token_ids": list(range(172, 300))},
    ],
    ids=lambda field: [*field][-1],
)
def test_sampling_fields_are_read_from_texts(
    client: httpx2.Client, post, image_url: str, field: dict
):
    asked = {"max_tokens": 24} | field  # so long that it repeats itself
    texts = {name: json.dumps(value) for name, value in asked.items()}
    answer = post(ASK, question=QUESTION, **texts).json()["answer"]
    wanted = expected(client, image_url, QUESTION, **asked)
    assert answer == wanted["choices"][0]["message"]["content"]
    assert answer != post(ASK, question=QUESTION, max_tokens="24").json()["answer"]


def test_words_are_read_from_texts(client: httpx2.Client, post, server, image_url: str):
    parts = [shown(image_url), {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": parts}]
    _, word = token_said(client, server, messages=messages, max_tokens=24)
    asked = {"question": QUESTION, "max_tokens": "24"}
    for text, value in (
        ({"stop": word}, {"stop": word}),
        (
            {"stop": json.dumps([word]), "include_stop_str_in_output": "true"},
            {"stop": [word], "include_stop_str_in_output": True},
        ),
        ({"bad_words": json.dumps([word])}, {"bad_words": [word]}),
    ):
        answer = post(ASK, **asked, **text).json()["answer"]
        wanted = chat(client, messages=messages, max_tokens=24, **value)
        assert answer == wanted["choices"][0]["message"]["content"]
        assert answer != post(ASK, **asked).json()["answer"]


def test_a_caption_ends_where_the_model_ends_it(post, server: ServerInThread):
    bias = json.dumps({str(server.context.pipeline.tokenizer.eos_id): 100})
    ended = post(CAPTION, logit_bias=bias, ignore_eos="false").json()
    assert (ended["caption"], ended["finish_reason"]) == ("", "stop")
    longer = post(CAPTION, logit_bias=bias, ignore_eos="false", min_tokens="3").json()
    more = longer["usage"]["completion_tokens"] - ended["usage"]["completion_tokens"]
    assert (more, longer["finish_reason"]) == (3, "stop")


@pytest.mark.parametrize("limit", ["", "-1"])
def test_no_limit_is_as_much_as_the_context_holds(post, limit: str):
    reply = post(ASK, question=QUESTION, max_tokens=limit).json()
    assert reply["usage"]["total_tokens"] == 1024


@pytest.mark.parametrize(
    ("url", "changed", "param"),
    [
        (ASK, {}, "question"),
        (ASK, {"question": " "}, "question"),
        (ASK, {"question": "x " * 15_000}, "question"),
        (ASK, {"question": "x", "files": []}, "image"),
        (CAPTION, {"files": []}, "image"),
        (CAPTION, {"files": [("image", ("a", b"no image"))]}, "image"),
        (CAPTION, {"files": [("image", ("a", b""))]}, "image"),
        (CAPTION, {"files": [("image", ("a", b"x" * 600_000))]}, "image"),
        (CAPTION, {"files": [("image", ("a", b"x")), ("image", ("b", b"x"))]}, "image"),
        (ASK, {"question": "x", "files": [("image", ("a", b"x"))] * 4}, "image"),
        (CAPTION, {"temperature": "hot"}, "temperature"),
        (CAPTION, {"max_tokens": "0"}, "max_tokens"),
        (CAPTION, {"min_tokens": "9"}, "min_tokens"),
        (CAPTION, {"model": "gpt-5"}, "model"),
        (CAPTION, {"stream": "maybe"}, "stream"),
    ],
)
def test_a_refusal_names_the_field(post, url: str, changed: dict, param: str):
    if changed.get("files") == []:
        changed = changed | {"files": [("other", ("a", b"x"))]}
    reply = post(url, **changed)
    assert reply.status_code == (404 if param == "model" else 400), reply.text
    assert reply.json()["error"]["param"] == param


def test_only_forms_are_read(client: httpx2.Client, post):
    reply = client.post(ASK, json={"question": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
    other = post(ASK, question="x", headers={"sec-fetch-site": "cross-site"})
    assert other.status_code == 403


def test_a_client_that_leaves_cancels_the_request(server: ServerInThread, image: bytes):
    wait_until(server.is_idle)
    with (
        server.client() as client,
        client.stream(
            "POST",
            ASK,
            data={"question": QUESTION, "stream": "true", "ignore_eos": "true"},
            files={"image": image},
        ) as reply,
    ):
        next(reply.iter_lines())
    wait_until(server.is_idle, timeout_s=5)
