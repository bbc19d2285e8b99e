"""What a client learns of a request beside its output: how many tokens, and how long.

Owns nothing; knows the state of a request. Invariant: durations are never negative.
"""

import time

from janus_core.engine.events import (
    CodeLogprob,
    Finished,
    FinishReason,
    Pixels,
    Timings,
    Usage,
)
from janus_core.engine.render import Rendered
from janus_core.engine.request import TextRequest
from janus_core.engine.sequence import RequestState


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
