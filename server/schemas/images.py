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

OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Literal["low", "medium", "high"]
Guidance = Annotated[Float, Field(ge=0, le=100)]


class ImageGenerationRequest(Body):
    """The body of an image generation. `cfg_weight` and `cfg_scale` mean `guidance_scale`."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "user", "style", "moderation", "num_inference_steps", "steps", "true_cfg_scale",
            "input_fidelity", "metadata",
        }
    )  # fmt: skip
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {"image": (), "images": (), "mask": ()}

    model: str | None = None
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    n: Annotated[Int, Field(ge=1)] | None = None
    size: Annotated[str, Field(max_length=32)] | None = None
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[Int, Field(ge=0, le=100)] | None = None
    stream: Bool | None = None
    partial_images: Annotated[Int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    seed: Annotated[OneOrMore[Seed], Field(min_length=1, max_length=128)] | None = None
    guidance_scale: Guidance | None = None
    cfg_weight: Guidance | None = None
    cfg_scale: Guidance | None = None
    temperature: Annotated[Float, Field(ge=0, le=100)] | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: Annotated[Float, Field(ge=0, le=1)] | None = None

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
        return self.quality if self.quality in ("low", "medium", "high") else "high"


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


class Picture(Reply):
    """One picture. `seed` draws it again."""

    b64_json: str
    revised_prompt: None
    seed: int


class ImagesReply(Reply):
    """The reply without `stream`. `size` is the one of the picture, `WxH`."""

    created: int
    data: list[Picture]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: Quality
    size: str
    usage: ImagesUsage


class PictureEvent(Reply):
    """What both events of a stream have. `image_index` says which of `n` pictures it is."""

    b64_json: str
    created_at: int
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: Quality
    size: str
    image_index: int
    seed: int


class PartialImageEvent(PictureEvent):
    """A half-drawn picture."""

    type: Literal["image_generation.partial_image"]
    partial_image_index: int


class CompletedImageEvent(PictureEvent):
    """A finished picture."""

    type: Literal["image_generation.completed"]
    usage: ImagesUsage
