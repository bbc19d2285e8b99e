"""Responses over a real socket, and through the official package, which types what it gets."""

import json

import httpx2
import openai
import pytest
from openai.types import responses as types

from tests.server.test_bad_input import refused
from tests.server.test_chat import HELLO, ask
from tests.serving import ServerInThread, wait_until

URL = "/v1/responses"
QUESTION = HELLO[0]["content"]
SHORT = {"max_output_tokens": 8, "ignore_eos": True}
TOOL = {"type": "image_generation"}


def respond(client: httpx2.Client, **body: object) -> dict:
    reply = client.post(URL, json={"input": QUESTION} | SHORT | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def text_of(response: dict) -> str:
    return response["output"][0]["content"][0]["text"]


def events(client: httpx2.Client, **body: object) -> list[dict]:
    """The events of a stream; names and numbers are checked on the way."""
    body = {"input": QUESTION, "stream": True} | SHORT | body
    with client.stream("POST", URL, json=body) as reply:
        assert reply.status_code == 200
        raw = reply.read().decode()
    found = []
    for frame in raw.split("\n\n"):
        if not frame or frame == ": ping":
            continue
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def shown(url: str) -> dict:
    return {"type": "input_image", "image_url": url, "detail": "auto"}


def equal_answers(response: dict, completion: dict) -> bool:
    return text_of(response) == completion["choices"][0]["message"]["content"]


def test_it_says_what_a_chat_completion_says(client: httpx2.Client):
    response, completion = respond(client), ask(client)
    assert equal_answers(response, completion)
    assert response["usage"]["input_tokens"] == completion["usage"]["prompt_tokens"]
    assert response["usage"]["output_tokens"] == 8
    assert response["usage"]["total_tokens"] == completion["usage"]["total_tokens"]


def test_a_response_cut_short_says_so(client: httpx2.Client):
    cut = respond(client)
    assert (cut["status"], cut["output"][0]["status"]) == ("incomplete", "incomplete")
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    stop = text_of(cut)[2:4]
    whole = respond(client, stop=stop)
    assert (whole["status"], whole["output"][0]["status"]) == ("completed", "completed")
    assert whole["incomplete_details"] is None


@pytest.mark.parametrize("limit", [None, -1])
def test_no_limit_means_as_much_as_the_context_holds(client: httpx2.Client, limit: int | None):
    assert respond(client, max_output_tokens=limit)["usage"]["total_tokens"] == 1024


def test_items_are_the_messages_of_a_chat(client: httpx2.Client, image_url: str):
    question = {"type": "input_text", "text": QUESTION}
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [question, shown(image_url)]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "A disc.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "It is red."},
        {"role": "user", "content": "Why?"},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": QUESTION},
                {"type": "image_url", "image_url": {"url": image_url}},
            ],
        },
        {"role": "assistant", "content": "A disc."},
        {"role": "tool", "content": "It is red."},
        {"role": "user", "content": "Why?"},
    ]
    response, completion = respond(client, input=items), ask(client, messages=messages)
    assert equal_answers(response, completion)
    assert response["usage"]["input_tokens_details"]["image_tokens"] == 16
    assert response["usage"]["input_tokens"] == completion["usage"]["prompt_tokens"]


def test_instructions_are_the_system_prompt(client: httpx2.Client):
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    response = respond(client, instructions="Be brief.")
    assert equal_answers(response, ask(client, messages=messages))
    assert response["instructions"] == "Be brief."
    assert not equal_answers(response, ask(client))


def test_a_picture_drawn_before_can_be_asked_about(client: httpx2.Client, image_url: str):
    file = image_url.partition(",")[2]
    call = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": file}
    items = [
        {"role": "user", "content": "a disc"},
        call,
        {**call, "status": "generating", "result": None},
        {"role": "user", "content": QUESTION},
    ]
    image = {"type": "image_url", "image_url": {"url": image_url}}
    messages = [
        {"role": "user", "content": "a disc"},
        {"role": "user", "content": [image, {"type": "text", "text": QUESTION}]},
    ]
    assert equal_answers(respond(client, input=items), ask(client, messages=messages))


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1.5, "seed": 3, "top_p": 0.5},
        {"temperature": 1.5, "seed": 3, "top_k": 3},
        {"temperature": 1.5, "seed": 3, "min_p": 0.2},
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"repetition_penalty": 5},
        {"logit_bias": {"5": 100}},
        {"stop_token_ids": list(range(172, 300))},
    ],
    ids=lambda field: [*field][-1],
)
def test_sampling_fields_do_what_they_do_in_a_chat(client: httpx2.Client, field: dict):
    response = respond(client, **field)
    assert equal_answers(response, ask(client, **field))
    assert not equal_answers(response, ask(client, temperature=1.5, seed=4))
    assert not equal_answers(response, ask(client))


def test_what_was_chosen_comes_back(client: httpx2.Client):
    chosen = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 8,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "user": "me",
        "seed": 11,
    }
    response = respond(client, **chosen)
    assert {name: response[name] for name in chosen} == chosen


