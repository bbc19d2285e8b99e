"""A decoder's process that an image has taken over says what none of ours says: it is ended, and
the client hears of an image that cannot be decoded."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from janus_core.decode_pool import MAX_MESSAGE_CHARS, DecodePool
from janus_core.errors import ImageInputError
from janus_core.images import ImageLimits

ROOT = str(Path(__file__).parents[2])

LIAR = """#!{python}
import socket, sys
sys.path.insert(0, {root!r})
from janus_core.decode_frames import receive_frame, send_frame
connection = socket.socket(fileno=0)
send_frame(connection, {{"ready": True}}, [])
while True:
    receive_frame(connection)
    send_frame(connection, {reply!r}, [])
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What a pool raises whose process says this of every image, and how many it has left."""

    def told(reply: dict) -> tuple[ImageInputError, int]:
        liar = tmp_path / "liar"
        liar.write_text(LIAR.format(python=sys.executable, root=ROOT, reply=reply))
        liar.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(liar))
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        pool = DecodePool(ImageLimits(), num_workers=1, time_s=20.0, memory_bytes=2**30)
        with pytest.raises(ImageInputError) as raised:
            pool.run("rgb", [file.getvalue()], params=("image_url",))
        num_left = len(pool.pids)
        pool.close()
        return raised.value, num_left

    return told


@pytest.mark.parametrize(
    "reply",
    [
        {"error": "words"},
        {"error": {}},
        {"error": {"message": 5, "param": None, "code": None}},
        {"error": {"message": "m", "param": [], "code": None}},
        {"shapes": 3},
        {"shapes": [[1, 1, 3]]},
        {},
    ],
)
def test_who_says_what_none_says_is_ended(told, reply: dict) -> None:
    error, num_left = told(reply)
    assert (error.param, error.code) == ("image_url", "invalid_image")
    assert num_left == 0


def test_what_is_said_is_short(told) -> None:
    error, num_left = told({"error": {"message": "x" * 10_000, "param": "image", "code": None}})
    assert len(error.message) == MAX_MESSAGE_CHARS
    assert num_left == 1
