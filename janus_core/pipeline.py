"""One checkpoint, ready to answer: what the server and the command line have in common.

Owns the loading order and the defaults of a request; turns messages and captions into requests of
the engine. Knows no HTTP and no terminal. Invariant: a request that is returned has been checked
against the model as well as by itself, and every choice left open has been made and can be read
from it (the seed above all).
"""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_core.checkpoint import load_model, resolve_checkpoint
from janus_core.config import ModelConfig, read_config
from janus_core.device import Placement, fit, place
from janus_core.engine.engine import Engine
from janus_core.engine.events import Event, Failed, Finished
from janus_core.engine.request import (
    Constraint,
    ImageInput,
    ImageRequest,
    Request,
    SamplingParams,
    TextRequest,
)
from janus_core.engine.service import EngineService
from janus_core.engine.settings import EngineSettings
from janus_core.errors import CheckpointError, ContextLengthError, ParameterError
from janus_core.images import ImageLimits, ImageProcessor, PreparedImage, decode_image
from janus_core.prompt import Message, PromptBuilder
from janus_core.strict_json import read_object
from janus_core.tokenizer import Tokenizer

EMBEDDED_CHECKPOINT = Path(__file__).parents[1] / "weights" / "janus-mini"
"""The small checkpoint in the source tree, served if no other is named."""

# `generate()` of transformers' Janus and `generation_inference.py` have the same default.
DEFAULT_GUIDANCE = 5.0

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
class ImageOptions:
    """What a client may choose about a picture; None leaves it to us.

    `guidance` defaults to what the checkpoint's `generation_config.json` says; 1 draws unguided, at
    half the cost. `num_previews` half-drawn pictures are spread evenly over the codes. `seed` is
    the first picture's, or one per picture. `forced_codes` are fed in raster order and the rest,
    those that are None or missing at the end, is drawn. `code_logprobs` asks for the
    log-probabilities of each drawn code.
    """

    n: int = 1
    seed: int | tuple[int, ...] | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    num_previews: int = 0
    progress: bool = False
    forced_codes: tuple[int | None, ...] = ()
    code_logprobs: bool = False


