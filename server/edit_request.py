"""From an image and what to change of it to requests for the engine.

Owns which codes of the image are kept, in the words of edits and variations; knows no endpoint.
Invariant: what is kept does not depend on the seed, so that the pictures of one request are drawn
from one prompt and the same codes.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from janus_core.codec import keep_first, keep_unmarked
from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError
from janus_core.images import MaskStyle, Pixels
from janus_core.options import ImageOptions
from janus_core.pipeline import Pipeline
from server.context import Context
from server.conversation import ImageSource

DEFAULT_STRENGTH = 0.75
"""The share that is drawn anew where nothing says which; AUTOMATIC1111's `denoising_strength`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditSource:
    """An encoded image, and what to draw anew: what a mask marks, or else a share of `strength`.

    With neither it is what is transparent in the image, and if nothing is, `DEFAULT_STRENGTH`.
    """

    image: ImageSource
    mask: ImageSource | None = None
    mask_style: MaskStyle = "transparent"
    strength: float | None = None
    strength_param: str = "strength"


async def edit_requests(
    context: Context, prompt: str, options: ImageOptions, *, source: EditSource, tenant: str
) -> list[ImageRequest]:
    """One request per picture, off the event loop. Raises a RequestError that names a field,
    QueueFullError."""
    pipeline = context.pipeline
    picture, marks = await context.decoding.admit(tenant, _decoded, source, pipeline)

    def build() -> list[ImageRequest]:
        codes = pipeline.encode_picture(picture)
        forced = replace(options, forced_codes=_kept(codes, marks, source))
        return pipeline.image_requests(prompt, forced, request_id=uuid.uuid4().hex)

    return await context.autoencoder.admit(tenant, build)


def _decoded(source: EditSource, pipeline: Pipeline) -> tuple[Pixels, tuple[int, ...] | None]:
    """The picture, and which of its codes are drawn anew; None if that is a share of them."""
    image, mask, max_bytes = source.image, source.mask, pipeline.limits.max_bytes
    if mask is not None and source.strength is not None:
        raise ParameterError(
            f"{source.strength_param} has no meaning beside {mask.param}: what the mask "
            "marks is drawn anew as a whole.",
            param=source.strength_param,
        )
    data = image.read(max_bytes=max_bytes)
    if source.strength is not None:
        return pipeline.fitted_picture(data, param=image.param), None
    return pipeline.marked_picture(
        data,
        None if mask is None else mask.read(max_bytes=max_bytes),
        param=image.param,
        mask_param="mask" if mask is None else mask.param,
        mask_style=source.mask_style,
    )


def _kept(
    codes: Sequence[int], marks: Sequence[int] | None, source: EditSource
) -> tuple[int | None, ...]:
    if marks is not None:
        return keep_unmarked(codes, marks)
    strength = DEFAULT_STRENGTH if source.strength is None else source.strength
    return keep_first(codes, strength=strength)
