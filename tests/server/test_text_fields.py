"""What single fields change about an answer in text, or visibly do not."""

import httpx2
import pytest

from server.schemas.chat import ChatRequest
from server.schemas.responses import ResponsesRequest
from tests.server.test_bad_input import CHAT, refused
from tests.server.test_chat import HELLO, ask, chunks
from tests.server.test_chat_turns import token_said
from tests.server.test_responses import QUESTION, equal_answers, respond, text_of
from tests.serving import ServerInThread


def said(reply: dict) -> str:
    return reply["choices"][0]["message"]["content"]


@pytest.fixture
def eos(server: ServerInThread) -> dict:
    """Makes the end of the answer its likeliest token at every step."""
    return {"logit_bias": {str(server.context.pipeline.tokenizer.eos_id): 100}}


def test_an_answer_ends_where_the_model_ends_it(client: httpx2.Client, eos: dict):
    ended = ask(client, **eos, ignore_eos=False)
    assert (said(ended), ended["choices"][0]["finish_reason"]) == ("", "stop")
    assert ended["usage"]["completion_tokens"] == 1
    ignored = ask(client, **eos)
    assert ignored["choices"][0]["finish_reason"] == "length"
    assert ignored["usage"]["completion_tokens"] == 8


def test_an_answer_has_the_tokens_asked_for(client: httpx2.Client, eos: dict):
    free = {"ignore_eos": False, "return_token_ids": True, "min_tokens": 3}
    (choice,) = ask(client, **eos, **free)["choices"]
    assert (len(choice["token_ids"]), choice["finish_reason"]) == (3, "stop")


def test_words_do_what_they_do_in_a_chat(client: httpx2.Client, server: ServerInThread):
    _, word = token_said(client, server, max_tokens=24)
    long = {"max_tokens": 24, "max_output_tokens": 24}
    for field in (
        {"stop": word},
        {"stop": [word], "include_stop_str_in_output": True},
        {"bad_words": [word]},
    ):
        response = respond(client, **long, **field)
        assert equal_answers(response, ask(client, **long, **field))
        assert text_of(response) != text_of(respond(client, **long))


def test_a_response_ends_where_the_model_ends_it(client: httpx2.Client, eos: dict):
    ended = respond(client, **eos, ignore_eos=False)
    assert (ended["status"], text_of(ended)) == ("completed", "")
    longer = respond(client, **eos, ignore_eos=False, min_tokens=3)
    assert longer["usage"]["output_tokens"] == ended["usage"]["output_tokens"] + 3
    assert respond(client, **eos)["status"] == "incomplete"


def test_a_token_can_end_an_answer(client: httpx2.Client):
    ids = ask(client, return_token_ids=True)["choices"][0]["token_ids"]
    (choice,) = ask(client, return_token_ids=True, stop_token_ids=[ids[4]])["choices"]
    assert choice["token_ids"] == ids[: ids.index(ids[4])]
    assert choice["finish_reason"] == "stop"


def test_a_stream_holds_back_what_may_be_a_stop_string(client: httpx2.Client):
    text = said(ask(client, max_tokens=16))
    stop = text[3:9]  # longer than a token
    for include in (False, True):
        body = {"max_tokens": 16, "stop": stop, "include_stop_str_in_output": include}
        pieces = [
            chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(client, **body)
        ]
        assert "".join(pieces) == text[: text.index(stop)] + stop * include


def test_a_stop_string_that_does_not_come_takes_nothing_away(client: httpx2.Client):
    text = said(ask(client))
    stop = text[-2:] + "\x00"
    streamed = chunks(client, stop=stop)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == text


def test_what_was_computed_before_is_counted_as_cached(client: httpx2.Client):
    messages = [{"role": "user", "content": "How often is this computed? " * 20}]
    first, second = (ask(client, messages=messages)["usage"] for _ in range(2))
    assert second["prompt_tokens"] == first["prompt_tokens"]
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert first["prompt_tokens_details"]["cached_tokens"] < cached < second["prompt_tokens"]


def test_results_of_functions_are_read_as_text(client: httpx2.Client):
    told = [*HELLO, {"role": "function", "content": "It is red.", "name": "f"}]
    spoken = [*HELLO, {"role": "user", "content": "It is red."}]
    assert said(ask(client, messages=told)) == said(ask(client, messages=spoken))


def test_a_function_that_returned_nothing_says_nothing(client: httpx2.Client):
    items = [
        {"role": "user", "content": QUESTION},
        {"type": "function_call_output", "call_id": "c", "output": ""},
    ]
    assert text_of(respond(client, input=items)) == text_of(respond(client))


def test_the_fingerprint_stays(client: httpx2.Client):
    one, other = ask(client)["system_fingerprint"], ask(client, seed=9)["system_fingerprint"]
    assert one == other == chunks(client)[0]["system_fingerprint"]


def test_what_has_no_effect_has_none(client: httpx2.Client):
    """Every such field at once, with values as clients send them and with others."""
    for value in (True, "high", 1, ["x"], {"type": "x"}):
        fields = dict.fromkeys(ChatRequest.without_effect, value)
        assert ask(client, **fields)["choices"] == ask(client)["choices"]
        fields = dict.fromkeys(ResponsesRequest.without_effect, value)
        assert text_of(respond(client, **fields)) == text_of(respond(client))


@pytest.mark.parametrize("url", [CHAT, "/v1/responses"])
def test_what_cannot_be_honoured_is_refused_unless_it_asks_for_nothing(
    client: httpx2.Client, url: str
):
    model = ChatRequest if url == CHAT else ResponsesRequest
    body = {"messages": HELLO, "max_tokens": 1, "input": QUESTION, "max_output_tokens": 1}
    for name, allowed in model.refused.items():
        for value in (None, *allowed):
            assert client.post(url, json=body | {name: value}).status_code == 200, name
        error = refused(client, url, body | {name: "something"})
        assert (error["param"], error["code"]) == (name, "unsupported_value")
