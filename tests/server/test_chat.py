"""Chat completions over a real socket: shapes, parameters, streams."""

import json
import time

import httpx2
import pytest

from tests.serving import ServerInThread

HELLO = [{"role": "user", "content": "What is in the picture?"}]


def ask(client: httpx2.Client, **body: object) -> dict:
    body = {"messages": HELLO, "max_tokens": 8, "ignore_eos": True} | body
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def frames(client: httpx2.Client, **body: object) -> list[str]:
    """The data of every event of a stream; comments are left out."""
    body = {"messages": HELLO, "max_tokens": 8, "ignore_eos": True, "stream": True} | body
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def chunks(client: httpx2.Client, **body: object) -> list[dict]:
    *data, last = frames(client, **body)
    assert last == "[DONE]"
    return [json.loads(item) for item in data]


def test_a_reply_has_openai_s_keys(client: httpx2.Client):
    reply = ask(client, seed=7)
    assert reply.keys() == {
        *("id", "object", "created", "model", "system_fingerprint", "choices", "usage", "seed")
    }
    assert (reply["object"], reply["model"], reply["seed"]) == ("chat.completion", "tiny", 7)
    (choice,) = reply["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    usage = reply["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert usage["prompt_tokens_details"]["image_tokens"] == 0


def test_a_stream_says_the_same_as_the_whole_reply(client: httpx2.Client):
    whole = ask(client)
    first, *middle, last = chunks(client)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == whole["choices"][0]["message"]["content"]
    assert len({(chunk["id"], chunk["created"]) for chunk in [first, *middle, last]}) == 1
    assert all("usage" not in chunk for chunk in [first, *middle, last])


def test_include_usage_adds_one_chunk_and_a_null_to_the_others(client: httpx2.Client):
    *others, last = chunks(client, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in others)


def test_an_image_costs_its_tokens_and_changes_the_answer(client: httpx2.Client, image_url: str):
    parts = [
        {"type": "image_url", "image_url": {"url": image_url, "detail": "low"}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    seen = ask(client, messages=[{"role": "user", "content": parts}])
    assert seen["usage"]["prompt_tokens_details"]["image_tokens"] == 16
    assert seen["choices"][0]["message"] != ask(client)["choices"][0]["message"]
    bare = [{"type": "input_image", "image_url": image_url}, {"type": "input_text", "text": "What"}]
    again = [
        {"type": "image_url", "image_url": {"url": image_url}},
        {"type": "text", "text": "What"},
    ]
    assert (
        ask(client, messages=[{"role": "user", "content": bare}])["choices"]
        == ask(client, messages=[{"role": "user", "content": again}])["choices"]
    )


def test_n_answers_have_the_seeds_that_follow(client: httpx2.Client):
    settings = {"temperature": 1.5, "max_tokens": 12}
    both = ask(client, n=2, seed=40, **settings)
    alone = [ask(client, seed=seed, **settings) for seed in (40, 41)]
    texts = [choice["message"]["content"] for choice in both["choices"]]
    assert texts == [reply["choices"][0]["message"]["content"] for reply in alone]
    assert texts[0] != texts[1]
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["usage"]["completion_tokens"] == 24
    assert both["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]


def test_streamed_choices_are_told_apart_by_index(client: httpx2.Client):
    texts = {0: "", 1: ""}
    reasons = {}
    for chunk in chunks(client, n=2, seed=40, temperature=1.5):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    whole = ask(client, n=2, seed=40, temperature=1.5)
    assert [texts[0], texts[1]] == [c["message"]["content"] for c in whole["choices"]]
    assert reasons == {0: "length", 1: "length"}


def test_logprobs_cover_every_token(client: httpx2.Client):
    reply = ask(client, logprobs=True, top_logprobs=3)
    content = reply["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    text = b"".join(bytes(item["bytes"]) for item in content).decode(errors="replace")
    assert text == reply["choices"][0]["message"]["content"]
    for item in content:
        assert item.keys() == {"token", "bytes", "logprob", "top_logprobs"}
        assert len(item["top_logprobs"]) == 3
        # Greedy: the sampled token is the likeliest one.
        assert item["logprob"] == item["top_logprobs"][0]["logprob"] <= 0
    streamed = [
        item
        for chunk in chunks(client, logprobs=True, top_logprobs=3)
        if chunk["choices"][0]["logprobs"]
        for item in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [item["token"] for item in streamed] == [item["token"] for item in content]


def test_a_stop_string_ends_the_answer_before_it(client: httpx2.Client):
    text = ask(client, max_tokens=16)["choices"][0]["message"]["content"]
    stop = text[3:6]
    cut = ask(client, max_tokens=16, stop=stop)["choices"][0]
    assert cut["message"]["content"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"
    kept = ask(client, max_tokens=16, stop=[stop], include_stop_str_in_output=True)
    assert kept["choices"][0]["message"]["content"] == text[: text.index(stop)] + stop


def test_logit_bias_bans_a_token(client: httpx2.Client, server):
    reply = ask(client, logprobs=True)
    first = reply["choices"][0]["logprobs"]["content"][0]["bytes"]
    tokenizer = server.context.pipeline.tokenizer
    banned = {
        str(id): -100 for id in range(tokenizer.num_ids) if list(tokenizer.token_bytes(id)) == first
    }
    other = ask(client, logprobs=True, logit_bias=banned)
    assert other["choices"][0]["logprobs"]["content"][0]["bytes"] != first


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": None},
        {"max_completion_tokens": -1, "max_tokens": 3},
    ],
)
def test_no_limit_means_as_much_as_the_context_holds(client: httpx2.Client, body: dict):
    reply = ask(client, **body)
    assert reply["usage"]["total_tokens"] == 1024
    assert reply["choices"][0]["finish_reason"] == "length"


def test_the_newer_limit_wins(client: httpx2.Client):
    reply = ask(client, max_completion_tokens=2, max_tokens=3)
    assert reply["usage"]["completion_tokens"] == 2


def test_what_clients_send_beside_the_schema_is_accepted(client: httpx2.Client):
    plain = ask(client)
    decorated = ask(
        client,
        model="tiny",
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        user="me",
        metadata={"a": "b"},
        store=False,
        best_of=1,
        something_new={"deep": [1]},
        temperature=None,
        top_k=-1,
        stop=None,
        logit_bias={},
        max_tokens=8.0,
        stream=False,
    )
    assert decorated["choices"] == plain["choices"]


def test_a_conversation_of_all_roles(client: httpx2.Client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}], "name": "x"},
    ]
    assert ask(client, messages=messages)["usage"]["completion_tokens"] == 8


def test_the_final_message_can_be_continued(client: httpx2.Client):
    messages = [*HELLO, {"role": "assistant", "content": "a large red"}]
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    continued = ask(client, messages=messages, **flags)
    answered = ask(client, messages=messages)
    # No separator and no new turn: fewer tokens.
    assert continued["usage"]["prompt_tokens"] < answered["usage"]["prompt_tokens"]


def test_penalties_and_filters_change_what_is_sampled(client: httpx2.Client):
    free = {"temperature": 1.5, "seed": 1, "max_tokens": 24}
    plain = ask(client, **free)["choices"][0]["message"]["content"]
    greedy = ask(client, max_tokens=24)["choices"][0]["message"]["content"]
    assert ask(client, **free, top_k=1)["choices"][0]["message"]["content"] == greedy
    assert ask(client, **free, min_p=1)["choices"][0]["message"]["content"] == greedy
    assert ask(client, **free, top_p=1e-6)["choices"][0]["message"]["content"] == greedy
    assert plain != greedy
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 5}):
        assert ask(client, max_tokens=24, **penalty)["choices"][0]["message"]["content"] != greedy


def test_a_silent_stream_is_kept_alive_by_comments(
    server: ServerInThread, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
):
    engine = server.context.pipeline.engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step())[1])
    body = {"messages": HELLO, "stream": True, "max_tokens": 8, "ignore_eos": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        events = reply.read().decode().split("\n\n")
    assert ": ping" in events
    assert all(event.startswith(("data: ", ": ping")) for event in events if event)
