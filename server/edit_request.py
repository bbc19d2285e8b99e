"""From an image and what to change of it to requests for the engine.

Owns which codes of the image are kept, in the words of edits and variations; knows no endpoint.
Invariant: what is kept does not depend on the seed, so that the pictures of one request are drawn
from one prompt and the same codes.
"""

import uuid
from dataclasses import dataclass, replace

from janus_core.codec import keep_first
from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError
from janus_core.images import MaskStyle
from janus_core.options import ImageOptions
from janus_core.pipeline import Pipeline

DEFAULT_STRENGTH = 0.75
"""The share that is drawn anew where nothing says which; AUTOMATIC1111's `denoising_strength`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditSource:
    """An encoded image, and what to draw anew: what a mask marks, or else a share of `strength`.

    With neither it is what is transparent in the image, and if nothing is, `DEFAULT_STRENGTH`. The
    names are the client's fields.
    """

    image: bytes
    mask: bytes | None = None
    mask_style: MaskStyle = "transparent"
    strength: float | None = None
    image_param: str = "image"
    mask_param: str = "mask"
    strength_param: str = "strength"


def build_edit_requests(
    prompt: str, options: ImageOptions, source: EditSource, *, pipeline: Pipeline
) -> list[ImageRequest]:
    """One request per picture. Encodes and tokenises: seconds on a CPU, not for the event loop.

    Raises a RequestError that names a field.
    """
    forced = replace(options, forced_codes=_forced_codes(source, pipeline))
    return pipeline.image_requests(prompt, forced, request_id=uuid.uuid4().hex)


def _forced_codes(source: EditSource, pipeline: Pipeline) -> tuple[int | None, ...]:
    """What is kept."""
    if source.mask is not None and source.strength is not None:
        raise ParameterError(
            f"{source.strength_param} has no meaning beside {source.mask_param}: what the mask "
            "marks is drawn anew as a whole.",
            param=source.strength_param,
        )
    if source.strength is None:
        edited = pipeline.edit_codes(
            source.image,
            source.mask,
            param=source.image_param,
            mask_param=source.mask_param,
            mask_style=source.mask_style,
        )
        if edited is not None:
            return edited
    codes = pipeline.encode_picture(source.image, param=source.image_param)
    strength = DEFAULT_STRENGTH if source.strength is None else source.strength
    return keep_first(codes, strength=strength)
