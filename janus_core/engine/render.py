"""From codes to pixels, off the hot path.

Owns the queue of pictures to decode; knows neither sequences nor slots, which are free by then.
Invariant: pictures of a request are rendered in the order of submission; previews may be dropped,
final pictures never.

Shape suffixes: S codes of a picture.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

import numpy as np
import torch

from janus_core.engine.events import Pixels
from janus_core.engine.settings import EngineSettings
from janus_core.models.janus import JanusModel
from janus_core.ops.streams import bind_device, new_stream
from janus_core.ops.transfer import upload
from janus_core.threads import lower_priority

MID_GREY = 127
"""What is not drawn yet, as in the padding of input images."""

DECODED_TOGETHER = {"cuda": 8}
"""Pictures decoded at once; elsewhere one, which fills every core already."""

ATTEMPTS = 2
"""To decode one picture."""

BACKGROUND_NICENESS = 10
"""Added to the render thread's niceness: a step never waits for a picture's pixels."""


@dataclass(frozen=True, slots=True)
class RenderJob:
    """Decode `codes` (plain numbers) of a picture, if `is_wanted` still when its turn comes; asked
    in the renderer's thread. A preview has a `preview_index` and too few codes."""

    request_id: str
    codes: tuple[int, ...]
    is_wanted: Callable[[], bool]
    preview_index: int | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The result of a job: pixels, or the error that prevented them; neither if nobody wanted
    it."""

    job: RenderJob
    pixels: Pixels | None
    duration_s: float
    error: Exception | None = None


class Renderer(Protocol):
    """Where pictures are decoded."""

    def submit(self, job: RenderJob) -> bool:
        """Queue a job; False if it is a preview and was dropped."""

    def poll(self) -> list[Rendered]:
        """The results since the last call, in order."""

    @property
    def beat_s(self) -> float | None:
        """When the job at hand began, on the monotonic clock; None between jobs. Thread-safe."""

    def attach(self, model: JanusModel) -> None:
        """Go on with this network, once nobody wants a picture any more."""

    def close(self) -> None:
        """Stop after the job at hand."""


class InlineRenderer:
    """Renders when polled, in the caller's thread: deterministic, for tests and offline use. Its
    jobs are part of the step."""

    beat_s = None

    def __init__(self, model: JanusModel) -> None:
        self._model = model
        self._jobs: deque[RenderJob] = deque()

    def submit(self, job: RenderJob) -> bool:
        self._jobs.append(job)
        return True

    def poll(self) -> list[Rendered]:
        jobs, self._jobs = self._jobs, deque()
        return [render(self._model, job) for job in jobs]

    def attach(self, model: JanusModel) -> None:
        self._model = model

    def close(self) -> None:
        self._jobs.clear()


class ThreadedRenderer:
    """Renders in a thread of its own; `on_rendered` is called there after each job."""

    def __init__(
        self, model: JanusModel, *, max_pending_previews: int, on_rendered: Callable[[], None]
    ) -> None:
        self._model = model
        self._max_pending_previews = max_pending_previews
        self._on_rendered = on_rendered
        self._jobs: queue.SimpleQueue[RenderJob | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Rendered] = queue.SimpleQueue()
        self._num_pending = 0
        self._is_closing = False
        self._beat_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="render", daemon=True)
        self._thread.start()

    def submit(self, job: RenderJob) -> bool:
        if job.preview_index is not None and self._num_pending >= self._max_pending_previews:
            return False
        self._num_pending += 1
        self._jobs.put(job)
        return True

    def poll(self) -> list[Rendered]:
        results = []
        while not self._results.empty():
            results.append(self._results.get())
        self._num_pending -= len(results)
        return results

    @property
    def beat_s(self) -> float | None:
        return self._beat_s

    def attach(self, model: JanusModel) -> None:
        self._model = model

    def close(self) -> None:
        self._is_closing = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        enter_background(self._model.device)
        with new_stream(self._model.device)():
            while (job := self._jobs.get()) is not None and not self._is_closing:
                self._beat_s = time.monotonic()
                for rendered in render_all(self._model, [job, *self._more()]):
                    self._results.put(rendered)
                self._beat_s = None
                self._on_rendered()

    def _more(self) -> list[RenderJob]:
        """The jobs that wait already, as many as this device decodes together."""
        jobs: list[RenderJob] = []
        while len(jobs) + 1 < DECODED_TOGETHER.get(self._model.device.type, 1):
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # for the loop, which ends with it
                break
            jobs.append(job)
        return jobs


def enter_background(device: torch.device) -> None:
    """Put the calling thread, which will use `device`, behind the compute threads: they spin at
    barriers and lose far more by a busy neighbour than it gains. One thread and a low priority, for
    this thread only."""
    bind_device(device)
    torch.set_num_threads(1)
    lower_priority(BACKGROUND_NICENESS)


def new_renderer(
    model: JanusModel, settings: EngineSettings, *, on_rendered: Callable[[], None]
) -> Renderer:
    """The renderer the settings ask for."""
    if not settings.threaded_rendering:
        return InlineRenderer(model)
    return ThreadedRenderer(
        model, max_pending_previews=settings.max_pending_previews, on_rendered=on_rendered
    )


def render(model: JanusModel, job: RenderJob) -> Rendered:
    """Decode one picture, a second time if that fails: all its codes are drawn already. Never
    raises, because a picture's failure is its request's alone."""
    started_s = time.monotonic()
    pixels, error = None, None
    for attempt in range(ATTEMPTS):
        if attempt:
            error = None  # its traceback keeps tensors alive whose memory may be what lacks
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
        try:
            if job.is_wanted():
                (pixels,) = _decode(model, [job])
            break
        except Exception as failure:
            error = failure
    return Rendered(job, pixels, time.monotonic() - started_s, error)


def render_all(model: JanusModel, jobs: list[RenderJob]) -> list[Rendered]:
    """Decode pictures together, those that are wanted; if that raises, one by one, so that the
    failure of one is not the others'. Each takes as long as all."""
    if len(jobs) == 1:
        return [render(model, jobs[0])]
    started_s = time.monotonic()
    try:
        wanted = [job.is_wanted() for job in jobs]
        pictures = iter(_decode(model, list(compress(jobs, wanted))) if any(wanted) else ())
    except Exception:
        return [render(model, job) for job in jobs]
    duration_s = time.monotonic() - started_s
    return [
        Rendered(job, next(pictures) if is_wanted else None, duration_s)
        for job, is_wanted in zip(jobs, wanted, strict=True)
    ]


