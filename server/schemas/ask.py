"""`POST /v1/ask` and `POST /v1/caption`: the fields of their forms, and their replies.

Owns what a person types behind `curl -F`; knows neither prompts nor the engine. Invariant: the
sampling fields are those of a chat completion.
"""

from typing import Annotated, Literal

from pydantic import Field

from server.schemas.chat_replies import ChatUsage, FinishReason
from server.schemas.common import Bool, Reply
from server.schemas.sampling import TextSampling, TokenLimit

MAX_QUESTION_CHARS = 32_000


class CaptionRequest(TextSampling):
    """The form of a caption, beside its `image`."""

    model: str | None = None
    max_tokens: TokenLimit | None = None
    stream: Bool | None = None

    @property
    def token_limit(self) -> int | None:
        """Most tokens to answer with; None is as many as the context holds."""
        return None if self.max_tokens in (None, -1) else self.max_tokens


class AskRequest(CaptionRequest):
    """The form of a question, beside its `image`, of which there may be several."""

    question: Annotated[str, Field(max_length=MAX_QUESTION_CHARS)]


class AnswerReply(Reply):
    """What both replies have."""

    model: str
    finish_reason: FinishReason
    seed: int
    usage: ChatUsage


class AskReply(AnswerReply):
    """The answer."""

    answer: str


class CaptionReply(AnswerReply):
    """The caption."""

    caption: str


class TextEvent(Reply):
    """What an event of a stream adds."""

    text: str


AnswerKey = Literal["answer", "caption"]
