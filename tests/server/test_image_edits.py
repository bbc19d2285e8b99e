"""Edits and variations over a real socket: what is kept, what is drawn, what is refused."""

import base64
import io

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from server.schemas.images import ImageEditRequest
from tests.server.conftest import data_url
from tests.server.test_images import opened
from tests.serving import ServerInThread

PROMPT = "a large red circle"


def file_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def source() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB").resize((32, 32))


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """Transparent, so to be drawn anew, on the right half."""
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[:, 16:] = 0
    return Image.merge("RGBA", (*Image.new("RGB", (32, 32)).split(), Image.fromarray(alpha)))


def edit(client: httpx2.Client, image: Image.Image, path: str = "edits", **fields: object) -> dict:
    files = {"image": ("x.png", file_of(image), "image/png")}
    if given := fields.pop("mask", None):
        files["mask"] = ("mask.png", file_of(given), "image/png")
    fields = {"prompt": PROMPT, "seed": 5, "return_token_ids": True} | fields
    data = {name: str(value) for name, value in fields.items() if value is not None}
    reply = client.post(f"/v1/images/{path}", data=data, files=files)
    assert reply.status_code == 200, reply.text
    return reply.json()


def codes_of(client: httpx2.Client, image: Image.Image) -> list[int]:
    reply = client.post("/v1/images/encode", json={"images": data_url(image)})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"][0]["codes"]


def num_kept(picture: dict, codes: list[int]) -> int:
    return sum(a == b for a, b in zip(picture["token_ids"], codes, strict=True))


def test_what_the_mask_leaves_is_kept(client: httpx2.Client, source, mask):
    codes = np.reshape(codes_of(client, source), (4, 4))
    reply = edit(client, source, mask=mask, n=2)
    drawn = [np.reshape(picture["token_ids"], (4, 4)) for picture in reply["data"]]
    for picture in drawn:
        assert (picture[:, :2] == codes[:, :2]).all()
        assert (picture[:, 2:] != codes[:, 2:]).any()
    assert (drawn[0] != drawn[1]).any()
    assert [picture["seed"] for picture in reply["data"]] == [5, 6]
    assert edit(client, source, mask=mask, seed=6)["data"][0] == reply["data"][1]
    other = edit(client, source, mask=mask, prompt="a small blue square")["data"][0]
    assert other["token_ids"] != reply["data"][0]["token_ids"]


def test_transparency_of_the_image_is_a_mask(client: httpx2.Client, source, mask):
    codes = np.reshape(codes_of(client, source), (4, 4))
    transparent = source.copy()
    transparent.putalpha(mask.getchannel("A"))
    codes = np.reshape(codes_of(client, transparent), (4, 4))
    (picture,) = edit(client, transparent)["data"]
    assert (np.reshape(picture["token_ids"], (4, 4))[:, :2] == codes[:, :2]).all()


def test_an_image_may_have_an_alpha_channel_and_no_transparency(client: httpx2.Client, source):
    plain = edit(client, source)["data"]
    assert edit(client, source.convert("RGBA"))["data"] == plain
    half = source.copy()
    half.putalpha(128)
    assert num_kept(edit(client, half)["data"][0], codes_of(client, half)) >= 4


def test_a_black_and_white_mask_may_have_an_alpha_channel(client: httpx2.Client, source, mask):
    white = Image.fromarray(255 - np.asarray(mask.getchannel("A"))).convert("RGBA")
    assert edit(client, source, mask=white)["data"] == edit(client, source, mask=mask)["data"]


@pytest.mark.parametrize(("strength", "at_least"), [(None, 4), (0, 15), (0.25, 12), (0.5, 8)])
def test_strength_is_the_share_drawn_anew(client: httpx2.Client, source, strength, at_least):
    codes = codes_of(client, source)
    reply = edit(client, source, strength=strength, n=2)
    for picture in reply["data"]:
        assert num_kept(picture, codes) >= at_least
        assert opened(picture["b64_json"]).size == (16, 16)
    again = edit(client, source, strength=strength, seed=6)["data"][0]
    assert again == reply["data"][1], "the seed of a picture draws it again"


def test_all_drawn_anew_is_a_generation(client: httpx2.Client, source):
    body = {"prompt": PROMPT, "seed": 5, "return_token_ids": True}
    plain = client.post("/v1/images/generations", json=body).json()["data"][0]
    assert edit(client, source, strength=1)["data"][0]["token_ids"] == plain["token_ids"]


