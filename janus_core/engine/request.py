"""What goes into the engine: requests and their parameters.

Owns the plain, immutable descriptions of work. Knows token ids and pixels, but neither torch nor
HTTP. Invariant: a request that was constructed is valid by itself (`__post_init__` refuses the rest
by name); whether it fits the model and the pool is decided at `submit`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from janus_core.errors import ParameterError, PromptError

SEED_LIMIT = 2**63
"""Seeds are non-negative 63-bit integers, so that they survive JSON and signed tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn; `temperature` 0 means argmax.

    Order of application: logit_bias, repetition, presence and frequency penalties, temperature,
    top_k (0 = off), top_p (1 = off), min_p (0 = off), Gumbel argmax. `repetition_penalty` counts
    prompt and output (as in transformers), presence and frequency count the output only (as OpenAI
    defines them).
    """

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, SEED_LIMIT - 1)
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_k", self.top_k, 0, 2**31 - 1)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        # A penalty that is 0 in float32 would make numbers of what is impossible.
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for _, bias in self.logit_bias:
            _within("logit_bias", bias, -100.0, 100.0)


ConstraintKind = Literal["json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like, token by token; EOS is possible only where it may end.

    Made by one of the class methods. `param` is the field of the client's request that asked for
    it, for errors. Whether `source` can be compiled is decided at `submit`.
    """

    kind: ConstraintKind
    source: str
    param: str

    @classmethod
    def json_object(cls, *, param: str = "response_format") -> "Constraint":
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, param=param)

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | bool, *, param: str = "response_format"
    ) -> "Constraint":
        """JSON that a schema (draft 2020-12, what llguidance supports of it) accepts."""
        try:
            return cls("json_schema", json.dumps(schema), param)
        except RecursionError:
            raise ParameterError(f"{param} is nested too deeply.", param=param) from None

    @classmethod
    def regex(cls, pattern: str, *, param: str = "structured_outputs.regex") -> "Constraint":
        """Text that a regular expression (Rust's syntax, no look-around) matches as a whole."""
        return cls("regex", pattern, param)

    @classmethod
    def choice(
        cls, choices: Sequence[str], *, param: str = "structured_outputs.choice"
    ) -> "Constraint":
        """One of these texts, none of them empty."""
        if not choices or not all(choices):
            raise ParameterError(f"{param} needs texts, and none may be empty.", param=param)
        return cls("choice", json.dumps(list(choices)), param)

    @classmethod
    def grammar(cls, source: str, *, param: str = "structured_outputs.grammar") -> "Constraint":
        """Text of a context-free grammar, in Lark's form with llguidance's extensions or in
        GBNF."""
        return cls("grammar", source, param)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image to understand: preprocessed pixels and the place of its placeholders in the prompt.

    `pixels_CHW` is float32 `[3, side, side]`, normalised. `digest` identifies the pixels (prefix
    and vision cache keys). The placeholders are prompt positions `[first, first + num_tokens)`.
    """

    digest: bytes
    pixels_CHW: npt.NDArray[np.float32]
    first: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """A prompt, possibly with images, to be answered in text.

    `logprobs`: None for none, else how many alternatives (0..20) to report beside the sampled
    token. `strip_start` drops white space before the answer's first character: the prompt's format
    ends in a colon, and the models were trained to follow it with a space. `constraint` says what
    the answer must look like. None of `bad_sequences`, token ids each, is sampled as a whole. Where
    these or `min_tokens` would leave nothing of what the constraint allows, the constraint wins.
    `tenant` salts the prefix and vision caches: equal prompts of different tenants share nothing.
    """

    id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    images: tuple[ImageInput, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    strip_start: bool = False
    constraint: Constraint | None = None
    bad_sequences: tuple[tuple[int, ...], ...] = ()
    tenant: str = ""

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise PromptError("The prompt is empty.", param="messages")
        _within("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _within("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.logprobs is not None:
            _within("top_logprobs", self.logprobs, 0, 20)
        if any(not text for text in self.stop):
            raise ParameterError("A stop string must not be empty.", param="stop")
        if not all(self.bad_sequences):
            raise ParameterError("A bad word must not be empty.", param="bad_words")
        if self.constraint is not None and self.ignore_eos:
            raise ParameterError(
                "ignore_eos cannot be combined with a constraint: an answer that is complete can "
                "only end.",
                param="ignore_eos",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """One picture to draw.

    `uncond_token_ids` is the unconditional prompt, as long as `token_ids`; None draws unguided, and
    then `guidance` must be 1. `preview_at` lists the numbers of codes (ascending, below the total)
    after which a half-drawn picture is rendered. `progress` asks for an event per finished row of
    codes. `forced_codes`, empty or one entry per code in raster order, are fed as they are; the
    codes that are None, at least one, are drawn. `code_logprobs` asks for the log-probabilities of
    each drawn code.
    """

    id: str
    token_ids: tuple[int, ...]
    uncond_token_ids: tuple[int, ...] | None
    guidance: float
    sampling: SamplingParams
    preview_at: tuple[int, ...] = ()
    progress: bool = False
    forced_codes: tuple[int | None, ...] = ()
    code_logprobs: bool = False
    tenant: str = ""

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise PromptError("The prompt is empty.", param="prompt")
        if self.forced_codes and None not in self.forced_codes:
            raise ParameterError("All codes are given: nothing is left to draw.", param="codes")
        _within("guidance_scale", self.guidance, 0.0, 100.0)
        if self.uncond_token_ids is None:
            assert self.guidance == 1.0, "an unguided image has guidance 1"
        else:
            assert len(self.uncond_token_ids) == len(self.token_ids), (
                "the pair must be equally long"
            )


Request = TextRequest | ImageRequest


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a value outside `[low, high]` (`(low, high]` if `open_low`), NaN and infinity
    included."""
    if math.isfinite(value) and low <= value <= high and not (open_low and value == low):
        return
    bracket = "(" if open_low else "["
    raise ParameterError(
        f"{name} must be within {bracket}{low}, {high}], but is {value}.", param=name
    )
