"""Traces: the spans of a request, how they fit together, and what is not in them."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from server.app import create_app
from server.lifecycle import load_pipeline
from server.settings import Settings
from tests.serving import ServerInThread, wait_until

CHAT = "/v1/chat/completions"
DRAW = "/v1/images/generations"
BODY = {"messages": [{"role": "user", "content": "canary"}], "max_tokens": 4, "ignore_eos": True}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Traced:
    """A server that keeps its spans."""

    def __init__(self, checkpoint) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.server = ServerInThread(
            model=str(checkpoint), served_model_name="tiny", tracer_provider=provider
        )

    def spans(self, num: int) -> list[ReadableSpan]:
        """Exactly so many new ones."""
        wait_until(lambda: len(self.exporter.get_finished_spans()) >= num)
        spans = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        assert len(spans) == num, [span.name for span in spans]
        return spans


@pytest.fixture(scope="module")
def traced(tiny_checkpoint) -> Iterator[Traced]:
    traced = Traced(tiny_checkpoint)
    with traced.server:
        yield traced


def access_line(caplog: pytest.LogCaptureFixture, word: str) -> str:
    """It is written after the answer is out."""

    def found() -> list[str]:
        return [record.getMessage() for record in caplog.records if word in record.getMessage()]

    wait_until(found)
    (line,) = found()
    return line


def test_a_question_has_its_spans_below_the_requests(traced: Traced, image_url: str):
    content = [
        {"type": "image_url", "image_url": {"url": image_url}},
        {"type": "text", "text": "?"},
    ]
    body = BODY | {"messages": [{"role": "user", "content": content}], "seed": 7}
    with traced.server.client() as client:
        usage = client.post(
            CHAT, json=body, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        ).json()["usage"]
    spans = {span.name: span for span in traced.spans(5)}
    root = spans.pop(f"POST {CHAT}")
    order = ["janus.queue", "janus.vision_encode", "janus.prefill", "janus.decode"]
    assert set(spans) == set(order)
    assert f"{root.context.trace_id:032x}" == TRACE
    for span in spans.values():
        assert span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time
    queue, _, prefill, decode = (spans[name] for name in order)
    assert queue.end_time == prefill.start_time <= prefill.end_time == decode.start_time
    assert decode.end_time <= root.end_time
    asked = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "deepseek",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stream": False,
        "gen_ai.output.type": "text",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("length",),
        "http.response.status_code": 200,
    }
    assert asked.items() <= dict(root.attributes).items()


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_stream_a_stop_and_the_id_of_the_answer_are_in_the_span(traced: Traced, path: str):
    body = BODY | {"stream": True, "stop": ["END"]}
    if path != CHAT:
        body = {"input": "canary", "max_output_tokens": 4, "stream": True}
    with traced.server.client() as client:
        text = client.post(path, json=body).text
    (root,) = [span for span in traced.spans(4) if span.parent is None]
    assert root.attributes["gen_ai.request.stream"] is True
    assert root.attributes["gen_ai.response.id"] in text
    stop = root.attributes.get("gen_ai.request.stop_sequences")
    assert stop == (("END",) if path == CHAT else None)


def test_pictures_have_spans_each_and_their_sums(traced: Traced):
    with traced.server.client() as client:
        client.post(DRAW, json={"prompt": "canary", "n": 2})
    spans = traced.spans(9)
    names = sorted(span.name for span in spans)
    assert names == sorted(
        [f"POST {DRAW}", *2 * ("janus.queue", "janus.prefill", "janus.decode", "janus.vq_decode")]
    )
    (root,) = [span for span in spans if span.parent is None]
    assert root.attributes["gen_ai.operation.name"] == "generate_content"
    assert root.attributes["gen_ai.output.type"] == "image"
    assert root.attributes["gen_ai.request.choice.count"] == 2
    assert root.attributes["gen_ai.usage.output_tokens"] == 32
    assert "canary" not in "".join(span.to_json() for span in spans)


def test_a_refusal_is_a_span_alone(traced: Traced):
    with traced.server.client() as client:
        client.post(CHAT, json=BODY | {"n": 0})
    (root,) = traced.spans(1)
    assert root.attributes["http.response.status_code"] == 400
    assert root.status.status_code is StatusCode.UNSET


def test_machines_and_kept_pictures_are_not_traced(traced: Traced):
    with traced.server.client() as client:
        url = client.post(DRAW, json={"prompt": "x", "response_format": "url"}).json()["data"][0]
        traced.spans(5)
        for path in ("/metrics", "/readyz", "/livez", "/health", "/ping", url["url"]):
            assert client.get(path).status_code == 200
        client.get("/version")
    (root,) = traced.spans(1)
    assert root.name == "GET /version"


def test_the_access_line_names_the_trace(traced: Traced, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="server.access")
    with traced.server.client() as client:
        client.post(CHAT, json=BODY, headers={"x-request-id": "seen"})
    root = next(span for span in traced.spans(4) if span.parent is None)
    line = access_line(caplog, "request_id=seen")
    assert f"trace_id={root.context.trace_id:032x}" in line


def test_without_a_provider_there_is_no_trace(
    server: ServerInThread, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="server.access")
    with server.client() as client:
        client.post(CHAT, json=BODY, headers={"x-request-id": "unseen"})
    line = access_line(caplog, "request_id=unseen")
    assert "trace_id" not in line


def test_spans_leave_by_otlp_over_http(tiny_checkpoint):
    received: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        server = ServerInThread(model=str(tiny_checkpoint), traces_endpoint=endpoint)
        with server, server.client() as client:
            client.post(CHAT, json=BODY)
        collector.shutdown()
        thread.join()
    (message,) = [ExportTraceServiceRequest.FromString(each) for each in received]
    (resource,) = message.resource_spans
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == "janus-serve"
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST " + CHAT, "janus.decode", "janus.prefill", "janus.queue"]


def test_the_missing_extra_is_named(tiny_checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.resources", None)
    settings = Settings(model=str(tiny_checkpoint), traces_endpoint="http://127.0.0.1:1/v1/traces")
    with pytest.raises(Exception, match=r"janus-serve\[otel\]"):
        create_app(load_pipeline(settings), settings)
