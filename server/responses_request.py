"""From the body of a response to turns, and to what the client chose.

Owns the reading of items (messages, results of tools, pictures drawn before); knows no prompt
format. Invariant: every part keeps the field it came in.
"""

from collections.abc import Sequence

from janus_core.errors import ParameterError
from janus_core.pipeline import TextOptions
from server.chat_request import parts_of, sampling_options
from server.conversation import ROLES, ImageSource, Turn, check_num_images
from server.errors import unsupported
from server.schemas.images import ImageGenerationRequest
from server.schemas.responses import BARE, InputItem, ResponsesRequest
from server.settings import Settings
from server.structured import text_constraint

_SKIPPED = ("reasoning", "function_call")
"""Items that say nothing to a model without tools and reasoning; results of tools do."""

_DRAWING_FIELDS = ("temperature", "top_k", "top_p", "min_p")
_TOOL_FIELDS = (
    *("output_format", "output_compression", "partial_images", "background", "size"),
    *("negative_prompt", "guidance_scale", "cfg_weight", "cfg_scale"),
)


def turns_of(body: ResponsesRequest, settings: Settings) -> list[Turn]:
    """The conversation, instructions first. Refuses what is over the settings' limits."""
    turns: list[Turn] = []
    if body.instructions is not None:
        turns.append(Turn("system", (body.instructions,), "instructions"))
    for index, item in enumerate(body.input):
        turns += _turns(item, f"input.{index}")
    check_num_images(turns, limit=settings.max_images_per_request, param="input")
    return turns


def text_options(body: ResponsesRequest) -> TextOptions:
    """What the client chose about an answer in text."""
    return sampling_options(
        body,
        max_tokens=body.token_limit,
        logprobs=body.logprobs,
        constraint=text_constraint(body.text.format if body.text else None),
    )


def drawing_body(body: ResponsesRequest) -> ImageGenerationRequest:
    """What the client chose about an answer that is a picture; the prompt is in the input."""
    assert body.tools is not None, "without the tool nothing is drawn"
    assert body.image_tool is not None, "without the tool nothing is drawn"
    tool = body.tools[body.image_tool]
    # The names of the newest models for more than the best there is.
    quality = "high" if tool.quality == "xhigh" or tool.quality == "max" else tool.quality
    # The fields have been checked as fields of `body`.
    return ImageGenerationRequest.model_construct(
        prompt="",
        n=1,
        seed=None if body.seed is None else [body.seed],
        response_format="b64_json",
        stream=bool(body.stream),
        quality=quality,
        **{name: getattr(body, name) for name in _DRAWING_FIELDS},
        **{name: getattr(tool, name) for name in _TOOL_FIELDS},
    )


def drawing_param(body: ResponsesRequest, param: str | None) -> str | None:
    """The client's name of a field of `drawing_body`."""
    return f"tools.{body.image_tool}.{param}" if param in ("model", *_TOOL_FIELDS) else param


def _turns(item: InputItem, path: str) -> Sequence[Turn]:
    """The turn of an item, or none for one that says nothing to this model."""
    if item.type == BARE:
        return (Turn("user", parts_of(item.content or (), path), "input"),)
    if item.type == "message":
        if item.role is None:
            raise ParameterError("A message needs a role.", param=f"{path}.role")
        parts = parts_of(item.content or (), f"{path}.content", url_field="image_url")
        return (Turn(ROLES[item.role], parts, f"{path}.content"),)
    if item.type == "function_call_output":
        parts = parts_of(item.output or (), f"{path}.output", url_field="image_url")
        # A tool may return nothing.
        return (Turn("user", parts, f"{path}.output"),) if any(parts) else ()
    if item.type == "image_generation_call":
        if item.result is None:
            return ()
        # The file says itself what it is; the media type only has to be an image's.
        source = ImageSource(f"{path}.result", f"data:image/png;base64,{item.result}")
        return (Turn("assistant", (source,), f"{path}.result"),)
    if item.type in _SKIPPED:
        return ()
    raise unsupported(
        f"{path}.type",
        "Only items of type message, function_call_output and image_generation_call are read.",
    )
