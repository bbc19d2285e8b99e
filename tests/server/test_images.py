"""Image generations over a real socket: shapes, seeds, sizes, formats, streams."""

import base64
import io
import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from janus_core.errors import ParameterError
from server.pictures import parse_size
from server.schemas.images import ImageGenerationRequest
from tests.serving import ServerInThread, wait_until

URL = "/v1/images/generations"
PROMPT = "a large red circle"


def draw(client: httpx2.Client, **body: object) -> dict:
    reply = client.post(URL, json={"prompt": PROMPT} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def opened(b64_json: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    image.load()
    return image


def events(client: httpx2.Client, **body: object) -> list[dict]:
    """The events of a stream, each with its name checked against its type."""
    body = {"prompt": PROMPT, "stream": True} | body
    with client.stream("POST", URL, json=body) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        raw = reply.read().decode()
    found = []
    for frame in raw.split("\n\n"):
        if not frame or frame == ": ping":
            continue
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name.removeprefix("event: ") == found[-1]["type"]
    return found


def test_a_reply_has_openai_s_keys_and_a_picture(client: httpx2.Client):
    reply = draw(client, seed=3)
    assert reply.keys() == {
        *("created", "data", "background", "output_format", "quality", "size", "usage")
    }
    (picture,) = reply["data"]
    assert picture.keys() == {"b64_json", "revised_prompt", "seed"}
    assert picture["seed"] == 3
    image = opened(picture["b64_json"])
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))
    assert reply["size"] == "16x16"
    usage = reply["usage"]
    assert usage["output_tokens"] == usage["output_tokens_details"]["image_tokens"] == 16
    assert usage["total_tokens"] == usage["input_tokens"] + 16


def test_the_returned_seed_draws_the_picture_again(client: httpx2.Client):
    first = draw(client)["data"][0]
    again = draw(client, seed=first["seed"])["data"][0]
    other = draw(client, seed=first["seed"] + 1)["data"][0]
    assert again == first
    assert other["b64_json"] != first["b64_json"]


def test_n_pictures_have_the_seeds_that_follow_or_the_ones_given(client: httpx2.Client):
    three = draw(client, n=3, seed=5)
    assert [picture["seed"] for picture in three["data"]] == [5, 6, 7]
    assert three["usage"]["output_tokens"] == 48
    chosen = draw(client, seed=[7, 5])
    assert chosen["data"] == [three["data"][2], three["data"][0]]


def test_the_file_says_how_to_draw_it_again(client: httpx2.Client):
    picture = draw(client, seed=11, guidance_scale=3)["data"][0]
    text = opened(picture["b64_json"]).text
    assert text["prompt"] == PROMPT
    assert (text["seed"], float(text["guidance_scale"]), text["model"]) == ("11", 3.0, "tiny")
    assert text["temperature"] == "1.0"
    assert text["parameters"] == (
        f"{PROMPT}\nSteps: 16, Sampler: Autoregressive, CFG scale: 3.0, Seed: 11, Size: 16x16, "
        "Model: tiny"
    )
    picture = draw(client, seed=11, negative_prompt="a cat", size="32x32")["data"][0]
    text = opened(picture["b64_json"]).text
    assert text["negative_prompt"] == "a cat"
    assert text["parameters"].startswith(f"{PROMPT}\nNegative prompt: a cat\nSteps: ")
    assert "Size: 32x32" in text["parameters"]


@pytest.mark.parametrize(
    "changed",
    [
        {"guidance_scale": 1},
        {"guidance_scale": 9},
        {"temperature": 0},
        {"top_k": 1},
        {"top_p": 0.1},
        {"min_p": 1},
        {"negative_prompt": "a small blue square"},
        {"prompt": "a small blue square"},
    ],
)
def test_each_parameter_has_its_effect(client: httpx2.Client, changed: dict):
    assert draw(client, seed=1, **changed)["data"] != draw(client, seed=1)["data"]


def test_what_has_no_effect_has_none(client: httpx2.Client):
    fields = dict.fromkeys(ImageGenerationRequest.without_effect, 3)
    assert draw(client, seed=1, **fields)["data"] == draw(client, seed=1)["data"]


def test_guidance_has_three_names(client: httpx2.Client):
    named = [draw(client, seed=1, **{name: 2}) for name in ("guidance_scale", "cfg_weight")]
    assert named[0]["data"] == named[1]["data"]
    assert draw(client, seed=1, cfg_scale=2)["data"] == named[0]["data"]


