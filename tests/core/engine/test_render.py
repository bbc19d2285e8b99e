"""Pictures decoded together are the pictures decoded one by one, and fail one by one."""

import threading
import time

import numpy as np
import pytest
import torch

from janus_core.codec import PictureCodec
from janus_core.engine import render
from janus_core.engine.render import RenderJob, ThreadedRenderer
from janus_core.ops.streams import ComputeThread
from tests.core.engine.fake_cuda import FakeCuda
from tests.core.engine.support import Requests


def _jobs(requests_for: Requests) -> list[RenderJob]:
    """Two pictures, one that nobody wants any more between them, and a preview."""
    num_codes = requests_for.model.config.vq.num_codes
    codes = [tuple((7 * i + 3 * n) % 90 for i in range(num_codes)) for n in range(4)]
    return [
        RenderJob("a", codes[0], lambda: True),
        RenderJob("b", codes[1], lambda: False),
        RenderJob("c", codes[2], lambda: True),
        RenderJob("d", codes[3][:6], lambda: True, preview_index=0),
    ]


def _same(mine: list, expected: list) -> None:
    assert [each.job.request_id for each in mine] == [each.job.request_id for each in expected]
    for one, other in zip(mine, expected, strict=True):
        assert (one.pixels is None) == (other.pixels is None)
        if other.pixels is not None:
            # Another batch may add in another order: at most a level at the edge of truncation.
            assert np.abs(one.pixels.astype(int) - other.pixels.astype(int)).max() <= 1


def test_together_and_one_by_one(requests_for: Requests) -> None:
    jobs, model = _jobs(requests_for), requests_for.model
    expected = [render.render(model, job) for job in jobs]
    assert [each.pixels is None for each in expected] == [False, True, False, False]
    _same(render.render_all(model, jobs), expected)


def test_a_picture_that_fails_fails_alone(requests_for: Requests) -> None:
    jobs, model = _jobs(requests_for), requests_for.model
    bad = RenderJob("bad", (10**6,) * model.config.vq.num_codes, lambda: True)
    rendered = render.render_all(model, [bad, *jobs])
    assert rendered[0].error is not None
    _same(rendered[1:], [render.render(model, job) for job in jobs])


def test_what_waits_is_decoded_together(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of two here, in order, and the end of the queue is not lost in between."""
    monkeypatch.setattr(render, "DECODED_TOGETHER", {"cpu": 2})
    model, sizes, gate = requests_for.model, [], threading.Event()
    decode = type(model).decode_codes

    def watched(self, codes_BS: torch.Tensor) -> torch.Tensor:
        sizes.append(len(codes_BS))
        return decode(self, codes_BS)

    monkeypatch.setattr(type(model), "decode_codes", watched)
    renderer = ThreadedRenderer(model, max_pending_previews=9, on_rendered=lambda: None)
    first, *others = (job for job in _jobs(requests_for) if job.is_wanted())
    held = RenderJob(first.request_id, first.codes, lambda: gate.wait(10.0))
    for job in (held, *others, first):
        assert renderer.submit(job)
    gate.set()
    rendered = []
    deadline_s = time.monotonic() + 30
    while len(rendered) < 4 and time.monotonic() < deadline_s:
        rendered += renderer.poll()
        time.sleep(0.01)
    renderer.close()
    assert [each.job.request_id for each in rendered] == ["a", "c", "d", "a"]
    assert max(sizes) == 2
    assert sum(sizes) == 4


class OnCuda:
    """A model that says it is on CUDA, and computes where it is; notes on which stream."""

    def __init__(self, model, cuda: FakeCuda) -> None:
        self.config, self.device = model.config, torch.device("cuda", 1)
        self.used = []
        self._model, self._cuda = model, cuda

    def decode_codes(self, codes_BS: torch.Tensor) -> torch.Tensor:
        self.used.append((self._cuda.device, self._cuda.current))
        return self._model.decode_codes(codes_BS)

    def encode_codes(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        self.used.append((self._cuda.device, self._cuda.current))
        return self._model.encode_codes(pixels_BCHW)


def test_pictures_are_decoded_on_the_models_device_beside_the_stream_of_steps(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the renderer and by the codec, each on one stream of its own."""
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(render, "upload", lambda values, _: values)
    model, rendered = OnCuda(requests_for.model, cuda), threading.Semaphore(0)
    renderer = ThreadedRenderer(model, max_pending_previews=1, on_rendered=rendered.release)
    jobs = _jobs(requests_for)
    for job in (jobs[0], jobs[2]):
        renderer.submit(job)
        assert rendered.acquire(timeout=20)
    renderer.close()
    codec = PictureCodec(model)
    pixels = codec.decode(jobs[0].codes)
    codec.encode(pixels)
    codec.decode(jobs[2].codes)
    device = torch.device("cuda", 1)
    assert [each for each, _ in model.used] == [device] * 5
    of_renderer, of_codec = cuda.streams[1:]
    assert of_renderer.device == of_codec.device == device
    assert [stream for _, stream in model.used] == [of_renderer] * 2 + [of_codec] * 3
    assert cuda.device is None, "the caller's device is its own"


def test_the_engines_thread_works_on_the_models_device(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    engine = requests_for.engine()
    engine.bind_thread()
    assert cuda.device is None
    ComputeThread(torch.device("cuda", 3), torch.get_num_threads()).bind()
    assert cuda.device == torch.device("cuda", 3)