def test_json_is_the_same_as_a_form(client: httpx2.Client, source, mask):
    body = {
        "prompt": PROMPT,
        "seed": 5,
        "images": [{"image_url": data_url(source)}],
        "mask": {"image_url": data_url(mask)},
        "return_token_ids": True,
    }
    reply = client.post("/v1/images/edits", json=body)
    assert reply.json()["data"] == edit(client, source, mask=mask)["data"]


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 1},
        {"temperature": 0},
        {"negative_prompt": "a cat"},
        {"top_k": 1},
        {"top_p": 0.1},
        {"min_p": 1},
    ],
)
def test_each_parameter_has_its_effect(client: httpx2.Client, source, fields):
    plain = edit(client, source, strength=1)["data"][0]["token_ids"]
    assert edit(client, source, strength=1, **fields)["data"][0]["token_ids"] != plain


@pytest.mark.parametrize("path", ["edits", "variations"])
def test_what_has_no_effect_has_none(client: httpx2.Client, source, path: str):
    fields = dict.fromkeys(ImageEditRequest.without_effect, 3)
    assert edit(client, source, path, **fields)["data"] == edit(client, source, path)["data"]


@pytest.mark.parametrize("path", ["edits", "variations"])
def test_pictures_leave_as_those_of_a_generation(client: httpx2.Client, source, path: str):
    wide = edit(client, source, path, size="64x32", output_format="jpeg", output_compression=80)
    assert (wide["size"], wide["output_format"]) == ("64x32", "jpeg")
    image = opened(wide["data"][0]["b64_json"])
    assert (image.format, image.size) == ("JPEG", (64, 32))
    rougher = edit(client, source, path, size="64x32", output_format="jpeg", output_compression=5)
    assert len(rougher["data"][0]["b64_json"]) < len(wide["data"][0]["b64_json"])
    kept = edit(client, source, path, response_format="url", quality="low", user="me")
    assert (kept["quality"], kept["safety_identifier"]) == ("low", "me")
    plain = edit(client, source, path)["data"][0]
    assert client.get(kept["data"][0]["url"]).content == base64.b64decode(plain["b64_json"])
    told = edit(client, source, path, logprobs=True)["data"][0]["logprobs"]["guided"]
    assert len(told) == 16
    assert told[:4] == [None] * 4, "what was kept"
    assert None not in told[4:]
    drawn = edit(client, source, path, seed=[8, 5])["data"]
    assert drawn[1] == plain


def test_an_edit_streams_its_progress(client: httpx2.Client, source):
    data = {"prompt": PROMPT, "stream": "true", "progress": "true", "seed": "5"}
    files = {"image": file_of(source)}
    with client.stream("POST", "/v1/images/edits", data=data, files=files) as reply:
        assert reply.headers["x-janus-native-size"] == "16x16"
        frames = [frame.split("\n") for frame in reply.read().decode().split("\n\n") if frame]
    names = [name.removeprefix("event: ") for name, *_ in frames if name.startswith("event")]
    assert names[-1] == "image_edit.completed"
    assert set(names[:-1]) == {"image_edit.progress"}


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # variations, there
def test_the_openai_client_edits_and_varies(server: ServerInThread, source, mask):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        reply = client.images.edit(
            image=("a.png", file_of(source)),
            mask=("m.png", file_of(mask)),
            prompt=PROMPT,
            model="gpt-image-1",
            size="64x64",
            output_format="webp",
            extra_body={"seed": 5},
        )
        assert (reply.size, reply.output_format, reply.data[0].seed) == ("64x64", "webp", 5)
        assert opened(reply.data[0].b64_json).size == (64, 64)
        stream = client.images.edit(
            image=[("a.png", file_of(source))],
            prompt=PROMPT,
            stream=True,
            partial_images=2,
            extra_body={"seed": 5},
        )
        events = list(stream)
        kinds = ["image_edit.partial_image", "image_edit.partial_image", "image_edit.completed"]
        assert [event.type for event in events] == kinds
        assert events[-1].usage.output_tokens == 16
        reply = client.images.create_variation(
            image=("a.png", file_of(source)),
            n=2,
            response_format="url",
            extra_body={"prompt": PROMPT},
        )
        assert len({picture.url for picture in reply.data}) == 2


