"""From an image and what to change of it to requests for the engine.

Owns which codes of the image are kept, in the words of edits and variations; knows no endpoint.
Invariant: what is kept of a picture depends on its own seed and nothing else, so that the seed in
the reply draws it again.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from janus_core.codec import keep_some
from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError
from janus_core.options import ImageOptions, seeds
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
    chosen = seeds(options.seed, options.n)
    request_id = uuid.uuid4().hex
    return [
        request
        for index, (seed, forced) in enumerate(
            zip(chosen, _forced_codes(source, chosen, pipeline), strict=True)
        )
        for request in pipeline.image_requests(
            prompt,
            replace(options, n=1, seed=seed, forced_codes=forced),
            request_id=f"{request_id}-{index}",
        )
    ]


def _forced_codes(
    source: EditSource, chosen: Sequence[int], pipeline: Pipeline
) -> list[tuple[int | None, ...]]:
    """What is kept, per picture."""
    if source.mask is not None and source.strength is not None:
        raise ParameterError(
            f"{source.strength_param} has no meaning beside {source.mask_param}: what the mask "
            "marks is drawn anew as a whole.",
            param=source.strength_param,
        )
    if source.strength is None:
        edited = pipeline.edit_codes(
            source.image, source.mask, param=source.image_param, mask_param=source.mask_param
        )
        if edited is not None:
            return [edited] * len(chosen)
    codes = pipeline.encode_picture(source.image, param=source.image_param)
    strength = DEFAULT_STRENGTH if source.strength is None else source.strength
    return [keep_some(codes, strength=strength, seed=seed) for seed in chosen]
