"""Codes in and out: pictures from codes and back, drawings continued, log-probabilities."""

import base64
import threading

import httpx2
import pytest
from PIL import Image, ImageOps

from tests.server.conftest import data_url
from tests.server.test_images import draw, opened
from tests.serving import ServerInThread, wait_until


def post(client: httpx2.Client, path: str, **body: object) -> dict:
    reply = client.post(f"/v1/images/{path}", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def png_of(image_url: str) -> bytes:
    return base64.b64decode(image_url.partition(",")[2])


def test_codes_of_a_picture_decode_to_it(client: httpx2.Client):
    pictures = draw(client, seed=3, n=2, return_token_ids=True)["data"]
    codes = [picture["token_ids"] for picture in pictures]
    reply = post(client, "decode", codes=codes)
    assert (reply["size"], reply["output_format"]) == ("16x16", "png")
    for found, picture in zip(reply["data"], pictures, strict=True):
        assert opened(found["b64_json"]).tobytes() == opened(picture["b64_json"]).tobytes()
    assert post(client, "decode", codes=codes[0])["data"] == reply["data"][:1]


def test_decoded_pictures_have_the_form_asked_for(client: httpx2.Client):
    (picture,) = draw(client, seed=3, return_token_ids=True, size="64x32", output_format="webp")[
        "data"
    ]
    body = {"size": "64x32", "output_format": "webp", "codes": picture["token_ids"]}
    reply = client.post("/v1/images/decode", json=body)
    assert reply.headers["x-janus-native-size"] == "16x16"
    assert reply.json()["data"][0]["b64_json"] == picture["b64_json"]
    less = post(client, "decode", **body, output_compression=5)["data"][0]["b64_json"]
    assert len(less) < len(picture["b64_json"])


def test_encoding_fits_the_image(client: httpx2.Client):
    image = Image.radial_gradient("L").convert("RGB").resize((64, 32))
    fitted = ImageOps.fit(image, (16, 16), Image.Resampling.BICUBIC)
    reply = post(client, "encode", images=[data_url(image), data_url(fitted)])
    wide, cut = reply["data"]
    assert (wide["index"], cut["index"]) == (0, 1)
    assert wide["codes"] == cut["codes"]
    assert len(wide["codes"]) == reply["grid"] ** 2 == 16
    assert all(0 <= code < reply["codebook_size"] for code in wide["codes"])


def test_a_drawing_goes_on_from_its_first_codes(client: httpx2.Client):
    whole = draw(client, seed=3, return_token_ids=True)["data"][0]
    codes = whole["token_ids"]
    again = draw(client, seed=3, codes=codes[:8], return_token_ids=True)["data"][0]
    assert again == whole, "the same seed goes on the same way"
    other = draw(client, seed=4, codes=codes[:8], return_token_ids=True)["data"][0]["token_ids"]
    assert other[:8] == codes[:8]
    assert other[8:] != codes[8:]
    changed = [(codes[0] + 1) % 16, None, *codes[2:4]]
    found = draw(client, seed=3, codes=changed, return_token_ids=True)["data"][0]["token_ids"]
    assert [found[0], *found[2:4]] == [changed[0], *changed[2:]]


def test_log_probabilities_of_codes(client: httpx2.Client):
    body = {"seed": 3, "logprobs": True, "return_token_ids": True}
    guided = draw(client, **body, guidance_scale=3)["data"][0]
    columns = guided["logprobs"]
    assert columns.keys() == {"cond", "uncond", "guided"}
    for column in columns.values():
        assert len(column) == 16
        assert all(logprob <= 0 for logprob in column)
    assert columns["cond"] != columns["uncond"] != columns["guided"]
    plain = draw(client, **body, guidance_scale=1)["data"][0]["logprobs"]
    assert plain["uncond"] is None
    assert plain["cond"] == plain["guided"]
    given = draw(client, **body, guidance_scale=3, codes=guided["token_ids"][:4])["data"][0]
    assert given["logprobs"]["cond"][:4] == [None] * 4
    assert given["logprobs"]["guided"][4:] == pytest.approx(columns["guided"][4:], abs=1e-4)
    assert "logprobs" not in draw(client, seed=3)["data"][0]


def test_nobody_waits_for_the_autoencoder_who_does_not_need_it(
    server: ServerInThread, client: httpx2.Client, image_url: str
):
    """However many pictures are to be decoded."""
    release, replies = threading.Event(), []
    busy = server.context.pipeline.codec._pool.submit(release.wait, 60)

    def decode() -> None:
        with server.client() as other:
            replies.append(post(other, "decode", codes=[1] * 16))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: server.context.autoencoder._num_pending == 4)
        assert client.post("/v1/caption", files={"image": png_of(image_url)}, timeout=20).json()
        assert draw(client, seed=3)
        assert not replies
    finally:
        release.set()
        for thread in threads:
            thread.join(60)
    assert busy.result()
    assert len(replies) == 4


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("decode", {"codes": [1] * 15}, "codes.0"),
        ("decode", {"codes": [[1] * 16, [1] * 15]}, "codes.1"),
        ("decode", {"codes": [-1] * 16}, "codes.0"),
        ("decode", {"codes": [16384] * 16}, "codes.0"),
        ("decode", {"codes": []}, "codes"),
        ("decode", {"codes": [[1] * 16] * 5}, "codes"),
        ("decode", {"codes": [1] * 16, "size": "1x1"}, "size"),
        ("decode", {"codes": [1] * 16, "background": "transparent"}, "background"),
        ("decode", {"codes": [1] * 16, "model": "x"}, "model"),
        ("encode", {"images": []}, "images"),
        ("encode", {"images": ["x"]}, "images.0"),
        ("encode", {"images": ["http://127.0.0.1/"]}, "images.0"),
        ("encode", {"images": ["data:image/png;base64,AAAA"]}, "images.0"),
        ("encode", {"images": ["data:"] * 4}, "images"),
        ("generations", {"prompt": "x", "codes": [1] * 16}, "codes"),
        ("generations", {"prompt": "x", "codes": [1] * 17}, "codes"),
        ("generations", {"prompt": "x", "codes": [-1]}, "codes"),
        ("generations", {"prompt": "x", "codes": [1.5]}, "codes.0"),
    ],
)  # fmt: skip
def test_what_is_refused(client: httpx2.Client, path: str, body: dict, param: str):
    reply = client.post(f"/v1/images/{path}", json=body)
    assert reply.status_code == (404 if param == "model" else 400)
    found = reply.json()["error"]["param"]
    assert found == param or found.startswith(f"{param}."), reply.text
