"""One server over the tiny checkpoint for all tests of this package."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from PIL import Image

from tests.serving import ServerInThread


@pytest.fixture(scope="session")
def server(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(
        model=str(tiny_checkpoint),
        served_model_name="tiny",
        # So short that a test can afford to be silent for longer.
        ping_interval_s=0.0005,
        max_body_bytes=2**20,
        max_image_bytes=2**19,
        max_images_per_request=3,
        max_choices=4,
        max_pictures=4,
        max_output_side_px=512,
    ) as running:
        yield running


@pytest.fixture
def client(server: ServerInThread) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def openai_client(server: ServerInThread) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def image_url() -> str:
    """A small picture as a data URL."""
    return data_url(Image.radial_gradient("L").convert("RGB").resize((40, 30)))


def data_url(image: Image.Image, format: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
