"""From the body of a drawing endpoint to requests for the engine, and the form of the reply.

Owns the checks that need the settings or the model's geometry; knows no prompt format. Invariant:
the seeds of `n` pictures are a list of the client's, or count up from one seed.
"""

import uuid
from collections.abc import Sequence

from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError
from janus_core.images import OutputFormat
from janus_core.pipeline import ImageOptions, Pipeline
from server.errors import unsupported
from server.pictures import DEFAULT_QUALITY, PictureFormat, parse_size
from server.schemas.images import DrawingBody, ImageGenerationRequest
from server.settings import Settings


def check_count(num_pictures: int, settings: Settings, *, param: str = "n") -> None:
    """Refuse more pictures than one request may have."""
    if num_pictures > settings.max_pictures:
        raise ParameterError(
            f"{param} is {num_pictures}, but this server allows at most {settings.max_pictures}.",
            param=param,
        )


def picture_format(body: DrawingBody, *, pipeline: Pipeline, settings: Settings) -> PictureFormat:
    """How the pictures of this request leave the server; refuses what none can be."""
    check_count(body.num_pictures, settings)
    if body.background == "transparent":
        raise unsupported("background", "The model draws opaque pictures only.")
    for name in ("partial_images", "progress"):
        if getattr(body, name) and not body.stream:
            raise ParameterError(f"{name} needs stream to be true.", param=name)
    return file_format(
        body.size,
        body.output_format or "png",
        compression=body.output_compression,
        pipeline=pipeline,
        settings=settings,
    )


def file_format(
    size: str | None,
    output_format: OutputFormat,
    *,
    compression: int | None,
    pipeline: Pipeline,
    settings: Settings,
) -> PictureFormat:
    """Files in the client's `size`, as far as the settings allow it. Raises RequestError."""
    if output_format == "png" and compression not in (None, 100):
        raise unsupported(
            "output_compression", "output_compression has a meaning for jpeg and webp only."
        )
    width, height = parse_size(
        size,
        native_px=pipeline.config.vq.image_size,
        max_px=settings.max_output_side_px,
        policy=settings.image_size_policy,
    )
    quality = DEFAULT_QUALITY if compression is None else compression
    return PictureFormat(width, height, output_format, quality)


def build_image_requests(body: ImageGenerationRequest, *, pipeline: Pipeline) -> list[ImageRequest]:
    """The requests of an image generation. Tokenises: not for the event loop."""
    options = image_options(body, forced_codes=body.codes or ())
    return pipeline.image_requests(body.prompt, options, request_id=uuid.uuid4().hex)


def image_options(body: DrawingBody, *, forced_codes: Sequence[int | None]) -> ImageOptions:
    """What the client chose. A null is a default, as OpenAI has it."""
    seeds = body.seed or ()
    return ImageOptions(
        n=body.num_pictures,
        seed=tuple(seeds) if len(seeds) > 1 else next(iter(seeds), None),
        guidance=body.guidance,
        negative_prompt=body.negative_prompt,
        temperature=body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=body.top_p,
        min_p=body.min_p or 0.0,
        num_previews=body.partial_images or 0,
        progress=bool(body.progress),
        forced_codes=tuple(forced_codes),
        code_logprobs=bool(body.logprobs),
    )
