"""What is remembered about one HTTP request until its access line is written.

Owns the record; knows neither ASGI nor metrics. Invariant: it holds counts, names and times, never
an answer or a picture, and the end of a prompt only where the operator asked for prompts.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request

from janus_core.engine.events import Finished
from janus_core.engine.request import ImageRequest
from janus_core.engine.request import Request as EngineRequest
from server.principal import ANONYMOUS, Principal

Task = Literal["chat", "image", "caption"]

_KEY = "janus.record"
"""Where the middleware leaves the record in the ASGI scope."""


@dataclass(slots=True)
class RequestRecord:
    """Filled by the middleware (id, times, principal), the routes (task, counts), the dispatcher.
    `received_s` and `deadline_s`, by which it must have been answered, are readings of the
    monotonic clock; `preparing` ends what the request waits for at its deadline."""

    request_id: str
    principal: Principal = ANONYMOUS
    received_s: float = field(default_factory=time.monotonic)
    deadline_s: float = math.inf
    preparing: asyncio.Timeout | None = None
    task: Task | None = None
    model: str = ""
    prompt: str | None = None
    num_choices: int = 0
    num_input_images: int = 0
    num_pictures: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    first_s: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def hand_over(self) -> None:
        """The request is prepared. Who has it now watches the deadline, and knows what is worth
        waiting for although it is late."""
        if self.preparing is not None and not self.preparing.expired():
            self.preparing.reschedule(None)

    def take_back(self) -> None:
        """What was computed is only a part of what the request needs, and more is prepared."""
        if self.preparing is not None and not self.preparing.expired():
            self.preparing.reschedule(self.deadline_s)

    def add(self, event: Finished) -> None:
        """Count a request of the engine that ended."""
        self.prompt_tokens = max(self.prompt_tokens, event.usage.prompt_tokens)
        self.output_tokens += event.usage.output_tokens
        self.num_pictures += event.pixels is not None
        self.queue_s = max(self.queue_s, event.timings.queue_s)
        self.first_s = max(self.first_s, event.timings.first_s)
        self.reasons.append(event.reason)

    def fields(self) -> dict[str, object]:
        """The access line's part about who asked, if that has a name, and the work done, if the
        engine was asked."""
        who = {} if self.principal.name == ANONYMOUS.name else {"key": self.principal.name}
        if self.task is None:
            return {**who}
        fields: dict[str, object] = {
            **who,
            "model": self.model,
            "task": self.task,
            "n": self.num_choices,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "input_images": self.num_input_images,
            "images": self.num_pictures,
            "queue_s": round(self.queue_s, 4),
            "ttft_s": round(self.first_s, 4),
            "reason": ",".join(sorted(set(self.reasons))) or "none",
        }
        if self.prompt is not None:
            fields["prompt"] = self.prompt
        return fields


def task_of(request: EngineRequest, record: RequestRecord) -> Task:
    """What a request to the engine counts as. One HTTP request may make two of them, as a picture
    that is drawn by the caption of another."""
    if isinstance(request, ImageRequest):
        return "image"
    return "caption" if record.task == "caption" else "chat"


def attach_record(scope_values: dict[str, object], record: RequestRecord) -> None:
    """Leave `record` in an ASGI scope."""
    scope_values[_KEY] = record


def record_of(request: Request) -> RequestRecord:
    """The record of the HTTP request being answered."""
    return record_in(request.scope)


def id_in(scope_values: Mapping[str, object]) -> str | None:
    """The id of the request with this ASGI scope; None before the app knows of it."""
    return record_in(scope_values).request_id if _KEY in scope_values else None


def record_in(scope_values: Mapping[str, object]) -> RequestRecord:
    """The record in an ASGI scope."""
    record = scope_values[_KEY]
    assert isinstance(record, RequestRecord)
    return record
