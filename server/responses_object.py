"""A response in each of its states.

Owns what of the request comes back in it, and the token counts; knows neither items nor events.
Invariant: all states of a response differ in nothing but status, output, usage and error.
"""

import time
import uuid

from pydantic import JsonValue

from janus_core.engine.events import Finished
from janus_core.engine.request import Request
from server.context import Context
from server.schemas.responses import ResponsesRequest
from server.schemas.responses_replies import (
    IncompleteDetails,
    InputTokensDetails,
    OutputItem,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from server.tracing import note_response_id


class ResponseStates:
    """The states of one response to `body`, which `request` computes."""

    def __init__(self, context: Context, body: ResponsesRequest, request: Request) -> None:
        sampling = request.sampling
        self._base = ResponseObject(
            id=f"resp_{uuid.uuid4().hex}",
            object="response",
            created_at=int(time.time()),
            status="in_progress",
            background=False,
            error=None,
            incomplete_details=None,
            instructions=body.instructions,
            max_output_tokens=body.token_limit,
            metadata=body.metadata or {},
            model=context.model_name,
            output=[],
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=None,
            reasoning={"effort": None, "summary": None},
            service_tier="default",
            store=False,
            temperature=sampling.temperature,
            text=_text_config(body),
            tool_choice=body.tool_choice or "auto",
            tools=[tool.model_dump(mode="json", exclude_unset=True) for tool in body.tools or ()],
            top_logprobs=body.top_logprobs or 0,
            top_p=sampling.top_p,
            truncation="disabled",
            usage=None,
            user=body.user,
            seed=sampling.seed,
        )
        note_response_id(self._base.id)
        self._draws = body.draws

    def begun(self) -> ResponseObject:
        """Before anything is known."""
        return self._base

    def ended(self, item: OutputItem, event: Finished) -> ResponseObject:
        """With its only item; cut short if the tokens allowed did not suffice."""
        is_cut = event.reason == "length" and not self._draws
        return self._base.model_copy(
            update={
                "status": "incomplete" if is_cut else "completed",
                "incomplete_details": (
                    IncompleteDetails(reason="max_output_tokens") if is_cut else None
                ),
                "output": [item],
                "usage": self._usage(event),
            }
        )

    def failed(self, message: str) -> ResponseObject:
        """After a failure on the way."""
        error = ResponseError(code="server_error", message=message)
        return self._base.model_copy(update={"status": "failed", "error": error})

    def _usage(self, event: Finished) -> ResponseUsage:
        usage = event.usage
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=usage.cached_tokens,
                cache_write_tokens=0,
                image_tokens=usage.image_tokens,
            ),
            output_tokens=usage.output_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=0, image_tokens=usage.output_tokens if self._draws else 0
            ),
            total_tokens=usage.prompt_tokens + usage.output_tokens,
        )


def _text_config(body: ResponsesRequest) -> dict[str, JsonValue]:
    config: dict[str, JsonValue] = {"format": {"type": "text"}}
    if body.text is not None:
        config |= body.text.model_dump(mode="json", exclude_none=True, by_alias=True)
    return config