def test_a_variation_without_a_prompt_draws_what_the_model_sees(client: httpx2.Client, source):
    reply = edit(client, source, "variations", prompt=None)
    (picture,) = reply["data"]
    caption = picture["revised_prompt"]
    assert caption
    assert opened(picture["b64_json"]).text["prompt"] == caption
    named = edit(client, source, "variations", prompt=caption)["data"][0]
    assert named["token_ids"] == picture["token_ids"]
    assert named["revised_prompt"] is None
    codes = codes_of(client, source)
    assert num_kept(edit(client, source, "variations", strength=0.25)["data"][0], codes) >= 12


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"data": {"prompt": PROMPT}, "files": {"other": b"x"}}, "image"),
        ({"data": {"prompt": PROMPT}, "files": {"image": b"x"}}, "image"),
        ({"data": {}, "files": {"image": b"x"}}, "prompt"),
        (
            {"data": {"prompt": PROMPT, "mask": '{"image_url": "x"}'}, "files": {"image": b"x"}},
            "mask",
        ),
        (
            {"data": {"prompt": PROMPT, "images": "[]"}, "files": {"image": b"x"}},
            "images",
        ),
        ({"data": {"prompt": PROMPT}, "files": {"image": b"x", "markup": b"x"}}, "markup"),
        (
            {"data": {"prompt": PROMPT}, "files": [("image[]", b"x"), ("image[]", b"x")]},
            "image",
        ),
        ({"json": {"prompt": PROMPT}}, "images"),
        ({"json": {"prompt": PROMPT, "images": [{"file_id": "x"}]}}, "images.0.image_url"),
        (
            {"json": {"prompt": PROMPT, "images": [{"file_id": "x", "image_url": "data:"}]}},
            "file_id",
        ),
        ({"json": {"prompt": PROMPT, "images": [{"image_url": "x"}]}}, "images.0.image_url"),
        (
            {"json": {"prompt": PROMPT, "images": [{"image_url": "http://x/"}]}},
            "images.0.image_url",
        ),
        ({"json": {"prompt": PROMPT, "images": [{"image_url": "x"}] * 2}}, "images"),
        ({"json": {"prompt": PROMPT, "strength": 2}}, "strength"),
        ({"json": {"prompt": PROMPT, "frame_count": 9}}, "images"),
    ],
)
def test_what_is_refused(client: httpx2.Client, request_: dict, param: str):
    reply = client.post("/v1/images/edits", **request_)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_masks_that_mean_nothing_are_refused(client: httpx2.Client, source, mask):
    def refused(**fields: object) -> str:
        files = {"image": file_of(source), "mask": file_of(fields.pop("mask"))}
        reply = client.post("/v1/images/edits", data={"prompt": PROMPT} | fields, files=files)
        assert reply.status_code == 400
        return reply.json()["error"]["param"]

    assert refused(mask=Image.new("RGBA", (32, 32), "red")) == "mask"
    assert refused(mask=mask, strength="0.5") == "strength"


def test_neither_json_nor_a_form(client: httpx2.Client):
    reply = client.post("/v1/images/edits", content=b"x", headers={"content-type": "text/plain"})
    assert reply.status_code == 415
    headers = {"content-type": "application/json"}
    for content in (b"{", b"[1]", b"\xff"):
        reply = client.post("/v1/images/edits", content=content, headers=headers)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] in ("invalid_json", "invalid_body")


def test_img2img_keeps_a_share_or_what_the_mask_leaves(client: httpx2.Client, source, mask):
    white = Image.fromarray(255 - np.asarray(mask.getchannel("A")))
    body = {"prompt": PROMPT, "seed": 5, "init_images": [data_url(source).partition(",")[2]]}

    def drawn(**fields: object) -> bytes:
        reply = client.post("/sdapi/v1/img2img", json=body | fields)
        assert reply.status_code == 200, reply.text
        return opened(reply.json()["images"][0]).tobytes()

    def edited(**fields: object) -> bytes:
        return opened(edit(client, source, **fields)["data"][0]["b64_json"]).tobytes()

    assert drawn() == edited(strength=0.75)
    assert drawn(denoising_strength=0.25) == edited(strength=0.25)
    assert drawn(mask=data_url(white), denoising_strength=0.25) == edited(mask=mask)
    black = Image.fromarray(np.asarray(mask.getchannel("A")))
    assert drawn(mask=data_url(black), inpainting_mask_invert=1) == edited(mask=mask)
    assert drawn(mask=data_url(black), inpainting_mask_invert=True) == edited(mask=mask)
    strokes = Image.new("RGBA", mask.size, "black")
    strokes.putalpha(white)
    assert drawn(mask=data_url(strokes)) == edited(mask=mask), "what a brush has covered"
    assert drawn(prompt="") != drawn()
    assert drawn(negative_prompt="a cat") == edited(strength=0.75, negative_prompt="a cat")
    assert drawn(cfg_scale=9) == edited(strength=0.75, guidance_scale=9)
    assert drawn(width=64, height=32) == edited(strength=0.75, size="64x32")
    for fields, param in (
        ({"init_images": []}, "init_images"),
        ({"init_images": ["x", "y"]}, "init_images"),
        ({"init_images": ["AAAA"]}, "init_images"),
        ({"mask": "AAAA"}, "mask"),
        ({"denoising_strength": 2}, "denoising_strength"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert"),
    ):
        reply = client.post("/sdapi/v1/img2img", json=body | fields)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == param
