"""Images are decoded within limits and prepared as the original prepares them."""

import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from janus_core.errors import CheckpointError, ImageInputError
from janus_core.image_processor import ImageProcessor
from janus_core.images import ImageLimits, decode_image, encode_image

MINI = Path(__file__).parents[2] / "weights" / "janus-mini"
LIMITS = ImageLimits()


def gradient(width: int, height: int) -> np.ndarray:
    """A picture with no symmetry, `[height, width, 3]`."""
    y, x = np.mgrid[:height, :width]
    channels = (x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x * 7 + y * 3) % 256)
    return np.stack(channels, axis=2).astype(np.uint8)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends where its pixels would begin."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def outcome(data: bytes) -> str | None:
    """The mode of the decoded image, or the code of the error."""
    try:
        return decode_image(data, ImageLimits(max_pixels=10**6)).mode
    except ImageInputError as error:
        return error.code


def processor(**changes) -> ImageProcessor:
    values = {
        **{"image_size": 384, "min_size": 14, "rescale_factor": 1 / 255, "do_normalize": True},
        **{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    }
    return ImageProcessor(**{**values, **changes})


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP", "JPEG", "MPO"])
def test_formats(format: str) -> None:
    flat = Image.new("RGB", (20, 10), (200, 30, 90))
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode_image(saved(flat, format, **options), LIMITS)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(flat)).max() <= 4


def test_only_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    for format in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:])
        assert decode_image(data, LIMITS).getpixel((4, 4))[0] > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(orientation: int) -> None:
    upright = gradient(6, 4)
    # Exif 2.32, tag 274, says which side of the scene the first row and column show: 6 is right
    # and top, so the rows of a file with orientation 6 are the scene's columns from the right.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    decoded = decode_image(saved(image, exif=exif), LIMITS)
    assert np.array_equal(np.asarray(decoded), upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"nonsense" * 9])
def test_a_damaged_exif_block_is_ignored(exif: bytes) -> None:
    pixels = gradient(6, 4)
    decoded = decode_image(saved(Image.fromarray(pixels), exif=exif), LIMITS)
    assert np.array_equal(np.asarray(decoded), pixels)


def test_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    grey = Image.new("LA", (2, 1), (0, 0))
    for image, options, last in (
        (clear, {}, (255, 0, 0)),
        (palette, {"transparency": 0}, (255, 0, 0)),
        (grey, {}, (255, 255, 255)),
    ):
        decoded = decode_image(saved(image, **options), LIMITS)
        assert decoded.getpixel((0, 0)) == (255, 255, 255)
        assert decoded.getpixel((1, 0)) == last


