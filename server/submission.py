"""The stretch that all generating endpoints share: from requests of the engine to an answer.

Owns the order of submitting, counting and answering, at once or as a stream; knows no shape of a
reply. Invariant: the handle is closed however the answer ends.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from typing import Protocol

from fastapi import Request, Response

from janus_core.engine.request import Request as EngineRequest
from server.context import context_of
from server.dispatch import RequestHandle
from server.record import Task, record_of
from server.sse import EventStream


class Answer(Protocol):
    """What becomes of the engine's events."""

    async def response(self, handle: RequestHandle) -> Response:
        """The whole answer. Raises the error of a request that failed."""

    def frames(self, handle: RequestHandle, *, ping_interval_s: float) -> AsyncIterator[bytes]:
        """The answer piece by piece."""


async def submit_and_answer(
    request: Request,
    requests: Sequence[EngineRequest],
    answer: Answer,
    *,
    task: Task,
    stream: bool | None,
    token_limit: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Submit `requests` and answer with what they become; `token_limit` is only counted."""
    context, record = context_of(request), record_of(request)
    record.task, record.num_choices = task, len(requests)
    handle = context.dispatcher.submit(requests, record=record)
    handle.trace.answering(stream=bool(stream))
    context.metrics.observe("request_params_n", len(requests), task)
    if token_limit is not None:
        context.metrics.observe("request_params_max_tokens", token_limit, task)
    if stream:
        frames = answer.frames(handle, ping_interval_s=context.settings.ping_interval_s)
        return EventStream(frames, handle=handle, headers=headers)
    with closing(handle):
        response = await answer.response(handle)
    response.headers.update(headers or {})
    return response
