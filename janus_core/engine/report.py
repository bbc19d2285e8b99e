"""What is reported beside the output: of a request how many tokens and how long, of the engine its
numbers.

Owns nothing; knows the state of a request and the engine's parts. Invariant: durations are never
negative.
"""

import math
import time

from janus_core.engine.events import (
    CodeLogprob,
    Finished,
    FinishReason,
    Pixels,
    Timings,
    Usage,
)
from janus_core.engine.execution import Executor
from janus_core.engine.forecast import Estimate
from janus_core.engine.pace import Pace
from janus_core.engine.render import Rendered
from janus_core.engine.request import TextRequest
from janus_core.engine.scheduler import Scheduler
from janus_core.engine.sequence import RequestState
from janus_core.engine.slots import SlotPool
from janus_core.engine.stats import EngineStats
from janus_core.engine.vision_cache import VisionCache


def finished_of(
    state: RequestState, reason: FinishReason, rendered: Rendered | None = None
) -> Finished:
    """The terminal event of a request that ended well; `rendered` belongs to a finished picture."""
    pixels: Pixels | None = None
    codes: tuple[int, ...] = ()
    code_logprobs: tuple[CodeLogprob | None, ...] = ()
    vq_decode_s = 0.0
    if rendered is not None:
        pixels, codes = rendered.pixels, rendered.job.codes
        vq_decode_s = rendered.duration_s
        if state.code_logprobs:
            code_logprobs = tuple(map(state.code_logprobs.get, range(len(codes))))
    return Finished(
        state.id,
        reason,
        usage_of(state),
        timings_of(state, vq_decode_s=vq_decode_s),
        pixels,
        codes,
        code_logprobs,
    )


def summary_of(state: RequestState, finished: Finished) -> str:
    """One line for the log; nothing of what was said."""
    timings = finished.timings
    return (
        f"request {state.id} kind={'image' if state.is_image else 'text'} "
        f"reason={finished.reason} output_tokens={state.num_output} "
        f"queue_s={timings.queue_s:.3f} first_s={timings.first_s:.3f} "
        f"total_s={timings.total_s:.3f}"
    )


def usage_of(state: RequestState) -> Usage:
    """Tokens so far."""
    request = state.request
    images = request.images if isinstance(request, TextRequest) else ()
    return Usage(
        prompt_tokens=state.num_prompt,
        output_tokens=state.num_output,
        cached_tokens=state.num_cached,
        image_tokens=sum(image.num_tokens for image in images),
    )


def timings_of(state: RequestState, *, vq_decode_s: float) -> Timings:
    """Durations so far; times that were not reached count until now."""
    now_s = time.monotonic()
    started_s = state.started_s or now_s
    first_s = state.first_s or now_s
    return Timings(
        queue_s=started_s - state.submitted_s,
        first_s=first_s - state.submitted_s,
        decode_s=(state.ended_s or first_s) - first_s,
        total_s=now_s - state.submitted_s,
        vision_encode_s=state.vision_encode_s,
        vq_decode_s=vq_decode_s,
    )


def stats_of(
    scheduler: Scheduler,
    executor: Executor,
    *,
    pool: SlotPool,
    vision: VisionCache,
    pace: Pace,
    image: Estimate | None,
    num_rendering: int,
    num_dropped_previews: int,
) -> EngineStats:
    """The engine's numbers of this moment; `image` is the estimate for a picture that came now."""
    return EngineStats(
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting,
        num_rendering=num_rendering,
        kv_positions=pool.num_positions,
        kv_usage=pool.num_used / pool.num_positions,
        kv_cached=pool.num_cached / pool.num_positions,
        num_steps=executor.num_steps,
        prefix_queries=scheduler.prefix_queries_tokens,
        prefix_hits=scheduler.prefix_hits_tokens,
        uncond_prefix_hits=scheduler.uncond_prefix_hits_tokens,
        vision_queries=vision.num_queries,
        vision_hits=vision.num_hits,
        vision_cache_bytes=vision.num_bytes,
        num_set_backs=scheduler.num_set_backs,
        num_failed_steps=executor.num_failed_steps,
        num_dropped_previews=num_dropped_previews,
        image_wait_s=math.nan if image is None else image.wait_s,
        image_eta_s=math.nan if image is None else image.remaining_s,
        text_s=pace.text_seconds,
        image_s=pace.image_seconds,
    )
