"""Images decoded in processes: the same results, and no image costs more than its process."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import psutil
import pytest
from PIL import Image

from janus_core import decode_worker
from janus_core.decode_frames import FrameError, receive_frame, send_frame
from janus_core.decode_pool import REASONS, DecodePool
from janus_core.errors import CapacityError, ImageInputError
from janus_core.image_decoder import ImageDecoder
from janus_core.image_processor import ImageProcessor
from janus_core.images import ImageLimits
from tests.serving import wait_until

LIMITS = ImageLimits()
PROCESSOR = ImageProcessor(
    image_size=48, min_size=14, rescale_factor=1 / 255, do_normalize=True, mean=(0.5,) * 3,
    std=(0.5,) * 3,
)  # fmt: skip
MIB = 2**20


def new_pool(**changes) -> DecodePool:
    options = {"num_workers": 2, "time_s": 20.0, "memory_bytes": 768 * MIB}
    return DecodePool(LIMITS, **(options | changes))


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    running = new_pool()
    running.start()
    yield running
    running.close()


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """One file of every format and colour space that decodes by another way."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    rgba, rgb = Image.fromarray(noise), Image.fromarray(noise[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "png": saved(rgb, "PNG"),
        "rgba": saved(rgba, "PNG"),
        "palette": saved(rgb.convert("P"), "PNG"),
        "1 bit": saved(rgb.convert("1"), "PNG"),
        "grey": saved(rgb.convert("LA"), "PNG"),
        "16 bit": saved(Image.fromarray((noise[..., 0].astype(np.uint16) << 8) + 3), "PNG"),
        "text": saved(rgb, "PNG", pnginfo=_text()),
        "jpeg": saved(rgb, "JPEG"),
        "exif": saved(rgb, "JPEG", exif=exif),
        "progressive": saved(rgb, "JPEG", progressive=True),
        "cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "large jpeg": saved(rgb.resize((900, 700)), "JPEG"),
        "mpo": saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        "webp": saved(rgb, "WEBP"),
        "lossless": saved(rgba, "WEBP", lossless=True),
        "animated webp": saved(rgb, "WEBP", save_all=True, append_images=[rgba]),
        "gif": saved(rgb, "GIF", save_all=True, append_images=[rgba]),
        "bmp": saved(rgb, "BMP"),
        "truncated": saved(rgb, "PNG")[:500],
        "none": b"<svg/>",
        "empty": b"",
    }


def _text():
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("latin", "gr\u00fcn", zip=True)
    info.add_itxt("utf", "\u2603", zip=True)
    return info


def outcome(call, *args, **kwargs) -> object:
    try:
        found = call(*args, **kwargs)
    except ImageInputError as error:
        return error.code, error.message, error.param
    arrays = found if isinstance(found, tuple) else (found,)
    return [each.tolist() if isinstance(each, np.ndarray) else each for each in arrays]


