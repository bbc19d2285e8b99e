"""`POST /v1/images/decode` and `/v1/images/encode`: pictures from codes, and codes of images.

Owns the way between files and codes without the language model; knows no autoencoder. Invariant:
none of it runs on the event loop or in a step of the engine.
"""

import time
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from janus_core.errors import ParameterError, RequestError
from janus_core.images import Pixels
from janus_core.pipeline import Pipeline
from server.context import Context, context_of
from server.conversation import ImageSource, Turn, with_images
from server.image_reply import native_size_header
from server.image_request import check_count, file_format
from server.json_route import JsonRoute, unless_client_leaves
from server.pictures import PictureFormat
from server.principal import principal_of
from server.schemas.codes import (
    DecodedPicture,
    DecodeReply,
    DecodeRequest,
    EncodedImage,
    EncodeReply,
    EncodeRequest,
)

router = APIRouter(prefix="/v1/images", route_class=JsonRoute, tags=["images"])


@router.post("/decode", response_model=DecodeReply)
async def decode_codes(body: DecodeRequest, request: Request) -> Response:
    """The pictures of complete lists of codes."""
    return await unless_client_leaves(request, _decode(body, request))


@router.post("/encode", response_model=EncodeReply)
async def encode_images(body: EncodeRequest, request: Request) -> Response:
    """The codes of images, scaled to cover the native size and cut at the centre."""
    return await unless_client_leaves(request, _encode(body, request))


async def _decode(body: DecodeRequest, request: Request) -> Response:
    context, tenant = context_of(request), principal_of(request).tenant
    body.check()
    context.check_model(body.model, draws=True)
    check_count(len(body.codes), context.settings, param="codes")
    style = file_format(
        body.size,
        body.output_format or "png",
        compression=body.output_compression,
        pipeline=context.pipeline,
        settings=context.settings,
    )
    reply = DecodeReply(
        created=int(time.time()),
        data=[
            await context.autoencoder.admit(
                tenant, _decoded, codes, index, style=style, context=context
            )
            for index, codes in enumerate(body.codes)
        ],
        output_format=style.format,
        size=style.size,
    )
    headers = native_size_header(context)
    return Response(reply.to_json(), media_type="application/json", headers=headers)


async def _encode(body: EncodeRequest, request: Request) -> Response:
    context, tenant = context_of(request), principal_of(request).tenant
    body.check()
    context.check_model(body.model, draws=True)
    limit = context.settings.max_images_per_request
    if len(body.images) > limit:
        raise ParameterError(
            f"There are {len(body.images)} images, but this server allows at most {limit}.",
            param="images",
        )
    sources = tuple(
        ImageSource(f"images.{index}", url=url) for index, url in enumerate(body.images)
    )
    (turn,) = await with_images(
        [Turn("user", sources, "images")],
        context.fetcher,
        max_total_bytes=context.settings.max_body_bytes,
    )
    vq = context.pipeline.config.vq
    reply = EncodeReply(
        object="list",
        data=[
            await _encoded(source, index, context=context, tenant=tenant)
            for index, source in enumerate(turn.parts)
            if isinstance(source, ImageSource)
        ],
        grid=vq.grid,
        codebook_size=vq.codebook_size,
        model=context.model_name,
    )
    return Response(reply.to_json(), media_type="application/json")


def _decoded(
    codes: Sequence[int], index: int, *, style: PictureFormat, context: Context
) -> DecodedPicture:
    try:
        pixels = context.pipeline.decode_codes(codes)
    except RequestError as error:
        error.param = f"codes.{index}"
        raise
    metadata = {"model": context.model_name}
    return DecodedPicture(b64_json=style.encode(pixels, metadata=metadata))


async def _encoded(
    source: ImageSource, index: int, *, context: Context, tenant: str
) -> EncodedImage:
    pipeline = context.pipeline
    picture = await context.decoding.admit(tenant, _fitted, source, pipeline)
    codes = await context.autoencoder.admit(tenant, pipeline.encode_picture, picture)
    return EncodedImage(object="image_codes", index=index, codes=list(codes))


def _fitted(source: ImageSource, pipeline: Pipeline) -> Pixels:
    data = source.read(max_bytes=pipeline.limits.max_bytes)
    return pipeline.fitted_picture(data, param=source.param)
