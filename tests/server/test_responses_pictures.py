"""Pictures drawn by responses: by the tool or by the model's name, whole, streamed and refused."""

import base64
import io

import httpx2
import openai
import pytest
from PIL import Image

from tests.server.test_bad_input import refused
from tests.server.test_images import PROMPT, draw, opened
from tests.server.test_responses import TOOL, URL, events, respond


@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL | {"size": "32x32"}]}])
def test_a_name_of_the_model_is_enough_to_get_a_picture(client: httpx2.Client, tools: dict):
    body = {"input": PROMPT, "model": "tiny:image", "seed": 5} | tools
    reply = client.post("/v1/responses", json=body)
    assert reply.headers["x-janus-native-size"] == "16x16"
    (item,) = reply.json()["output"]
    assert opened(item["result"]).size == ((32, 32) if tools else (16, 16))
    assert reply.json()["model"] == "tiny"


@pytest.mark.parametrize(
    "choice",
    [
        *(None, "auto", "required", {"type": "image_generation"}),
        {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
    ],
)
def test_the_image_tool_draws(client: httpx2.Client, choice: object):
    chosen = {} if choice is None else {"tool_choice": choice}
    response = respond(client, input=PROMPT, tools=[TOOL], seed=5, **chosen)
    (item,) = response["output"]
    assert (item["type"], item["status"]) == ("image_generation_call", "completed")
    image = Image.open(io.BytesIO(base64.b64decode(item["result"])))
    assert image.size == (16, 16)
    assert image.text["prompt"] == PROMPT
    assert item["result"] == draw(client, seed=5)["data"][0]["b64_json"]
    assert (response["status"], response["seed"], item["seed"]) == ("completed", 5, 5)
    assert response["usage"]["output_tokens"] == 16
    assert response["usage"]["output_tokens_details"]["image_tokens"] == 16
    assert response["tools"] == [TOOL]


@pytest.mark.parametrize(
    "choice",
    ["none", {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}],
    ids=["none", "allowed_tools"],
)
def test_without_leave_to_use_the_tool_the_answer_is_text(client: httpx2.Client, choice: object):
    response = respond(client, tools=[TOOL], tool_choice=choice)
    assert response["output"][0]["type"] == "message"


@pytest.mark.parametrize(
    ("field", "same"),
    [
        ({"size": "32x24"}, {"size": "32x24"}),
        ({"output_format": "webp"}, {"output_format": "webp"}),
        (
            {"output_format": "jpeg", "output_compression": 10},
            {"output_format": "jpeg", "output_compression": 10},
        ),
        ({"guidance_scale": 2}, {"guidance_scale": 2}),
        ({"cfg_weight": 2}, {"guidance_scale": 2}),
        ({"cfg_scale": 2}, {"guidance_scale": 2}),
        ({"negative_prompt": "blue"}, {"negative_prompt": "blue"}),
    ],
)
def test_the_tool_s_fields_have_their_effect(client: httpx2.Client, field: dict, same: dict):
    (item,) = respond(client, input=PROMPT, tools=[TOOL | field], seed=5)["output"]
    assert item["result"] == draw(client, seed=5, **same)["data"][0]["b64_json"]
    assert item["result"] != draw(client, seed=5)["data"][0]["b64_json"]
    if "size" in field:
        assert item["size"] == field["size"]


def test_quality_is_echoed(client: httpx2.Client):
    for given, shown_as in (("low", "low"), ("auto", "high"), ("max", "high")):
        tool = TOOL | {"quality": given, "model": "gpt-image-1", "background": "opaque"}
        assert respond(client, input=PROMPT, tools=[tool])["output"][0]["quality"] == shown_as


def test_a_stream_of_the_image_tool(client: httpx2.Client):
    tool = TOOL | {"partial_images": 2}
    found = events(client, input=PROMPT, tools=[tool], seed=5)
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds == [
        *("created", "in_progress", "output_item.added"),
        *("image_generation_call.in_progress", "image_generation_call.generating"),
        *["image_generation_call.partial_image"] * 2,
        *("image_generation_call.completed", "output_item.done", "completed"),
    ]
    partial = [event for event in found if "partial_image_b64" in event]
    assert [event["partial_image_index"] for event in partial] == [0, 1]
    assert len({event["partial_image_b64"] for event in partial}) == 2
    whole = respond(client, input=PROMPT, tools=[TOOL], seed=5)
    assert found[-1]["response"]["output"][0]["result"] == whole["output"][0]["result"]


def test_the_official_client_draws(openai_client: openai.OpenAI):
    asked = {"model": "tiny", "input": PROMPT, "tools": [TOOL | {"partial_images": 1}]}
    with openai_client.responses.stream(**asked, extra_body={"seed": 5}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.image_generation_call.partial_image" in kinds
    (call,) = final.output
    assert call.type == "image_generation_call"
    assert base64.b64decode(call.result).startswith(b"\x89PNG")


def test_a_model_that_does_not_draw_is_404(client: httpx2.Client):
    body = {"input": PROMPT, "tools": [TOOL | {"model": "gpt-5"}]}
    assert refused(client, URL, body, status=404)["param"] == "tools.0.model"
