"""`POST /v1/chat/completions`.

Owns the way of a conversation from the body to the answer; knows neither shapes nor prompts in
detail. Invariant: decoding images and tokenising happen off the event loop, and before admission.
"""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from janus_core.engine.request import Request as EngineRequest
from server.chat_pictures import ChatPicturesReply
from server.chat_reply import ChatReply
from server.chat_request import drawing_body, text_options, turns_of
from server.context import Context, context_of
from server.conversation import Turn, text_requests, with_images
from server.drawing import prepare_drawing
from server.image_reply import native_size_header
from server.json_route import JsonRoute, unless_client_leaves
from server.openapi import STREAMED
from server.principal import principal_of
from server.schemas.chat import ChatRequest
from server.schemas.chat_replies import ChatCompletion
from server.submission import submit_and_answer

router = APIRouter(route_class=JsonRoute, tags=["chat"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=STREAMED,
)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, with images in it or not, in text or with a picture."""
    return await unless_client_leaves(request, _answer(body, request))


async def _answer(body: ChatRequest, request: Request) -> Response:
    context = context_of(request)
    if body.model == context.picture_model:
        # Where a model's name is all that a client's user can choose.
        body = body.model_copy(update={"model": None, "modalities": ["image"]})
    body.check()
    context.check_model(body.model)
    turns = turns_of(body, context.settings)
    prepare = _prepare_pictures if body.wants_picture else _prepare_text
    requests, reply = await prepare(context, turns, body, tenant=principal_of(request).tenant)
    draws = body.wants_picture
    return await submit_and_answer(
        request,
        requests,
        reply,
        task="image" if draws else "chat",
        stream=body.stream,
        token_limit=None if draws else body.token_limit,
        headers=native_size_header(context) if draws else None,
    )


async def _prepare_text(
    context: Context, turns: Sequence[Turn], body: ChatRequest, *, tenant: str
) -> tuple[Sequence[EngineRequest], ChatReply | ChatPicturesReply]:
    max_bytes = context.settings.max_body_bytes
    turns = await with_images(turns, context.fetcher, max_total_bytes=max_bytes)
    requests = await text_requests(
        context, turns, text_options(body), tenant=tenant, param="messages"
    )
    echoed = turns[-1].text.lstrip() if body.echo else ""
    return requests, ChatReply(context, requests, body=body, echoed=echoed)


async def _prepare_pictures(
    context: Context, turns: Sequence[Turn], body: ChatRequest, *, tenant: str
) -> tuple[Sequence[EngineRequest], ChatReply | ChatPicturesReply]:
    body.check_drawing()
    drawing = await prepare_drawing(
        context, turns, drawing_body(body), tenant=tenant, param="messages"
    )
    return drawing.requests, ChatPicturesReply(context, drawing, body=body)
