"""A picture as the answer to a conversation: what to draw, and the finished file.

Owns the way from the user's last words to the requests of an image generation, for every endpoint
whose answer can be a picture; knows neither codes nor an endpoint's reply. Invariant: what an image
generation would refuse is refused here in the same words, under the name of the client's field.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from janus_core.engine.events import Pixels
from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError, RequestError
from server.context import Context
from server.conversation import Turn, last_user_text
from server.image_request import build_image_requests, picture_format
from server.picture_file import picture_file
from server.pictures import PictureFormat, describe
from server.schemas.images import MAX_PROMPT_CHARS, ImageGenerationRequest


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn and how it leaves the server."""

    body: ImageGenerationRequest
    style: PictureFormat
    requests: list[ImageRequest]

    async def encode(self, context: Context, *, index: int, pixels: Pixels) -> str:
        """The file of the picture `index` in base64; a PNG says how it was drawn."""
        metadata = describe(
            self.requests[index],
            prompt=self.body.prompt,
            negative_prompt=self.body.negative_prompt,
            model_name=context.model_name,
            style=self.style,
            num_codes=context.pipeline.config.vq.num_codes,
        )
        file = await picture_file(context, self.style, pixels, metadata=metadata)
        return base64.b64encode(file).decode("ascii")


async def prepare_drawing(
    context: Context,
    turns: Sequence[Turn],
    body: ImageGenerationRequest,
    *,
    tenant: str,
    param: str,
) -> Drawing:
    """`body`, whose prompt is left empty, with the user's last words as its prompt.

    The family draws from one caption: earlier turns, images and system messages have no part in
    it. `param` is the field of the whole conversation. Raises a RequestError that names a field.
    """
    prompt, path = last_user_text(turns, param=param)
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ParameterError(
            f"The text to draw has {len(prompt)} characters; the limit is {MAX_PROMPT_CHARS}.",
            param=path,
        )
    body = body.model_copy(update={"prompt": prompt})
    style = picture_format(body, pipeline=context.pipeline, settings=context.settings)
    try:
        requests = await context.offload.admit(
            tenant, build_image_requests, body, pipeline=context.pipeline
        )
    except RequestError as error:
        error.param = path if error.param == "prompt" else error.param
        raise
    return Drawing(body, style, requests)
