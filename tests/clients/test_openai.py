"""The official openai package against a running server with the embedded checkpoint."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image, ImageDraw

from tests.serving import ServerInThread, wait_until

pytestmark = pytest.mark.clients

MODEL = "janus-mini"


@pytest.fixture(scope="module")
def server(mini_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(model=str(mini_checkpoint)) as running:
        yield running


@pytest.fixture
def client(server: ServerInThread) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def messages() -> list[dict]:
    """A question about a drawn red circle."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill="red")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    return [{"role": "user", "content": parts}]


def test_it_asks_about_an_image(client: openai.OpenAI, messages: list[dict]):
    reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=16)
    (choice,) = reply.choices
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.content
    assert reply.usage.prompt_tokens_details.image_tokens > 0
    assert 1 <= reply.usage.completion_tokens <= 16
    assert reply._request_id.startswith("req_")


def test_it_streams_the_same_answer(client: openai.OpenAI, messages: list[dict]):
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=16)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_it_draws(client: openai.OpenAI):
    reply = client.images.generate(
        model="dall-e-2",
        prompt="a large red circle",
        n=2,
        size="512x512",
        extra_body={"seed": 7, "guidance_scale": 4},
    )
    images = [Image.open(io.BytesIO(base64.b64decode(item.b64_json))) for item in reply.data]
    assert [image.size for image in images] == [(512, 512)] * 2
    assert [item.seed for item in reply.data] == [7, 8]
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


def test_it_draws_with_partial_images(client: openai.OpenAI):
    stream = client.images.generate(
        model=MODEL,
        prompt="a large red circle",
        stream=True,
        partial_images=2,
        output_format="webp",
        extra_body={"seed": 7},
    )
    *partial, completed = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert completed.type == "image_generation.completed"
    assert completed.usage.output_tokens > 0
    whole = client.images.generate(
        model=MODEL, prompt="a large red circle", output_format="webp", extra_body={"seed": 7}
    )
    assert completed.b64_json == whole.data[0].b64_json


def test_it_lists_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors_become_its_exceptions(client: openai.OpenAI, messages: list[dict]):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=messages, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as empty:
        client.images.generate(model=MODEL, prompt="")
    assert empty.value.param == "prompt"


def test_load_and_the_end_become_its_exceptions(tiny_checkpoint: Path):
    """What a client may try again later, it can tell from what it must not."""
    limits = {"max_sequences": 2, "max_waiting": 1, "grace_s": 0.05}
    long = {"messages": [{"role": "user", "content": "hello"}], "model": "tiny", "stream": True}
    with (
        ServerInThread(model=str(tiny_checkpoint), served_model_name="tiny", **limits) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stats = server.context.dispatcher.service.stats
        create = client.chat.completions.create
        streams = []
        for num_running in (1, 2):
            # One after the other: until it has slots, a request has the only place.
            streams.append(create(**long, extra_body={"ignore_eos": True}))
            wait_until(lambda count=num_running: stats().num_running == count)
        streams.append(create(**long, extra_body={"ignore_eos": True}))
        wait_until(lambda: stats().num_waiting == 1)
        with pytest.raises(openai.RateLimitError) as full:
            create(**long)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1
        server.begin_drain()
        for stream in streams:
            with pytest.raises(openai.APIError):
                list(stream)


async def test_closing_its_stream_cancels_the_request(server: ServerInThread, messages: list[dict]):
    """Leaving a stream early through the client cancels the request in the engine."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
    wait_until(server.is_idle, timeout_s=10)
