"""`POST /v1/chat/completions`: the request.

Owns OpenAI's fields and vLLM's names for those OpenAI lacks; knows neither prompts nor the engine.
Invariant: a field is honoured, listed as without effect, or refused by name.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from janus_core.errors import ParameterError
from server.errors import unsupported
from server.schemas.common import Bool, Int
from server.schemas.images import MAX_PROMPT_CHARS, Guidance, OutputFormat
from server.schemas.messages import MAX_MESSAGES, ChatMessage
from server.schemas.sampling import TextSampling, TokenLimit, TopLogprobs
from server.schemas.structured import (
    Choices,
    JsonSchema,
    ResponseFormat,
    Source,
    StructuredOutputs,
)

_CONSTRAINTS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("json_schema", "regex", "ebnf"),
)
"""Other names for what `response_format` says."""


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: Bool | None = None


class ChatRequest(TextSampling):
    """The body of a chat completion."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "user", "metadata", "store", "service_tier", "prompt_cache_key",
            "prompt_cache_retention", "safety_identifier", "reasoning_effort", "verbosity",
            "prediction", "parallel_tool_calls", "tools", "functions", "web_search_options",
            "length_penalty", "priority", "skip_special_tokens",
            "spaces_between_special_tokens", "moderation",
        }
    )  # fmt: skip
    # A field and the values of it that ask for nothing.
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "audio": (),
        "best_of": (1,),
        "use_beam_search": (False,),
        "prompt_logprobs": (0, False),
        "chat_template": (),
        "chat_template_kwargs": ({},),
    }

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenLimit | None = None
    max_tokens: TokenLimit | None = None
    n: Annotated[Int, Field(ge=1)] | None = None
    logprobs: Bool | None = None
    top_logprobs: TopLogprobs | None = None
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # vLLM's and SGLang's names for more of the same.
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Source | None = None
    guided_choice: Choices | None = None
    guided_grammar: Source | None = None
    json_schema: JsonSchema | None = None
    regex: Source | None = None
    ebnf: Source | None = None
    # vLLM's names.
    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None
    echo: Bool | None = None
    return_token_ids: Bool | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    # Pictures in answers.
    modalities: (
        Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=8)] | None
    ) = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    guidance_scale: Guidance | None = None
    cfg_weight: Guidance | None = None
    cfg_scale: Guidance | None = None
    size: Annotated[str, Field(max_length=32)] | None = None
    output_format: OutputFormat | None = None

    def check(self) -> None:
        """Also refuses fields that contradict one another."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise ParameterError("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options needs stream to be true.", param="stream_options")
        if not set(self.modalities or ()) <= {"text", "image"}:
            raise unsupported("modalities", "The modalities of an answer are text and image.")
        self._check_prefill()

    def _check_prefill(self) -> None:
        if self.continue_final_message and self.add_generation_prompt:
            raise ParameterError(
                "continue_final_message and add_generation_prompt cannot both be true.",
                param="add_generation_prompt",
            )
        if self.echo and not self.continue_final_message:
            raise unsupported("echo", "echo needs continue_final_message to be true.")

    def check_drawing(self) -> None:
        """Refuse what a picture cannot have; the rest of the fields for text have no effect."""
        for name in ("logprobs", "continue_final_message", "return_token_ids"):
            if getattr(self, name):
                raise unsupported(name, f"{name} has no meaning for an answer that is a picture.")
        if self.response_format is not None and self.response_format.type != "text":
            raise unsupported("response_format", "A picture has no format in text.")
        for name in _CONSTRAINTS:
            if getattr(self, name) is not None:
                raise unsupported(name, "A picture has no format in text.")

    @property
    def wants_picture(self) -> bool:
        """Whether the answer is to be drawn."""
        return "image" in (self.modalities or ())

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
