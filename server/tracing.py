"""Traces: what a request waited for, as spans below the HTTP request's own.

Owns the spans and their attributes (OpenTelemetry's conventions for generative AI); FastAPI makes
the span of the HTTP request. Spans are built afterwards from the durations that the engine's events
carry, so that nothing is measured twice and the engine knows no tracing. Invariant: no prompt, no
answer and no picture is in a span, and without a provider nothing here costs more than a look.
"""

import asyncio
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import NoOpTracer, Span, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import AttributeValue

from janus_core.engine.events import Failed, Finished
from janus_core.engine.request import Request, TextRequest
from janus_core.errors import ParameterError
from server.access import METRICS_PATH, PROBES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider

NAME = "janus-serve"
PROVIDER = "deepseek"
"""As the conventions register it."""

NOT_TRACED = PROBES | {METRICS_PATH}
"""Asked every few seconds by machines."""

S = 1_000_000_000
"""Nanoseconds in a second."""


class Tracing:
    """Where the spans of one app go: to `provider`, or by OTLP to `endpoint`, or nowhere."""

    def __init__(self, endpoint: str | None, *, provider: TracerProvider | None = None) -> None:
        self._exporting = None
        if provider is None and endpoint is not None:
            provider = self._exporting = _exporting_provider(endpoint)
        self._provider = provider

    @property
    def tracer(self) -> Tracer:
        """Makes the spans below those of HTTP requests."""
        return NoOpTracer() if self._provider is None else self._provider.get_tracer(NAME)

    def config(self) -> TelemetryConfig:
        """What FastAPI shall trace: HTTP requests, if they have where to go. Numbers and logs are
        Prometheus' and our own."""
        return {
            "tracer_provider": self._provider,
            "tracing": self._provider is not None,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": _is_not_traced,
        }

    async def close(self) -> None:
        """Send what is left; may wait for who takes it."""
        if self._exporting is not None:
            await asyncio.to_thread(self._exporting.shutdown)


def _exporting_provider(endpoint: str) -> "SdkTracerProvider":
    """Sends spans to `endpoint` by OTLP over HTTP, from a thread of its own.

    `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_TRACES_SAMPLER` mean what they always
    mean. Raises ParameterError if the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ParameterError(
            "traces_endpoint needs the extra otel: pip install 'janus-serve[otel]'.",
            param="traces_endpoint",
        ) from error
    resource = Resource({SERVICE_NAME: NAME}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def _is_not_traced(scope: MutableMapping[str, Any]) -> bool:
    # The address of a kept picture is the only key to it, and a span has the path.
    path: str = scope["path"]
    return path in NOT_TRACED or path.endswith("/content")


def trace_id() -> dict[str, object]:
    """The id of the trace that the calling task is part of, as a field of a log line; or none."""
    context = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id)} if context.is_valid else {}


def note_response_id(response_id: str) -> None:
    """Say under which id the calling task answers."""
    trace.get_current_span().set_attribute("gen_ai.response.id", response_id)


class RequestTrace:
    """The spans of what one HTTP request asked of the engine. Made where it is submitted."""

    def __init__(self, tracer: Tracer, *, model_name: str) -> None:
        self._tracer = tracer
        self._model_name = model_name
        self._parent = trace.get_current_span()
        self._submitted_ns = time.time_ns()
        self._num_input = 0
        self._num_output = 0
        self._reasons: set[str] = set()

    def submitted(self, request: Request, *, num_requests: int) -> None:
        """Say what was asked for."""
        if self._parent.is_recording():
            self._parent.set_attributes(_asked(request, model_name=self._model_name))
            if num_requests > 1:
                self._parent.set_attribute("gen_ai.request.choice.count", num_requests)

    def answering(self, *, stream: bool) -> None:
        """Say in which way it is answered."""
        if self._parent.is_recording():
            self._parent.set_attribute("gen_ai.request.stream", stream)

    def finished(self, event: Finished) -> None:
        """Say how long what took, and what came out."""
        if not self._parent.is_recording():
            return
        timings = event.timings
        self._child("queue", 0.0, timings.queue_s)
        if timings.vision_encode_s:
            encoded_s = timings.queue_s + timings.vision_encode_s
            self._child("vision_encode", timings.queue_s, encoded_s)
        self._child("prefill", timings.queue_s, timings.first_s)
        decoded_s = timings.first_s + timings.decode_s
        decode = self._span("decode", timings.first_s)
        decode.set_attribute("gen_ai.usage.output_tokens", event.usage.output_tokens)
        decode.end(self._at(decoded_s))
        if event.pixels is not None:
            self._child("vq_decode", timings.total_s - timings.vq_decode_s, timings.total_s)
        # Prompts of the same HTTP request are one prompt.
        self._num_input = max(self._num_input, event.usage.prompt_tokens)
        self._num_output += event.usage.output_tokens
        self._reasons.add(event.reason)
        self._parent.set_attributes(
            {
                "gen_ai.usage.input_tokens": self._num_input,
                "gen_ai.usage.output_tokens": self._num_output,
                "gen_ai.usage.cache_read.input_tokens": event.usage.cached_tokens,
                "gen_ai.response.model": self._model_name,
                "gen_ai.response.finish_reasons": sorted(self._reasons),
                "gen_ai.response.time_to_first_chunk": timings.first_s,
            }
        )

    def failed(self, event: Failed) -> None:
        """Say that nothing came out, and of which kind the error was."""
        if self._parent.is_recording():
            self._parent.set_attribute("error.type", type(event.error).__name__)
            self._parent.set_status(Status(StatusCode.ERROR))

    def _child(self, name: str, first_s: float, last_s: float) -> None:
        self._span(name, first_s).end(self._at(max(first_s, last_s)))

    def _span(self, name: str, start_s: float) -> Span:
        context = trace.set_span_in_context(self._parent)
        return self._tracer.start_span(f"janus.{name}", context, start_time=self._at(start_s))

    def _at(self, offset_s: float) -> int:
        return self._submitted_ns + int(offset_s * S)


def _asked(request: Request, *, model_name: str) -> dict[str, AttributeValue]:
    """Attributes of a request, in the words of the conventions."""
    sampling = request.sampling
    is_text = isinstance(request, TextRequest)
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "chat" if is_text else "generate_content",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model_name,
        "gen_ai.output.type": "text" if is_text else "image",
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
    }
    if isinstance(request, TextRequest):
        attributes["gen_ai.request.max_tokens"] = request.max_tokens
        if request.stop:
            attributes["gen_ai.request.stop_sequences"] = list(request.stop)
        if request.constraint is not None and request.constraint.kind == "json_schema":
            attributes["gen_ai.output.type"] = "json"
    return attributes
