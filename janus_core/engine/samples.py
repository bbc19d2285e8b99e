"""What a step's one copy from the device holds, and what it means.

Owns the layout of the numbers: ids, finiteness and log-probabilities of texts, then codes,
finiteness and log-probabilities of pictures, each in the order of the batch. Knows no device.
Invariant: reads exactly the numbers that the runner's parts say were written.
"""

from collections.abc import Iterator

from janus_core.engine.batch import Batch
from janus_core.engine.events import CodeLogprob, SampledToken, TokenLogprob
from janus_core.engine.plan import Sample
from janus_core.engine.request import ImageRequest, TextRequest
from janus_core.engine.sequence import RequestState


def unpack(flat: list[float], batch: Batch) -> list[Sample]:
    """One sample for each text and each picture of the batch, from what the device sent."""
    values = iter(flat)
    samples: list[Sample] = []
    if batch.texts:
        ids = [int(next(values)) for _ in batch.texts]
        finite = [bool(next(values)) for _ in batch.texts]
        logprobs = _unpack_logprobs(values, batch.texts)
        for state, token_id, is_finite in zip(batch.texts, ids, finite, strict=True):
            token = SampledToken(token_id, *logprobs.get(state, ()))
            samples.append(Sample(state, token, is_finite))
    codes = [int(next(values)) for _ in batch.images]
    finite = [bool(next(values)) for _ in batch.images]
    code_logprobs = _unpack_code_logprobs(values, batch)
    for state, code, is_finite in zip(batch.images, codes, finite, strict=True):
        token = SampledToken(code, code_logprob=code_logprobs.get(state))
        samples.append(Sample(state, token, is_finite))
    return samples


def _unpack_logprobs(
    values: Iterator[float], states: list[RequestState]
) -> dict[RequestState, tuple[float, tuple[TokenLogprob, ...]]]:
    wanted = [state for state in states if num_top_of(state) is not None]
    num_top = max((num_top_of(state) or 0 for state in wanted), default=0)
    logprobs = [next(values) for _ in wanted]
    ids = [[int(next(values)) for _ in range(num_top)] for _ in wanted]
    tops = [[next(values) for _ in range(num_top)] for _ in wanted]
    return {
        state: (
            logprob,
            tuple(map(TokenLogprob, top_ids[: num_top_of(state)], top[: num_top_of(state)])),
        )
        for state, logprob, top_ids, top in zip(wanted, logprobs, ids, tops, strict=True)
    }


def _unpack_code_logprobs(values: Iterator[float], batch: Batch) -> dict[RequestState, CodeLogprob]:
    guided = [state for state in batch.guided if wants_logprobs(state)]
    unguided = [state for state in batch.unguided if wants_logprobs(state)]
    conds = [next(values) for _ in guided]
    unconds = [next(values) for _ in guided]
    logprobs = {
        state: CodeLogprob(cond, uncond, next(values))
        for state, cond, uncond in zip(guided, conds, unconds, strict=True)
    }
    for state, logprob in zip(unguided, values, strict=False):
        logprobs[state] = CodeLogprob(logprob, None, logprob)
    return logprobs


def wants_logprobs(state: RequestState) -> bool:
    """Whether a picture is drawn with the log-probabilities of its codes."""
    return isinstance(state.request, ImageRequest) and state.request.code_logprobs


def num_top_of(state: RequestState) -> int | None:
    """How many alternatives a text request wants beside each token; None for no
    log-probabilities."""
    request = state.request
    return request.logprobs if isinstance(request, TextRequest) else None
