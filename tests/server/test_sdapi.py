"""AUTOMATIC1111's API over a real socket: what its clients send, read and poll."""

import base64
import io
import json
import threading

import httpx2
import pytest
from PIL import Image

from server.schemas.sdapi import TextToImage
from tests.server.test_images import opened
from tests.serving import ServerInThread, wait_until

PROMPT = "a large red circle"
# What SillyTavern sends, by the record of its requests.
SILLY_TAVERN = {
    "prompt": PROMPT, "negative_prompt": "", "sampler_name": "Autoregressive",
    "scheduler": "automatic", "steps": 20, "cfg_scale": 7, "width": 512, "height": 512, "seed": 5,
    "restore_faces": False, "enable_hr": False, "hr_upscaler": "Lanczos", "hr_scale": 1,
    "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0,
    "override_settings": {}, "override_settings_restore_afterwards": True, "clip_skip": 1,
    "save_images": True, "send_images": True, "do_not_save_grid": False,
    "do_not_save_samples": False,
}  # fmt: skip


def draw(client: httpx2.Client, **body: object) -> dict:
    reply = client.post("/sdapi/v1/txt2img", json={"prompt": PROMPT, "seed": 5} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def openai_picture(client: httpx2.Client, **body: object) -> Image.Image:
    reply = client.post("/v1/images/generations", json={"prompt": PROMPT, "seed": 5} | body)
    return opened(reply.json()["data"][0]["b64_json"])


def test_a_real_client_s_request(client: httpx2.Client):
    reply = draw(client, **SILLY_TAVERN)
    assert reply.keys() == {"images", "parameters", "info"}
    image = opened(reply["images"][0])
    assert (image.format, image.size) == ("PNG", (512, 512))
    assert image.tobytes() == openai_picture(client, guidance_scale=7, size="512x512").tobytes()
    assert reply["parameters"]["steps"] == 20
    info = json.loads(reply["info"])
    assert (info["prompt"], info["seed"], info["all_seeds"]) == (PROMPT, 5, [5])
    assert (info["width"], info["height"], info["cfg_scale"]) == (512, 512, 7.0)
    assert info["infotexts"] == [image.text["parameters"]]


def test_batches_and_seeds(client: httpx2.Client):
    four = draw(client, batch_size=2, n_iter=2)
    assert len(four["images"]) == 4
    assert json.loads(four["info"])["all_seeds"] == [5, 6, 7, 8]
    assert draw(client, seed=7)["images"][0] == four["images"][2]
    random = [json.loads(draw(client, seed=-1)["info"])["seed"] for _ in range(2)]
    assert random[0] != random[1]
    assert min(random) >= 0


@pytest.mark.parametrize(
    "changed", [{"cfg_scale": 1}, {"cfg_scale": 9}, {"negative_prompt": "x"}, {"prompt": "blue"}]
)
def test_each_parameter_has_its_effect(client: httpx2.Client, changed: dict):
    assert opened(draw(client, **changed)["images"][0]).tobytes() != (
        opened(draw(client)["images"][0]).tobytes()
    )


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({}, (16, 16)),
        ({"width": 64}, (64, 64)),
        ({"width": 64, "height": 32}, (64, 32)),
        ({"width": 64, "height": 32, "enable_hr": True}, (128, 64)),
        ({"width": 64, "height": 32, "enable_hr": True, "hr_scale": 1.5}, (96, 48)),
        ({"width": 64, "height": 32, "enable_hr": True, "hr_resize_x": 128}, (128, 64)),
        ({"width": 64, "height": 32, "enable_hr": True, "hr_resize_y": 16}, (32, 16)),
        (
            {"width": 64, "height": 32, "enable_hr": True, "hr_resize_x": 20, "hr_resize_y": 30},
            (20, 30),
        ),
    ],
)
def test_sizes(client: httpx2.Client, body: dict, size: tuple[int, int]):
    reply = draw(client, **body)
    assert opened(reply["images"][0]).size == size
    info = json.loads(reply["info"])
    assert (info["width"], info["height"]) == size


def test_a_negative_prompt_without_effect_is_not_told(client: httpx2.Client):
    (picture,) = draw(client, cfg_scale=1, negative_prompt="a cat")["images"]
    assert opened(picture).tobytes() == opened(draw(client, cfg_scale=1)["images"][0]).tobytes()
    assert "negative_prompt" not in opened(picture).text
    assert "a cat" not in opened(picture).text["parameters"]


