"""LiteLLM's SDK, and the health checks its proxy runs."""

import asyncio
import os

# Read when the package is imported: its price list comes from the network otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest
from served import API, MODEL, PICTURE_URL, png_size, question

TARGET = {"api_base": API, "api_key": "none"}
NAME = f"openai/{MODEL}"


def check_chat():
    reply = litellm.completion(model=NAME, messages=question(), max_tokens=24, **TARGET)
    assert "red" in reply.choices[0].message.content
    assert reply.usage.completion_tokens > 0


def check_stream():
    chunks = litellm.completion(model=NAME, messages=question(), stream=True, **TARGET)
    assert "red" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def check_pictures():
    reply = litellm.image_generation(
        model=NAME, prompt="a large red circle", size="512x512", n=1, **TARGET
    )
    assert png_size(reply.data[0].b64_json) == (512, 512)


def check_responses():
    content = [
        {"type": "input_text", "text": question()[0]["content"][1]["text"]},
        {"type": "input_image", "image_url": PICTURE_URL},
    ]
    reply = litellm.responses(model=NAME, input=[{"role": "user", "content": content}], **TARGET)
    assert "red" in reply.output[0].content[0].text


def check_errors():
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model=NAME, messages=question(), temperature=9, **TARGET)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/gpt-5", messages=question(), **TARGET)


def health(mode: str, *, name: str) -> dict:
    """What the proxy finds out about a model of this mode; `error` only if it is not well."""

    async def run() -> dict:
        parameters = {"model": name, **TARGET}
        if mode == "chat":
            parameters["messages"] = [{"role": "user", "content": "Hey, how are you?"}]
        return await litellm.ahealth_check(
            model_params=parameters, mode=mode, prompt="test from litellm"
        )

    return asyncio.run(run())


@pytest.mark.parametrize("mode", ["chat", "image_generation", "responses", "image_edit"])
def check_health(mode: str):
    found = health(mode, name=NAME)
    assert "error" not in found, found
    assert "error" in health(mode, name="openai/no-such-model")
