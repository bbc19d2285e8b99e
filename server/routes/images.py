"""`POST /v1/images/generations`, and the pictures behind the URLs it gave out.

Owns the way of a prompt from the body to its pictures; knows neither codes nor guidance. Invariant:
the seed of every picture is in the reply, whether the client chose it or not.
"""

import time
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from janus_core.engine.request import ImageRequest
from janus_core.errors import RequestError
from server.context import Context, base_url_of, context_of
from server.image_reply import ImageReply, estimate_header, native_size_header
from server.image_request import build_image_requests, picture_format
from server.json_route import JsonRoute, unless_client_leaves
from server.openapi import STREAMED
from server.pictures import PictureFormat
from server.principal import principal_of
from server.record import RequestRecord, record_of
from server.schemas.images import (
    DrawingBody,
    EstimateReply,
    EventKind,
    ImageGenerationRequest,
    ImagesReply,
)
from server.submission import submit_and_answer

router = APIRouter(route_class=JsonRoute, tags=["images"])


@router.post(
    "/v1/images/generations",
    response_model=ImagesReply | EstimateReply,
    responses=STREAMED,
)
async def create_image(body: ImageGenerationRequest, request: Request) -> Response:
    """Draw `n` pictures of a prompt."""
    return await unless_client_leaves(request, _answer(body, request))


@router.get(
    "/v1/images/{image_id}/content",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}},
)
async def retrieve_image(image_id: str, request: Request) -> Response:
    """A picture that was asked for as a URL, until it expires."""
    results = context_of(request).results
    picture = results.get(image_id)
    if picture is None:
        raise RequestError("This picture does not exist, or no longer.", code="image_not_found")
    headers = {
        "cache-control": f"private, max-age={int(results.remaining_s(picture))}, immutable",
        "x-content-type-options": "nosniff",
    }
    return Response(picture.data, media_type=picture.media_type, headers=headers)


async def _answer(body: ImageGenerationRequest, request: Request) -> Response:
    context = context_of(request)
    body.check()
    context.check_model(body.model, draws=True)
    style = picture_format(body, pipeline=context.pipeline, settings=context.settings)
    requests = await context.offload.admit(
        principal_of(request).tenant, build_image_requests, body, pipeline=context.pipeline
    )
    if body.estimate_only:
        return _estimate(context, requests, record=record_of(request))
    return await answer_with_pictures(request, requests, body=body, style=style)


def _estimate(
    context: Context, requests: Sequence[ImageRequest], *, record: RequestRecord
) -> Response:
    """When `requests` would be done; what would be refused now is refused here."""
    context.dispatcher.check_room(record, draws=True)
    estimate = context.dispatcher.estimate(requests, record=record)
    reply = EstimateReply(
        object="image_generation.estimate",
        created=int(time.time()),
        wait_s=None if estimate is None else round(estimate.wait_s, 3),
        estimated_s=None if estimate is None else round(estimate.remaining_s, 3),
        position=None if estimate is None else estimate.position,
    )
    return Response(reply.to_json(), media_type="application/json")


async def answer_with_pictures(
    request: Request,
    requests: list[ImageRequest],
    *,
    body: DrawingBody,
    style: PictureFormat,
    kind: EventKind = "image_generation",
    caption: str | None = None,
) -> Response:
    """Submit `requests` and answer with what they become, at once or as a stream."""
    context = context_of(request)
    reply = ImageReply(
        context,
        requests,
        body=body,
        style=style,
        base_url=base_url_of(request),
        kind=kind,
        caption=caption,
    )
    estimate = context.dispatcher.estimate(requests, record=record_of(request))
    return await submit_and_answer(
        request,
        requests,
        reply,
        task="image",
        stream=body.stream,
        headers=native_size_header(context) | estimate_header(estimate),
    )
