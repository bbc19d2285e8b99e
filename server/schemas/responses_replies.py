"""`POST /v1/responses`: the response and its items.

Owns OpenAI's shapes; knows neither prompts nor the engine. Invariant: a response has every key
OpenAI's schema requires, in every state it passes through.
"""

from typing import Literal

from pydantic import JsonValue

from server.schemas.chat_replies import ContentLogprob
from server.schemas.common import Reply
from server.schemas.images import OutputFormat, Quality


class OutputText(Reply):
    """The text of an answer. `logprobs` is empty unless they were asked for."""

    type: Literal["output_text"]
    text: str
    annotations: list[JsonValue]
    logprobs: list[ContentLogprob]


class OutputMessage(Reply):
    """An answer in text."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ImageGenerationCall(Reply):
    """An answer that is a picture; `result` is the file in base64. `seed` draws it again."""

    type: Literal["image_generation_call"]
    id: str
    status: Literal["in_progress", "generating", "completed"]
    result: str | None
    action: Literal["generate"]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: Quality
    size: str
    revised_prompt: None
    seed: int


OutputItem = OutputMessage | ImageGenerationCall


class InputTokensDetails(Reply):
    """`image_tokens` are placeholders of input images, `cached_tokens` were computed before."""

    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int


class OutputTokensDetails(Reply):
    """`image_tokens` are the codes of a picture."""

    reasoning_tokens: int
    image_tokens: int


class ResponseUsage(Reply):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Reply):
    """Why a response failed on the way."""

    code: str
    message: str


class IncompleteDetails(Reply):
    """Why an answer is cut short."""

    reason: Literal["max_output_tokens"]


Status = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponseObject(Reply):
    """A response. What the client chose comes back as it was understood; `seed` is ours."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, JsonValue]
    tool_choice: str | dict[str, JsonValue]
    tools: list[dict[str, JsonValue]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    seed: int
