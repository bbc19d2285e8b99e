"""openai for Python, whichever major version is installed: every method the server has."""

import asyncio
import urllib.request
from typing import Literal

import openai
import pytest
from pydantic import BaseModel
from served import API, MODEL, PICTURE, PICTURE_ADDRESS, PICTURE_URL, png_size, question


@pytest.fixture
def client():
    with openai.OpenAI(base_url=API, api_key="none", max_retries=0) as client:
        yield client


class Answer(BaseModel):
    """Bounded: a model this small may never end a string."""

    color: Literal["red", "green", "blue"]
    is_round: bool


def check_chat(client: openai.OpenAI):
    reply = client.chat.completions.create(model=MODEL, messages=question(), max_tokens=24)
    assert "red" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.refusal is None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens >= 0
    assert reply._request_id.startswith("req_")


def check_an_image_behind_an_address(client: openai.OpenAI):
    fetched = client.chat.completions.create(model=MODEL, messages=question(PICTURE_ADDRESS))
    sent = client.chat.completions.create(model=MODEL, messages=question())
    assert fetched.choices[0].message.content == sent.choices[0].message.content


def check_streams(client: openai.OpenAI):
    whole = client.chat.completions.create(model=MODEL, messages=question())
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=question(),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def check_the_stream_helper(client: openai.OpenAI):
    with client.chat.completions.stream(model=MODEL, messages=question()) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "red" in final.choices[0].message.content


def check_choices_and_logprobs(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model=MODEL, messages=question(), n=2, seed=5, logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    token = reply.choices[0].logprobs.content[0]
    assert token.logprob <= 0
    assert len(token.top_logprobs) == 2


def check_parse(client: openai.OpenAI):
    reply = client.chat.completions.parse(
        model=MODEL, messages=question(), response_format=Answer, max_tokens=120
    )
    message = reply.choices[0].message
    assert isinstance(message.parsed, Answer)


def check_an_image_inside_of_chat(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "a large red circle on a white background"}],
        modalities=["image"],  # type: ignore[list-item]
        extra_body={"seed": 3},
    )
    (image,) = reply.choices[0].message.images
    header, data = image["image_url"]["url"].split(",")
    assert header == "data:image/png;base64"
    assert png_size(data)


def check_pictures(client: openai.OpenAI):
    reply = client.images.generate(
        model="dall-e-2",
        prompt="a large red circle on a white background",
        n=2,
        size="512x512",
        response_format="b64_json",
        extra_body={"seed": 7, "guidance_scale": 4},
    )
    assert [png_size(item.b64_json) for item in reply.data] == [(512, 512)] * 2
    assert [item.seed for item in reply.data] == [7, 8]
    assert reply.usage.output_tokens > 0


def check_pictures_by_address(client: openai.OpenAI):
    reply = client.images.generate(prompt="a blue square", response_format="url")
    with urllib.request.urlopen(reply.data[0].url) as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def check_partial_pictures(client: openai.OpenAI):
    events = list(
        client.images.generate(prompt="a green star", stream=True, partial_images=2, model=MODEL)
    )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert png_size(events[-1].b64_json) == png_size(events[0].b64_json)


def check_edits_and_variations(client: openai.OpenAI):
    edited = client.images.edit(
        model=MODEL,
        image=PICTURE.open("rb"),
        prompt="a large blue circle",
        response_format="b64_json",
    )
    assert png_size(edited.data[0].b64_json)
    varied = client.images.create_variation(
        image=PICTURE.open("rb"), n=2, response_format="b64_json"
    )
    assert len(varied.data) == 2


def check_streamed_edits(client: openai.OpenAI):
    events = list(
        client.images.edit(
            model=MODEL,
            image=PICTURE.open("rb"),
            prompt="a large blue circle",
            stream=True,
            partial_images=1,
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert png_size(events[-1].b64_json) == png_size(events[0].b64_json)


def response_input() -> list[dict]:
    content = [
        {"type": "input_text", "text": question()[0]["content"][1]["text"]},
        {"type": "input_image", "image_url": PICTURE_URL, "detail": "auto"},
    ]
    return [{"role": "user", "content": content}]


def check_responses(client: openai.OpenAI):
    reply = client.responses.create(model=MODEL, input=response_input(), max_output_tokens=24)
    assert "red" in reply.output_text
    assert reply.status == "completed"
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply._request_id.startswith("req_")


def check_streamed_responses(client: openai.OpenAI):
    whole = client.responses.create(model=MODEL, input=response_input())
    events = list(client.responses.create(model=MODEL, input=response_input(), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text


def check_the_helper_for_streamed_responses(client: openai.OpenAI):
    with client.responses.stream(model=MODEL, input=response_input()) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.output_text.delta", "response.output_text.done"} <= kinds
    assert "red" in final.output_text


def check_parsed_responses(client: openai.OpenAI):
    reply = client.responses.parse(model=MODEL, input=response_input(), text_format=Answer)
    assert isinstance(reply.output_parsed, Answer)


def check_the_image_tool(client: openai.OpenAI):
    events = list(
        client.responses.create(
            model=MODEL,
            input="a large red circle on a white background",
            tools=[{"type": "image_generation", "partial_images": 1}],
            tool_choice={"type": "image_generation"},
            stream=True,
        )
    )
    kinds = [event.type for event in events]
    assert "response.image_generation_call.partial_image" in kinds
    (call,) = events[-1].response.output
    assert call.type == "image_generation_call"
    assert png_size(call.result)


def check_models(client: openai.OpenAI):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def check_errors(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=question())
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=question(), temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as inside:
        client.chat.completions.create(model=MODEL, messages=question("http://10.0.0.1/cat.png"))
    assert inside.value.code == "invalid_image_url"
    with pytest.raises(openai.BadRequestError) as empty:
        client.images.generate(model=MODEL, prompt="")
    assert empty.value.param == "prompt"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="no such thing here")


def check_the_asynchronous_client():
    async def run() -> str:
        async with openai.AsyncOpenAI(base_url=API, api_key="none") as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=question(), stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert "red" in asyncio.run(run())
