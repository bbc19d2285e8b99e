"""From a body of AUTOMATIC1111's API to pictures and the text that describes them.

Owns the translation between its words and ours in both directions; knows no route. Invariant:
`info` is JSON in a string and names the seed of every picture, because its clients parse it.
"""

import base64
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError, RequestError
from janus_core.options import ImageOptions
from janus_core.pipeline import Pipeline
from server.context import Context
from server.conversation import ImageSource
from server.edit_request import DEFAULT_STRENGTH, EditSource, edit_requests
from server.image_request import check_count
from server.live_drawings import LiveDrawing
from server.picture_file import picture_file
from server.pictures import SAMPLER_NAME, PictureFormat, describe, parse_size
from server.record import RequestRecord
from server.schemas.sdapi import DrawingOptions, DrawnImages, ImageToImage, TextToImage
from server.settings import Settings

NUM_PREVIEWS = 8
"""Half-drawn states per picture: whether anybody will ask for progress is not known before."""


def check_checkpoint(context: Context, name: str | None) -> None:
    """Refuse a checkpoint that is not served (RequestError, 404)."""
    if name is not None and name != context.model_name:
        context.check_model(name, draws=True)


def picture_style(body: DrawingOptions, *, pipeline: Pipeline, settings: Settings) -> PictureFormat:
    """PNG in the size asked for. Raises ParameterError that names the client's field."""
    check_count(body.num_pictures, settings, param="batch_size")
    size = body.final_size()
    try:
        width, height = parse_size(
            None if size is None else f"{size[0]}x{size[1]}",
            native_px=pipeline.config.vq.image_size,
            max_px=settings.max_output_side_px,
            policy=settings.image_size_policy,
        )
    except ParameterError as error:
        error.param = "width"
        raise
    return PictureFormat(width, height, "png")


def build_requests(body: TextToImage, *, pipeline: Pipeline) -> list[ImageRequest]:
    """One request per picture. Tokenises: not for the event loop."""
    with _client_names():
        return pipeline.image_requests(body.prompt, _options(body), request_id=uuid.uuid4().hex)


async def requests_from_image(
    context: Context,
    body: ImageToImage,
    *,
    prompt: str,
    image: ImageSource,
    mask: ImageSource | None,
    tenant: str,
) -> list[ImageRequest]:
    """One request per picture that resembles `image`."""
    strength = DEFAULT_STRENGTH if body.denoising_strength is None else body.denoising_strength
    source = EditSource(
        image=image,
        mask=mask,
        mask_style="uncovered" if body.inpainting_mask_invert else "covered",
        # Its clients send both always.
        strength=strength if mask is None else None,
        strength_param="denoising_strength",
    )
    with _client_names():
        return await edit_requests(context, prompt, _options(body), source=source, tenant=tenant)


def _options(body: DrawingOptions) -> ImageOptions:
    return ImageOptions(
        n=body.num_pictures,
        seed=None if body.seed is None or body.seed < 0 else body.seed,
        guidance=body.cfg_scale,
        # Its clients send the field always, and it means nothing to an unguided picture there too.
        negative_prompt=None if body.cfg_scale == 1.0 else body.negative_prompt,
        num_previews=NUM_PREVIEWS,
        progress=True,
    )


@contextmanager
def _client_names() -> Iterator[None]:
    """Errors name the fields as this API does."""
    try:
        yield
    except RequestError as error:
        names = {"guidance_scale": "cfg_scale", "n": "batch_size"}
        error.param = names.get(error.param or "", error.param)
        raise


async def draw(
    context: Context,
    requests: list[ImageRequest],
    *,
    body: DrawingOptions,
    prompt: str,
    style: PictureFormat,
    record: RequestRecord,
) -> DrawnImages:
    """Draw, listed for whoever asks how far it is; an interrupted drawing returns what there is."""
    record.task, record.num_choices = "image", len(requests)
    num_codes = context.pipeline.config.vq.num_codes
    handle = context.dispatcher.submit(requests, record=record)
    context.metrics.observe("request_params_n", len(requests), "image")
    drawing = LiveDrawing(
        handle,
        len(requests),
        num_codes,
        task_id=body.force_task_id or "",
        tenant=record.principal.tenant,
    )
    with closing(handle), context.drawings.listed(drawing):
        await drawing.run()
    pictures = drawing.pictures()
    texts = [
        describe(
            requests[index],
            prompt=prompt,
            negative_prompt=body.negative_prompt,
            model_name=context.model_name,
            style=style,
            num_codes=num_codes,
        )
        for index in pictures
    ]
    files = [
        await picture_file(context, style, pixels, metadata=metadata)
        for pixels, metadata in zip(pictures.values(), texts, strict=True)
    ]
    if body.send_images is False:
        files = []
    return DrawnImages(
        images=[base64.b64encode(file).decode("ascii") for file in files],
        parameters=body.model_dump(exclude={"init_images", "mask"}),
        info=json.dumps(
            _info(
                [requests[index] for index in pictures],
                body=body,
                prompt=prompt,
                style=style,
                model_name=context.model_name,
                num_codes=num_codes,
                infotexts=[text["parameters"] for text in texts],
            )
        ),
    )


def _info(
    requests: Sequence[ImageRequest],
    *,
    body: DrawingOptions,
    prompt: str,
    style: PictureFormat,
    model_name: str,
    num_codes: int,
    infotexts: Sequence[str],
) -> dict[str, object]:
    """What its clients read from `info` (`Processed.js` in `modules/processing.py` there)."""
    seeds = [request.sampling.seed for request in requests]
    negative = body.negative_prompt or ""
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": seeds[0] if seeds else -1,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "subseed_strength": 0,
        "width": style.width,
        "height": style.height,
        "sampler_name": SAMPLER_NAME,
        "cfg_scale": requests[0].guidance if requests else body.cfg_scale,
        "steps": num_codes,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "sd_model_name": model_name,
        "sd_model_hash": None,
        "denoising_strength": getattr(body, "denoising_strength", None),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
    }
