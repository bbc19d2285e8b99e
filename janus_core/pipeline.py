"""One checkpoint, ready to answer: what the server and the command line have in common.

Owns the loading order and the defaults of a request; turns messages and captions into requests of
the engine. Knows no HTTP and no terminal. Invariant: a request that is returned has been checked
against the model as well as by itself, and every choice left open has been made and can be read
from it (the seed above all).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from janus_core.checkpoint import load_model, resolve_checkpoint
from janus_core.codec import PictureCodec
from janus_core.config import ModelConfig, read_config
from janus_core.device import Placement, fit, memory_bytes, place, use_threads, with_formats
from janus_core.engine.engine import Engine
from janus_core.engine.events import Event, Failed, Finished
from janus_core.engine.request import (
    ImageInput,
    ImageRequest,
    Request,
    SamplingParams,
    TextRequest,
)
from janus_core.engine.service import EngineService
from janus_core.engine.settings import EngineSettings
from janus_core.errors import CheckpointError, ContextLengthError, ParameterError
from janus_core.image_decoder import ImageDecoder
from janus_core.image_processor import ImageProcessor, PreparedImage
from janus_core.images import ImageLimits, MaskStyle, Pixels
from janus_core.ops.streams import bind_device
from janus_core.options import (
    DrawingDefaults,
    ImageOptions,
    TextOptions,
    seeds,
    spread,
    text_sampling,
)
from janus_core.prompt import MAX_TEXT_BYTES, Message, PromptBuilder
from janus_core.sleep import Sleep
from janus_core.tokenizer import Tokenizer

__all__ = ["EMBEDDED_CHECKPOINT", "ImageOptions", "Pipeline", "TextOptions"]

EMBEDDED_CHECKPOINT = Path(__file__).parents[1] / "weights" / "janus-mini"
"""The small checkpoint in the source tree, served if no other is named."""


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
        codec: PictureCodec,
        settings: EngineSettings,
        images: ImageDecoder,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        """`load` is the usual way in; `engine` has been built with `tokenizer` and `settings`."""
        self.name = name
        self.directory = directory
        self.placement = placement
        self.config = config
        self.tokenizer = tokenizer
        self.engine = engine
        self.codec = codec
        self.sleep = Sleep(engine, codec, config=config, directory=directory, placement=placement)
        self.settings = settings
        self.images = images
        self.prompts = PromptBuilder.load(
            directory, tokenizer=tokenizer, config=config, max_text_bytes=max_text_bytes
        )
        self.image_processor = ImageProcessor.load(directory)
        self.drawing_defaults = DrawingDefaults.read(directory)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        weight_format: str = "auto",
        kv_format: str = "auto",
        native: bool = True,
        attention: str = "auto",
        threads: int | None = None,
        settings: EngineSettings | None = None,
        images: ImageDecoder | None = None,
        max_text_bytes: int = MAX_TEXT_BYTES,
        name: str | None = None,
    ) -> "Pipeline":
        """Load a directory or a Hugging Face id, by default the embedded checkpoint.

        The formats and `attention` are those of `janus_core.ops.formats`; `native` allows the C++
        kernels.
        `threads` compute, 0 for one per core; without it torch keeps what it has. Cheap checks come
        first: a checkpoint of another model is refused before its weights are read. Raises
        CheckpointError and ParameterError.
        """
        if threads is not None:
            use_threads(threads)
        placement = with_formats(
            place(device, dtype),
            weight_format=weight_format,
            kv_format=kv_format,
            native=native,
            attention=attention,
        )
        directory = resolve_checkpoint(model or str(EMBEDDED_CHECKPOINT), revision=revision)
        config = read_config(directory)
        tokenizer = Tokenizer.load(directory)
        _check_agreement(directory, config, tokenizer=tokenizer)
        bind_device(placement.device)
        network = load_model(
            directory, device=placement.device, dtype=placement.dtype, formats=placement.formats
        )
        fitted = fit(settings or EngineSettings(), config, placement)
        return cls(
            name=name or _name_of(model, directory),
            directory=directory,
            placement=placement,
            config=config,
            tokenizer=tokenizer,
            engine=Engine(network, tokenizer, fitted),
            codec=PictureCodec(network),
            settings=fitted,
            images=images or ImageDecoder(ImageLimits()),
            max_text_bytes=max_text_bytes,
        )

    @property
    def limits(self) -> ImageLimits:
        """What a client's image may be."""
        return self.images.limits

    @property
    def device(self) -> str:
        """For example `cpu` or `cuda:0`."""
        return str(self.placement.device)

    @property
    def dtype(self) -> str:
        """For example `bfloat16`."""
        return self.placement.dtype_name

    @property
    def number_formats(self) -> str:
        """For example `fp16 weights, fp16 KV, native avx512`."""
        return self.placement.formats_name

    @property
    def num_threads(self) -> int:
        """How many threads compute a step on a CPU."""
        return self.engine.num_threads

    @property
    def attention_backend(self) -> str:
        """The attention function in use; `triton+sdpa` where graphs have Triton's, and prompts too
        long for a graph have torch's."""
        return self.engine.attention_backend

    def device_memory(self) -> dict[str, int]:
        """Bytes of the device by kind; empty for a CPU."""
        return memory_bytes(self.placement.device)

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.engine.context_limit

    def prepare_image(self, data: bytes, *, param: str | None = None) -> PreparedImage:
        """Decode and preprocess a client's image. Takes milliseconds up to seconds: not for an
        event loop.

        Raises ImageInputError that names `param`, CapacityError.
        """
        square_HWC = self.images.square(data, self.image_processor, param=param)
        return self.image_processor.prepare_square(square_HWC)

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
        prompt = self.prompts.understanding(
            messages,
            continue_final=options.continue_final,
            add_generation_prompt=options.add_generation_prompt,
        )
        room = self.max_context - len(prompt.token_ids)
        if room < 1:
            raise ContextLengthError(
                f"The prompt has {len(prompt.token_ids)} tokens, which leaves no room for an "
                f"answer in the context of {self.max_context}.",
                param="messages",
            )
        images = tuple(
            ImageInput(image.digest, image.pixels_CHW, first, self.config.vision.num_image_tokens)
            for first, image in prompt.images
        )
        max_tokens = room if options.max_tokens is None else min(room, options.max_tokens)
        bad_sequences = tuple(self._spellings(options.bad_words))
        requests = [
            TextRequest(
                id=f"{request_id}-{index}",
                token_ids=prompt.token_ids,
                sampling=text_sampling(options, seed),
                max_tokens=max_tokens,
                images=images,
                stop=options.stop,
                stop_token_ids=options.stop_token_ids,
                include_stop=options.include_stop,
                ignore_eos=options.ignore_eos,
                min_tokens=min(options.min_tokens, room),
                logprobs=options.logprobs,
                strip_start=options.add_generation_prompt and not options.continue_final,
                constraint=options.constraint,
                bad_sequences=bad_sequences,
                tenant=tenant,
            )
            for index, seed in enumerate(seeds(options.seed, options.n))
        ]
        self.engine.validate(requests[0])
        return requests

    def image_requests(
        self, prompt: str, options: ImageOptions, *, request_id: str, tenant: str = ""
    ) -> list[ImageRequest]:
        """`options.n` requests with the ids `request_id`-0, -1, ...

        Raises a RequestError that names the field.
        """
        defaults = self.drawing_defaults
        guidance = defaults.guidance if options.guidance is None else options.guidance
        temperature = defaults.temperature if options.temperature is None else options.temperature
        top_p = defaults.top_p if options.top_p is None else options.top_p
        if options.negative_prompt and options.negative_prompt.strip() and guidance == 1.0:
            raise ParameterError(
                "negative_prompt has no meaning at guidance_scale 1, which draws unguided.",
                param="negative_prompt",
            )
        pair = self.prompts.generation(prompt, negative_prompt=options.negative_prompt)
        forced_codes = self._padded(options.forced_codes)
        requests = [
            ImageRequest(
                id=f"{request_id}-{index}",
                token_ids=pair.token_ids,
                uncond_token_ids=None if guidance == 1.0 else pair.uncond_token_ids,
                guidance=guidance,
                sampling=SamplingParams(
                    seed=seed,
                    temperature=temperature,
                    top_k=options.top_k,
                    top_p=top_p,
                    min_p=options.min_p,
                ),
                preview_at=self._preview_places(options.num_previews, forced_codes),
                progress=options.progress,
                forced_codes=forced_codes,
                code_logprobs=options.code_logprobs,
                tenant=tenant,
            )
            for index, seed in enumerate(seeds(options.seed, options.n))
        ]
        self.engine.validate(requests[0])
        return requests

    def fitted_picture(self, data: bytes, *, param: str | None = None) -> Pixels:
        """A client's picture, scaled to cover the native size and cropped.

        Raises ImageInputError that names `param`, CapacityError. Takes up to seconds, as
        `marked_picture` does.
        """
        return self.images.fitted(data, side_px=self.config.vq.image_size, param=param)

    def marked_picture(
        self,
        data: bytes,
        mask: bytes | None,
        *,
        param: str = "image",
        mask_param: str = "mask",
        mask_style: MaskStyle = "transparent",
    ) -> tuple[Pixels, tuple[int, ...] | None]:
        """A client's picture as `fitted_picture`, and which of its codes to draw anew, not 0 there.

        That is what `mask` marks in its style, scaled to the picture if it has another size;
        without a mask, what is transparent in the picture; None if nothing of it is. Only what
        `fit_square` leaves of the picture counts. Raises ImageInputError, and ParameterError if a
        mask marks nothing.
        """
        vq = self.config.vq
        picture, marks = self.images.edited(
            data,
            mask,
            side_px=vq.image_size,
            grid=vq.grid,
            style=mask_style,
            params=(param, mask_param),
        )
        if marks.any():
            return picture, tuple(marks.tolist())
        if mask is not None:
            raise ParameterError(
                f"{mask_param} marks nothing to be drawn in the square that the image is cropped "
                "to.",
                param=mask_param,
            )
        return picture, None

    def encode_picture(self, picture: Pixels) -> tuple[int, ...]:
        """The codes of a picture of the native size. Takes up to seconds on a CPU."""
        return self.codec.encode(picture)

    def decode_codes(self, codes: Sequence[int]) -> Pixels:
        """The picture of a complete sequence of codes. Raises ParameterError. Takes as long."""
        return self.codec.decode(codes)

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

    def _spellings(self, words: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """The ids each bad word is usually spelled in, within a text and after a space."""
        for word in words:
            if not word.strip():
                raise ParameterError("A bad word must not be empty.", param="bad_words")
            yield tuple(self.tokenizer.encode_text(word))
            if not word.startswith(" "):
                yield tuple(self.tokenizer.encode_text(f" {word}"))

    def _padded(self, forced_codes: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """One entry per code of a picture; what is missing at the end is drawn."""
        missing = self.config.vq.num_codes - len(forced_codes)
        return (*forced_codes, *[None] * missing) if forced_codes else ()

    def _preview_places(
        self, num_previews: int, forced_codes: tuple[int | None, ...]
    ) -> tuple[int, ...]:
        """After how many codes of the picture, forced ones included, to show a preview."""
        num_codes = self.config.vq.num_codes
        drawn = [i for i in range(num_codes) if not forced_codes or forced_codes[i] is None]
        return tuple(drawn[count - 1] + 1 for count in spread(num_previews, len(drawn)))


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
