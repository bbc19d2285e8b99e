"""Row 1: a small file that decodes to hundreds of megabytes is refused by its header.

A lossless WebP of two kilobytes takes 750 MB and three seconds in Pillow (as CVE-2026-54233 and the
bomb checks that Pillow 13 mended).
"""

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.hardening.target import MIB, Target, png_bytes
from tests.serving import repeating

CHAT, ASK, EDITS, ENCODE = (
    "/v1/chat/completions", "/v1/ask", "/v1/images/edits", "/v1/images/encode",
)  # fmt: skip
RSS_GROWTH_BYTES = 64 * MIB


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def bomb(kind: str) -> bytes:
    """A file of at most 800 kB."""
    if kind == "webp":
        return saved(Image.new("RGB", (7000, 7000)), "WEBP", lossless=True, quality=0, method=0)
    if kind == "png":
        return saved(Image.new("1", (13_000, 13_000)), "PNG")
    if kind == "gif":
        return saved(Image.new("P", (7000, 7000)), "GIF")
    if kind == "jpeg":
        return saved(Image.new("L", (7000, 7000)), "JPEG")
    return saved(Image.new("1", (60_000, 10)), "PNG")


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


@contextmanager
def watched_rss(target: Target) -> Iterator[list[int]]:
    """What the server held meanwhile, sampled."""
    seen = [target.rss_bytes()]
    with repeating(lambda: seen.append(target.rss_bytes()), every_s=0.005):
        yield seen


def refusals(target: Target, file: bytes) -> Iterator[tuple[str, int, str | None, float]]:
    """Every door's answer: path, status, code and seconds, of three tries the quickest."""
    image = [{"type": "image_url", "image_url": {"url": data_url(file)}}]
    upload = {"image": ("x.png", file, "image/png")}
    doors = {
        CHAT: {"json": {"messages": [{"role": "user", "content": image}], "max_tokens": 1}},
        ASK: {"files": upload, "data": {"question": "x", "max_tokens": "1"}},
        EDITS: {"files": upload, "data": {"prompt": "x"}},
        ENCODE: {"json": {"images": [data_url(file)]}},
        "/sdapi/v1/interrogate": {"json": {"image": data_url(file)}},
        "/sdapi/v1/img2img": {"json": {"init_images": [data_url(file)], "prompt": "x"}},
    }
    with target.client() as client:
        for path, request in doors.items():
            best_s = float("inf")
            for _ in range(3):
                started = time.perf_counter()
                reply = client.post(path, **request)
                best_s = min(best_s, time.perf_counter() - started)
            error = reply.json().get("error") or {}
            yield path, reply.status_code, error.get("code"), best_s


@pytest.mark.parametrize("kind", ["webp", "png", "gif", "jpeg", "wide"])
def test_a_bomb_costs_nothing(target: Target, kind: str) -> None:
    file = bomb(kind)
    assert len(file) < 800_000
    usual_s = {path: seconds for path, _, _, seconds in refusals(target, b"no picture")}
    with watched_rss(target) as rss:
        found = list(refusals(target, file))
    for path, status, code, seconds in found:
        assert (status, code) == (400, "image_too_large"), path
        # As quick as any refusal; a file of 800 kB takes some of it on its way.
        assert seconds < max(0.1, 3 * usual_s[path]) + len(file) / 4e6, path
    assert max(rss) - rss[0] < RSS_GROWTH_BYTES


LIMITS = {
    "max_image_bytes": 100_000,
    "max_image_pixels": 10_000,
    "max_webp_pixels": 5000,
    "max_image_side_px": 200,
}


def test_the_limits_are_exact(start_target) -> None:
    """L - 1, L and L + 1 of pixels, of sides and of bytes."""
    target = start_target(**LIMITS)

    def ask(file: bytes) -> tuple[int, str | None]:
        with target.client() as client:
            upload = {"image": ("x.png", file, "image/png")}
            reply = client.post(ASK, files=upload, data={"question": "x", "max_tokens": "1"})
        return reply.status_code, (reply.json().get("error") or {}).get("code")

    good, too_large = (200, None), (400, "image_too_large")
    sizes = {
        "PNG": {(99, 101): good, (100, 100): good, (137, 73): too_large},
        "WEBP": {(49, 102): good, (50, 100): good, (3, 1667): too_large, (73, 69): too_large},
        "BMP": {(199, 1): good, (1, 200): good, (201, 1): too_large, (1, 201): too_large},
    }
    for format, expected in sizes.items():
        for size, outcome in expected.items():
            assert ask(saved(Image.new("RGB", size), format)) == outcome, (format, size)
    file = png_bytes(Image.new("RGB", (10, 10)))
    for excess, outcome in ((-1, good), (0, good), (1, (400, "image_file_too_large"))):
        padded = file + b"\0" * (LIMITS["max_image_bytes"] + excess - len(file))
        assert ask(padded) == outcome


def test_an_image_within_the_limits_is_bounded_in_memory_and_time(start_target) -> None:
    """What a header cannot tell: here the bounds of the process itself end it."""
    file = saved(Image.new("RGBA", (5000, 5000), (1, 2, 3, 4)), "PNG")
    codes = {"decode_memory_bytes": (64 * MIB, "image_too_large"), "decode_timeout_s": (
        0.05, "invalid_image",
    )}  # fmt: skip
    for setting, (value, code) in codes.items():
        target = start_target(**{setting: value})
        outcomes = list(refusals(target, file))
        assert all(status == 400 for _, status, _, _ in outcomes), outcomes
        assert {found for _, _, found, _ in outcomes} == {code}
        assert target.answer()
