"""What every chat completion has around its answers: id, model, chunks, token counts.

Owns the frame of replies and chunks and the sums of usage; knows nothing of what the answers are.
Invariant: all chunks of a stream have one id and one time, and `usage` in all of them or in none.
"""

import time
import uuid
from collections.abc import Sequence

from janus_core.engine.events import Finished, SampledToken, TokenLogprob, Usage
from janus_core.tokenizer import Tokenizer
from server.context import Context
from server.schemas.chat import ChatRequest
from server.schemas.chat_replies import (
    ChatChunk,
    ChatCompletion,
    ChatUsage,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    ContentLogprob,
    Delta,
    FinishReason,
    PromptTokensDetails,
    TopLogprob,
)
from server.sse import data_frame
from server.tracing import note_response_id

# OpenAI's lowest log-probability, for what JSON cannot say: minus infinity.
MIN_LOGPROB = -9999.0


class ChatEnvelope:
    """One reply or stream. Its usage is complete once `finish` was called for every choice."""

    def __init__(self, context: Context, body: ChatRequest, *, draws: bool) -> None:
        self._model = context.model_name
        self._fingerprint = context.fingerprint
        self._draws = draws
        self._stream_usage = body.wants_usage
        self._usages: list[Usage] = []
        self._id = f"chatcmpl-{body.request_id or uuid.uuid4().hex}"
        note_response_id(self._id)
        self._created = int(time.time())

    def completion(self, choices: list[Choice], *, seed: int) -> ChatCompletion:
        """The whole reply."""
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=self.usage(),
            seed=seed,
        )

    def chunk(
        self,
        index: int,
        delta: Delta,
        *,
        logprobs: ChoiceLogprobs | None = None,
        reason: FinishReason | None = None,
    ) -> ChatChunk:
        """What one choice adds."""
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return self._chunk([choice], usage=None)

    def last_frames(self) -> list[bytes]:
        """The chunk with the token counts, if the client asked for it."""
        if not self._stream_usage:
            return []
        return [data_frame(self._chunk([], usage=self.usage()).to_json())]

    def finish(self, event: Finished) -> FinishReason:
        """Count a choice that has ended; its reason."""
        self._usages.append(event.usage)
        assert event.reason != "cancelled", "the handle raises for a cancelled request"
        return event.reason

    def usage(self) -> ChatUsage:
        """Of all choices together."""
        return chat_usage(self._usages, draws=self._draws)

    def _chunk(self, choices: list[ChunkChoice], *, usage: ChatUsage | None) -> ChatChunk:
        """With `include_usage`, every chunk has a `usage`, null in all but the last."""
        chunk = ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
        )
        if self._stream_usage:
            chunk.usage = usage
        return chunk


def chat_usage(usages: Sequence[Usage], *, draws: bool) -> ChatUsage:
    """Sum of the choices, which are pictures if it `draws`. They share one prompt, and the first to
    run it found least cached."""
    prompt_tokens = max(usage.prompt_tokens for usage in usages)
    image_tokens = max(usage.image_tokens for usage in usages)
    completion_tokens = sum(usage.output_tokens for usage in usages)
    return ChatUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=min(usage.cached_tokens for usage in usages),
            text_tokens=prompt_tokens - image_tokens,
            image_tokens=image_tokens,
        ),
        completion_tokens_details=CompletionTokensDetails(
            text_tokens=0 if draws else completion_tokens,
            image_tokens=completion_tokens if draws else 0,
            reasoning_tokens=0,
        ),
    )


def content_logprobs(tokens: Sequence[SampledToken], tokenizer: Tokenizer) -> list[ContentLogprob]:
    """The log-probabilities of sampled tokens and of their alternatives, in OpenAI's shape."""
    content = []
    for token in tokens:
        assert token.logprob is not None, "asked for log-probabilities, got none"
        own = _top(TokenLogprob(token.token_id, token.logprob), tokenizer)
        content.append(
            ContentLogprob(
                token=own.token,
                bytes=own.bytes,
                logprob=own.logprob,
                top_logprobs=[_top(top, tokenizer) for top in token.top],
            )
        )
    return content


def _top(item: TokenLogprob, tokenizer: Tokenizer) -> TopLogprob:
    """A token may be part of a character: `bytes` are exact, `token` has U+FFFD then."""
    data = tokenizer.token_bytes(item.token_id)
    return TopLogprob(
        token=data.decode("utf-8", errors="replace"),
        bytes=list(data),
        logprob=max(item.logprob, MIN_LOGPROB),
    )
