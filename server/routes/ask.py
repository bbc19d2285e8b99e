"""`POST /v1/ask` and `POST /v1/caption`: a picture and a question in a form, as curl sends it.

Owns the way from the form to the answer; knows no prompt format. Invariant: a question gets the
answer that the same question in a chat completion gets.
"""

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from janus_core.errors import ParameterError
from server.answer import DESCRIBE
from server.ask_reply import AnswerReplies
from server.chat_request import sampling_options
from server.context import context_of
from server.conversation import ImageSource, Turn, check_num_images, text_requests
from server.form import Form, form_schema, read_form
from server.json_route import unless_client_leaves
from server.middleware import CLIENT_GONE
from server.openapi import STREAMED
from server.principal import principal_of
from server.schemas.ask import AnswerKey, AskReply, AskRequest, CaptionReply, CaptionRequest
from server.submission import submit_and_answer

IMAGE = "image"
router = APIRouter(tags=["ask"])


@router.post(
    "/v1/ask",
    response_model=AskReply,
    responses=STREAMED,
    openapi_extra=form_schema(AskRequest, files=(IMAGE,)),
)
async def ask(request: Request) -> Response:
    """Answer a question about one picture or several."""
    return await _answered(request, AskRequest)


@router.post(
    "/v1/caption",
    response_model=CaptionReply,
    responses=STREAMED,
    openapi_extra=form_schema(CaptionRequest, files=(IMAGE,)),
)
async def caption(request: Request) -> Response:
    """Describe a picture."""
    return await _answered(request, CaptionRequest)


async def _answered(request: Request, model: type[CaptionRequest]) -> Response:
    """Read the form first: what the request receives afterwards is that its client has left."""
    try:
        form = await read_form(request, context_of(request).offload)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    return await unless_client_leaves(request, _answer(form, form.body(model), request))


async def _answer(form: Form, body: CaptionRequest, request: Request) -> Response:
    context = context_of(request)
    body.check()
    context.check_model(body.model)
    key: AnswerKey = "answer" if isinstance(body, AskRequest) else "caption"
    turn = _question(form, body)
    check_num_images([turn], limit=context.settings.max_images_per_request, param=IMAGE)
    requests = await text_requests(
        context,
        [turn],
        sampling_options(body, max_tokens=body.token_limit),
        tenant=principal_of(request).tenant,
        param=turn.param,
    )
    return await submit_and_answer(
        request,
        requests,
        AnswerReplies(context, seed=requests[0].sampling.seed, key=key),
        task="chat" if isinstance(body, AskRequest) else "caption",
        stream=body.stream or "text/event-stream" in request.headers.get("accept", ""),
        token_limit=body.token_limit,
    )


def _question(form: Form, body: CaptionRequest) -> Turn:
    """The picture or pictures, and what is asked about them."""
    if not isinstance(body, AskRequest):
        source = ImageSource(IMAGE, data=form.file(IMAGE))
        return Turn("user", (source, DESCRIBE), IMAGE)
    files = form.files.get(IMAGE, [])
    if not files:
        raise ParameterError("A file named image is required.", param=IMAGE)
    if not body.question.strip():
        raise ParameterError("The question is empty.", param="question")
    sources = tuple(ImageSource(IMAGE, data=data) for data in files)
    return Turn("user", (*sources, body.question), "question")
