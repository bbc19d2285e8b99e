"""What comes out of the engine: events, once per step, as plain immutable values.

Knows neither torch nor HTTP. Invariant: every submitted request gets exactly one terminal event,
`Finished` or `Failed`, and nothing after it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from janus_core.errors import JanusError

Pixels = npt.NDArray[np.uint8]
"""`[height, width, 3]`, RGB."""

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its log-probability under the model's own distribution (before temperature)."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class CodeLogprob:
    """Log-probabilities of a drawn code, all before temperature and filters: under the conditional
    and the unconditional distribution and under their guided mixture. An unguided picture has
    `uncond` None and `guided` equal to `cond`."""

    cond: float
    uncond: float | None
    guided: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One sampled token; `logprob` and `top`, or `code_logprob` for a code, only if the request
    asked for log-probabilities."""

    token_id: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()
    code_logprob: CodeLogprob | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations in seconds of one request; `first_s` runs from submit to the first token or
    code."""

    queue_s: float
    first_s: float
    decode_s: float
    total_s: float
    vision_encode_s: float = 0.0
    vq_decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. For images, `output_tokens` is the number of codes. `cached_tokens` of the
    prompt were found in the prefix cache, `image_tokens` of it are placeholders."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    image_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The request left the queue: its sequences have slots."""

    request_id: str
    queue_s: float


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text. `text` may be empty while bytes of a character or a possible stop string are held
    back."""

    request_id: str
    text: str
    tokens: tuple[SampledToken, ...]


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """`num_codes` of `total_codes` are drawn; `remaining_s` is the estimated time until the picture
    is there, None before any step was measured."""

    request_id: str
    num_codes: int
    total_codes: int
    remaining_s: float | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """A half-drawn picture after `num_codes`; rows not yet drawn are mid-grey."""

    request_id: str
    index: int
    num_codes: int
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Finished:
    """The terminal event of a request that ended well (or was cancelled).

    `pixels` and `codes` are set for completed images only. `code_logprobs`, if asked for, has one
    entry per code, None where the code was forced.
    """

    request_id: str
    reason: FinishReason
    usage: Usage
    timings: Timings
    pixels: Pixels | None = None
    codes: tuple[int, ...] = ()
    code_logprobs: tuple[CodeLogprob | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The terminal event of a request that did not end well."""

    request_id: str
    error: JanusError


@dataclass(frozen=True, slots=True)
class StepDone:
    """What one step did; belongs to no request. Rows are sequences that decoded one token."""

    duration_s: float
    num_text_rows: int
    num_cond_rows: int
    num_uncond_rows: int
    num_prefill_tokens: int


Event = Started | TextDelta | ImageProgress | Preview | Finished | Failed | StepDone
