"""The table from error classes to OpenAI's error object."""

import inspect
import json

import pytest

from janus_core import errors
from janus_core.errors import (
    CapacityError,
    ContextLengthError,
    DrainingError,
    EngineDeadError,
    ImageInputError,
    JanusError,
    ParameterError,
    PromptError,
    QueueFullError,
    RateLimitError,
    RequestError,
    StepError,
    TransientStepError,
)
from server.errors import field_path, reply_for

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_has_an_answer_with_all_four_keys(cls: type[JanusError]):
    knows_when = issubclass(cls, CapacityError | TransientStepError)
    error = cls("Why.", retry_after_s=2.5) if knows_when else cls("Why.")
    reply = reply_for(error)
    body = json.loads(reply.response().body)["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert (reply.status < 500) == issubclass(cls, RequestError | QueueFullError | RateLimitError)
    after = "10" if cls is EngineDeadError else "3" if knows_when else None
    assert reply.headers().get("retry-after") == after
    # What is certain to repeat says so; what is not says that, and when.
    if reply.status >= 500 or reply.status == 429:
        hint = "false" if after is None else "true"
        assert reply.headers()["x-should-retry"] == hint


@pytest.mark.parametrize(
    ("error", "status", "type_", "param", "code"),
    [
        (ParameterError("M.", param="n"), 400, "invalid_request_error", "n", None),
        (PromptError("M.", param="prompt"), 400, "invalid_request_error", "prompt", None),
        (
            ContextLengthError("M.", param="messages"),
            *(400, "invalid_request_error", "messages", "context_length_exceeded"),
        ),
        (
            ImageInputError("M.", param="x", code="image_too_large"),
            *(400, "invalid_request_error", "x", "image_too_large"),
        ),
        (
            RequestError("M.", param="model", code="model_not_found"),
            *(404, "invalid_request_error", "model", "model_not_found"),
        ),
        (QueueFullError("M.", retry_after_s=1), 429, "rate_limit_error", None, "queue_full"),
        (DrainingError("M.", retry_after_s=1), 503, "service_unavailable", None, "draining"),
        (EngineDeadError("M."), 503, "service_unavailable", None, "engine_dead"),
        (StepError("M."), 500, "server_error", None, "step_failed"),
        (
            TransientStepError("M.", retry_after_s=1),
            *(503, "service_unavailable", None, "server_is_overloaded"),
        ),
    ],
)
def test_the_table(error: JanusError, status: int, type_: str, param: str | None, code: str | None):
    reply = reply_for(error)
    assert (reply.status, reply.type, reply.param, reply.code) == (status, type_, param, code)


@pytest.mark.parametrize(
    ("wait_s", "header"), [(0.0, "1"), (1.2, "2"), (120.0, "120"), (120.1, "120"), (1912.0, "120")]
)
def test_nobody_is_told_to_wait_for_longer_than_clients_do(wait_s: float, header: str):
    error = RateLimitError("M.", retry_after_s=wait_s)
    assert reply_for(error).headers()["retry-after"] == header


def test_what_an_exception_said_stays_in_the_log():
    assert "/root" not in reply_for(StepError("cannot read /root/x")).message
    assert "/root" not in reply_for(JanusError("cannot read /root/x")).message
    assert reply_for(StepError("M.")).headers()["x-should-retry"] == "false"


def test_a_field_has_a_path():
    assert field_path(("body", "messages", 0, "content", 1, "text")) == "messages.0.content.1.text"
    assert field_path(("body",)) == ""
    assert len(field_path(("body", "x" * 10_000))) == 200