@pytest.mark.parametrize("name", files())
def test_processes_decode_what_this_one_does(pool: DecodePool, name: str) -> None:
    data, here = files()[name], ImageDecoder(LIMITS)
    mask = saved(Image.linear_gradient("L"), "PNG")
    for style in ("transparent", "covered", "uncovered"):
        for given in (None, mask, data):
            options = {"side_px": 16, "grid": 4, "style": style, "params": ("a", "b")}
            assert outcome(pool.edited, data, given, **options) == outcome(
                here.edited, data, given, **options
            )
    for call, options in (
        ("square", {"processor": PROCESSOR}),
        ("fitted", {"side_px": 16}),
        ("png_text", {}),
    ):
        there = outcome(getattr(pool, call), data, param="f", **options)
        assert there == outcome(getattr(here, call), data, param="f", **options)
        if name in ("truncated", "none", "empty") and call != "png_text":
            assert there[2] == "f"


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    """Half, a quarter or an eighth of each side, and what comes of it differs by little."""
    photo = Image.radial_gradient("L").convert("RGB").resize((4000, 3000))
    data, decoder = saved(photo, "JPEG", quality=95), ImageDecoder(LIMITS)
    processor = replace(PROCESSOR, image_size=384)
    exact = processor.square(Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(decoder.square(data, processor).astype(int) - exact).max() <= 2


def big_png() -> bytes:
    return saved(Image.new("RGBA", (5000, 5000), (1, 2, 3, 4)), "PNG")


def test_an_image_that_takes_too_long_ends_its_process_only() -> None:
    pool, small = new_pool(num_workers=1, time_s=0.1), files()["png"]
    try:
        expected = pool.square(small, PROCESSOR)
        (pid,) = pool.pids
        started = time.monotonic()
        with pytest.raises(ImageInputError) as caught:
            pool.square(big_png(), PROCESSOR, param="image")
        assert time.monotonic() - started < 5
        assert (caught.value.code, caught.value.param) == ("invalid_image", "image")
        assert not psutil.pid_exists(pid)
        assert np.array_equal(pool.square(small, PROCESSOR), expected)
        assert pool.pids != [pid]
    finally:
        pool.close()


def test_an_image_that_takes_too_much_memory_is_refused() -> None:
    pool, small = new_pool(num_workers=1, memory_bytes=40 * MIB), files()["png"]
    try:
        for _ in range(2):
            with pytest.raises(ImageInputError) as caught:
                pool.square(big_png(), PROCESSOR, param="image")
            assert (caught.value.code, caught.value.param) == ("image_too_large", "image")
            assert pool.square(small, PROCESSOR).shape == (48, 48, 3)
    finally:
        pool.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_idle_is_replaced_unseen(pool: DecodePool, number: int) -> None:
    small = files()["png"]
    expected = pool.square(small, PROCESSOR)
    for pid in pool.pids:
        os.kill(pid, number)
        wait_until(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert np.array_equal(pool.square(small, PROCESSOR), expected)


def test_a_process_that_stands_still_is_given_up() -> None:
    """Stopped, so that not even its own alarm ends it."""
    pool = new_pool(num_workers=1, time_s=0.2)
    try:
        pool.square(files()["png"], PROCESSOR)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ImageInputError) as caught:
            pool.square(files()["png"], PROCESSOR)
        assert caught.value.code == "invalid_image"
        assert lost(pool) == {"timeout": 1}
        assert not psutil.pid_exists(pid)
        pool.square(files()["png"], PROCESSOR)
    finally:
        pool.close()


def lost(pool: DecodePool) -> dict[str, int]:
    """What was counted, but for zeros."""
    assert set(pool.num_lost) == set(REASONS)
    return {reason: number for reason, number in pool.num_lost.items() if number}


@pytest.mark.parametrize(
    ("reason", "changes"),
    [("timeout", {"time_s": 0.1}), ("memory", {"memory_bytes": 40 * MIB})],
)
def test_a_process_that_an_image_ends_is_counted(reason: str, changes: dict) -> None:
    pool = new_pool(num_workers=1, **changes)
    try:
        pool.square(files()["png"], PROCESSOR)
        assert lost(pool) == {}
        for number in (1, 2):
            with pytest.raises(ImageInputError):
                pool.square(big_png(), PROCESSOR)
            assert lost(pool) == {reason: number}
    finally:
        pool.close()
    assert lost(pool) == {reason: 2}


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "crash"), (signal.SIGABRT, "crash")],
)
def test_a_process_that_something_else_ends_is_counted(number: int, reason: str) -> None:
    """While it is idle, which shows when the next image comes, and at work."""
    pool = new_pool(num_workers=1)
    try:
        pool.square(files()["png"], PROCESSOR)
        os.kill(pool.pids[0], number)
        wait_until(lambda: psutil.Process(pool.pids[0]).status() == psutil.STATUS_ZOMBIE)
        pool.square(files()["png"], PROCESSOR)
        assert lost(pool) == {reason: 1}
        data = big_png()
        threading.Timer(0.05, os.kill, (pool.pids[0], number)).start()
        with pytest.raises(ImageInputError):
            pool.square(data, PROCESSOR)
        assert lost(pool) == {reason: 2}
    finally:
        pool.close()


