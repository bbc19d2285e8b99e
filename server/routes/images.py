"""`POST /v1/images/generations`.

Owns the way of a prompt from the body to its pictures; knows neither codes nor guidance. Invariant:
the seed of every picture is in the reply, whether the client chose it or not.
"""

from contextlib import closing

from fastapi import APIRouter, Request, Response

from server.context import context_of
from server.image_reply import ImageReply
from server.image_request import build_image_requests, picture_format
from server.json_route import JsonRoute, unless_client_leaves
from server.record import record_of
from server.schemas.common import ErrorBody
from server.schemas.images import ImageGenerationRequest, ImagesReply
from server.sse import EventStream

router = APIRouter(route_class=JsonRoute, tags=["images"])


@router.post(
    "/v1/images/generations",
    response_model=ImagesReply,
    responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
)
async def create_image(body: ImageGenerationRequest, request: Request) -> Response:
    """Draw `n` pictures of a prompt."""
    return await unless_client_leaves(request, _answer(body, request))


async def _answer(body: ImageGenerationRequest, request: Request) -> Response:
    context, record = context_of(request), record_of(request)
    body.check()
    context.check_model(body.model, draws=True)
    style = picture_format(body, pipeline=context.pipeline, settings=context.settings)
    requests = await context.offload.admit(build_image_requests, body, pipeline=context.pipeline)
    record.task, record.num_choices = "image", len(requests)
    handle = context.dispatcher.submit(requests, record=record)
    context.metrics.observe("request_params_n", len(requests), "image")
    reply = ImageReply(context, requests, body=body, style=style)
    if body.stream:
        frames = reply.frames(handle, ping_interval_s=context.settings.ping_interval_s)
        return EventStream(frames, handle=handle, headers=reply.headers)
    with closing(handle):
        return await reply.response(handle)
