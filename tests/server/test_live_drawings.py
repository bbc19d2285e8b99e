"""Looking at a drawing is free, so it costs one encoding per preview, however many look."""

import asyncio
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest

from janus_core.errors import QueueFullError
from server.live_drawings import LiveDrawing
from server.pictures import PictureFormat
from server.principal import ANONYMOUS
from tests.serving import ServerInThread


def preview(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, dtype=np.uint8)


def new_drawing() -> LiveDrawing:
    handle = SimpleNamespace(remaining_s=lambda: 1.0)
    return LiveDrawing(handle, 1, 4, task_id="", tenant=ANONYMOUS.tenant)


async def test_a_preview_is_encoded_once_for_all_who_ask() -> None:
    drawing, encoded = new_drawing(), []

    async def encode(pixels: np.ndarray) -> str:
        await asyncio.sleep(0)
        encoded.append(int(pixels[0, 0, 0]))
        return str(encoded[-1])

    assert await drawing.shown_file(encode) is None
    for value in (1, 2):
        drawing.shown = preview(value)
        found = await asyncio.gather(*[drawing.shown_file(encode) for _ in range(10)])
        assert found == [str(value)] * 10
    assert encoded == [1, 2]


async def test_an_encoding_that_fails_is_tried_again() -> None:
    drawing, outcomes = new_drawing(), [QueueFullError("x", retry_after_s=1), "file"]
    drawing.shown = preview(1)

    async def encode(_: np.ndarray) -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(QueueFullError):
        await drawing.shown_file(encode)
    assert [await drawing.shown_file(encode) for _ in range(2)] == ["file"] * 2


def test_progress_encodes_a_preview_once(
    server: ServerInThread, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, encoded = PictureFormat.file, []

    def file(self: PictureFormat, pixels: np.ndarray, **options: object) -> bytes:
        encoded.append(pixels)
        return original(self, pixels, **options)

    monkeypatch.setattr(PictureFormat, "file", file)
    drawing, seen = new_drawing(), []
    with server.context.drawings.listed(drawing):
        for value in (1, 2):
            drawing.shown = preview(value)
            seen += [client.get("/sdapi/v1/progress").json()["current_image"] for _ in range(5)]
    assert len(encoded) == len(set(seen)) == 2
