"""Whole conversations: images in any turn, prefills, and what vLLM's extensions add to replies."""

import re

import httpx2
import pytest
from PIL import Image

from tests.server.conftest import data_url
from tests.server.test_chat import HELLO, ask, chunks

QUESTION = "What is in the picture?"


def shown(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def test_every_turn_of_the_user_can_hold_images(client: httpx2.Client, image_url: str):
    messages = [
        {"role": "user", "content": [shown(image_url), {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "A disc."},
        {"role": "user", "content": [{"type": "text", "text": "And here?"}, shown(image_url)]},
    ]
    reply = ask(client, messages=messages)
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 32


@pytest.mark.parametrize("form", ["parts", "images"])
def test_a_picture_of_the_assistant_is_shown_by_the_next_user_turn(
    client: httpx2.Client, image_url: str, form: str
):
    """What was drawn can be asked about: an answer's `images` come back as they were sent."""
    drawn = {"role": "assistant", "content": ""}
    drawn |= {"content": [shown(image_url)]} if form == "parts" else {"images": [shown(image_url)]}
    messages = [{"role": "user", "content": "a disc"}, drawn, {"role": "user", "content": QUESTION}]
    equal = [
        {"role": "user", "content": "a disc"},
        {"role": "user", "content": [shown(image_url), {"type": "text", "text": QUESTION}]},
    ]
    reply, expected = ask(client, messages=messages), ask(client, messages=equal)
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 16
    assert reply["choices"] == expected["choices"]
    assert reply["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]


def test_moved_images_keep_their_order(client: httpx2.Client, image_url: str):
    other = data_url(Image.linear_gradient("L").convert("RGB").resize((30, 40)))
    third = data_url(Image.new("RGB", (30, 40), "red"))
    messages = [
        {"role": "user", "content": "a disc"},
        {"role": "assistant", "content": [shown(image_url)]},
        {"role": "assistant", "content": [shown(other), {"type": "text", "text": "Both."}]},
        {"role": "user", "content": [shown(third), {"type": "text", "text": QUESTION}]},
    ]
    equal = [
        {"role": "user", "content": "a disc"},
        {"role": "assistant", "content": "Both."},
        {
            "role": "user",
            "content": [
                shown(image_url),
                shown(other),
                shown(third),
                {"type": "text", "text": QUESTION},
            ],
        },
    ]
    assert ask(client, messages=messages)["choices"] == ask(client, messages=equal)["choices"]


def test_results_of_tools_are_read_as_text(client: httpx2.Client):
    told = [*HELLO, {"role": "tool", "content": "It is red.", "tool_call_id": "1"}]
    said = [*HELLO, {"role": "user", "content": "It is red."}]
    assert ask(client, messages=told)["choices"] == ask(client, messages=said)["choices"]
    assert ask(client, messages=told)["choices"] != ask(client)["choices"]


@pytest.mark.parametrize("nothing", ["", None, []])
def test_a_tool_that_returned_nothing_says_nothing(client: httpx2.Client, nothing: object):
    result = {"role": "tool", "content": nothing, "tool_call_id": "1"}
    assert ask(client, messages=[*HELLO, result])["choices"] == ask(client)["choices"]


def test_a_developer_is_a_system(client: httpx2.Client):
    replies = [
        ask(client, messages=[{"role": role, "content": "Be brief."}, *HELLO])
        for role in ("developer", "system")
    ]
    assert replies[0]["choices"] == replies[1]["choices"]
    # It replaces the default system prompt, which is longer.
    assert replies[0]["usage"]["prompt_tokens"] < ask(client)["usage"]["prompt_tokens"]


def test_a_refusal_is_read_as_what_was_said(client: httpx2.Client):
    part = {"type": "refusal", "refusal": "I would rather not."}
    refused = [*HELLO, {"role": "assistant", "content": [part]}, *HELLO]
    said = [*HELLO, {"role": "assistant", "content": "I would rather not."}, *HELLO]
    assert ask(client, messages=refused)["choices"] == ask(client, messages=said)["choices"]


def test_echo_repeats_what_is_continued(client: httpx2.Client):
    messages = [*HELLO, {"role": "assistant", "content": "a large red"}]
    flags = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    rest = ask(client, **flags)["choices"][0]["message"]["content"]
    whole = ask(client, **flags, echo=True)["choices"][0]["message"]["content"]
    assert whole == "a large red" + rest
    streamed = chunks(client, **flags, echo=True)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed)
    assert text == whole


def test_echo_repeats_parts_as_they_were_read(client: httpx2.Client):
    """Of one text or of several that read the same, the same comes back."""
    flags = {"continue_final_message": True, "echo": True}
    whole = {"role": "assistant", "content": "a large red"}
    parts = whole | {"content": [{"type": "text", "text": text} for text in ("a large", "red")]}
    one, other = (ask(client, **flags, messages=[*HELLO, final]) for final in (whole, parts))
    assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]
    assert one["choices"] == other["choices"]


def test_the_opening_of_the_answer_can_be_left_out(client: httpx2.Client):
    open_ended = ask(client, add_generation_prompt=False)
    assert open_ended["usage"]["prompt_tokens"] < ask(client)["usage"]["prompt_tokens"]
    assert open_ended["choices"] != ask(client)["choices"]


def token_said(client: httpx2.Client, server, **body: object) -> tuple[int, str]:
    """A token of the answer to `body` whose text is letters, and these."""
    tokenizer = server.context.pipeline.tokenizer
    ids = ask(client, **body, return_token_ids=True)["choices"][0]["token_ids"]
    texts = [(id, tokenizer.token_bytes(id)) for id in ids]
    return next((id, text.decode()) for id, text in texts if re.fullmatch(rb"[a-z]+", text))


def test_bad_words_are_never_said(client: httpx2.Client, server):
    banned, word = token_said(client, server, max_tokens=24)
    asked = {"return_token_ids": True, "max_tokens": 24}
    other = ask(client, **asked, bad_words=[word])["choices"][0]["token_ids"]
    assert banned not in other
    assert len(other) == 24


def test_token_ids_come_back_on_request(client: httpx2.Client, server):
    reply = ask(client, return_token_ids=True)
    tokenizer = server.context.pipeline.tokenizer
    (choice,) = reply["choices"]
    assert len(choice["token_ids"]) == 8
    assert tokenizer.decode(choice["token_ids"]).lstrip() == choice["message"]["content"]
    assert len(reply["prompt_token_ids"]) == reply["usage"]["prompt_tokens"]
    assert reply["prompt_token_ids"][0] == tokenizer.bos_id
    first, *rest = chunks(client, return_token_ids=True)
    assert first["prompt_token_ids"] == reply["prompt_token_ids"]
    streamed = [id for chunk in rest for id in chunk["choices"][0].get("token_ids", [])]
    assert streamed == choice["token_ids"]
    assert all("prompt_token_ids" not in chunk for chunk in rest)
    assert "token_ids" not in ask(client)["choices"][0]


def test_the_client_names_the_reply(client: httpx2.Client):
    assert ask(client, request_id="mine-1")["id"] == "chatcmpl-mine-1"
    assert {chunk["id"] for chunk in chunks(client, request_id="mine-2")} == {"chatcmpl-mine-2"}
