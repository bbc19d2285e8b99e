"""Requests of applications that cannot be run here, as they send them, against the real model.

Open WebUI 0.12, n8n 2.41, SillyTavern, Frigate and Home Assistant's LLM Vision: what each asks when
it connects, what it sends in use, and the fields of the answer it reads.
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image, ImageDraw

from tests.serving import ServerInThread

pytestmark = pytest.mark.clients

MODEL = "janus-mini"
CHAT, PICTURES, RESPONSES = "/v1/chat/completions", "/v1/images/generations", "/v1/responses"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_timestamp",
            "description": "The time now.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
]


@pytest.fixture(scope="module")
def client(mini_checkpoint: Path) -> Iterator[httpx2.Client]:
    with ServerInThread(model=str(mini_checkpoint)) as server, server.client() as client:
        yield client


def circle(format: str) -> bytes:
    """A red circle as a file."""
    image = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(image).ellipse((170, 90, 470, 390), fill="red")
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def circle_url(format: str = "PNG") -> str:
    """The same as a data URL."""
    data = base64.b64encode(circle(format)).decode()
    return f"data:image/{format.lower()};base64,{data}"


def posted(client: httpx2.Client, path: str, body: dict, **headers: str) -> dict:
    reply = client.post(path, json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("application/json")
    return reply.json()


def streamed(client: httpx2.Client, path: str, body: dict) -> list[dict]:
    """The JSON of every event but `[DONE]`."""
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def image_of(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64, validate=True)))


# Open WebUI.


def test_open_webui_verifies_the_connection(client: httpx2.Client):
    reply = client.get("/v1/models", headers={"authorization": "Bearer none"})
    assert reply.status_code == 200
    assert MODEL in [model["id"] for model in reply.json()["data"]]


def webui_chat(**changed: object) -> dict:
    content = [
        {"type": "text", "text": "What color is the circle?"},
        {"type": "image_url", "image_url": {"url": circle_url()}},
    ]
    messages = [
        {"role": "system", "content": "Answer the question."},
        {"role": "user", "content": content},
    ]
    return {"model": MODEL, "messages": messages, "tools": TOOLS, **changed}


def test_open_webui_chats(client: httpx2.Client):
    """It sends its tools to every model, and reads the stream's deltas and the last usage."""
    options = {"include_usage": True}
    chunks = streamed(client, CHAT, webui_chat(stream=True, stream_options=options, max_tokens=64))
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1])
    assert "red" in text
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_open_webui_makes_titles(client: httpx2.Client):
    """Background tasks are not streamed."""
    prompt = "### Task:\nGenerate a title for the chat.\n### Output:\nJSON format"
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "stream": False,
        "max_tokens": 50,
        "metadata": {"task": "title_generation", "chat_id": "1"},
    }
    assert "content" in posted(client, CHAT, body)["choices"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        # The last two come from its IMAGES_OPENAI_PARAMS, if the administrator sets them.
        {
            "model": "dall-e-2",
            "size": "512x512",
            "response_format": "b64_json",
            "guidance_scale": 5,
            "seed": 1,
        },
        {"model": "gpt-image-1", "size": "auto"},
    ],
)
def test_open_webui_draws(client: httpx2.Client, body: dict):
    reply = posted(client, PICTURES, {"prompt": "a large red circle", "n": 1, **body})
    image = image_of(reply["data"][0]["b64_json"])
    if body["size"] != "auto":
        assert image.size == tuple(map(int, body["size"].split("x")))


def test_open_webui_draws_through_automatic1111(client: httpx2.Client):
    """Its other engine: asks for the checkpoint, sets it, draws."""
    options = client.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == MODEL
    assert client.post("/sdapi/v1/options", json=options).status_code == 200
    models = client.get("/sdapi/v1/sd-models").json()
    assert (models[0]["title"], models[0]["model_name"]) == (MODEL, MODEL)
    body = {
        "prompt": "a large red circle",
        "batch_size": 1,
        "width": 512,
        "height": 512,
        "steps": 50,
        "negative_prompt": "",
    }
    reply = posted(client, "/sdapi/v1/txt2img", body)
    assert image_of(reply["images"][0]).size == (512, 512)
    assert isinstance(json.loads(reply["info"]), dict)


# n8n.


