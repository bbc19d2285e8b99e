"""Texts nobody expects, at every door: empty ones, and all that Unicode allows and forbids."""

import json

import httpx2
import pytest

from tests.hardening.naughty import NAUGHTY
from tests.hardening.target import GOOD_IMAGE, Target, png_bytes, png_url

CHAT, IMAGES, ASK = "/v1/chat/completions", "/v1/images/generations", "/v1/ask"
IMAGE_PART = {"type": "image_url", "image_url": {"url": png_url(GOOD_IMAGE)}}
FILE = {"image": ("x.png", png_bytes(GOOD_IMAGE), "image/png")}


def chat(client: httpx2.Client, content: object, **more: object) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2, "temperature": 0}
    return client.post(CHAT, json=body | more)


def test_naughty_texts_are_texts(target: Target) -> None:
    bad = []
    with target.client() as client:
        for number, text in enumerate(NAUGHTY):
            fields = {"stop": [text[:200]], "user": text, "metadata": {text[:60]: text}}
            replies = {
                "chat": chat(client, "x" + text),
                "fields": chat(client, "x", **fields),
            }
            if number % 4 == 0:  # what costs more
                form = {"question": text, "max_tokens": "2"}
                replies["ask"] = client.post(ASK, files=FILE, data=form)
                replies["prompt"] = client.post(IMAGES, json={"prompt": "x" + text, "seed": 1})
            for where, reply in replies.items():
                json.loads(reply.content)
                if reply.status_code not in (200, 400):
                    bad.append((where, ascii(text[:40]), reply.status_code))
            if replies["chat"].status_code != 200:
                bad.append(("chat", ascii(text[:40]), replies["chat"].status_code))
    assert not bad


def test_naughty_texts_survive_a_stream(target: Target) -> None:
    """No frame is broken by what the text holds, and none ends inside a character."""
    with target.client() as client:
        for text in NAUGHTY[::5]:
            reply = chat(
                client,
                "x" + text,
                stream=True,
                max_tokens=6,
                continue_final_message=False,
                temperature=1,
                seed=len(text),
            )
            frames = reply.content.decode("utf-8").split("\n\n")
            assert frames[-2:] == ["data: [DONE]", ""]
            for frame in frames[:-2]:
                if not frame.startswith(":"):
                    json.loads(frame.removeprefix("data: "))


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("", 400),
        ("   ", 400),
        ("\n\t", 400),
        ([], 400),
        ([{"type": "text", "text": ""}], 400),
        ([{"type": "text", "text": " "}, {"type": "text", "text": ""}], 400),
        (None, 400),
        ([IMAGE_PART], 200),
        ([IMAGE_PART, {"type": "text", "text": ""}], 200),
        ([{"type": "text", "text": ""}, IMAGE_PART], 200),
        ("\u200b", 200),
        ("\x00", 200),
    ],
)
def test_empty_questions(target: Target, content: object, status: int) -> None:
    with target.client() as client:
        assert chat(client, content).status_code == status


@pytest.mark.parametrize("prompt", ["", " ", "\n", "\u3000", "\xa0\u2003"])
def test_empty_prompts_draw_nothing(target: Target, prompt: str) -> None:
    with target.client() as client:
        reply = client.post(IMAGES, json={"prompt": prompt})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


def test_a_conversation_without_a_question_is_refused(target: Target) -> None:
    with target.client() as client:
        for messages in (
            [],
            [{"role": "system", "content": "be nice"}],
            [{"role": "system", "content": ""}],
        ):
            reply = client.post(CHAT, json={"messages": messages, "max_tokens": 2})
            assert reply.status_code == 400, messages


@pytest.mark.parametrize("half", ["\\ud800", "\\udfff", "a\\ud83d", "\\udc00\\ud800"])
@pytest.mark.parametrize("field", ["content", "user", "stop", "model", "key"])
def test_half_a_character_is_refused(target: Target, half: str, field: str) -> None:
    fields = {
        "content": f'"messages":[{{"role":"user","content":"{half}"}}]',
        "user": f'"messages":[{{"role":"user","content":"x"}}],"user":"{half}"',
        "stop": f'"messages":[{{"role":"user","content":"x"}}],"stop":"{half}"',
        "model": f'"messages":[{{"role":"user","content":"x"}}],"model":"{half}"',
        "key": f'"messages":[{{"role":"user","content":"x"}}],"{half}":1',
    }
    body = f'{{{fields[field]},"max_tokens":1}}'.encode()
    with target.client() as client:
        reply = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