def test_there_are_never_more_processes_than_may_be(pool: DecodePool) -> None:
    data, results = saved(Image.new("RGB", (1500, 1500)), "PNG"), []
    threads = [
        threading.Thread(target=lambda: results.append(pool.square(data, PROCESSOR)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(pool.pids))
    assert len(results) == 8
    assert 1 <= most <= 2


def test_a_process_has_one_descriptor_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_ADMIN_KEY", "secret")
    with socket.socket() as listener:
        os.set_inheritable(listener.fileno(), True)
        pool = new_pool(num_workers=1)
        try:
            pool.square(files()["png"], PROCESSOR)
            (pid,) = pool.pids
            process = psutil.Process(pid)
            assert sorted(map(int, os.listdir(f"/proc/{pid}/fd"))) == [0, 1, 2]
            assert not process.net_connections("inet")
            assert not [name for name in process.environ() if name.startswith("JANUS_")]
            assert process.rlimit(psutil.RLIMIT_NOFILE) == (3, 3)
            assert process.rlimit(psutil.RLIMIT_AS)[0] < 2048 * MIB
            loaded = {os.path.basename(each.path) for each in process.memory_maps()}
            assert not [name for name in loaded if "torch" in name]
        finally:
            pool.close()
        assert not psutil.pid_exists(pid)


PARENT = """
import os, sys, time
from janus_core.decode_pool import DecodePool
from janus_core.images import ImageLimits
pool = DecodePool(ImageLimits(), num_workers=1, time_s=5.0, memory_bytes=2**29)
pool.start()
print(pool.pids[0], flush=True)
time.sleep(60)
"""


def test_processes_end_with_their_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid), 20)


def test_a_closed_pool_starts_nothing() -> None:
    pool = new_pool()
    pool.start()
    pool.close()
    assert pool.pids == []
    pool.start()
    with pytest.raises(CapacityError):
        pool.square(files()["png"], PROCESSOR)
    assert pool.pids == []


def test_a_pool_is_closed_while_it_decodes() -> None:
    pool, errors = new_pool(num_workers=1), []
    pool.square(files()["png"], PROCESSOR)

    def decode() -> None:
        try:
            for _ in range(100):
                pool.square(big_png(), PROCESSOR)
        except (ImageInputError, CapacityError) as error:
            errors.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    time.sleep(0.3)
    pool.close()
    thread.join(10)
    assert not thread.is_alive()
    assert errors
    assert pool.pids == []
    assert lost(pool) == {}, "to be closed is no fault"


def test_no_process_means_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    pool = new_pool()
    pool.start()
    with pytest.raises(CapacityError):
        pool.square(files()["png"], PROCESSOR)
    assert lost(pool) == {"start": 2}
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(CapacityError):
        pool.square(files()["png"], PROCESSOR)
    assert lost(pool).keys() <= {"start", "crash"}
    assert sum(lost(pool).values()) == 3
    pool.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x02{]",
        b"\x00\x00\x00\x02[]",
        b"\x00\x00\x00\x02{}",
        b'\x00\x00\x00\x10{"sizes": ["x"]}',
        b'\x00\x00\x00\x0f{"sizes": [-1]}',
        b'\x00\x00\x00\x17{"sizes": [99999999999]}',
        b'\x00\x00\x00\x0e{"sizes": [5]}abc',
    ],
)
def test_a_frame_that_is_none(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(raw)
        with pytest.raises(FrameError):
            receive_frame(ours)


def test_frames_come_as_they_were_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=send_frame, args=(ours, {"a": [1]}, [b"", b"x" * MIB]))
        thread.start()
        header, blobs = receive_frame(theirs)
        thread.join()
    assert header == {"a": [1]}
    assert blobs == [b"", b"x" * MIB]


def test_a_worker_answers_whatever_goes_wrong() -> None:
    """In this process: an error of resizing, which no decoder raises."""
    options = asdict(PROCESSOR) | {"image_size": -5}
    header = {"job": "square", "params": ["f"], "options": json.loads(json.dumps(options))}
    data = bytearray(files()["png"])
    reply, blobs = decode_worker._answer(header, [data], LIMITS, time_s=20)
    assert (reply["error"]["code"], reply["error"]["param"], blobs) == ("invalid_image", "f", [])
