"""Where the server is and what to show it; for checks that run in environments of their own.

Owns what all of them share and imports nothing but the standard library.
"""

import base64
import os
import struct
from pathlib import Path

URL = os.environ["JANUS_TEST_URL"]
API = f"{URL}/v1"
MODEL = "janus-mini"
QUESTION = "What color is the circle?"

PICTURE = Path(os.environ["JANUS_TEST_PICTURE"])
"""A red circle."""
PICTURE_URL = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
PICTURE_ADDRESS = os.environ["JANUS_TEST_PICTURE_ADDRESS"]
"""The same behind an http address."""


def question(url: str = PICTURE_URL) -> list[dict]:
    """A conversation with an image and a question, in OpenAI's shape."""
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    return [{"role": "user", "content": parts}]


def png_size(b64: str) -> tuple[int, int]:
    """Width and height of a PNG in base64; AssertionError if it is none."""
    data = base64.b64decode(b64, validate=True)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height
