"""`POST /v1/chat/completions`: the request, the reply and the chunks of a stream.

Owns OpenAI's shapes and vLLM's names for the sampling fields OpenAI lacks; knows neither prompts
nor the engine. Invariant: a reply has every key OpenAI's schema requires, `refusal` and `logprobs`
included.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from janus_core.errors import ParameterError
from server.errors import unsupported
from server.schemas.common import Body, Bool, Float, Int, OneOrMore, Reply, Seed, TopK, TopP

MAX_MESSAGES = 1024
MAX_PARTS = 1024
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_BIASES = 1024

Penalty = Annotated[Float, Field(ge=-2, le=2)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


def _url_object(value: object) -> object:
    """A bare string for `{"url": ...}`: Ollama's documentation teaches it."""
    return {"url": value} if isinstance(value, str) else value


def _text_part(value: object) -> object:
    """A string is a message of one text part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _limit(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("zero", "Input should be at least 1, or -1 for no limit")
    return value


TokenLimit = Annotated[Int, AfterValidator(_limit), Field(ge=-1, le=2**31 - 1)]
"""-1 means no limit: some clients cannot leave the field out."""


class ImageUrl(BaseModel):
    """An input image. `detail` has no effect: the tower sees every image at one size."""

    model_config = ConfigDict(frozen=True)

    url: str
    detail: str | None = None


class ContentPart(BaseModel):
    """A part of a message, flat, so that an error names the field and not a branch of a union."""

    model_config = ConfigDict(frozen=True)

    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    image_url: Annotated[ImageUrl, BeforeValidator(_url_object)] | None = None


class ChatMessage(BaseModel):
    """One message. `developer` is `system`; `tool` and `function` results are read as user text."""

    model_config = ConfigDict(frozen=True)

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            list[ContentPart],
            Field(max_length=MAX_PARTS),
            BeforeValidator(_text_part, json_schema_input_type=str | list[ContentPart]),
        ]
        | None
    ) = None


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: Bool | None = None


class ResponseFormat(BaseModel):
    """Only `text` can be honoured so far."""

    type: str


class ChatRequest(Body):
    """The body of a chat completion."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "user", "metadata", "store", "service_tier", "prompt_cache_key",
            "prompt_cache_retention", "safety_identifier", "reasoning_effort", "verbosity",
            "prediction", "parallel_tool_calls", "tools", "functions", "web_search_options",
            "length_penalty", "priority", "request_id", "skip_special_tokens",
            "spaces_between_special_tokens", "moderation",
        }
    )  # fmt: skip
    # A field and the values of it that ask for nothing.
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "modalities": (["text"], []),
        "audio": (),
        "echo": (False,),
        "best_of": (1,),
        "use_beam_search": (False,),
        "structured_outputs": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "prompt_logprobs": (0, False),
        "return_token_ids": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
    }

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenLimit | None = None
    max_tokens: TokenLimit | None = None
    n: Annotated[Int, Field(ge=1)] | None = None
    seed: Seed | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[Float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)]
        | None
    ) = None
    logprobs: Bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    stop: Annotated[OneOrMore[StopString], Field(max_length=MAX_STOPS)] | None = None
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # vLLM's names.
    top_k: TopK | None = None
    min_p: Annotated[Float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Float, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[Int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[Annotated[Int, Field(ge=0)]], Field(max_length=128)] | None = (
        None
    )
    include_stop_str_in_output: Bool | None = None
    ignore_eos: Bool | None = None
    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None

    def check(self) -> None:
        """Also refuses fields that contradict one another, and formats that need a grammar."""
        Body.check(self)
        if self.response_format is not None and self.response_format.type != "text":
            raise unsupported("response_format", "response_format can only be of type text.")
        if self.top_logprobs and not self.logprobs:
            raise ParameterError("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options needs stream to be true.", param="stream_options")
        if self.token_limit is not None and (self.min_tokens or 0) > self.token_limit:
            raise ParameterError(
                f"min_tokens is {self.min_tokens}, but at most {self.token_limit} are allowed.",
                param="min_tokens",
            )
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise unsupported(
                "add_generation_prompt",
                "add_generation_prompt can be false only with continue_final_message.",
            )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        """Most tokens to answer with; None is as many as the context holds."""
        newer, older = self.max_completion_tokens, self.max_tokens
        given = older if newer is None else newer
        return None if given in (None, -1) else given


class PromptTokensDetails(Reply):
    """`image_tokens` are placeholders of input images, `cached_tokens` were computed before."""

    cached_tokens: int
    text_tokens: int
    image_tokens: int


class ChatUsage(Reply):
    """Token counts of the whole request; the prompt counts once however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(Reply):
    """An alternative at one place. `bytes` are exact, `token` may be part of a character."""

    token: str
    bytes: list[int]
    logprob: float


class ContentLogprob(TopLogprob):
    """The token that was sampled, and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Reply):
    """Log-probabilities of an answer's tokens, or of a chunk's."""

    content: list[ContentLogprob]
    refusal: None


FinishReason = Literal["stop", "length"]


class AnswerMessage(Reply):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(Reply):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Reply):
    """The reply without `stream`. `seed` is the one of the first choice; the next has seed + 1."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: ChatUsage
    seed: int


class Delta(Reply):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Reply):
    """One choice's share of a chunk."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Reply):
    """One frame of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
