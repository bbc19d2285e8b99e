"""Row 15: bad images give an answer or a 400 with OpenAI's code, and leak nothing.

Truncated, flipped, glued together, tiny, badly labelled: over public corpora Pillow raises seven
classes of exceptions, and 250 of the files that do decode have a side of one or two pixels
(CVE-2026-22773 was a 1 x 1 image). Made here, from a seed; `FUZZ_SEED` gives others. Every run
sends some 650 of them, 250 with flipped bits; the slow one 3,000 with flipped bits.
"""

import base64
import io
import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.hardening.target import Target

SEED = int(os.environ.get("FUZZ_SEED", "1"))
NUM_FLIPPED, MANY_FLIPPED = 25, 300
"""Of each format."""
CODES = {
    "invalid_image", "invalid_image_format", "image_too_large", "image_too_small",
    "image_parse_error", "empty_image_file", "image_file_too_large",
}  # fmt: skip
FORMATS = {
    "png": ("PNG", {}),
    "apng": ("PNG", {"frames": 3}),
    "jpeg": ("JPEG", {"quality": 80}),
    "progressive": ("JPEG", {"progressive": True}),
    "mpo": ("MPO", {"frames": 2}),
    "webp": ("WEBP", {"quality": 50}),
    "lossless": ("WEBP", {"lossless": True}),
    "animated": ("WEBP", {"frames": 3}),
    "gif": ("GIF", {"frames": 3}),
    "bmp": ("BMP", {}),
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def saved(image: Image.Image, format: str, *, frames: int = 1, **options: object) -> bytes:
    file = io.BytesIO()
    if frames > 1:
        more = [noise(*image.size, seed=i) for i in range(1, frames)]
        options |= {"save_all": True, "append_images": more}
    image.save(file, format, **options)
    return file.getvalue()


def good(name: str) -> bytes:
    format, options = FORMATS[name]
    return saved(noise(24, 18), format, **options)


def truncated() -> dict[str, bytes]:
    return {
        f"{name} to {part}/16": good(name)[: len(good(name)) * part // 16]
        for name in FORMATS
        for part in range(1, 16)
    }


def flipped(num: int = NUM_FLIPPED) -> dict[str, bytes]:
    """Some bits, and some whole bytes in front, where the headers are."""
    made, chance = {}, random.Random(SEED)
    for name in FORMATS:
        for number in range(num):
            data = bytearray(good(name))
            for _ in range(chance.choice((1, 2, 8, 64))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            if number % 3 == 0:
                data[chance.randrange(min(64, len(data)))] = chance.randrange(256)
            made[f"{name} flipped {number}"] = bytes(data)
    return made


def glued() -> dict[str, bytes]:
    """Two formats in one, and what is no picture before or behind one."""
    others = {
        "zip": b"PK\x03\x04" + bytes(30), "html": b"<html><script>alert(1)</script>",
        "pdf": b"%PDF-1.7\n", "elf": b"\x7fELF" + bytes(60), "zeros": bytes(1000),
    }  # fmt: skip
    made = {}
    for name in FORMATS:
        for other, data in others.items():
            made[f"{name} + {other}"] = good(name) + data
            made[f"{other} + {name}"] = data + good(name)
    names = list(FORMATS)
    for first, second in zip(names, [*names[1:], names[0]], strict=True):
        made[f"{first} + {second}"] = good(first) + good(second)
    return made


def tiny() -> dict[str, bytes]:
    sizes = [(w, h) for w in (1, 2, 3) for h in (1, 2, 3)]
    sizes += [(1, 3000), (3000, 1), (2, 999), (16_384, 1), (1, 16_384)]
    return {
        f"{name} of {width} x {height}": saved(noise(width, height), FORMATS[name][0])
        for name in ("png", "jpeg", "webp", "gif", "bmp")
        for width, height in sizes
        if (name, max(width, height)) != ("webp", 16_384)  # its format ends one earlier
    }


def unwanted() -> dict[str, bytes]:
    """Formats Pillow reads and this server does not, and files that only begin like a picture."""
    image, made = noise(16, 16), {}
    for format in ("TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "ICNS", "JPEG2000", "PDF",
                   "EPS", "IM", "MSP", "XBM", "AVIF", "QOI"):  # fmt: skip
        try:
            mode = "1" if format in ("MSP", "XBM") else "RGB"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of formats that will go
                made[format] = saved(image.convert(mode), format)
        except (KeyError, OSError, ValueError):
            continue  # this Pillow cannot write it
    magics = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"RIFF\xff\xff\xff\xffWEBPVP8L",
        b"BM",
        b"II*\x00",
        b"8BPS",
        b"SIMPLE  =",
        b"\x00\x00\x01\x00",
        b"P6\n1 1\n255\n",
    )
    made |= {f"magic {m!a}": m for m in magics}
    made |= {f"magic {m!a} and zeros": m + bytes(500) for m in magics}
    made |= {f"magic {m!a} and ones": m + b"\xff" * 500 for m in magics}
    return made | {"svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text": b"x" * 100}


def exif() -> dict[str, bytes]:
    """Blocks that are no EXIF, have no end, or point into themselves."""
    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    many = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0" * 2000
    blocks = {
        "loop": loop, "many": many, "none": b"Exif\0\0none", "short": b"Exif\0\0II*\0",
        "orientation 9": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
        "far": b"Exif\0\0II*\0\xff\xff\xff\x7f", "big": b"Exif\0\0" + b"\xff" * 60_000,
    }  # fmt: skip
    return {
        f"{name} with {kind}": saved(noise(24, 18), FORMATS[name][0], exif=block)
        for name in ("png", "jpeg", "webp")
        for kind, block in blocks.items()
    }


CORPORA = {
    "truncated": truncated, "flipped": flipped, "glued": glued, "tiny": tiny,
    "unwanted": unwanted, "exif": exif,
}  # fmt: skip


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_image_is_answered_or_refused(target: Target, corpus: str) -> None:
    refused, num_files = refused_of(target, CORPORA[corpus]())
    # The corpus is worth its name only if what can happen does.
    if corpus in ("tiny", "exif"):
        assert not refused
    else:
        assert refused
        assert len(refused) < num_files or corpus == "unwanted"


@pytest.mark.slow
def test_thousands_of_them_are_answered_or_refused(target: Target) -> None:
    refused, num_files = refused_of(target, flipped(MANY_FLIPPED))
    assert num_files == MANY_FLIPPED * len(FORMATS) >= 2000
    assert set(refused.values()) >= {"image_parse_error", "invalid_image_format"}
    assert 0 < len(refused) < num_files


def refused_of(target: Target, files: dict[str, bytes]) -> tuple[dict[str, str], int]:
    """The names of those that are refused, with the code, and how many there were; the others are
    answered."""
    with target.client() as client:

        def ask(data: bytes) -> tuple[int, str]:
            upload = {"image": ("x", data, "image/png")}
            reply = client.post("/v1/ask", files=upload, data={"question": "x", "max_tokens": "1"})
            error = reply.json().get("error") or {}
            return reply.status_code, error.get("code", "")

        with ThreadPoolExecutor(4) as pool:
            outcomes = dict(zip(files, pool.map(ask, files.values()), strict=True))
    bad = {name: each for name, each in outcomes.items() if each[0] not in (200, 400)}
    assert not bad
    refused = {name: code for name, (status, code) in outcomes.items() if status == 400}
    assert set(refused.values()) <= CODES, refused
    return refused, len(files)


def codes_of(target: Target, data: bytes) -> list[int]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with target.client() as client:
        reply = client.post("/v1/images/encode", json={"images": [url]})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"][0]["codes"]


@pytest.mark.parametrize("size", [(40, 24), (24, 40)], ids=["landscape", "portrait"])
def test_orientations_are_one_picture(target: Target, size: tuple[int, int]) -> None:
    """However a camera was held, the model sees the same."""
    turned_back = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    upright = noise(*size)
    found = []
    for orientation, method in turned_back.items():
        block = Image.Exif()
        block[0x0112] = orientation
        stored = upright if method is None else upright.transpose(method)
        found.append(codes_of(target, saved(stored, "PNG", exif=block)))
    assert len(set(found[0])) > 1
    assert all(codes == found[0] for codes in found)


def test_a_polyglot_is_its_picture_or_nothing(target: Target) -> None:
    plain = codes_of(target, good("png"))
    for tail in (b"PK\x03\x04" + bytes(30), b"<html>", good("jpeg"), bytes(10_000)):
        assert codes_of(target, good("png") + tail) == plain


def test_only_the_first_frame_is_read(target: Target) -> None:
    for name in ("apng", "gif"):
        alone = saved(noise(24, 18), FORMATS[name][0])
        assert good(name) != alone
        assert codes_of(target, good(name)) == codes_of(target, alone)


def test_a_data_url_is_one_picture(target: Target) -> None:
    """Not a list of them, parted by commas, each of which would be decoded (CVE-2026-34755)."""
    url = "data:image/png;base64," + base64.b64encode(good("png")).decode()
    with target.client() as client:
        for payload in (url + "," + url, url + ",", url.replace(",", ",,"), url + "=" * 8):
            part = {"type": "image_url", "image_url": {"url": payload}}
            body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
            assert client.post("/v1/chat/completions", json=body).status_code == 400