class Pipeline:
    """A loaded model with everything around it. Building requests is safe from any thread."""

    def __init__(
        self,
        *,
        name: str,
        directory: Path,
        placement: Placement,
        config: ModelConfig,
        tokenizer: Tokenizer,
        engine: Engine,
        settings: EngineSettings,
        limits: ImageLimits,
        attention_backend: str,
    ) -> None:
        """`load` is the usual way in; `engine` has been built with `tokenizer` and `settings`."""
        self.name = name
        self.directory = directory
        self.placement = placement
        self.config = config
        self.tokenizer = tokenizer
        self.engine = engine
        self.settings = settings
        self.limits = limits
        self._attention_backend = attention_backend
        self.prompts = PromptBuilder.load(directory, tokenizer=tokenizer, config=config)
        self.image_processor = ImageProcessor.load(directory)
        self.default_guidance = _default_guidance(directory)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        settings: EngineSettings | None = None,
        limits: ImageLimits | None = None,
        name: str | None = None,
    ) -> "Pipeline":
        """Load a directory or a Hugging Face id, by default the embedded checkpoint.

        Cheap checks come first: a checkpoint of another model is refused before its weights are
        read. Raises CheckpointError and ParameterError.
        """
        placement = place(device, dtype)
        directory = resolve_checkpoint(model or str(EMBEDDED_CHECKPOINT), revision=revision)
        config = read_config(directory)
        tokenizer = Tokenizer.load(directory)
        _check_agreement(directory, config, tokenizer=tokenizer)
        network = load_model(directory, device=placement.device, dtype=placement.dtype)
        fitted = fit(settings or EngineSettings(), config, placement)
        return cls(
            name=name or _name_of(model, directory),
            directory=directory,
            placement=placement,
            config=config,
            tokenizer=tokenizer,
            engine=Engine(network, tokenizer, fitted),
            settings=fitted,
            limits=limits or ImageLimits(),
            attention_backend=network.language_model.attention.name,
        )

    @property
    def device(self) -> str:
        """For example `cpu` or `cuda:0`."""
        return str(self.placement.device)

    @property
    def dtype(self) -> str:
        """For example `bfloat16`."""
        return self.placement.dtype_name

    @property
    def attention_backend(self) -> str:
        """The attention function in use."""
        return self._attention_backend

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.engine.context_limit

    def prepare_image(self, data: bytes, *, param: str | None = None) -> PreparedImage:
        """Decode and preprocess a client's image. Takes tens of milliseconds: not for an event
        loop.

        Raises ImageInputError that names `param`.
        """
        return self.image_processor.prepare(decode_image(data, self.limits, param=param))

    def text_requests(
        self,
        messages: Sequence[Message[PreparedImage]],
        options: TextOptions,
        *,
        request_id: str,
        tenant: str = "",
    ) -> list[TextRequest]:
        """`options.n` requests with the ids `request_id`-0, -1, ...

        Raises a RequestError that names the field.
        """
        prompt = self.prompts.understanding(messages, continue_final=options.continue_final)
        room = self.max_context - len(prompt.token_ids)
        if room < 1:
            raise ContextLengthError(
                f"The prompt has {len(prompt.token_ids)} tokens, which leaves no room for an "
                f"answer in the context of {self.max_context}.",
                param="messages",
            )
        self._check_stop_ids(options.stop_token_ids)
        images = tuple(
            ImageInput(image.digest, image.pixels_CHW, first, self.config.vision.num_image_tokens)
            for first, image in prompt.images
        )
        max_tokens = room if options.max_tokens is None else min(room, options.max_tokens)
        requests = [
            TextRequest(
                id=f"{request_id}-{index}",
                token_ids=prompt.token_ids,
                sampling=_text_sampling(options, seed),
                max_tokens=max_tokens,
                images=images,
                stop=options.stop,
                stop_token_ids=options.stop_token_ids,
                include_stop=options.include_stop,
                ignore_eos=options.ignore_eos,
                min_tokens=min(options.min_tokens, room),
                logprobs=options.logprobs,
                strip_start=not options.continue_final,
                tenant=tenant,
            )
            for index, seed in enumerate(_seeds(options.seed, options.n))
        ]
        self.engine.validate(requests[0])
        return requests

    def image_requests(
        self, prompt: str, options: ImageOptions, *, request_id: str, tenant: str = ""
    ) -> list[ImageRequest]:
        """`options.n` requests with the ids `request_id`-0, -1, ...

        Raises a RequestError that names the field.
        """
        guidance = self.default_guidance if options.guidance is None else options.guidance
        if options.negative_prompt and options.negative_prompt.strip() and guidance == 1.0:
            raise ParameterError(
                "negative_prompt has no meaning at guidance_scale 1, which draws unguided.",
                param="negative_prompt",
            )
        pair = self.prompts.generation(prompt, negative_prompt=options.negative_prompt)
        num_codes = self.config.vq.num_codes
        requests = [
            ImageRequest(
                id=f"{request_id}-{index}",
                token_ids=pair.token_ids,
                uncond_token_ids=None if guidance == 1.0 else pair.uncond_token_ids,
                guidance=guidance,
                sampling=SamplingParams(
                    seed=seed,
                    temperature=options.temperature,
                    top_k=options.top_k,
                    top_p=options.top_p,
                    min_p=options.min_p,
                ),
                preview_at=_spread(options.num_previews, num_codes),
                progress=options.progress,
                tenant=tenant,
            )
            for index, seed in enumerate(_seeds(options.seed, options.n))
        ]
        self.engine.validate(requests[0])
        return requests

    def new_service(self, sink: Callable[[Sequence[Event]], None]) -> EngineService:
        """The engine in a thread of its own, not yet started; `sink` is called once per step."""
        return EngineService(self.engine, sink)

    def run(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Serve these requests in the calling thread and yield what happens, until all have ended.

        For a process without a server; the engine must not belong to a service.
        """
        open_ids = {request.id for request in requests}
        for request in requests:
            self.engine.submit(request)
        while open_ids:
            for event in self.engine.step():
                if isinstance(event, Finished | Failed):
                    open_ids.discard(event.request_id)
                yield event

    def _check_stop_ids(self, ids: Sequence[int]) -> None:
        limit = self.config.backbone.vocab_size
        for id in ids:
            if not 0 <= id < limit:
                raise ParameterError(
                    f"stop_token_ids names token {id}, but ids are within [0, {limit}).",
                    param="stop_token_ids",
                )


def _name_of(model: str | None, directory: Path) -> str:
    """The hub id, or the last part of a directory's path, which `.` and `~/x/..` do not have."""
    if model and not Path(model).expanduser().is_dir():
        return model
    return os.path.basename(os.path.abspath(directory))


def _check_agreement(directory: Path, config: ModelConfig, *, tokenizer: Tokenizer) -> None:
    """Refuse files of one checkpoint that contradict each other."""
    rows, used = config.backbone.vocab_size, tokenizer.num_ids
    if used > rows:
        raise CheckpointError(
            f"The tokenizer of {directory} has {used} ids, but the embedding table only {rows} "
            "rows."
        )
    wanted, made = config.vision.image_size, ImageProcessor.load(directory).image_size
    if wanted != made:
        raise CheckpointError(
            f"The image processor of {directory} makes squares of {made} pixels, but the vision "
            f"tower takes {wanted}."
        )


def _text_sampling(options: TextOptions, seed: int) -> SamplingParams:
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


def _seeds(seed: int | tuple[int, ...] | None, n: int) -> Sequence[int]:
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


def _spread(num_previews: int, num_codes: int) -> tuple[int, ...]:
    """After how many codes to show a preview: 3 of 64 codes are after 16, 32 and 48."""
    if num_previews < 0:
        raise ParameterError(
            f"partial_images must not be negative, but is {num_previews}.", param="partial_images"
        )
    shares = (index * num_codes // (num_previews + 1) for index in range(1, num_previews + 1))
    return tuple(sorted({num_codes_shown for num_codes_shown in shares if num_codes_shown}))


def _default_guidance(directory: Path) -> float:
    path = directory / "generation_config.json"
    if not path.is_file():
        return DEFAULT_GUIDANCE
    return read_object(path).number("guidance_scale", DEFAULT_GUIDANCE)
