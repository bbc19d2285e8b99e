"""`POST /v1/chat/completions`: the reply and the chunks of a stream.

Owns OpenAI's shapes and the convention for pictures in answers; knows neither prompts nor the
engine. Invariant: a reply has every key OpenAI's schema requires, `refusal` and `logprobs`
included.
"""

from typing import Literal

from server.schemas.common import Reply


class PromptTokensDetails(Reply):
    """`image_tokens` are placeholders of input images, `cached_tokens` were computed before."""

    cached_tokens: int
    text_tokens: int
    image_tokens: int


class CompletionTokensDetails(Reply):
    """`image_tokens` are the codes of pictures."""

    text_tokens: int
    image_tokens: int
    reasoning_tokens: int


class ChatUsage(Reply):
    """Token counts of the whole request; the prompt counts once however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


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


class PictureUrl(Reply):
    """A data URL."""

    url: str


class AnswerPicture(Reply):
    """A picture in an answer, in the form OpenRouter introduced. `seed` draws it again."""

    type: Literal["image_url"]
    image_url: PictureUrl
    index: int
    seed: int


class AnswerMessage(Reply):
    """The answer. `images` only if it was drawn."""

    role: Literal["assistant"]
    content: str
    refusal: None
    images: list[AnswerPicture] | None = None


class Choice(Reply):
    """One of `n` answers. `token_ids` only with `return_token_ids`."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | None = None


class ChatCompletion(Reply):
    """The reply without `stream`. `seed` is the one of the first choice; the next has seed + 1.

    `prompt_token_ids` only with `return_token_ids`.
    """

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: ChatUsage
    seed: int
    prompt_token_ids: list[int] | None = None


class Delta(Reply):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    images: list[AnswerPicture] | None = None


class ChunkChoice(Reply):
    """One choice's share of a chunk."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None


class ChatChunk(Reply):
    """One frame of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    prompt_token_ids: list[int] | None = None
