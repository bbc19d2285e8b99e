"""Pictures decoded together are the pictures decoded one by one, and fail one by one."""

import threading
import time

import numpy as np
import pytest
import torch

from janus_core.engine import render
from janus_core.engine.render import RenderJob, ThreadedRenderer
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
