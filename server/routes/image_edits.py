"""`POST /v1/images/edits` and `/v1/images/variations`, both experimental.

Owns the way of a client's image from a form or from JSON to pictures that resemble it; knows no
codes. Invariant: an image is decoded only after everything else of its request has been accepted.
"""

from fastapi import APIRouter, Request, Response

from janus_core.errors import ParameterError
from server.answer import caption_of
from server.context import Context, context_of
from server.conversation import ImageSource, Turn, with_images
from server.edit_request import DEFAULT_STRENGTH, EditSource, edit_requests
from server.errors import unsupported
from server.form import Form, FormRoute, form_schema, json_body, read_form
from server.image_request import image_options, picture_format
from server.json_route import unless_client_leaves
from server.openapi import STREAMED
from server.principal import principal_of
from server.record import record_of
from server.routes.images import answer_with_pictures
from server.schemas.images import (
    ImageEditRequest,
    ImagesReply,
    ImageVariationRequest,
)

router = APIRouter(route_class=FormRoute, tags=["images"])


@router.post(
    "/v1/images/edits",
    response_model=ImagesReply,
    responses=STREAMED,
    openapi_extra=form_schema(
        ImageEditRequest,
        files=("image",),
        optional_files=("mask",),
        json_fields=("images", "mask"),
    ),
)
async def edit_image(request: Request) -> Response:
    """Experimental: draw a part of an image anew, or a picture that resembles it."""
    body = await json_body(request, ImageEditRequest)
    if body is not None:
        image, mask = _referenced(body)
    else:
        form = await read_form(request, context_of(request).offload)
        body = form.body(ImageEditRequest)
        for name in ("images", "mask"):
            if getattr(body, name) is not None:
                raise ParameterError("The images of a form are files.", param=name)
        image, mask = _uploaded(form)
    return await unless_client_leaves(request, _edit(request, body, image, mask))


@router.post(
    "/v1/images/variations",
    response_model=ImagesReply,
    responses=STREAMED,
    openapi_extra=form_schema(ImageVariationRequest, files=("image",)),
)
async def vary_image(request: Request) -> Response:
    """Experimental: draw pictures that resemble an image."""
    form = await read_form(request, context_of(request).offload)
    body = form.body(ImageVariationRequest)
    image, _ = _uploaded(form)
    return await unless_client_leaves(request, _vary(request, body, image))


async def _edit(
    request: Request, body: ImageEditRequest, image: ImageSource, mask: ImageSource | None
) -> Response:
    context = context_of(request)
    body.check()
    context.check_model(body.model, draws=True)
    image, mask = await _fetched(context, image, mask)
    return await _draw(request, body, body.prompt, image=image, mask=mask)


async def _vary(request: Request, body: ImageVariationRequest, image: ImageSource) -> Response:
    context = context_of(request)
    body.check()
    context.check_model(body.model, draws=True)
    picture_format(body, pipeline=context.pipeline, settings=context.settings)
    if body.prompt is not None and body.prompt.strip():
        return await _draw(request, body, body.prompt, image=image)
    caption = await caption_of(context, image, record=record_of(request))
    if not caption:
        raise ParameterError(
            "The model finds no words for this image; send a prompt.", param="prompt"
        )
    return await _draw(request, body, caption, image=image, caption=caption)


async def _draw(
    request: Request,
    body: ImageEditRequest | ImageVariationRequest,
    prompt: str,
    *,
    image: ImageSource,
    mask: ImageSource | None = None,
    caption: str | None = None,
) -> Response:
    context = context_of(request)
    style = picture_format(body, pipeline=context.pipeline, settings=context.settings)
    varies = isinstance(body, ImageVariationRequest) and body.strength is None
    source = EditSource(
        image=image,
        mask=mask,
        # The transparency of a picture to vary marks nothing.
        strength=DEFAULT_STRENGTH if varies else body.strength,
    )
    options = image_options(body, forced_codes=())
    tenant = principal_of(request).tenant
    requests = await edit_requests(context, prompt, options, source=source, tenant=tenant)
    return await answer_with_pictures(
        request, requests, body=body, style=style, kind="image_edit", caption=caption
    )


def _uploaded(form: Form) -> tuple[ImageSource, ImageSource | None]:
    """The files of a form. Raises ParameterError, and RequestError for more than one image."""
    if len(form.files.get("image", [])) > 1:
        raise unsupported("image", "Only one image can be the source of a picture.")
    if "markup" in form.files:
        raise unsupported("markup", "This server cannot honour markup.")
    image = ImageSource("image", data=form.file("image"))
    mask = ImageSource("mask", data=form.file("mask")) if "mask" in form.files else None
    return image, mask


def _referenced(body: ImageEditRequest) -> tuple[ImageSource, ImageSource | None]:
    """The images a JSON body names."""
    images = body.images or []
    if not images:
        raise ParameterError("One image is required.", param="images")
    if len(images) > 1:
        raise unsupported("images", "Only one image can be the source of a picture.")
    for reference in (*images, *([body.mask] if body.mask else [])):
        reference.check()
    image = ImageSource("images.0.image_url", url=images[0].image_url)
    return image, ImageSource("mask.image_url", url=body.mask.image_url) if body.mask else None


async def _fetched(
    context: Context, image: ImageSource, mask: ImageSource | None
) -> tuple[ImageSource, ImageSource | None]:
    """The images with those behind http(s) addresses fetched."""
    turn = Turn("user", (image,) if mask is None else (image, mask), "images")
    (turn,) = await with_images(
        [turn], context.fetcher, max_total_bytes=context.settings.max_body_bytes
    )
    found = [part for part in turn.parts if isinstance(part, ImageSource)]
    return found[0], found[1] if mask is not None else None
