"""`POST /v1/responses`: the request.

Owns OpenAI's fields of a response and the names chat has for those it lacks; knows neither prompts
nor the engine. Invariant: items of a conversation are flat, so that an error names the field and
not a branch of a union.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from server.errors import unsupported
from server.schemas.common import Bool, Int
from server.schemas.images import (
    MAX_PARTIAL_IMAGES,
    MAX_PROMPT_CHARS,
    Guidance,
    OutputFormat,
)
from server.schemas.messages import MAX_MESSAGES, Content
from server.schemas.sampling import TextSampling, TokenLimit, TopLogprobs
from server.schemas.structured import TextFormat

MAX_TOOLS = 128
MAX_METADATA = 16

BARE = "text"
"""The type of the one item that stands for an input that is a string."""

IMAGE_TOOL = "image_generation"
LOGPROBS = "message.output_text.logprobs"

Word = Annotated[str, Field(min_length=1, max_length=64)]


def _items(value: object) -> object:
    return [{"type": BARE, "role": "user", "content": value}] if isinstance(value, str) else value


class InputItem(BaseModel):
    """One item of a conversation: a message, the result of a tool, or a picture drawn before."""

    model_config = ConfigDict(frozen=True)

    type: Word = "message"
    role: Literal["developer", "system", "user", "assistant", "tool"] | None = None
    content: Content | None = None
    output: Content | None = None
    result: str | None = None


class TextConfig(BaseModel):
    """How the text of an answer is to look. `verbosity` has no effect."""

    model_config = ConfigDict(frozen=True)

    format: TextFormat | None = None
    verbosity: str | None = None


class Tool(BaseModel):
    """A tool; only `image_generation` is ever used, and these are its fields.

    `action`, `moderation` and `input_fidelity` have no effect beyond what cannot be honoured being
    refused.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    type: Word
    model: str | None = None
    action: Literal["generate", "edit", "auto"] | None = None
    input_image_mask: JsonValue | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[Int, Field(ge=0, le=100)] | None = None
    partial_images: Annotated[Int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max"] | None = None
    size: Annotated[str, Field(max_length=32)] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    guidance_scale: Guidance | None = None
    cfg_weight: Guidance | None = None
    cfg_scale: Guidance | None = None


class ResponsesRequest(TextSampling):
    """The body of a response."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
            "prompt_cache_options", "safety_identifier", "reasoning", "moderation",
            "max_tool_calls", "truncation", "stream_options", "context_management",
            "access_programs", "background_options", "image",
        }
    )  # fmt: skip
    # A field and the values of it that ask for nothing.
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "previous_response_id": (),
        "conversation": (),
        "prompt": (),
        "background": (False,),
    }

    model: str | None = None
    input: Annotated[
        list[InputItem],
        Field(min_length=1, max_length=MAX_MESSAGES),
        BeforeValidator(_items, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = None
    text: TextConfig | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, JsonValue] | None = None
    parallel_tool_calls: Bool | None = None
    include: Annotated[list[Word], Field(max_length=32)] | None = None
    top_logprobs: TopLogprobs | None = None
    stream: Bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA)] | None = None
    user: str | None = None

    def check(self) -> None:
        """Also refuses a choice of tools that cannot be honoured."""
        super().check()
        self._check_tool_choice()
        if (index := self.image_tool) is not None and self.tools and self.draws:
            tool, path = self.tools[index], f"tools.{index}"
            if tool.action == "edit":
                raise unsupported(f"{path}.action", "The tool can only generate pictures.")
            if tool.input_image_mask is not None:
                raise unsupported(f"{path}.input_image_mask", "The tool cannot edit pictures.")

    def _check_tool_choice(self) -> None:
        """No tool but the one for pictures can be called, so no other can be required."""
        choice = self.tool_choice
        if choice in (None, "none", "auto"):
            return
        wanted = choice if isinstance(choice, str) else choice.get("type")
        if wanted == "allowed_tools" and isinstance(choice, dict):
            wanted = "required" if choice.get("mode") == "required" else "auto"
        if wanted != "auto" and not (self.draws and wanted in ("required", IMAGE_TOOL)):
            raise unsupported("tool_choice", f"The only tool that can be required is {IMAGE_TOOL}.")

    @property
    def image_tool(self) -> int | None:
        """The index of the tool that draws."""
        tools = self.tools or ()
        return next((i for i, tool in enumerate(tools) if tool.type == IMAGE_TOOL), None)

    @property
    def draws(self) -> bool:
        """Whether the answer is a picture: always, if the tool is there and may be used, because
        the models cannot choose a tool themselves."""
        return self.image_tool is not None and self._may_draw

    @property
    def _may_draw(self) -> bool:
        choice = self.tool_choice
        if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
            return choice != "none"
        allowed = choice.get("tools")
        return isinstance(allowed, list) and any(
            isinstance(tool, dict) and tool.get("type") == IMAGE_TOOL for tool in allowed
        )

    @property
    def token_limit(self) -> int | None:
        """Most tokens to answer with; None is as many as the context holds."""
        return None if self.max_output_tokens in (None, -1) else self.max_output_tokens

    @property
    def logprobs(self) -> int | None:
        """How many alternatives beside each token; None for no log-probabilities at all."""
        if LOGPROBS in (self.include or ()) or self.top_logprobs:
            return self.top_logprobs or 0
        return None
