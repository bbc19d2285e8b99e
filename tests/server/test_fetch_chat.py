"""Images by address in requests: off by default, fetched through the one safe way if enabled."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.server.conftest import data_url
from tests.server.picture_host import PictureHost, endless, redirect, reply
from tests.serving import ServerInThread

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def picture() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB").resize((40, 30))


@pytest.fixture(scope="module")
def host() -> Iterator[PictureHost]:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    with PictureHost("127.0.0.1") as host:
        host.answers |= {
            "/cat.png": reply(buffer.getvalue()),
            "/text.png": reply(b"not a picture"),
            "/endless": endless,
            "/inside": redirect("http://127.0.0.2/cat.png"),
        }
        yield host


@pytest.fixture(scope="module")
def fetching(tiny_checkpoint: Path) -> Iterator[httpx2.Client]:
    with (
        ServerInThread(
            model=str(tiny_checkpoint),
            media_urls="http",
            allowed_media_networks="127.0.0.1/32",
            max_image_bytes=2**18,
            max_images_per_request=3,
        ) as server,
        server.client() as client,
    ):
        yield client


def ask(client: httpx2.Client, *urls: str) -> httpx2.Response:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what"}]}]
    return client.post(CHAT, json={"messages": messages, "max_tokens": 4})


def respond(client: httpx2.Client, url: str) -> httpx2.Response:
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "what"}]
    body = {"input": [{"role": "user", "content": parts}], "max_output_tokens": 4}
    return client.post(RESPONSES, json=body)


def test_an_address_is_as_good_as_the_data(fetching: httpx2.Client, host: PictureHost):
    address = f"http://127.0.0.1:{host.port}/cat.png"
    fetched, sent = ask(fetching, address), ask(fetching, data_url(picture()))
    assert fetched.status_code == 200, fetched.text
    assert fetched.json()["choices"][0]["message"] == sent.json()["choices"][0]["message"]
    assert fetched.json()["usage"]["prompt_tokens"] == sent.json()["usage"]["prompt_tokens"]
    mixed = ask(fetching, address, data_url(picture()), address)
    assert mixed.status_code == 200, mixed.text


def test_responses_fetch_too(fetching: httpx2.Client, host: PictureHost):
    reply = respond(fetching, f"http://127.0.0.1:{host.port}/cat.png")
    assert reply.status_code == 200, reply.text


def edit(client: httpx2.Client, url: str) -> httpx2.Response:
    images = {"images": [{"image_url": url}], "mask": {"image_url": url}}
    return client.post("/v1/images/edits", json={"prompt": "a circle", "seed": 1} | images)


def encode(client: httpx2.Client, url: str) -> httpx2.Response:
    return client.post("/v1/images/encode", json={"images": [url]})


@pytest.mark.parametrize("use", [edit, encode])
def test_pictures_to_draw_from_are_fetched_too(fetching: httpx2.Client, host: PictureHost, use):
    reply = use(fetching, f"http://127.0.0.1:{host.port}/cat.png")
    assert reply.status_code == 200, reply.text
    assert reply.json()["data"] == use(fetching, data_url(picture())).json()["data"]
    inside = use(fetching, f"http://127.0.0.1:{host.port}/inside")
    assert (inside.status_code, inside.json()["error"]["code"]) == (400, "invalid_image_url")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/text.png", "invalid_image_format"),
        ("/none.png", "failed_to_download_image"),
        ("/endless", "image_file_too_large"),
        ("/inside", "invalid_image_url"),
    ],
)
def test_failures_name_the_field(fetching: httpx2.Client, host: PictureHost, path: str, code: str):
    reply = ask(
        fetching, f"http://127.0.0.1:{host.port}/cat.png", f"http://127.0.0.1:{host.port}{path}"
    )
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["code"] == code
    assert error["param"] == "messages.0.content.1.image_url.url"


@pytest.fixture
def unvisited() -> Iterator[PictureHost]:
    """A host of this test's own: to that of all others somebody may still be on the way."""
    with PictureHost("127.0.0.1") as host:
        host.answers = {f"/{i}.png": reply(b"") for i in range(4)}
        yield host
        assert host.num_connections == 0, "somebody came"


def test_too_many_images_are_refused_before_the_first_is_fetched(
    fetching: httpx2.Client, unvisited: PictureHost
):
    reply = ask(fetching, *(f"http://127.0.0.1:{unvisited.port}/{i}.png" for i in range(4)))
    assert reply.status_code == 400


def test_fetches_are_counted(fetching: httpx2.Client, host: PictureHost):
    ask(fetching, f"http://127.0.0.1:{host.port}/cat.png")
    metrics = fetching.get("/metrics").text
    assert 'janus:image_fetch_seconds_count{model_name="' in metrics
    assert 'outcome="ok"' in metrics


@pytest.mark.parametrize("ask_about", [ask, respond, edit, encode])
def test_nothing_is_fetched_unless_enabled(
    client: httpx2.Client, unvisited: PictureHost, ask_about
):
    reply = ask_about(client, f"http://127.0.0.1:{unvisited.port}/0.png")
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_image_url"