def test_no_images_on_request(client: httpx2.Client):
    reply = draw(client, send_images=False)
    assert reply["images"] == []
    assert json.loads(reply["info"])["all_seeds"] == [5]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"batch_size": 3, "n_iter": 3}, "batch_size"),
        ({"width": 8}, "width"),
        ({"width": 5000}, "width"),
        ({"width": 10**400, "enable_hr": True}, "width"),
        ({"width": 64, "enable_hr": True, "hr_resize_x": 10**400}, "hr_resize_x"),
        ({"width": 64, "enable_hr": True, "hr_scale": 0.01}, "width"),
        ({"batch_size": 10**4000, "n_iter": 10**4000}, "batch_size"),
        ({"batch_size": 2**31 - 1, "n_iter": 2**31 - 1}, "batch_size"),
        ({"cfg_scale": -1}, "cfg_scale"),
        ({"tiling": True}, "tiling"),
        ({"styles": ["x"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"script_name": "x/y/z plot"}, "script_name"),
        ({"alwayson_scripts": {"controlnet": {}}}, "alwayson_scripts"),
        ({"override_settings": {"sd_model_checkpoint": "sdxl"}}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: httpx2.Client, body: dict, param: str):
    reply = client.post("/sdapi/v1/txt2img", json={"prompt": PROMPT} | body)
    assert reply.status_code == (404 if param == "model" else 400)
    assert reply.json()["error"]["param"] == param


def test_what_has_no_effect_has_none(client: httpx2.Client):
    fields = dict.fromkeys(TextToImage.without_effect, 3)
    assert draw(client, **fields)["images"] == draw(client)["images"]


def test_what_asks_for_nothing_passes(client: httpx2.Client):
    draw(
        client,
        tiling=False,
        styles=[],
        subseed_strength=0.0,
        script_name="",
        alwayson_scripts={},
        override_settings={"sd_model_checkpoint": "tiny", "CLIP_stop_at_last_layers": 2},
    )


def test_the_lists_a_client_reads_when_it_connects(client: httpx2.Client):
    def get(path: str) -> object:
        reply = client.get(f"/sdapi/v1/{path}")
        assert reply.status_code == 200
        return reply.json()

    assert get("options")["sd_model_checkpoint"] == "tiny"
    assert [model["title"] for model in get("sd-models")] == ["tiny"]
    assert [model["model_name"] for model in get("sd-models")] == ["tiny"]
    for sampler in get("samplers"):
        draw(client, sampler_name=sampler["name"])
    for scheduler in get("schedulers"):
        draw(client, scheduler=scheduler["name"])
    assert get("upscalers")[0]["name"] == "Lanczos"
    for path in ("sd-vae", "latent-upscale-modes", "loras", "hypernetworks", "prompt-styles"):
        assert get(path) == []
    assert get("scripts") == {"txt2img": [], "img2img": []}
    ram = get("memory")["ram"]
    assert 0 < ram["free"] <= ram["total"] == ram["free"] + ram["used"]


def test_the_checkpoint_can_be_set_to_what_it_is(client: httpx2.Client):
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "tiny"}).json() is None
    assert client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2}).status_code == 200
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "x"}).status_code == 404
    assert client.post("/sdapi/v1/refresh-checkpoints").status_code == 200


def test_nothing_runs(client: httpx2.Client):
    found = client.get("/sdapi/v1/progress").json()
    assert (found["progress"], found["current_image"]) == (0.0, None)
    assert found["state"]["job_count"] == 0
    assert client.post("/sdapi/v1/interrupt").json() == {}


@pytest.mark.parametrize("path", ["interrupt", "skip", "refresh-loras", "unload-checkpoint"])
def test_pages_of_other_sites_cannot_interrupt(client: httpx2.Client, path: str):
    reply = client.post(f"/sdapi/v1/{path}", headers={"sec-fetch-site": "cross-site"})
    assert reply.status_code == 403
    assert client.post(f"/sdapi/v1/{path}").status_code == 200


def test_progress_shows_the_drawing_and_interrupt_ends_it(mini_checkpoint):
    """With a checkpoint that takes long enough to be looked at; drawn again where nobody has
    looked in time."""
    with ServerInThread(model=str(mini_checkpoint)) as server, server.client() as client:
        replies, is_seen = [], threading.Event()

        def run() -> None:
            with server.client() as other:
                while not is_seen.is_set():
                    replies.append(draw(other, batch_size=8, force_task_id="task-1"))

        thread = threading.Thread(target=run)
        thread.start()
        seen = []

        def shows_a_picture() -> bool:
            seen.append(client.get("/sdapi/v1/progress").json())
            return seen[-1]["current_image"] is not None and seen[-1]["progress"] < 1

        try:
            wait_until(shows_a_picture)
        finally:
            is_seen.set()
        last = seen[-1]
        assert 0 < last["progress"] < 1
        assert 0 < last["eta_relative"] < 60
        assert (last["current_task"], last["state"]["job_count"]) == ("task-1", 1)
        assert 0 < last["state"]["sampling_step"] <= last["state"]["sampling_steps"]
        assert opened(last["current_image"]).size == (64, 64)
        without = client.get("/sdapi/v1/progress", params={"skip_current_image": True}).json()
        assert without["current_image"] is None
        client.post("/sdapi/v1/interrupt")
        thread.join(60)
        reply = replies[-1]
        assert 1 <= len(reply["images"]) <= 8, "what was drawn so far"
        assert len(json.loads(reply["info"])["all_seeds"]) == len(reply["images"])
        wait_until(server.is_idle)
        assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_interrogate_describes_an_image(client: httpx2.Client, image_url: str):
    captions = [
        client.post("/sdapi/v1/interrogate", json={"image": image, "model": "clip"}).json()
        for image in (image_url, image_url.partition(",")[2])
    ]
    assert captions[0] == captions[1]
    assert isinstance(captions[0]["caption"], str)
    reply = client.post("/sdapi/v1/interrogate", json={"image": "AAAA"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "image"


def test_png_info_reads_what_a_picture_says(client: httpx2.Client):
    picture = draw(client, negative_prompt="a cat")["images"][0]
    found = client.post("/sdapi/v1/png-info", json={"image": picture}).json()
    assert found["info"] == opened(picture).text["parameters"]
    assert found["items"]["negative_prompt"] == "a cat"
    assert found["parameters"]["Seed"] == "5"
    assert found["parameters"]["Model"] == "tiny"
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    plain = base64.b64encode(buffer.getvalue()).decode()
    found = client.post("/sdapi/v1/png-info", json={"image": plain}).json()
    assert found == {"info": "", "items": {}, "parameters": {}}
    reply = client.post("/sdapi/v1/png-info", json={"image": "AAAA"})
    assert reply.json()["error"]["code"] == "invalid_image_format"
