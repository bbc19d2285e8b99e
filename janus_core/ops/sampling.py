"""From logits to tokens, for rows that each have their own parameters.

Owns the order of the logit transformations and the noise; knows no model and no requests beyond
`SamplingParams`. Invariant: a row's token depends on its logits, parameters, seed and position
only, never on the other rows, the device or an earlier call.

A token is drawn by the Gumbel-max trick: `argmax(logits / temperature + noise)` is distributed as
`softmax(logits / temperature)`. The noise is a pure function of (seed, position, token), so nothing
is remembered between steps and several positions can be drawn at once.

Shape suffixes: R rows, V vocabulary of the head (words or codes), K entries of a sparse edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from janus_core.engine.request import SamplingParams
from janus_core.ops.transfer import upload, upload_list

GREEDY_BELOW = 1e-5
"""Smaller temperatures are argmax: fp32 logits divided by them would overflow."""

_UINT64 = npt.NDArray[np.uint64]

# SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row of logits to sample. `position` is the index of the token within the output.

    `prompt_ids` and `output_ids` are what the penalties count, ids of this head's vocabulary; they
    may be empty if `params` has no penalty. `banned_ids` cannot be sampled here.
    """

    params: SamplingParams
    position: int
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    banned_ids: Sequence[int] = ()


def needs_history(params: SamplingParams) -> bool:
    """Whether a penalty looks at the tokens so far."""
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


def sample(
    logits_RV: torch.Tensor, rows: Sequence[SamplingRow], *, fixed_rows: int | None = None
) -> torch.Tensor:
    """Token ids, int64 `[R]`, for fp32 `logits_RV`, which is used as working space.

    Order: logit_bias and banned ids, repetition, presence and frequency penalties, temperature,
    top_k, top_p, min_p, Gumbel argmax. Ties go to the smallest id. With `fixed_rows`, filters are
    computed at so many rows, however many there are.
    """
    params = [row.params for row in rows]
    _edit(logits_RV, rows)
    _penalise(logits_RV, rows)
    drawn = [p.temperature >= GREEDY_BELOW for p in params]
    if not any(drawn):
        return logits_RV.argmax(dim=-1)
    device = logits_RV.device
    temperatures = [p.temperature if d else 1.0 for p, d in zip(params, drawn, strict=True)]
    if any(temperature != 1.0 for temperature in temperatures):
        logits_RV /= upload_list(temperatures, device, dtype=torch.float32)[:, None]
    _filter(logits_RV, params, fixed_rows=fixed_rows)
    noise_RV = gumbel_noise(
        [p.seed for p in params],
        [row.position for row in rows],
        num_tokens=logits_RV.shape[1],
        device=device,
    )
    if not all(drawn):
        noise_RV *= upload_list(drawn, device, dtype=torch.float32)[:, None]
    return noise_RV.add_(logits_RV).argmax(dim=-1)


def gumbel_noise(
    seeds: Sequence[int], positions: Sequence[int], *, num_tokens: int, device: torch.device
) -> torch.Tensor:
    """Standard Gumbel noise, fp32 `[R, num_tokens]`, a function of (seed, position, token) alone.

    Row `r` is the SplitMix64 stream whose state is a mix of seed and position. Of each 64-bit
    number the upper 32 bits make `u` in (0, 1), `E = -log1p(-u)` is exponential and `-log(E)`
    Gumbel. The winners have small `u`, where fp32 is finest; the other end is clamped to the
    largest float below 1.
    """
    with np.errstate(over="ignore"):
        states = np.array(seeds, dtype=np.uint64)
        places = np.array(positions, dtype=np.uint64)
        keys = _mix_array(_mix_array(states) + (places + np.uint64(1)) * np.uint64(_GAMMA))
        # NumPy has unsigned shifts, and so does on a CPU in ten operators what takes torch twenty.
        if device.type == "cpu":
            bits_RV = torch.from_numpy(_bits_array(keys, num_tokens))
        else:
            bits_RV = _bits_tensor(
                upload(torch.from_numpy(keys.view(np.int64)), device), num_tokens
            )
    minus_uniform_RV = bits_RV.add_(0.5).mul_(-(2.0**-32)).clamp_(min=2.0**-24 - 1.0)
    return minus_uniform_RV.log1p_().neg_().log_().neg_()


