"""What is remembered about one HTTP request until its access line is written.

Owns the record; knows neither ASGI nor metrics. Invariant: it holds counts, names and durations,
never a prompt, an answer or a picture.
"""

from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request

from janus_core.engine.events import Finished

Task = Literal["chat", "image"]

_KEY = "janus.record"
"""Where the middleware leaves the record in the ASGI scope."""


@dataclass(slots=True)
class RequestRecord:
    """Filled by the middleware (id), the routes (task, counts) and the handle (timings)."""

    request_id: str
    task: Task | None = None
    num_choices: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    first_s: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def add(self, event: Finished) -> None:
        """Count a request of the engine that ended."""
        self.prompt_tokens = max(self.prompt_tokens, event.usage.prompt_tokens)
        self.output_tokens += event.usage.output_tokens
        self.queue_s = max(self.queue_s, event.timings.queue_s)
        self.first_s = max(self.first_s, event.timings.first_s)
        self.reasons.append(event.reason)

    def fields(self) -> dict[str, object]:
        """The access line's part about the work done; empty if the engine was not asked."""
        if self.task is None:
            return {}
        return {
            "task": self.task,
            "n": self.num_choices,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "queue_s": round(self.queue_s, 4),
            "first_s": round(self.first_s, 4),
            "reason": ",".join(sorted(set(self.reasons))) or "none",
        }


def attach_record(scope_values: dict[str, object], record: RequestRecord) -> None:
    """Leave `record` in an ASGI scope."""
    scope_values[_KEY] = record


def record_of(request: Request) -> RequestRecord:
    """The record of the HTTP request being answered."""
    record = request.scope[_KEY]
    assert isinstance(record, RequestRecord)
    return record