def test_other_colour_spaces_become_rgb() -> None:
    sixteen = np.full((4, 4), 0x8000, dtype=np.uint16)
    assert decode_image(saved(Image.fromarray(sixteen)), LIMITS).getpixel((0, 0)) == (128,) * 3
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode_image(saved(cmyk, "JPEG", quality=100), LIMITS).getpixel((4, 4))
    assert (red > 240, green < 15, blue < 15) == (True, True, True)
    assert decode_image(saved(Image.new("1", (4, 4), 1)), LIMITS).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_file_is_an_error_wherever_it_ends(format: str) -> None:
    data = saved(Image.fromarray(gradient(64, 48)), format)
    for sixteenth in range(1, 15):
        with pytest.raises(ImageInputError) as raised:
            decode_image(data[: len(data) * sixteenth // 16], LIMITS, param="image")
        assert raised.value.code in {"image_parse_error", "invalid_image_format"}
        assert raised.value.param == "image"
        assert "0x" not in raised.value.message


@given(
    format=st.sampled_from(["PNG", "BMP", "GIF", "WEBP", "JPEG"]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_anywhere_is_an_image_or_our_error(
    format: str, cuts: list[tuple[float, bytes]]
) -> None:
    data = bytearray(saved(Image.fromarray(gradient(24, 16)), format))
    for place, bytes_there in cuts:
        start = int(place * len(data))
        data[start : start + len(bytes_there)] = bytes_there
    assert outcome(bytes(data)) in {
        *("RGB", "invalid_image_format", "image_parse_error", "image_too_large"),
        "image_too_small",
    }


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_image_file"),
        (b"\0" * 100, "invalid_image_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image_format"),
        (b"%PDF-1.7 nothing else", "invalid_image_format"),
        (b"\x89PNG\r\n\x1a\n", "invalid_image_format"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(ImageInputError) as raised:
        decode_image(data, LIMITS)
    assert raised.value.code == code
    assert "0x" not in raised.value.message


def test_formats_that_are_not_offered_are_not_tried() -> None:
    for format in ("TIFF", "PPM", "ICO", "JPEG2000"):
        with pytest.raises(ImageInputError) as raised:
            decode_image(saved(Image.new("RGB", (16, 16)), format), LIMITS)
        assert raised.value.code == "invalid_image_format"


@pytest.mark.parametrize("size", [(13_000, 13_000), (60_000, 60_000), (16_385, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_refused_by_its_header(size: tuple[int, int]) -> None:
    started = time.perf_counter()
    with pytest.raises(ImageInputError) as raised:
        decode_image(png_header(*size), LIMITS)
    assert raised.value.code == "image_too_large"
    assert time.perf_counter() - started < 0.1


def test_limits_hold_to_the_pixel_and_the_byte() -> None:
    data = saved(Image.new("RGB", (30, 20)))
    for limits, code in (
        (ImageLimits(max_pixels=599), "image_too_large"),
        (ImageLimits(max_side_px=29), "image_too_large"),
        (ImageLimits(max_bytes=len(data) - 1), "image_file_too_large"),
    ):
        with pytest.raises(ImageInputError) as raised:
            decode_image(data, limits)
        assert raised.value.code == code
    exact = ImageLimits(max_pixels=600, max_side_px=30, max_bytes=len(data))
    assert decode_image(data, exact).size == (30, 20)
    webp = saved(Image.new("RGB", (30, 20)), "WEBP")
    with pytest.raises(ImageInputError, match="30 x 20 pixels; the limit is 599"):
        decode_image(webp, ImageLimits(max_webp_pixels=599))


def original(image: Image.Image, *, size: int, min_size: int, mean: float) -> np.ndarray:
    """`VLMImageProcessor` of janus/models/image_processing_vlm.py, pixel by pixel."""
    width, height = image.size
    longest = max(width, height)
    new = [max(int(side / longest * size), min_size) for side in (width, height)]
    resized = image.resize(tuple(new), Image.BICUBIC)
    square = Image.new("RGB", (size, size), (int(mean * 255),) * 3)
    square.paste(resized, ((size - new[0]) // 2, (size - new[1]) // 2))
    pixels = np.zeros((3, size, size), dtype=np.float64)
    for y in range(size):
        for x in range(size):
            for channel, value in enumerate(square.getpixel((x, y))):
                pixels[channel, y, x] = (value * (1 / 255) - mean) / 0.5
    return pixels


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.sampled_from([16, 24]),
    mean=st.sampled_from([0.5, 0.2]),
)
@settings(max_examples=40, deadline=None)
def test_preprocessing_is_the_originals(width: int, height: int, size: int, mean: float) -> None:
    image = Image.fromarray(gradient(width, height))
    ours = processor(image_size=size, min_size=3, mean=(mean,) * 3).preprocess(image)
    assert ours.dtype == np.float32
    assert np.abs(ours - original(image, size=size, min_size=3, mean=mean)).max() < 1e-6


@given(st.integers(1, 8000), st.integers(1, 8000))
@settings(max_examples=300)
def test_the_long_side_is_always_the_whole_side(width: int, height: int) -> None:
    longest = max(width, height)
    assert int(longest / longest * 384) == 384
    assert max(int(side / longest * 384) for side in (width, height)) == 384


def test_preprocessing_agrees_with_transformers_where_it_rounds_alike() -> None:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    theirs = JanusImageProcessorPil.from_pretrained(MINI)
    ours = ImageProcessor.load(MINI)
    for width, height in ((64, 64), (128, 64), (40, 160), (500, 250), (7, 7)):
        image = Image.fromarray(gradient(width, height))
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
        assert np.abs(ours.preprocess(image) - expected).max() < 1e-6


def test_padding_is_nearly_black_and_white_in_the_middle() -> None:
    pixels = processor().preprocess(Image.new("RGB", (100, 50), "white"))
    assert pixels.shape == (3, 384, 384)
    assert pixels[0, 0, 0] == pytest.approx((127 / 255 - 0.5) / 0.5, abs=1e-6)
    assert pixels[0, 192, 192] == 1.0


def test_without_normalisation_pixels_stay_between_0_and_1() -> None:
    pixels = processor(do_normalize=False).preprocess(Image.new("RGB", (9, 9), "white"))
    assert pixels.min() == pixels.max() == 1.0


@given(st.binary(min_size=48, max_size=48), st.binary(min_size=48, max_size=48))
def test_equal_digests_mean_equal_pixels(first: bytes, second: bytes) -> None:
    small = processor(image_size=4, min_size=1)
    a, b = (small.prepare(Image.frombytes("RGB", (4, 4), data)) for data in (first, second))
    assert (a.digest == b.digest) == np.array_equal(a.pixels_CHW, b.pixels_CHW)


def test_the_digest_tells_shapes_apart() -> None:
    data = bytes(range(180)) * 50
    wide, tall = (
        processor().prepare(Image.frombytes("RGB", size, data)) for size in ((100, 30), (30, 100))
    )
    assert wide.digest != tall.digest


def test_both_layouts_are_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        ImageProcessor.load(tmp_path)
    own = {"do_normalize": False, "image_mean": None, "image_size": 384, "min_size": 14}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    assert ImageProcessor.load(tmp_path) == processor(do_normalize=False)
    (tmp_path / "preprocessor_config.json").unlink()
    section = {"size": {"height": 96, "width": 96}, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": section}))
    expected = processor(image_size=96, mean=(0.1, 0.2, 0.3))
    assert ImageProcessor.load(tmp_path) == expected
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": {"image_size": 96, "image_mean": [1, 2]}})
    )
    with pytest.raises(CheckpointError, match="image_mean must be three numbers"):
        ImageProcessor.load(tmp_path)


def test_pictures_survive_encoding() -> None:
    pixels = gradient(32, 24)
    metadata = {"prompt": "ein grüner Stern 🙂", "seed": "5"}
    png = Image.open(io.BytesIO(encode_image(pixels, "png", metadata=metadata)))
    assert np.array_equal(np.asarray(png), pixels)
    assert png.text == metadata
    lossless = Image.open(io.BytesIO(encode_image(pixels, "webp", quality=100)))
    assert np.array_equal(np.asarray(lossless), pixels)
    flat = np.full((32, 24, 3), (200, 30, 90), dtype=np.uint8)
    for format in ("jpeg", "webp"):
        good, poor = (encode_image(flat, format, quality=quality) for quality in (95, 5))
        assert Image.open(io.BytesIO(good)).format == format.upper()
        assert np.abs(np.asarray(Image.open(io.BytesIO(good))).astype(int) - flat).max() <= 6
        busy = gradient(64, 64)
        assert len(encode_image(busy, format, quality=5)) < len(encode_image(busy, format))
        assert len(poor) <= len(good)
