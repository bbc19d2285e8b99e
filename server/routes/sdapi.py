"""`/sdapi/v1`: drawing, progress and questions in the words of AUTOMATIC1111's web UI.

Owns the part of that API which does something; knows neither codes nor prompts. Invariant: what one
client's `interrupt` ends is only what was asked for by this API and with the same key, as its users
expect.
"""

from fastapi import APIRouter, Request, Response

from janus_core.engine.events import Pixels
from janus_core.engine.request import ImageRequest
from server.answer import caption_of
from server.context import Context, context_of
from server.conversation import ImageSource
from server.image_reply import native_size_header
from server.json_route import JsonRoute, unless_client_leaves
from server.media import bytes_of_url
from server.pictures import PictureFormat
from server.principal import principal_of
from server.record import record_of
from server.schemas.sdapi import (
    Caption,
    DrawingOptions,
    DrawnImages,
    ImageBody,
    ImageToImage,
    JobState,
    PngInfo,
    Progress,
    TextToImage,
)
from server.sd_drawing import (
    build_requests,
    check_checkpoint,
    draw,
    picture_style,
    requests_from_image,
)

router = APIRouter(prefix="/sdapi/v1", route_class=JsonRoute, tags=["sdapi"])


@router.post("/txt2img", response_model=DrawnImages)
async def text_to_image(body: TextToImage, request: Request) -> Response:
    """Draw `batch_size` times `n_iter` pictures of a prompt."""
    return await unless_client_leaves(request, _text_to_image(body, request))


@router.post("/img2img", response_model=DrawnImages)
async def image_to_image(body: ImageToImage, request: Request) -> Response:
    """Experimental: draw pictures that resemble an image, or a part of it anew."""
    return await unless_client_leaves(request, _image_to_image(body, request))


@router.get("/progress")
async def progress(request: Request, *, skip_current_image: bool = False) -> Progress:
    """How far the oldest running drawing of this API is, with the picture so far."""
    context = context_of(request)
    tenant = principal_of(request).tenant
    live = context.drawings.of(tenant)
    num_live = len(live)
    if not live:
        return Progress(
            progress=0.0,
            eta_relative=0.0,
            state=_state(num_live, num_drawn=0, num_codes=0),
            current_image=None,
            textinfo=None,
            current_task=None,
        )
    drawing = live[0]

    async def encode(pixels: Pixels) -> str:
        style = PictureFormat(pixels.shape[1], pixels.shape[0], "png")
        return await context.offload.admit(tenant, style.encode, pixels, metadata={})

    shown = None if skip_current_image else await drawing.shown_file(encode)
    return Progress(
        progress=drawing.progress,
        eta_relative=drawing.handle.remaining_s() or 0.0,
        state=_state(
            num_live, num_drawn=max(drawing.num_drawn.values(), default=0),
            num_codes=drawing.num_codes,
        ),
        current_image=shown,
        textinfo=None,
        current_task=drawing.task_id or None,
    )  # fmt: skip


@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, object]:
    """End the running drawings of this API; their clients get what has been drawn."""
    context_of(request).drawings.interrupt(principal_of(request).tenant)
    return {}


@router.post("/skip")
async def skip(request: Request) -> None:
    """As `interrupt`: nothing is drawn that could be skipped to."""
    context_of(request).drawings.interrupt(principal_of(request).tenant)


@router.post("/interrogate", response_model=Caption)
async def interrogate(body: ImageBody, request: Request) -> Response:
    """A description of an image, by the model itself."""
    return await unless_client_leaves(request, _interrogate(body, request))


@router.post("/png-info")
async def png_info(body: ImageBody, request: Request) -> PngInfo:
    """What a PNG of ours, or of that web UI, says about how it was drawn."""
    body.check()
    context = context_of(request)
    return await context.decoding.admit(
        principal_of(request).tenant, _read_png_info, body.image, context=context
    )


async def _text_to_image(body: TextToImage, request: Request) -> Response:
    context = context_of(request)
    style = _checked(body, context)
    requests = await context.offload.admit(
        principal_of(request).tenant, build_requests, body, pipeline=context.pipeline
    )
    return await _drawn(request, requests, body=body, prompt=body.prompt, style=style)


async def _image_to_image(body: ImageToImage, request: Request) -> Response:
    context = context_of(request)
    style = _checked(body, context)
    image = ImageSource("init_images", url=data_url_of(body.init_images[0]))
    prompt = body.prompt
    if not prompt.strip():  # as there, where the image alone can be enough
        prompt = await caption_of(context, image, record=record_of(request))
    requests = await requests_from_image(
        context,
        body,
        prompt=prompt,
        image=image,
        mask=ImageSource("mask", url=data_url_of(body.mask)) if body.mask else None,
        tenant=principal_of(request).tenant,
    )
    return await _drawn(request, requests, body=body, prompt=prompt, style=style)


def _checked(body: DrawingOptions, context: Context) -> PictureFormat:
    """Refuse what cannot be drawn; how the rest leaves the server."""
    body.check()
    check_checkpoint(context, body.checkpoint)
    return picture_style(body, pipeline=context.pipeline, settings=context.settings)


async def _drawn(
    request: Request,
    requests: list[ImageRequest],
    *,
    body: DrawingOptions,
    prompt: str,
    style: PictureFormat,
) -> Response:
    reply = await draw(
        context_of(request),
        requests,
        body=body,
        prompt=prompt,
        style=style,
        record=record_of(request),
    )
    headers = native_size_header(context_of(request))
    return Response(reply.to_json(), media_type="application/json", headers=headers)


async def _interrogate(body: ImageBody, request: Request) -> Response:
    body.check()
    context = context_of(request)
    image = ImageSource("image", url=data_url_of(body.image))
    caption = await caption_of(context, image, record=record_of(request))
    return Response(Caption(caption=caption).to_json(), media_type="application/json")


def data_url_of(text: str) -> str:
    """Base64 as a data URL, if it is none: clients of this API send both."""
    return text if text[:5].lower() == "data:" else f"data:image/png;base64,{text}"


def _read_png_info(text: str, *, context: Context) -> PngInfo:
    """Reads the text in front of the pixels, and no pixel."""
    images = context.pipeline.images
    data = bytes_of_url(data_url_of(text), param="image", max_bytes=images.limits.max_bytes)
    found = images.png_text(data, param="image")
    info = found.get("parameters", "")
    return PngInfo(info=info, items=found, parameters=_parsed(info))


def _parsed(info: str) -> dict[str, str]:
    """The last line of `Key: value` pairs; what cannot be read so is left out."""
    pairs = (part.split(": ", 1) for part in info.rpartition("\n")[2].split(", "))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _state(num_live: int, *, num_drawn: int, num_codes: int) -> JobState:
    return JobState(
        skipped=False,
        interrupted=False,
        stopping_generation=False,
        job="txt2img" if num_live else "",
        job_count=num_live,
        job_timestamp="0",
        job_no=0,
        sampling_step=num_drawn,
        sampling_steps=num_codes,
    )
