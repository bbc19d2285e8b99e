"""Chat completions whose answer is a picture."""

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.server.test_bad_input import CHAT, refused
from tests.server.test_chat import ask, chunks
from tests.server.test_chat_turns import shown
from tests.server.test_images import PROMPT, draw, opened

DRAW = [{"role": "user", "content": PROMPT}]
PICTURE = {"messages": DRAW, "modalities": ["image"], "max_tokens": None, "ignore_eos": None}


def picture(image: dict) -> Image.Image:
    assert image["type"] == "image_url"
    return opened(image["image_url"]["url"].partition(";base64,")[2])


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("modalities", [["image"], ["image", "text"]])
def test_the_answer_is_the_picture_an_image_generation_draws(
    client: httpx2.Client, modalities: list[str]
):
    reply = ask(client, **PICTURE | {"modalities": modalities}, seed=5)
    (choice,) = reply["choices"]
    assert choice["message"].keys() == {"role", "content", "refusal", "images"}
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    (image,) = choice["message"]["images"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    drawn = draw(client, seed=5)
    assert same(picture(image), opened(drawn["data"][0]["b64_json"]))
    assert picture(image).text["prompt"] == PROMPT
    assert (reply["seed"], image["seed"]) == (5, 5)
    usage = reply["usage"]
    assert usage["completion_tokens_details"]["image_tokens"] == usage["completion_tokens"] == 16
    assert usage["prompt_tokens"] == drawn["usage"]["input_tokens"]


@pytest.mark.parametrize("fields", [{}, {"modalities": ["text"]}])
def test_a_name_of_the_model_is_enough_to_get_a_picture(client: httpx2.Client, fields: dict):
    reply = client.post(CHAT, json={"messages": DRAW, "model": "tiny:image", "seed": 5} | fields)
    assert reply.headers["x-janus-native-size"] == "16x16"
    assert reply.json()["model"] == "tiny"
    (image,) = reply.json()["choices"][0]["message"]["images"]
    assert same(picture(image), opened(draw(client, seed=5)["data"][0]["b64_json"]))
    text = client.post(CHAT, json={"messages": DRAW, "model": "tiny", "max_tokens": 1})
    assert "x-janus-native-size" not in text.headers
    body = {"messages": DRAW, "model": "tiny:image", "stream": True}
    with client.stream("POST", CHAT, json=body) as stream:
        assert stream.headers["x-janus-native-size"] == "16x16"
        assert '"images"' in stream.read().decode()
    assert client.post(CHAT, json={"messages": DRAW, "model": "tiny:x"}).status_code == 404


def test_only_the_last_words_of_the_user_are_drawn(client: httpx2.Client, image_url: str):
    messages = [
        {"role": "system", "content": "You draw."},
        {"role": "user", "content": "a small blue square"},
        {"role": "assistant", "content": "", "images": [shown(image_url)]},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    (image,) = ask(client, **PICTURE | {"messages": messages}, seed=5)["choices"][0]["message"][
        "images"
    ]
    assert same(picture(image), opened(draw(client, seed=5)["data"][0]["b64_json"]))


@pytest.mark.parametrize(
    "field",
    [
        {"guidance_scale": 2},
        {"cfg_weight": 2},
        {"cfg_scale": 2},
        {"temperature": 0.3},
        {"top_k": 2},
        {"top_p": 0.1},
        {"min_p": 0.9},
        {"negative_prompt": "blue"},
        {"size": "32x24"},
    ],
    ids=lambda field: next(iter(field)),
)
def test_each_field_does_what_it_does_for_an_image_generation(client: httpx2.Client, field: dict):
    message = ask(client, **PICTURE, seed=5, **field)["choices"][0]["message"]
    drawn = picture(message["images"][0])
    assert same(drawn, opened(draw(client, seed=5, **field)["data"][0]["b64_json"]))
    assert not same(drawn, opened(draw(client, seed=5)["data"][0]["b64_json"]))


def test_the_format_can_be_chosen(client: httpx2.Client):
    message = ask(client, **PICTURE, output_format="webp")["choices"][0]["message"]
    assert message["images"][0]["image_url"]["url"].startswith("data:image/webp;base64,")
    assert picture(message["images"][0]).format == "WEBP"


def test_n_choices_have_a_picture_each(client: httpx2.Client):
    choices = ask(client, **PICTURE, n=3, seed=5)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert [choice["message"]["images"][0]["seed"] for choice in choices] == [5, 6, 7]
    drawn = draw(client, n=3, seed=5)["data"]
    for choice, item in zip(choices, drawn, strict=True):
        assert same(picture(choice["message"]["images"][0]), opened(item["b64_json"]))


def test_a_stream_has_each_picture_in_one_chunk(client: httpx2.Client):
    whole = ask(client, **PICTURE, n=2, seed=5)
    *data, last = chunks(client, **PICTURE, n=2, seed=5, stream_options={"include_usage": True})
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 32
    images: dict[int, list[dict]] = {0: [], 1: []}
    reasons = {}
    for chunk in data:
        (choice,) = chunk["choices"]
        images[choice["index"]] += choice["delta"].get("images", [])
        reasons[choice["index"]] = choice["finish_reason"]
    assert images == {c["index"]: c["message"]["images"] for c in whole["choices"]}
    assert reasons == {0: "stop", 1: "stop"}
    assert data[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_a_picture_counts_as_one_in_the_metrics(client: httpx2.Client):
    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        name = 'janus:images_generated_total{model_name="tiny"}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0)

    before = count()
    ask(client, **PICTURE)
    assert count() == before + 1


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"n": 5}, "n"),
        ({"size": "1x1"}, "size"),
        ({"guidance_scale": 2, "cfg_scale": 3}, "cfg_scale"),
        ({"guidance_scale": 1, "negative_prompt": "x"}, "negative_prompt"),
        ({"messages": [{"role": "user", "content": "w " * 16_001}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "word " * 1200}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        (
            {"messages": [*DRAW, {"role": "user", "content": [shown("data:")]}]},
            "messages.1.content",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(client: httpx2.Client, changed: dict, param: str):
    body = {"messages": DRAW, "modalities": ["text", "image"]} | changed
    assert refused(client, CHAT, body)["param"] == param