def test_n8n_analyses_an_image(client: httpx2.Client):
    """Always by responses, whatever the credentials' address."""
    content = [
        {"type": "input_text", "text": "What color is the circle?"},
        {"type": "input_image", "detail": "auto", "image_url": circle_url()},
    ]
    body = {
        "model": MODEL,
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": 300,
    }
    reply = posted(client, RESPONSES, body)
    (message,) = [item for item in reply["output"] if item["type"] == "message"]
    assert "red" in message["content"][0]["text"]


def test_n8n_chats_by_responses(client: httpx2.Client):
    """The default of its chat model."""
    body = {
        "model": MODEL,
        "input": [{"type": "message", "role": "user", "content": "What is a circle?"}],
        "stream": True,
        "store": False,
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}},
    }
    events = streamed(client, RESPONSES, body)
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"


def test_n8n_draws(client: httpx2.Client):
    body = {
        "prompt": "a blue star",
        "model": MODEL,
        "n": 1,
        "quality": "standard",
        "size": "1024x1024",
        "style": "vivid",
        "response_format": "b64_json",
    }
    assert image_of(posted(client, PICTURES, body)["data"][0]["b64_json"]).size == (1024, 1024)


def test_n8n_leaves_its_limits_at_minus_one(client: httpx2.Client):
    """As its chat model does with the older API."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is a circle?"}],
        "max_tokens": -1,
        "temperature": 0.7,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert streamed(client, CHAT, body)[-1]["usage"]["completion_tokens"] > 0


# SillyTavern.


def test_sillytavern_captions(client: httpx2.Client):
    content = [
        {"type": "text", "text": "What's in this image?"},
        {"type": "image_url", "image_url": {"url": circle_url("JPEG"), "detail": "auto"}},
    ]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 300,
    }
    assert "circle" in posted(client, CHAT, body)["choices"][0]["message"]["content"]


def test_sillytavern_draws(client: httpx2.Client):
    """What it asks when it connects, the whole form it sends, and how it looks after a drawing."""
    key = {"authorization": f"Basic {base64.b64encode(b'user:password').decode()}"}
    for name in ("options", "samplers", "schedulers", "sd-models", "upscalers"):
        reply = client.get(f"/sdapi/v1/{name}", headers=key)
        assert reply.status_code == 200, name
        assert reply.json(), name
    for name in ("sd-vae", "latent-upscale-modes"):
        assert client.get(f"/sdapi/v1/{name}", headers=key).json() == []
    body = {
        "prompt": "best quality, a large red circle",
        "negative_prompt": "lowres, blurry",
        "sampler_name": "Euler a",
        "scheduler": "Automatic",
        "steps": 20,
        "cfg_scale": 7,
        "width": 512,
        "height": 768,
        "seed": -1,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "hr_second_pass_steps": 0,
        "denoising_strength": 0.7,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    reply = posted(client, "/sdapi/v1/txt2img", body, **key)
    assert image_of(reply["images"][0]).size == (512, 768)
    assert json.loads(reply["info"])["seed"] >= 0
    assert "progress" in client.get("/sdapi/v1/progress", headers=key).json()
    assert client.post("/sdapi/v1/interrupt", headers=key, json={}).status_code == 200


# Frigate.


def test_frigate_describes_an_event(client: httpx2.Client):
    """Several frames of a camera and then the prompt."""
    frame = {"type": "image_url", "image_url": {"url": circle_url("JPEG"), "detail": "low"}}
    content = [frame] * 3 + [{"type": "text", "text": "What color is the circle?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    reply = posted(client, CHAT, body)
    assert reply["choices"][0]["message"]["content"]
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] > 0


# Home Assistant.


def test_llm_vision_asks_about_named_cameras(client: httpx2.Client):
    """A text with the camera's name before each picture."""
    image = {"type": "image_url", "image_url": {"url": circle_url("JPEG"), "detail": "high"}}
    content = [
        {"type": "text", "text": "Front door:"},
        image,
        {"type": "text", "text": "Garden:"},
        image,
        {"type": "text", "text": "What color is the circle?"},
    ]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": 100,
        "temperature": 0.2,
        "top_p": 0.9,
    }
    assert posted(client, CHAT, body)["choices"][0]["message"]["content"]
