"""DeepSeek's two demo routes: what its client script sends, and how it takes pictures apart."""

import http.client
import io
import urllib.parse
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from server.routes import demo
from tests.server.conftest import data_url
from tests.serving import ServerInThread


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drawn(server: ServerInThread, **fields: object) -> list[Image.Image]:
    """What the client script does: chunks of the body, and a picture begins where one opens."""
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request(
        "POST",
        "/generate_images/",
        urllib.parse.urlencode(fields),
        {"content-type": "application/x-www-form-urlencoded"},
    )
    response = connection.getresponse()
    assert response.status == 200
    images, buffer = [], io.BytesIO()
    while chunk := response.read1(1024):  # of one HTTP chunk at most, as urllib3 reads
        buffer.write(chunk)
        buffer.seek(0)
        try:
            image = Image.open(buffer)
            image.load()
        except OSError:
            continue
        images.append(image)
        buffer = io.BytesIO()
    connection.close()
    return images


def test_the_client_script_gets_its_pictures(tiny_checkpoint: Path):
    # Small, because the script tries to decode what it has with every kilobyte.
    settings = {"max_pictures": 4, "max_output_side_px": 64}
    with ServerInThread(model=str(tiny_checkpoint), **settings) as server:
        images = drawn(server, prompt="a large red circle", seed=4, guidance=5.0)
    assert len(images) == 4, "of five, as many as this server allows"
    assert {image.size for image in images} == {(64, 64)}
    assert [image.text["seed"] for image in images] == ["4", "5", "6", "7"]
    assert images[0].text["guidance_scale"] == "5.0"


def test_a_question_about_a_file(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "MAX_ANSWER_TOKENS", 24)  # of 512, which take long
    image = Image.radial_gradient("L").convert("RGB").resize((40, 30))

    def ask(**fields: object) -> str:
        reply = client.post(
            "/understand_image_and_question/",
            files={"file": ("x.png", png(image), "image/png")},
            data={"question": "What is this?", "seed": 42, "top_p": 0.95, "temperature": 0}
            | fields,
        )
        assert reply.status_code == 200, reply.text
        assert reply.json().keys() == {"response"}
        return reply.json()["response"]

    body = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": data_url(image)},
                    {"type": "text", "text": "What is this?"},
                ],
            }
        ],
        "max_tokens": 24,
    }
    chat = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert ask() == chat["content"].strip()
    assert ask(temperature=2, top_p=1, seed=1) != ask(temperature=2, top_p=1, seed=2)


@pytest.mark.parametrize(
    ("path", "request_", "status", "param"),
    [
        ("generate_images", {"data": {"seed": "1"}}, 400, "prompt"),
        ("generate_images", {"data": {"prompt": "x", "guidance": "hot"}}, 400, "guidance"),
        ("generate_images", {"data": {"prompt": " "}}, 400, "prompt"),
        ("generate_images", {"json": {"prompt": "x"}}, 415, None),
        ("understand_image_and_question", {"data": {"question": "x"}}, 400, "file"),
        ("understand_image_and_question", {"files": {"file": b"x"}}, 400, "question"),
        (
            "understand_image_and_question",
            {"files": {"file": b"x"}, "data": {"question": "x"}},
            400,
            "file",
        ),
        (
            "generate_images",
            {"data": {"prompt": "x"}, "headers": {"sec-fetch-site": "cross-site"}},
            403,
            None,
        ),
    ],
)
def test_what_is_refused(
    client: httpx2.Client, path: str, request_: dict, status: int, param: str | None
):
    reply = client.post(f"/{path}/", **request_)
    assert reply.status_code == status
    assert reply.json()["error"]["param"] == param
