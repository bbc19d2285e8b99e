"""From the engine's events to a chat completion, whole or in chunks.

Owns the order of chunks and the sums of usage; knows no prompt and no network. Invariant: a stream
ends with `[DONE]` or with an error object, never with neither, and every choice gets exactly one
finish reason.
"""

import time
import uuid
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response

from janus_core.engine.events import Finished, SampledToken, TextDelta, TokenLogprob, Usage
from janus_core.engine.request import TextRequest
from server.context import Context
from server.dispatch import RequestHandle
from server.schemas.chat import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatUsage,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    ContentLogprob,
    Delta,
    FinishReason,
    PromptTokensDetails,
    TopLogprob,
)
from server.sse import DONE, PING, data_frame, ended_by_error

# OpenAI's lowest log-probability, for what JSON cannot say: minus infinity.
MIN_LOGPROB = -9999.0


class ChatReply:
    """The answers of one HTTP request. `usages` fills as its choices finish."""

    def __init__(
        self, context: Context, requests: Sequence[TextRequest], *, stream_usage: bool
    ) -> None:
        self._context = context
        self._requests = requests
        self._stream_usage = stream_usage
        self._fingerprint = context.fingerprint
        self._usages: list[Usage] = []
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def response(self, handle: RequestHandle) -> Response:
        """Wait for all choices, then answer at once. Raises the error of one that failed."""
        texts: list[list[str]] = [[] for _ in self._requests]
        tokens: list[list[SampledToken]] = [[] for _ in self._requests]
        reasons: dict[int, FinishReason] = {}
        async for item in handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            index, event = item
            if isinstance(event, TextDelta):
                texts[index].append(event.text)
                tokens[index] += event.tokens
            elif isinstance(event, Finished):
                reasons[index] = self._finish(event)
        completion = ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._context.model_name,
            system_fingerprint=self._fingerprint,
            choices=[
                Choice(
                    index=index,
                    message=AnswerMessage(role="assistant", content="".join(text), refusal=None),
                    logprobs=self._logprobs(index, tokens[index]),
                    finish_reason=reasons[index],
                )
                for index, text in enumerate(texts)
            ],
            usage=self._usage(),
            seed=self._requests[0].sampling.seed,
        )
        return Response(completion.to_json(), media_type="application/json")

    def frames(self, handle: RequestHandle, *, ping_interval_s: float) -> AsyncIterator[bytes]:
        """The chunks of a stream as they become known."""
        chunks = self._frames(handle, ping_interval_s=ping_interval_s)
        return ended_by_error(chunks, frame_of=data_frame)

    async def _frames(
        self, handle: RequestHandle, *, ping_interval_s: float
    ) -> AsyncIterator[bytes]:
        for index in range(len(self._requests)):
            yield self._frame(index, Delta(role="assistant", content=""))
        async for item in handle.events(idle_s=ping_interval_s):
            if item is None:
                yield PING
                continue
            index, event = item
            if isinstance(event, TextDelta):
                logprobs = self._logprobs(index, event.tokens)
                if event.text or (logprobs and logprobs.content):
                    yield self._frame(index, Delta(content=event.text), logprobs=logprobs)
            elif isinstance(event, Finished):
                yield self._frame(index, Delta(), reason=self._finish(event))
        if self._stream_usage:
            yield data_frame(self._chunk([], usage=self._usage()).to_json())
        yield DONE

    def _frame(
        self,
        index: int,
        delta: Delta,
        *,
        logprobs: ChoiceLogprobs | None = None,
        reason: FinishReason | None = None,
    ) -> bytes:
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return data_frame(self._chunk([choice]).to_json())

    def _chunk(self, choices: list[ChunkChoice], *, usage: ChatUsage | None = None) -> ChatChunk:
        """With `include_usage`, every chunk has a `usage`, null in all but the last."""
        chunk = ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._context.model_name,
            system_fingerprint=self._fingerprint,
            choices=choices,
        )
        if self._stream_usage:
            chunk.usage = usage
        return chunk

    def _finish(self, event: Finished) -> FinishReason:
        self._usages.append(event.usage)
        assert event.reason != "cancelled", "the handle raises for a cancelled request"
        return event.reason

    def _usage(self) -> ChatUsage:
        """Sum of the choices. They share one prompt, and the first to run it found least cached."""
        prompt_tokens = max(usage.prompt_tokens for usage in self._usages)
        image_tokens = max(usage.image_tokens for usage in self._usages)
        completion_tokens = sum(usage.output_tokens for usage in self._usages)
        return ChatUsage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=min(usage.cached_tokens for usage in self._usages),
                text_tokens=prompt_tokens - image_tokens,
                image_tokens=image_tokens,
            ),
        )

    def _logprobs(self, index: int, tokens: Sequence[SampledToken]) -> ChoiceLogprobs | None:
        """None unless the client asked for log-probabilities."""
        if self._requests[index].logprobs is None:
            return None
        content = []
        for token in tokens:
            assert token.logprob is not None, "asked for log-probabilities, got none"
            own = self._top(TokenLogprob(token.token_id, token.logprob))
            content.append(
                ContentLogprob(
                    token=own.token,
                    bytes=own.bytes,
                    logprob=own.logprob,
                    top_logprobs=[self._top(top) for top in token.top],
                )
            )
        return ChoiceLogprobs(content=content, refusal=None)

    def _top(self, item: TokenLogprob) -> TopLogprob:
        """A token may be part of a character: `bytes` are exact, `token` has U+FFFD then."""
        data = self._context.pipeline.tokenizer.token_bytes(item.token_id)
        return TopLogprob(
            token=data.decode("utf-8", errors="replace"),
            bytes=list(data),
            logprob=max(item.logprob, MIN_LOGPROB),
        )