@pytest.mark.parametrize("size", ["48x32", "512x16", "8x8"])
def test_another_size_is_the_native_picture_cut_to_fit(client: httpx2.Client, size: str):
    reply = client.post(URL, json={"prompt": PROMPT, "seed": 2, "size": size})
    width, height = map(int, size.split("x"))
    if width < 16:
        assert reply.status_code == 400
        return
    assert reply.headers["x-janus-native-size"] == "16x16"
    assert reply.json()["size"] == size
    image = opened(reply.json()["data"][0]["b64_json"])
    assert image.size == (width, height)
    native = opened(draw(client, seed=2)["data"][0]["b64_json"])
    side = max(width, height)
    covering = native.resize((side, side), Image.Resampling.LANCZOS)
    left, top = (side - width) // 2, (side - height) // 2
    expected = covering.crop((left, top, left + width, top + height))
    # Lanczos over the whole and over a part differ by rounding only.
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int))
    assert difference.max() <= 2


@pytest.mark.parametrize(
    ("output_format", "compression"),
    [("png", None), ("png", 100), ("jpeg", None), ("jpeg", 10), ("webp", 80), ("webp", 100)],
)
def test_every_output_format(client: httpx2.Client, output_format: str, compression: int | None):
    reply = draw(client, seed=2, output_format=output_format, output_compression=compression)
    assert reply["output_format"] == output_format
    image = opened(reply["data"][0]["b64_json"])
    assert image.format == output_format.upper()
    native = opened(draw(client, seed=2)["data"][0]["b64_json"])
    if (output_format, compression) in {("png", None), ("png", 100), ("webp", 100)}:
        assert image.tobytes() == native.tobytes()
    else:
        assert image.tobytes() != native.tobytes()


def test_less_quality_is_a_smaller_file(client: httpx2.Client):
    sizes = [
        len(
            draw(client, seed=2, size="256x256", output_format="jpeg", output_compression=quality)[
                "data"
            ][0]["b64_json"]
        )
        for quality in (10, 90)
    ]
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize(
    "model", ["tiny", "tiny:image", "dall-e-2", "dall-e-3", "gpt-image-1.5", None]
)
def test_clients_with_a_fixed_list_of_models_are_served(client: httpx2.Client, model: str | None):
    reply = draw(
        client,
        model=model,
        n=1,
        size="auto",
        quality="standard",
        style="vivid",
        moderation="low",
        background="auto",
        response_format="b64_json",
        user="me",
        num_inference_steps=50,
    )
    assert len(reply["data"]) == 1


def test_a_stream_shows_half_drawn_pictures_then_the_picture(client: httpx2.Client):
    *partial, completed = events(client, seed=4, partial_images=3)
    assert [event["partial_image_index"] for event in partial] == [0, 1, 2]
    keys = {"b64_json", "created_at", "background", "output_format", "quality", "size", "type"}
    assert all(
        event.keys() == keys | {"partial_image_index", "image_index", "seed"} for event in partial
    )
    assert completed.keys() == keys | {"usage", "image_index", "seed"}
    assert completed["usage"]["output_tokens"] == 16
    assert completed["b64_json"] == draw(client, seed=4)["data"][0]["b64_json"]
    final = np.asarray(opened(completed["b64_json"]))
    for event in partial:
        image = np.asarray(opened(event["b64_json"]))
        assert image.shape == final.shape
        assert (image[-1] == image[-1, 0]).all(), "the last row is not drawn yet"
    assert len({event["b64_json"] for event in partial}) == 3


def test_a_stream_of_several_pictures_completes_each_once(client: httpx2.Client):
    found = events(client, seed=4, n=2, partial_images=0, output_format="webp")
    assert [event["type"] for event in found] == ["image_generation.completed"] * 2
    by_index = {event["image_index"]: event for event in found}
    whole = draw(client, seed=4, n=2, output_format="webp")
    assert [by_index[i]["b64_json"] for i in (0, 1)] == [p["b64_json"] for p in whole["data"]]
    assert [by_index[i]["seed"] for i in (0, 1)] == [4, 5]


def test_a_url_leads_to_the_same_file(client: httpx2.Client):
    reply = draw(client, seed=3, n=2, response_format="url", output_format="webp")
    whole = draw(client, seed=3, n=2, output_format="webp")
    for picture, same in zip(reply["data"], whole["data"], strict=True):
        assert picture.keys() == {"url", "revised_prompt", "seed"}
        assert picture["url"].startswith(f"{client.base_url}/v1/images/img_".replace("//v1", "/v1"))
        found = client.get(picture["url"])
        assert found.status_code == 200
        assert found.content == base64.b64decode(same["b64_json"])
        assert found.headers["content-type"] == "image/webp"
        assert found.headers["x-content-type-options"] == "nosniff"
        assert 0 < int(found.headers["cache-control"].split("max-age=")[1].split(",")[0]) <= 3600
    assert len({picture["url"] for picture in reply["data"]}) == 2


def test_the_log_does_not_tell_where_pictures_are(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("DEBUG", logger="server"):
        (picture,) = draw(client, response_format="url")["data"]
        assert client.get(picture["url"]).status_code == 200
        wait_until(lambda: "/v1/images/{image_id}/content" in caplog.text)
    image_id = picture["url"].split("/")[-2]
    assert not any(image_id in r.getMessage() for r in caplog.records if "server" in r.name)


@pytest.mark.parametrize("image_id", ["img_x", "..%2f..%2fetc", "a" * 2000])
def test_there_is_nothing_at_other_urls(client: httpx2.Client, image_id: str):
    reply = client.get(f"/v1/images/{image_id}/content")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] in ("image_not_found", "unknown_url")


