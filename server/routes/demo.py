"""The two routes of DeepSeek's own demo server (`demo/fastapi_app.py`), for its client script.

Owns its field names and defaults; knows neither codes nor prompts. Invariant: each picture is sent
as one chunk of the body, because the client takes the beginning of a chunk for that of a picture.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.responses import StreamingResponse

from janus_core.engine.events import Finished
from janus_core.errors import RequestError
from janus_core.pipeline import ImageOptions, TextOptions
from server.answer import answer_about
from server.context import context_of
from server.conversation import ImageSource
from server.form import FormRoute, form_schema, read_form
from server.image_reply import native_size_header
from server.json_route import unless_client_leaves
from server.picture_file import picture_file
from server.pictures import PictureFormat, describe
from server.record import record_of
from server.schemas.common import Body, Float, Reply, Seed, TopP
from server.schemas.images import MAX_PROMPT_CHARS, Guidance

# The demo's own numbers.
NUM_PICTURES = 5
SIDE_PX = 1024
MAX_ANSWER_TOKENS = 512

router = APIRouter(route_class=FormRoute, tags=["demo"])


class DemoQuestion(Body):
    """The form of a question about the image `file`."""

    question: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
    seed: Seed = 42
    top_p: TopP = 0.95
    temperature: Annotated[Float, Field(ge=0, le=100)] = 0.1


class DemoAnswer(Reply):
    """The answer to it."""

    response: str


class DemoPrompt(Body):
    """The form of a prompt to draw."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
    seed: Seed | None = None
    guidance: Guidance | None = None


@router.post(
    "/understand_image_and_question/",
    response_model=DemoAnswer,
    openapi_extra=form_schema(DemoQuestion, files=("file",)),
)
async def understand(request: Request) -> Response:
    """Answer a question about an image."""
    form = await read_form(request, context_of(request).offload)
    body = form.body(DemoQuestion)
    image = ImageSource("file", data=form.file("file"))
    return await unless_client_leaves(request, _understand(request, body, image))


@router.post(
    "/generate_images/",
    response_class=Response,
    responses={200: {"content": {"multipart/related": {}}}},
    openapi_extra=form_schema(DemoPrompt, files=()),
)
async def generate(request: Request) -> Response:
    """Draw five pictures and send them one after the other, as PNG files."""
    form = await read_form(request, context_of(request).offload)
    return await unless_client_leaves(request, _generate(request, form.body(DemoPrompt)))


async def _understand(request: Request, body: DemoQuestion, image: ImageSource) -> Response:
    options = TextOptions(
        seed=body.seed,
        top_p=body.top_p,
        temperature=body.temperature,
        max_tokens=MAX_ANSWER_TOKENS,
    )
    text = await answer_about(
        context_of(request), image, body.question, options=options, record=record_of(request)
    )
    return Response(DemoAnswer(response=text).to_json(), media_type="application/json")


async def _generate(request: Request, body: DemoPrompt) -> Response:
    context, record = context_of(request), record_of(request)
    pipeline, settings = context.pipeline, context.settings
    options = ImageOptions(
        n=min(NUM_PICTURES, settings.max_pictures), seed=body.seed, guidance=body.guidance
    )
    try:
        requests = await context.offload.admit(
            record.principal.tenant,
            pipeline.image_requests,
            body.prompt,
            options,
            request_id=uuid.uuid4().hex,
        )
    except RequestError as error:
        error.param = "guidance" if error.param == "guidance_scale" else error.param
        raise
    side_px = pipeline.config.vq.image_size
    if settings.image_size_policy == "resize":
        side_px = min(SIDE_PX, settings.max_output_side_px)
    style = PictureFormat(side_px, side_px, "png")
    record.task, record.num_choices = "image", len(requests)
    files: dict[int, bytes] = {}
    with closing(context.dispatcher.submit(requests, record=record)) as handle:
        async for item in handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            index, event = item
            if isinstance(event, Finished) and event.pixels is not None:
                metadata = describe(
                    requests[index],
                    prompt=body.prompt,
                    negative_prompt=None,
                    model_name=context.model_name,
                    style=style,
                    num_codes=pipeline.config.vq.num_codes,
                )
                files[index] = await picture_file(context, style, event.pixels, metadata=metadata)
    chunks = _chunks([files[index] for index in sorted(files)])
    headers = native_size_header(context)
    return StreamingResponse(chunks, media_type="multipart/related", headers=headers)


async def _chunks(files: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Complete files, because an error after the first byte could not be told."""
    for file in files:
        yield file