def _decode(model: JanusModel, jobs: Sequence[RenderJob]) -> list[Pixels]:
    """Pixels of all codes of each job."""
    codes = [_all_codes(model, job) for job in jobs]
    codes_BS = upload(torch.tensor(codes, dtype=torch.int64), model.device)
    pixels = list(model.decode_codes(codes_BS).cpu().numpy())
    for job, each in zip(jobs, pixels, strict=True):
        _paint_over(model, job, each)
    return pixels


def _all_codes(model: JanusModel, job: RenderJob) -> list[int]:
    """Codes not drawn yet are guessed from the row above, then painted over, so that what is drawn
    does not fade towards its lower edge."""
    vq = model.config.vq
    codes = list(job.codes)
    while len(codes) < vq.num_codes:
        codes.append(codes[-vq.grid] if len(codes) >= vq.grid else codes[-1])
    return codes


def _paint_over(model: JanusModel, job: RenderJob, pixels: Pixels) -> None:
    """Grey where no code was drawn yet."""
    vq = model.config.vq
    num_rows, num_columns = divmod(len(job.codes), vq.grid)
    if num_rows < vq.grid:
        side = vq.image_size // vq.grid
        pixels[(num_rows + 1) * side :] = np.uint8(MID_GREY)
        pixels[num_rows * side : (num_rows + 1) * side, num_columns * side :] = np.uint8(MID_GREY)