def test_a_stream_can_have_urls_beside_the_bytes(client: httpx2.Client):
    (completed,) = events(client, seed=3, response_format="url")
    found = client.get(completed["url"])
    assert found.content == base64.b64decode(completed["b64_json"])


def test_progress_comes_once_per_row(client: httpx2.Client):
    found = events(client, seed=3, n=2, progress=True)
    for index in (0, 1):
        own = [event for event in found if event["image_index"] == index]
        *progress, completed = own
        assert {event["type"] for event in progress} == {"image_generation.progress"}
        numbers = [event["num_codes"] for event in progress]
        assert numbers == sorted(set(numbers))
        assert len(numbers) >= 3
        assert {event["total_codes"] for event in progress} == {16}
        assert {event["seed"] for event in own} == {3 + index}
        assert all(event["remaining_s"] is None or event["remaining_s"] >= 0 for event in progress)
        assert completed["type"] == "image_generation.completed"


def test_a_stream_begins_with_the_time_it_will_take(client: httpx2.Client):
    draw(client)  # so that steps have been measured
    waits = []
    for n in (1, 4):
        with client.stream("POST", URL, json={"prompt": PROMPT, "stream": True, "n": n}) as reply:
            waits.append(float(reply.headers["x-janus-estimated-s"]))
            reply.read()
    assert 0 <= waits[0] <= waits[1] < 60


def test_without_a_stream_there_is_nothing_to_show_on_the_way(client: httpx2.Client):
    for name, value in (("progress", True), ("partial_images", 1)):
        reply = client.post(URL, json={"prompt": PROMPT, name: value})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == name


def test_codes_come_back_on_request(client: httpx2.Client):
    (picture,) = draw(client, seed=3, return_token_ids=True)["data"]
    assert len(picture["token_ids"]) == 16
    (completed,) = events(client, seed=3, return_token_ids=True)
    assert completed["token_ids"] == picture["token_ids"]
    assert (
        draw(client, seed=4, return_token_ids=True)["data"][0]["token_ids"] != picture["token_ids"]
    )


@pytest.mark.parametrize(
    ("policy", "size", "expected"),
    [
        ("native", "512x512", (16, 16)),
        ("native", "1x1", (16, 16)),
        ("native", "big", None),
        ("strict", "512x512", None),
        ("strict", "16x16", (16, 16)),
        ("strict", "auto", (16, 16)),
        ("resize", "512x256", (512, 256)),
    ],
)
def test_the_size_policy(policy: str, size: str, expected: tuple[int, int] | None):
    if expected is None:
        with pytest.raises(ParameterError) as caught:
            parse_size(size, native_px=16, max_px=512, policy=policy)
        assert caught.value.param == "size"
    else:
        assert parse_size(size, native_px=16, max_px=512, policy=policy) == expected


def test_the_settings_reach_the_pictures(tiny_checkpoint: Path):
    settings = {"image_size_policy": "native", "public_url": "https://pictures.example/janus/"}
    with (
        ServerInThread(model=str(tiny_checkpoint), result_store_bytes=1500, **settings) as server,
        server.client() as client,
    ):
        reply = draw(client, size="64x64", n=2, seed=3, response_format="url")
        assert reply["size"] == "16x16"
        urls = [picture["url"] for picture in reply["data"]]
        assert all(url.startswith("https://pictures.example/janus/v1/images/") for url in urls)
        found = [client.get(url.partition("/janus")[2]) for url in urls]
        assert sorted(reply.status_code for reply in found) == [200, 404], "room for one only"


def test_the_identifier_comes_back(client: httpx2.Client):
    assert draw(client, safety_identifier="a", user="b")["safety_identifier"] == "a"
    assert draw(client, user="b")["safety_identifier"] == "b"


@pytest.mark.parametrize(
    ("quality", "shown"), [("max", "max"), ("low", "low"), ("hd", "high"), ("auto", "high")]
)
def test_the_quality_is_echoed(client: httpx2.Client, quality: str, shown: str):
    assert draw(client, quality=quality)["quality"] == shown


@pytest.mark.parametrize(
    "body",
    [
        {"frame_count": 9},
        {"frame_duration_ms": 100},
        {"svg": {"model": "x"}},
        {"output_format": "gif"},
        {"output_format": "svg"},
        {"background": "transparent"},
        {"markup": "x"},
        {"image": "x"},
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(client: httpx2.Client, body: dict):
    reply = client.post(URL, json={"prompt": PROMPT} | body)
    assert reply.status_code == 400
    assert [reply.json()["error"]["param"]] == list(body)
