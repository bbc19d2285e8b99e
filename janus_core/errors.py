"""Every error this project raises on purpose, as one tree.

    JanusError
      + RequestError            the client asked for something that can never succeed
          - ParameterError      a parameter is out of range, unknown, or cannot be honoured
          - PromptError         the prompt is empty or malformed
          - ContextLengthError  prompt and requested output exceed the context
          - ImageInputError     an input image cannot be used
      + CheckpointError         the weights or their configuration cannot be used; fatal at start
      + CapacityError           the server cannot take this now, later it may
          - QueueFullError
          - RateLimitError      the client has used what it may for now
          - DrainingError
          - AsleepError         its memory was given back
          - QueuedTooLongError  its deadline passed before it began
      + EngineError             our fault or the machine's
          - StepError           a step failed; only the requests it belonged to are lost
              - TransientStepError    for want of memory, or by the machine's fault
          - AbortedError        whoever runs the server ended the request
          - EngineDeadError     the engine has stopped; nothing more will be answered
      + RanTooLongError         its deadline passed before it was done

Knows no HTTP: status codes are a table at the edge (`server/errors.py`). Messages are full
sentences that name the offending value and the limit.
"""


class JanusError(Exception):
    """Base of the tree. `message` is safe to show to the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(JanusError):
    """The client's fault. `param` names the field, `code` is OpenAI's code if it has one."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ParameterError(RequestError):
    """A parameter is out of range, unknown, or cannot be honoured."""


class PromptError(RequestError):
    """The prompt is empty or malformed."""


class ContextLengthError(RequestError):
    """Prompt and requested output do not fit the model's context or the KV pool."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ImageInputError(RequestError):
    """An input image cannot be decoded or exceeds a limit; `code` is OpenAI's image code."""


class CheckpointError(JanusError):
    """The checkpoint is missing, incomplete, of another model, or damaged."""


class CapacityError(JanusError):
    """Not now. `retry_after_s` is an honest estimate of when to come back."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(CapacityError):
    """The waiting queue is at its limit."""


class RateLimitError(CapacityError):
    """The client has used what it may for now; others may still ask."""


class DrainingError(CapacityError):
    """The server is shutting down and takes no new work."""


class AsleepError(CapacityError):
    """The server has given its memory back until somebody wakes it."""


MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 120.0
"""What a client is told to wait at least, in whole seconds, and at most, as OpenAI's wait no
longer."""


def told_retry_s(seconds: float) -> float:
    """`seconds`, or what is nearest to it of what clients are told to wait."""
    return min(max(MIN_RETRY_AFTER_S, seconds), MAX_RETRY_AFTER_S)


ASLEEP_RETRY_S = 30.0
"""When to ask a sleeping server again: nothing tells when somebody will wake it."""

RESTART_RETRY_S = 10.0
"""When to come back to an engine that is gone: a supervisor has started the next one by then."""


class QueuedTooLongError(CapacityError):
    """The request's deadline passed before it began."""


class RanTooLongError(JanusError):
    """The request's deadline passed before it was done."""


class EngineError(JanusError):
    """Our fault or the machine's."""


class StepError(EngineError):
    """A step failed; the requests it belonged to are lost, the others go on."""


class TransientStepError(StepError):
    """A step failed for a reason that is not the request's: it may succeed after
    `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AbortedError(EngineError):
    """Whoever runs the server ended the request."""


class EngineDeadError(EngineError):
    """The engine has stopped for good."""
