"""`POST /v1/images/generations`: the request, the reply and the events of a stream.

Owns OpenAI's shapes and the names other servers use for guidance; knows neither codes nor pixels.
Invariant: whatever a client may call the guidance scale, there is one value, or a refusal.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from janus_core.errors import ParameterError
from server.schemas.common import Body, Bool, Float, Int, OneOrMore, Reply, Seed, TopK, TopP

MAX_PROMPT_CHARS = 32_000
MAX_PARTIAL_IMAGES = 16
MAX_EDIT_IMAGES = 16
"""OpenAI's bound; more than one is refused later, by name."""

MAX_CODES = 2**14
"""Of one list; how many the model draws is checked against the model."""

OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Literal["low", "medium", "high", "xhigh", "max"]
Guidance = Annotated[Float, Field(ge=0, le=100)]


class DrawingBody(Body):
    """What all drawing endpoints take. `cfg_weight` and `cfg_scale` mean `guidance_scale`."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "style", "moderation", "num_inference_steps", "steps", "true_cfg_scale",
            "input_fidelity", "metadata", "complexity",
        }
    )  # fmt: skip
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "frame_count": (1,),
        "frame_duration_ms": (),
        "svg": (),
        "markup": (),
    }

    model: str | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    n: Annotated[Int, Field(ge=1)] | None = None
    size: Annotated[str, Field(max_length=32)] | None = None
    quality: Literal["auto", "standard", "hd", Quality] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[Int, Field(ge=0, le=100)] | None = None
    stream: Bool | None = None
    partial_images: Annotated[Int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    progress: Bool | None = None
    seed: Annotated[OneOrMore[Seed], Field(min_length=1, max_length=128)] | None = None
    guidance_scale: Guidance | None = None
    cfg_weight: Guidance | None = None
    cfg_scale: Guidance | None = None
    temperature: Annotated[Float, Field(ge=0, le=100)] | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: Annotated[Float, Field(ge=0, le=1)] | None = None
    return_token_ids: Bool | None = None
    logprobs: Bool | None = None
    safety_identifier: Annotated[str, Field(max_length=1024)] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None

    @property
    def caption(self) -> str | None:
        """The text to draw, if the client gave one."""
        raise NotImplementedError

    @property
    def num_pictures(self) -> int:
        """`n`, or as many as there are seeds."""
        return self.n or len(self.seed or (0,))

    @property
    def guidance(self) -> float | None:
        """The guidance scale under whichever name; RequestError if two names differ."""
        names = ("guidance_scale", "cfg_weight", "cfg_scale")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if len(set(given.values())) > 1:
            raise ParameterError(
                f"{' and '.join(given)} are names of one value and must not differ.",
                param=list(given)[1],
            )
        return next(iter(given.values()), None)

    @property
    def shown_quality(self) -> Quality:
        """The quality to echo. There is only one, so the rest is the best there is."""
        match self.quality:
            case "low" | "medium" | "high" | "xhigh" | "max" as quality:
                return quality
            case _:
                return "high"


class ImageGenerationRequest(DrawingBody):
    """The body of an image generation. `codes` are the first codes of each picture, kept as they
    are; a null among them is drawn. `estimate_only` asks when the pictures would be there."""

    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **DrawingBody.refused,
        "image": (),
        "images": (),
        "mask": (),
    }

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
    codes: Annotated[list[Int | None], Field(max_length=MAX_CODES)] | None = None
    estimate_only: Bool | None = None

    @property
    def caption(self) -> str | None:
        """The prompt."""
        return self.prompt


class ImageReference(Body):
    """An image by its URL. Files are not kept here, so there are no ids of any."""

    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {"file_id": ()}

    image_url: str


class ImageEditRequest(DrawingBody):
    """The body of an edit. A form has the files `image` and `mask` instead of `images` and
    `mask`."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
    images: Annotated[list[ImageReference], Field(max_length=MAX_EDIT_IMAGES)] | None = None
    mask: ImageReference | None = None
    strength: Annotated[Float, Field(ge=0, le=1)] | None = None

    @property
    def caption(self) -> str | None:
        """The prompt."""
        return self.prompt


class ImageVariationRequest(DrawingBody):
    """The form of a variation, beside its file `image`. Without a prompt, the model describes the
    image to itself."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    strength: Annotated[Float, Field(ge=0, le=1)] | None = None

    @property
    def caption(self) -> str | None:
        """The prompt, if there is one."""
        return self.prompt


class InputTokensDetails(Reply):
    """A prompt has no images."""

    text_tokens: int
    image_tokens: int


class OutputTokensDetails(Reply):
    """A picture is made of codes only."""

    image_tokens: int
    text_tokens: int


class ImagesUsage(Reply):
    """`output_tokens` are codes, of all pictures the object is about."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


class CodeLogprobs(Reply):
    """Natural logarithms of the probability of each code, before temperature and filters: under
    the conditional and the unconditional distribution and their guided mixture. Null where the code
    was given; `uncond` is null as a whole for an unguided picture."""

    cond: list[float | None]
    uncond: list[float | None] | None
    guided: list[float | None]


class Picture(Reply):
    """One picture, as `b64_json` or behind a `url`. `seed` draws it again."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None
    seed: int
    token_ids: list[int] | None = None
    logprobs: CodeLogprobs | None = None


class ImagesReply(Reply):
    """The reply without `stream`. `size` is the one of the picture, `WxH`."""

    created: int
    data: list[Picture]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: Quality
    size: str
    usage: ImagesUsage
    safety_identifier: str | None = None


EventKind = Literal["image_generation", "image_edit"]
"""Which endpoint's stream an event belongs to."""


class PictureEvent(Reply):
    """What both events of a stream have. `image_index` says which of `n` pictures it is."""

    type: str
    b64_json: str
    created_at: int
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: Quality
    size: str
    image_index: int
    seed: int


class PartialImageEvent(PictureEvent):
    """A half-drawn picture: `image_generation.partial_image` or `image_edit.partial_image`."""

    partial_image_index: int


class CompletedImageEvent(PictureEvent):
    """A finished picture: `image_generation.completed` or `image_edit.completed`."""

    usage: ImagesUsage
    url: str | None = None
    token_ids: list[int] | None = None
    logprobs: CodeLogprobs | None = None


class EstimateReply(Reply):
    """When the last picture would begin and be there if it was asked for now, and how many would
    begin before it; null as long as there is nothing to estimate it from."""

    object: Literal["image_generation.estimate"]
    created: int
    wait_s: float | None
    estimated_s: float | None
    position: int | None


class ProgressEvent(Reply):
    """How far a picture is: `image_generation.progress` or `image_edit.progress`, only on request.

    `remaining_s` is null as long as there is nothing to estimate it from.
    """

    type: str
    created_at: int
    image_index: int
    seed: int
    num_codes: int
    total_codes: int
    remaining_s: float | None
