"""From the engine's events to a chat completion in text, whole or in chunks.

Owns the order of chunks; knows no prompt and no network. Invariant: a stream ends with `[DONE]` or
with an error object, never with neither, and every choice gets exactly one finish reason.
"""

from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response

from janus_core.engine.events import Finished, SampledToken, TextDelta
from janus_core.engine.request import TextRequest
from server.chat_envelope import ChatEnvelope, content_logprobs
from server.context import Context
from server.dispatch import RequestHandle
from server.schemas.chat import ChatRequest
from server.schemas.chat_replies import (
    AnswerMessage,
    ChatChunk,
    Choice,
    ChoiceLogprobs,
    Delta,
    FinishReason,
)
from server.sse import DONE, PING, data_frame, ended_by_error


class ChatReply:
    """The answers of one HTTP request."""

    def __init__(
        self, context: Context, requests: Sequence[TextRequest], *, body: ChatRequest, echoed: str
    ) -> None:
        """`echoed` is what every answer begins with: the message that is continued, or nothing."""
        self._requests = requests
        self._tokenizer = context.pipeline.tokenizer
        self._envelope = ChatEnvelope(context, body, draws=False)
        self._with_ids = bool(body.return_token_ids)
        self._echoed = echoed

    async def response(self, handle: RequestHandle) -> Response:
        """Wait for all choices, then answer at once. Raises the error of one that failed."""
        texts: list[list[str]] = [[self._echoed] for _ in self._requests]
        tokens: list[list[SampledToken]] = [[] for _ in self._requests]
        reasons: dict[int, FinishReason] = {}
        async for item in handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            index, event = item
            if isinstance(event, TextDelta):
                texts[index].append(event.text)
                tokens[index] += event.tokens
            elif isinstance(event, Finished):
                reasons[index] = self._envelope.finish(event)
        choices = [
            self._choice(index, "".join(text), tokens[index], reason=reasons[index])
            for index, text in enumerate(texts)
        ]
        completion = self._envelope.completion(choices, seed=self._requests[0].sampling.seed)
        if self._with_ids:
            completion.prompt_token_ids = list(self._requests[0].token_ids)
        return Response(completion.to_json(), media_type="application/json")

    def frames(self, handle: RequestHandle, *, ping_interval_s: float) -> AsyncIterator[bytes]:
        """The chunks of a stream as they become known."""
        chunks = self._frames(handle, ping_interval_s=ping_interval_s)
        return ended_by_error(chunks, frame_of=data_frame)

    async def _frames(
        self, handle: RequestHandle, *, ping_interval_s: float
    ) -> AsyncIterator[bytes]:
        for index in range(len(self._requests)):
            yield data_frame(self._first_chunk(index).to_json())
        async for item in handle.events(idle_s=ping_interval_s):
            if item is None:
                yield PING
                continue
            index, event = item
            if isinstance(event, TextDelta):
                logprobs = self._logprobs(index, event.tokens)
                tokens = event.tokens if logprobs or self._with_ids else ()
                if event.text or tokens:
                    chunk = self._envelope.chunk(
                        index, Delta(content=event.text), logprobs=logprobs
                    )
                    if self._with_ids:
                        chunk.choices[0].token_ids = [token.token_id for token in tokens]
                    yield data_frame(chunk.to_json())
            elif isinstance(event, Finished):
                reason = self._envelope.finish(event)
                yield data_frame(self._envelope.chunk(index, Delta(), reason=reason).to_json())
        for frame in self._envelope.last_frames():
            yield frame
        yield DONE

    def _first_chunk(self, index: int) -> ChatChunk:
        delta = Delta(role="assistant", content=self._echoed)
        chunk = self._envelope.chunk(index, delta)
        if self._with_ids:
            chunk.prompt_token_ids = list(self._requests[0].token_ids)
        return chunk

    def _choice(
        self, index: int, text: str, tokens: Sequence[SampledToken], *, reason: FinishReason
    ) -> Choice:
        choice = Choice(
            index=index,
            message=AnswerMessage(role="assistant", content=text, refusal=None),
            logprobs=self._logprobs(index, tokens),
            finish_reason=reason,
        )
        if self._with_ids:
            choice.token_ids = [token.token_id for token in tokens]
        return choice

    def _logprobs(self, index: int, tokens: Sequence[SampledToken]) -> ChoiceLogprobs | None:
        """None unless the client asked for log-probabilities."""
        if self._requests[index].logprobs is None:
            return None
        return ChoiceLogprobs(content=content_logprobs(tokens, self._tokenizer), refusal=None)
