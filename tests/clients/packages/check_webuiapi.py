"""sdwebuiapi (the package webuiapi), which speaks AUTOMATIC1111's API."""

import pytest
import webuiapi
from PIL import Image
from served import PICTURE, URL


@pytest.fixture
def api() -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{URL}/sdapi/v1")


def check_what_it_asks_first(api: webuiapi.WebUIApi):
    assert api.get_options()["sd_model_checkpoint"]
    assert api.get_sd_models()[0]["model_name"]
    assert api.get_samplers()[0]["name"]
    assert isinstance(api.get_upscalers(), list)
    assert "progress" in api.get_progress()
    assert api.util_get_model_names()
    api.set_options({"sd_model_checkpoint": api.get_options()["sd_model_checkpoint"]})


def check_txt2img(api: webuiapi.WebUIApi):
    result = api.txt2img(
        prompt="a large red circle on a white background",
        negative_prompt="blue",
        seed=7,
        cfg_scale=5,
        width=512,
        height=512,
        batch_size=2,
    )
    assert [image.size for image in result.images] == [(512, 512)] * 2
    assert result.info["seed"] == 7
    assert result.info["all_seeds"] == [7, 8]


def check_img2img(api: webuiapi.WebUIApi):
    result = api.img2img(
        images=[Image.open(PICTURE)],
        prompt="a large blue circle",
        denoising_strength=0.6,
        seed=3,
    )
    assert len(result.images) == 1


def check_interrogate(api: webuiapi.WebUIApi):
    assert "circle" in api.interrogate(Image.open(PICTURE)).info


def check_png_info(api: webuiapi.WebUIApi):
    drawn = api.txt2img(prompt="a green star", seed=7)
    assert "a green star" in api.png_info(drawn.image).info


def check_interrupt(api: webuiapi.WebUIApi):
    api.interrupt()
