"""`POST /v1/responses`.

Owns the way of a response from the body to the answer; knows neither shapes nor prompts in detail.
Invariant: as for a chat completion, decoding and tokenising happen off the event loop, and before
admission. Nothing is kept: a conversation is what its request says.
"""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from janus_core.engine.request import Request as EngineRequest
from janus_core.errors import RequestError
from server.context import Context, context_of
from server.conversation import Turn, text_requests, with_images
from server.drawing import Drawing, prepare_drawing
from server.image_reply import native_size_header
from server.json_route import JsonRoute, unless_client_leaves
from server.openapi import STREAMED
from server.principal import principal_of
from server.responses_items import MessageItem, PictureItem, ResponseItem
from server.responses_object import ResponseStates
from server.responses_reply import ResponseReply
from server.responses_request import drawing_body, drawing_param, text_options, turns_of
from server.schemas.responses import IMAGE_TOOL, ResponsesRequest, Tool
from server.schemas.responses_replies import ResponseObject
from server.submission import submit_and_answer

router = APIRouter(route_class=JsonRoute, tags=["responses"])


@router.post(
    "/v1/responses",
    response_model=ResponseObject,
    responses=STREAMED,
)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation in text or, with the image_generation tool, with a picture."""
    return await unless_client_leaves(request, _answer(body, request))


async def _answer(body: ResponsesRequest, request: Request) -> Response:
    context = context_of(request)
    if body.model == context.picture_model:
        # Where a model's name is all that a client's user can choose.
        tools = body.tools if body.image_tool is not None else [Tool(type=IMAGE_TOOL)]
        body = body.model_copy(update={"model": None, "tools": tools, "tool_choice": None})
    body.check()
    context.check_model(body.model)
    turns = turns_of(body, context.settings)
    prepare = _prepare_picture if body.draws else _prepare_text
    requests, item = await prepare(context, turns, body, tenant=principal_of(request).tenant)
    return await submit_and_answer(
        request,
        requests,
        ResponseReply(ResponseStates(context, body, requests[0]), item),
        task="image" if body.draws else "chat",
        stream=body.stream,
        token_limit=None if body.draws else body.token_limit,
        headers=native_size_header(context) if body.draws else None,
    )


async def _prepare_text(
    context: Context, turns: Sequence[Turn], body: ResponsesRequest, *, tenant: str
) -> tuple[Sequence[EngineRequest], ResponseItem]:
    max_bytes = context.settings.max_body_bytes
    turns = await with_images(turns, context.fetcher, max_total_bytes=max_bytes)
    requests = await text_requests(context, turns, text_options(body), tenant=tenant, param="input")
    tokenizer = context.pipeline.tokenizer
    return requests, MessageItem(tokenizer, with_logprobs=body.logprobs is not None)


async def _prepare_picture(
    context: Context, turns: Sequence[Turn], body: ResponsesRequest, *, tenant: str
) -> tuple[Sequence[EngineRequest], ResponseItem]:
    drawing = await _drawing(context, turns, body, tenant=tenant)
    return drawing.requests, PictureItem(context, drawing)


async def _drawing(
    context: Context, turns: Sequence[Turn], body: ResponsesRequest, *, tenant: str
) -> Drawing:
    try:
        assert body.tools is not None, "without the tool nothing is drawn"
        assert body.image_tool is not None, "without the tool nothing is drawn"
        context.check_model(body.tools[body.image_tool].model, draws=True)
        return await prepare_drawing(
            context, turns, drawing_body(body), tenant=tenant, param="input"
        )
    except RequestError as error:
        error.param = drawing_param(body, error.param)
        raise