def test_log_probabilities_come_on_request(client: httpx2.Client):
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = respond(client, **asked)["output"][0]["content"][0]
    expected = ask(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert part["logprobs"] == expected
    streamed = events(client, **asked)
    deltas = [event for event in streamed if event["type"] == "response.output_text.delta"]
    assert [item for event in deltas for item in event["logprobs"]] == expected
    assert respond(client)["output"][0]["content"][0]["logprobs"] == []
    only = respond(client, include=asked["include"])["output"][0]["content"][0]["logprobs"]
    assert [item["top_logprobs"] for item in only] == [[]] * 8


def test_a_stream_has_openai_s_events_in_its_order(client: httpx2.Client):
    found = events(client, seed=1)
    kinds = [event["type"] for event in found if event["type"] != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    whole = respond(client, seed=1)
    text = "".join(event["delta"] for event in found if "delta" in event)
    assert text == text_of(whole) == text_of(found[-1]["response"])
    assert found[-1]["response"]["usage"] == whole["usage"] | {
        "input_tokens_details": found[-1]["response"]["usage"]["input_tokens_details"]
    }
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert found[-2]["item"] == found[-1]["response"]["output"][0]


def test_the_official_client_types_a_stream(openai_client: openai.OpenAI, image_url: str):
    item = {"role": "user", "content": [{"type": "input_text", "text": "?"}, shown(image_url)]}
    stream = openai_client.responses.create(model="tiny", input=[item], stream=True, store=False)
    found = list(stream)
    assert isinstance(found[0], types.ResponseCreatedEvent)
    assert isinstance(found[1], types.ResponseInProgressEvent)
    assert isinstance(found[2], types.ResponseOutputItemAddedEvent)
    assert isinstance(found[2].item, types.ResponseOutputMessage)
    assert isinstance(found[3], types.ResponseContentPartAddedEvent)
    assert isinstance(found[4], types.ResponseTextDeltaEvent)
    assert isinstance(found[-4], types.ResponseTextDoneEvent)
    assert isinstance(found[-3], types.ResponseContentPartDoneEvent)
    assert isinstance(found[-2], types.ResponseOutputItemDoneEvent)
    assert isinstance(found[-1], types.ResponseCompletedEvent | types.ResponseIncompleteEvent)
    deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
    assert "".join(deltas) == found[-1].response.output_text


def test_the_official_client_accumulates_a_stream(openai_client: openai.OpenAI):
    """Its helper checks identities and order of items."""
    asked = {"model": "tiny", "input": QUESTION, "max_output_tokens": 8}
    with openai_client.responses.stream(**asked, extra_body={"stop_token_ids": [7]}) as stream:
        list(stream)
    whole = openai_client.responses.create(**asked)
    assert isinstance(whole, types.Response)
    assert whole.output_text
    assert whole._request_id


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "king", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input.0.content.0.type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.image_url",
        ),
        (
            {"input": [{"role": "user", "content": [shown("data:image/png;base64,!")]}]},
            "input.0.content.0.image_url",
        ),
        (
            {"input": [{"role": "user", "content": "x"}, {"role": "user", "content": " "}]},
            "input.1.content",
        ),
        ({"input": [{"role": "user", "content": "x " * 40_000}]}, "input.0.content"),
        ({"input": "x " * 40_000}, "input"),
        ({"instructions": "x " * 40_000}, "instructions"),
        ({"input": [{"role": "system", "content": "x"}]}, "input"),
        ({"input": [{"type": "image_generation_call", "result": "!"}]}, "input.0.result"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": TOOL}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []},
            },
            "tool_choice",
        ),
        ({"tools": [TOOL | {"size": "1x1"}]}, "tools.0.size"),
        ({"tools": [TOOL | {"background": "transparent"}]}, "tools.0.background"),
        ({"tools": [TOOL | {"output_format": "svg"}]}, "tools.0.output_format"),
        ({"tools": [TOOL | {"action": "edit"}]}, "tools.0.action"),
        ({"tools": [TOOL | {"input_image_mask": {}}]}, "tools.0.input_image_mask"),
        ({"tools": [{"type": "f"}, TOOL | {"partial_images": 1}]}, "tools.1.partial_images"),
        ({"tools": [TOOL], "input": [{"role": "user", "content": []}]}, "input.0.content"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(client: httpx2.Client, changed: dict, param: str):
    error = refused(client, URL, {"input": QUESTION, "max_output_tokens": 8} | changed)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_more_images_than_allowed(client: httpx2.Client, image_url: str):
    item = {"role": "user", "content": [shown(image_url)] * 4}
    assert refused(client, URL, {"input": [item]})["param"] == "input"


def test_what_clients_send_beside_is_accepted(client: httpx2.Client):
    decorated = respond(
        client,
        model="tiny",
        store=True,
        truncation="auto",
        reasoning={"effort": "low"},
        include=["reasoning.encrypted_content"],
        text={"format": {"type": "text"}, "verbosity": "low"},
        tools=[{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": []},
        previous_response_id=None,
        background=False,
        something_new=1,
    )
    assert text_of(decorated) == text_of(respond(client))


def test_a_failure_on_the_way_ends_the_stream(
    server: ServerInThread, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr("server.responses_items.MessageItem._content_logprobs", fail)
    *_, error, last = events(client)
    assert error.keys() == {"type", "code", "message", "param", "sequence_number"}
    assert (error["type"], error["code"]) == ("error", "internal_error")
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps([error, last])
    wait_until(server.is_idle)
