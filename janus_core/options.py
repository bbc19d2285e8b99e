"""What a client may choose, before the choices left open are made.

Owns the options of answers and pictures and the rules that fill in seeds and previews. Knows no
model: what is out of its range is refused where the request is checked against it. Invariant: with
the same options and the same seed the same request comes out.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_core.engine.request import Constraint, SamplingParams
from janus_core.errors import ParameterError
from janus_core.strict_json import read_object

RANDOM_SEED_LIMIT = 2**32
"""Seeds drawn for a request stay below it: short to retype, and exact in every JSON parser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """What a client may choose about an answer; None leaves it to us.

    The default temperature is 0 (argmax), as in DeepSeek's inference code: the models answer best
    so. `max_tokens` beyond the context is cut to what fits; None is all that fits. `n` answers have
    the seeds `seed`, `seed` + 1, ..., or those of a tuple. `bad_words` are kept out in the tokens
    they are usually spelled in, with and without a space before them. `continue_final` continues
    the last message, of the assistant; without `add_generation_prompt` the prompt ends after the
    last message.
    """

    n: int = 1
    seed: int | tuple[int, ...] | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    constraint: Constraint | None = None
    bad_words: tuple[str, ...] = ()
    continue_final: bool = False
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingDefaults:
    """How a checkpoint wants pictures drawn where the client does not say.

    For Janus-Pro, as in `generate()` of transformers' Janus and in `generation_inference.py`.
    """

    guidance: float = 5.0
    temperature: float = 1.0
    top_p: float = 1.0

    @classmethod
    def read(cls, directory: Path) -> "DrawingDefaults":
        """From `generation_config.json`, if there is one, under the names transformers gives them.

        Raises CheckpointError.
        """
        path = directory / "generation_config.json"
        if not path.is_file():
            return cls()
        section, janus = read_object(path), cls()
        return cls(
            guidance=section.number("guidance_scale", janus.guidance),
            temperature=section.number("temperature", janus.temperature),
            top_p=section.number("top_p", janus.top_p),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What a client may choose about a picture; None leaves it to us.

    `guidance`, `temperature` and `top_p` default to the checkpoint's `DrawingDefaults`; guidance 1
    draws unguided, at half the cost. `num_previews` half-drawn pictures are spread evenly over the
    codes. `seed` is the first picture's, or one per picture. `forced_codes` are fed in raster order
    and the rest, those that are None or missing at the end, is drawn. `code_logprobs` asks for the
    log-probabilities of each drawn code.
    """

    n: int = 1
    seed: int | tuple[int, ...] | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float | None = None
    min_p: float = 0.0
    num_previews: int = 0
    progress: bool = False
    forced_codes: tuple[int | None, ...] = ()
    code_logprobs: bool = False


def text_sampling(options: TextOptions, seed: int) -> SamplingParams:
    """How the words of one answer are drawn."""
    return SamplingParams(
        seed=seed,
        temperature=0.0 if options.temperature is None else options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=options.logit_bias,
    )


def seeds(seed: int | tuple[int, ...] | None, n: int) -> Sequence[int]:
    """The seeds given, one per output, or `n` consecutive ones, from a random one if none was
    given."""
    if n < 1:
        raise ParameterError(f"n must be at least 1, but is {n}.", param="n")
    if isinstance(seed, tuple):
        if len(seed) != n:
            raise ParameterError(
                f"seed has {len(seed)} numbers, but n is {n}: give one number, or as many as n.",
                param="seed",
            )
        return seed
    first = secrets.randbelow(RANDOM_SEED_LIMIT) if seed is None else seed
    return range(first, first + n)


def spread(num_previews: int, num_codes: int) -> tuple[int, ...]:
    """After how many drawn codes to show a preview: 3 of 64 codes are after 16, 32 and 48."""
    if num_previews < 0:
        raise ParameterError(
            f"partial_images must not be negative, but is {num_previews}.", param="partial_images"
        )
    shares = (index * num_codes // (num_previews + 1) for index in range(1, num_previews + 1))
    return tuple(sorted({num_codes_shown for num_codes_shown in shares if num_codes_shown}))
