"""What a client learns of a request beside its output: how many tokens, and how long.

Owns nothing; knows the state of a request. Invariant: durations are never negative.
"""

import time

from janus_core.engine.events import Timings, Usage
from janus_core.engine.request import TextRequest
from janus_core.engine.sequence import RequestState


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
