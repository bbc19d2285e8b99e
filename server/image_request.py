"""From the body of an image generation to requests for the engine, and the form of the reply.

Owns the checks that need the settings or the model's geometry; knows no prompt format. Invariant:
the seeds of `n` pictures are a list of the client's, or count up from one seed.
"""

import uuid

from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError
from janus_core.pipeline import ImageOptions, Pipeline
from server.errors import unsupported
from server.pictures import PictureFormat, parse_size
from server.schemas.images import ImageGenerationRequest
from server.settings import Settings

DEFAULT_QUALITY = 95
"""Of JPEG and WebP, if the client does not choose; above it, files grow and nobody sees why."""


def picture_format(
    body: ImageGenerationRequest, *, pipeline: Pipeline, settings: Settings
) -> PictureFormat:
    """How the pictures of this request leave the server; refuses what none can be."""
    num_pictures = body.n or len(body.seed or (0,))
    if num_pictures > settings.max_pictures:
        raise ParameterError(
            f"n is {num_pictures}, but this server allows at most {settings.max_pictures}.",
            param="n",
        )
    if body.response_format == "url":
        raise unsupported("response_format", "response_format can only be b64_json.")
    if body.background == "transparent":
        raise unsupported("background", "The model draws opaque pictures only.")
    if body.partial_images and not body.stream:
        raise ParameterError("partial_images needs stream to be true.", param="partial_images")
    output_format = body.output_format or "png"
    compression = body.output_compression
    if output_format == "png" and compression not in (None, 100):
        raise unsupported(
            "output_compression", "output_compression has a meaning for jpeg and webp only."
        )
    width, height = parse_size(
        body.size, native_px=pipeline.config.vq.image_size, max_px=settings.max_output_side_px
    )
    quality = DEFAULT_QUALITY if compression is None else compression
    return PictureFormat(width, height, output_format, quality)


def build_image_requests(body: ImageGenerationRequest, *, pipeline: Pipeline) -> list[ImageRequest]:
    """The requests of an image generation. Tokenises: not for the event loop."""
    num_pictures = body.n or len(body.seed or (0,))
    if body.seed is not None and len(body.seed) not in (1, num_pictures):
        raise ParameterError(
            f"seed has {len(body.seed)} values, but n is {num_pictures}.", param="seed"
        )
    request_id = uuid.uuid4().hex
    if body.seed is None or len(body.seed) == 1:
        seed = body.seed[0] if body.seed else None
        options = _options(body, n=num_pictures, seed=seed)
        return pipeline.image_requests(body.prompt, options, request_id=request_id)
    return [
        request
        for index, seed in enumerate(body.seed)
        for request in pipeline.image_requests(
            body.prompt, _options(body, n=1, seed=seed), request_id=f"{request_id}-{index}"
        )
    ]


def _options(body: ImageGenerationRequest, *, n: int, seed: int | None) -> ImageOptions:
    """What the client chose. A null is a default, as OpenAI has it."""
    return ImageOptions(
        n=n,
        seed=seed,
        guidance=body.guidance,
        negative_prompt=body.negative_prompt,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        num_previews=body.partial_images or 0,
    )