def _edit(logits_RV: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """Add the logit biases; banned ids become impossible."""
    entries = [
        (index, token_id, bias)
        for index, row in enumerate(rows)
        for token_id, bias in (*row.params.logit_bias, *((i, -torch.inf) for i in row.banned_ids))
    ]
    if entries:
        row_K, token_K, bias_K = _columns(entries, logits_RV.device)
        logits_RV.index_put_((row_K, token_K), bias_K, accumulate=True)


def _penalise(logits_RV: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """Repetition penalty over prompt and output (arXiv:1909.05858), then presence and frequency
    penalties over the output (OpenAI's definition)."""
    repeated: list[tuple[int, int, float]] = []
    lowered: list[tuple[int, int, float]] = []
    for index, row in enumerate(rows):
        params = row.params
        if params.repetition_penalty != 1.0:
            seen = {*row.prompt_ids, *row.output_ids}
            repeated += [(index, token_id, params.repetition_penalty) for token_id in seen]
        if params.presence_penalty or params.frequency_penalty:
            counts: dict[int, int] = {}
            for token_id in row.output_ids:
                counts[token_id] = counts.get(token_id, 0) + 1
            lowered += [
                (index, token_id, -params.presence_penalty - params.frequency_penalty * count)
                for token_id, count in counts.items()
            ]
    if repeated:
        row_K, token_K, penalty_K = _columns(repeated, logits_RV.device)
        seen_K = logits_RV[row_K, token_K]
        logits_RV[row_K, token_K] = torch.where(seen_K > 0, seen_K / penalty_K, seen_K * penalty_K)
    if lowered:
        row_K, token_K, penalty_K = _columns(lowered, logits_RV.device)
        logits_RV.index_put_((row_K, token_K), penalty_K, accumulate=True)


def _filter(
    logits_RV: torch.Tensor, params: Sequence[SamplingParams], *, fixed_rows: int | None
) -> None:
    """Make the tokens outside top_k, top_p and min_p impossible, in the rows that ask for it.

    On CUDA how a sum along rows is cut depends on their number, so that with `fixed_rows` there are
    passes of so many; the last one repeats a row, which gets the same again.
    """
    size = logits_RV.shape[1]
    filtered = [i for i, p in enumerate(params) if _has_filter(p, size)]
    num_rows = fixed_rows or max(1, len(filtered))
    for first in range(0, len(filtered), num_rows):
        part = filtered[first : first + num_rows]
        part += part[:1] * (num_rows - len(part))
        _filter_rows(logits_RV, part, params)


def _filter_rows(
    logits_RV: torch.Tensor, filtered: Sequence[int], params: Sequence[SamplingParams]
) -> None:
    """`_filter` for these rows.

    top_p keeps the most likely tokens until their probabilities (after top_k) sum up to it, the one
    that crosses it included; min_p keeps those at least that fraction as likely as the most likely.
    """
    size = logits_RV.shape[1]
    device = logits_RV.device
    chosen = [params[i] for i in filtered]
    index_F = upload_list(filtered, device)
    top_k_F1 = upload_list([p.top_k or size for p in chosen], device)[:, None]
    top_p_F1 = upload_list([p.top_p for p in chosen], device, dtype=torch.float32)[:, None]
    min_p_F1 = upload_list([p.min_p for p in chosen], device, dtype=torch.float32)[:, None]
    sorted_FV, order_FV = logits_RV[index_F].sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(size, device=device)
    sorted_FV.masked_fill_(rank_V >= top_k_F1, -torch.inf)
    probs_FV = sorted_FV.softmax(dim=-1)
    before_FV = probs_FV.cumsum(dim=-1) - probs_FV
    # Where top_p is 1, rounding must not cut the tail off.
    cut_FV = (before_FV >= top_p_F1) & (top_p_F1 < 1.0)
    cut_FV |= probs_FV < min_p_F1 * probs_FV[:, :1]
    cut_FV[:, 0] = False
    sorted_FV.masked_fill_(cut_FV, -torch.inf)
    logits_RV[index_F] = torch.empty_like(sorted_FV).scatter_(-1, order_FV, sorted_FV)


def _has_filter(params: SamplingParams, size: int) -> bool:
    return 0 < params.top_k < size or params.top_p < 1.0 or params.min_p > 0.0


def _columns(
    entries: Sequence[tuple[int, int, float]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, tokens, values = zip(*entries, strict=True)
    return (
        upload_list(rows, device),
        upload_list(tokens, device),
        upload_list(values, device, dtype=torch.float32),
    )


def _bits_array(keys_R: _UINT64, num_tokens: int) -> npt.NDArray[np.float32]:
    """The upper 32 bits of the first `num_tokens` numbers of each stream, `[R, num_tokens]`."""
    counts_V = np.arange(1, num_tokens + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    bits_RV = _mix_array(keys_R[:, None] + counts_V) >> np.uint64(32)
    return bits_RV.astype(np.float32)


def _bits_tensor(keys_R: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The same on any device; keys as int64."""
    counts_V = torch.arange(1, num_tokens + 1, device=keys_R.device)
    bits_RV = _mix_tensor(keys_R[:, None] + counts_V * _signed(_GAMMA))
    return _shift_right(bits_RV, 32).to(torch.float32)


def _mix_array(state: _UINT64) -> _UINT64:
    """The output function of SplitMix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    return state ^ (state >> np.uint64(31))


def _mix_tensor(state: torch.Tensor) -> torch.Tensor:
    """The same over int64, whose multiplication wraps as that of uint64 does."""
    state = (state ^ _shift_right(state, 30)) * _signed(_MIX_1)
    state = (state ^ _shift_right(state, 27)) * _signed(_MIX_2)
    return state ^ _shift_right(state, 31)


def _shift_right(state: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Logical shift: int64's own shift would copy the sign bit."""
    return (state >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _signed(value: int) -> int:
    """The int64 of the same bits as a uint64."""
    return value - 2**64 if value >= 2**63 else value
