"""`POST /v1/chat/completions`.

Owns the way of a conversation from the body to the answer; knows neither shapes nor prompts in
detail. Invariant: decoding images and tokenising happen off the event loop, and before admission.
"""

from contextlib import closing

from fastapi import APIRouter, Request, Response

from server.chat_reply import ChatReply
from server.chat_request import build_text_requests, check_limits
from server.context import context_of
from server.json_route import JsonRoute, unless_client_leaves
from server.record import record_of
from server.schemas.chat import ChatCompletion, ChatRequest
from server.schemas.common import ErrorBody
from server.sse import EventStream

router = APIRouter(route_class=JsonRoute, tags=["chat"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, with images in it or not."""
    return await unless_client_leaves(request, _answer(body, request))


async def _answer(body: ChatRequest, request: Request) -> Response:
    context, record = context_of(request), record_of(request)
    body.check()
    context.check_model(body.model)
    check_limits(body, context.settings)
    requests = await context.offload.admit(build_text_requests, body, pipeline=context.pipeline)
    record.task, record.num_choices = "chat", len(requests)
    handle = context.dispatcher.submit(requests, record=record)
    context.metrics.observe("request_params_n", len(requests), "chat")
    if body.token_limit is not None:
        context.metrics.observe("request_params_max_tokens", body.token_limit, "chat")
    reply = ChatReply(context, requests, stream_usage=body.wants_usage)
    if body.stream:
        frames = reply.frames(handle, ping_interval_s=context.settings.ping_interval_s)
        return EventStream(frames, handle=handle)
    with closing(handle):
        return await reply.response(handle)
