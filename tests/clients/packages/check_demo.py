"""The requests of DeepSeek's demo client (deepseek-ai/Janus, demo/fastapi_client.py)."""

import io

import requests
from PIL import Image
from served import PICTURE, QUESTION, URL


def check_a_question():
    with PICTURE.open("rb") as file:
        reply = requests.post(
            f"{URL}/understand_image_and_question/",
            files={"file": file},
            data={"question": QUESTION, "seed": 42, "top_p": 0.95, "temperature": 0.1},
        )
    assert reply.ok, reply.text
    assert "red" in reply.json()["response"]


def check_pictures():
    """As its script does: read on until the bytes at hand are a picture, save it, begin anew."""
    reply = requests.post(
        f"{URL}/generate_images/",
        data={"prompt": "a large red circle on a white background", "seed": "", "guidance": 5.0},
        stream=True,
    )
    assert reply.ok, reply.text
    pictures, buffer = [], io.BytesIO()
    for piece in reply.iter_content(chunk_size=1024):
        buffer.write(piece)
        if b"IEND" in piece:  # before, its script tries in vain, which takes long
            buffer.seek(0)
            picture = Image.open(buffer)
            picture.load()
            pictures.append(picture)
            buffer = io.BytesIO()
    assert len(pictures) == 5
