"""Prometheus metrics: vLLM's stems with our prefix, so that its boards port by search and replace.

Owns the table of all metrics and the registry of one app; knows the engine's events and
statistics, no HTTP route. Invariant: every label takes its values from a closed set, so no client
can grow the number of series.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from janus_core.engine.events import Finished, StepDone
from janus_core.engine.stats import EngineStats
from server.middleware import CLIENT_GONE
from server.record import Task
from server.vllm_metrics import VllmNames

PREFIX = "janus:"

# vLLM's boundaries (vllm/v1/metrics/loggers.py); requests get finer ones below 0.3 s, because a
# tiny model is that fast.
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
PER_TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_S = (
    0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
ROWS = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
CHOICES = (1, 2, 5, 10, 20)

MODEL = ("model_name",)
TASK = ("model_name", "task")


@dataclass(frozen=True, slots=True)
class CounterSpec:
    """A counter; Prometheus adds `_total` to its name."""

    help: str
    labels: tuple[str, ...] = TASK


@dataclass(frozen=True, slots=True)
class HistogramSpec:
    """A histogram with its upper bounds."""

    help: str
    buckets: tuple[float, ...]
    labels: tuple[str, ...] = TASK


COUNTERS = {
    "request_success": CounterSpec("Requests that ended well.", (*TASK, "finished_reason")),
    "request_failure": CounterSpec("Requests that ended with an error."),
    "requests_cancelled": CounterSpec("Requests whose client left."),
    "requests_rejected": CounterSpec("Requests refused before any work.", (*MODEL, "reason")),
    "media_rejections": CounterSpec("Of these, because of an input image.", (*MODEL, "reason")),
    "client_disconnects": CounterSpec("Answers cut short, because the client left.", MODEL),
    "cancelled_tokens": CounterSpec("Tokens and codes sampled for clients that left."),
    "cancelled_steps_saved": CounterSpec(
        "Tokens and codes not sampled, because the client left; of text, as many as it allowed."
    ),
    "connections_refused": CounterSpec(
        "Connections closed before a request came, or before its answer was read.",
        (*MODEL, "reason"),
    ),
    "deadline_misses": CounterSpec(
        "HTTP requests whose deadline passed, by stage: queued or running.", (*MODEL, "stage")
    ),
    "prompt_tokens": CounterSpec("Prompt tokens of ended requests."),
    "prompt_tokens_cached": CounterSpec("Prompt tokens found in the prefix cache."),
    "generation_tokens": CounterSpec("Tokens and codes sampled."),
    "image_tokens": CounterSpec("Prompt tokens that stand for input images.", MODEL),
    "images_generated": CounterSpec("Pictures completed.", MODEL),
    "decode_rows": CounterSpec("Rows decoded: text, cond or uncond.", (*MODEL, "kind")),
}
HISTOGRAMS = {
    "time_to_first_token_seconds": HistogramSpec("Submit to first token or code.", FIRST_TOKEN_S),
    "inter_token_latency_seconds": HistogramSpec("Between two tokens of an answer.", PER_TOKEN_S),
    "request_time_per_output_token_seconds": HistogramSpec(
        "Mean between two tokens of a request.", PER_TOKEN_S
    ),
    "e2e_request_latency_seconds": HistogramSpec("Submit to end.", REQUEST_S),
    "request_queue_time_seconds": HistogramSpec("Submit to slot.", REQUEST_S),
    "request_inference_time_seconds": HistogramSpec("Slot to end.", REQUEST_S),
    "request_prefill_time_seconds": HistogramSpec("Slot to first token or code.", REQUEST_S),
    "request_decode_time_seconds": HistogramSpec("First to last token or code.", REQUEST_S),
    "request_prompt_tokens": HistogramSpec("Prompt tokens of a request.", TOKENS),
    "request_generation_tokens": HistogramSpec("Tokens or codes of a request.", TOKENS),
    "request_params_n": HistogramSpec("The n clients ask for.", CHOICES),
    "request_params_max_tokens": HistogramSpec("The token limit clients ask for.", TOKENS),
    "image_generation_seconds": HistogramSpec("Submit to finished picture.", REQUEST_S, MODEL),
    "time_to_first_partial_image_seconds": HistogramSpec(
        "Submit to first half-drawn picture.", REQUEST_S, MODEL
    ),
    "vision_encode_seconds": HistogramSpec("Vision tower per request.", PER_TOKEN_S, MODEL),
    "vq_decode_seconds": HistogramSpec("Codes to pixels.", PER_TOKEN_S, MODEL),
    "image_encode_seconds": HistogramSpec("Pixels to a file.", PER_TOKEN_S, MODEL),
    "image_fetch_seconds": HistogramSpec(
        "Fetching an input image; outcome is ok, refused or failed.",
        REQUEST_S,
        (*MODEL, "outcome"),
    ),
    "iteration_tokens": HistogramSpec("Tokens a step computed.", TOKENS, MODEL),
    "engine_batch_size": HistogramSpec("Rows a step decoded.", ROWS, MODEL),
    "step_seconds": HistogramSpec("Duration of a step.", PER_TOKEN_S, MODEL),
}
ENGINE_GAUGES = {
    "num_requests_running": "Requests that have slots, or a picture to render.",
    "num_requests_waiting": "Requests in the queue.",
    "num_requests_rendering": "Pictures among the running whose pixels are all that is missing.",
    "kv_cache_usage_perc": "Share of the KV pool in use; 1 is full.",
    "kv_cache_cached_perc": "Share of the KV pool that holds prefixes nobody uses now.",
    "vision_cache_bytes": "Encoded input images kept.",
    "image_queue_wait_seconds": "Estimated wait of a picture asked for now until it starts.",
    "image_eta_seconds": "Estimated time until a picture asked for now is done.",
}
ENGINE_COUNTERS = {
    "num_preemptions": "Text requests set back for want of room.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found there.",
    "uncond_prefix_hits": "Of these, in the unconditional prompts of pictures.",
    "mm_cache_queries": "Input images looked up in the vision cache.",
    "mm_cache_hits": "Input images found there.",
    "failed_steps": "Steps that raised an error.",
    "dropped_previews": "Half-drawn pictures not shown, because too many waited for pixels.",
    "text_compute_seconds": "Modelled time of steps that text took.",
    "image_compute_seconds": "Modelled time of steps that pictures added.",
}
INFOS = {
    "build_info": ("version", "device", "dtype", "number_formats", "attention_backend", "threads"),
    "model_info": ("max_context", "image_size_px", "codes_per_image"),
}
"""What runs here, as labels of a series that is always 1."""
MEMORY = "gpu_memory_bytes"
"""By kind; no series where the device is the CPU, whose memory is the process's."""
DECODERS = "decode_workers_lost"
"""By the reasons of `janus_core.decode_pool`."""
EVENT_LOOP_TASKS = "event_loop_tasks"
SLEEP = "engine_sleep_state"
HTTP_COUNTER = "http_requests"
HTTP_HISTOGRAM = "http_request_duration_seconds"

TASKS: tuple[Task, ...] = ("chat", "image")

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})


class Metrics:
    """All metrics of one app. Its methods are called on the event loop only.

    `device_memory` has the bytes of the device by kind, `lost_decoders` the processes that ended by
    reason, `num_tasks` the tasks of the event loop.
    """

    def __init__(
        self,
        *,
        model_name: str,
        stats: Callable[[], EngineStats],
        device_memory: Callable[[], Mapping[str, int]] = dict,
        lost_decoders: Callable[[], Mapping[str, int]] = dict,
        num_tasks: Callable[[], int] = int,
        compat: Literal["none", "vllm"] = "none",
    ) -> None:
        self._model_name = model_name
        self._registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        engine = _EngineCollector(model_name, stats, device_memory, lost_decoders, num_tasks)
        registry.register(engine)
        self._counters = {
            name: Counter(PREFIX + name, spec.help, spec.labels, registry=registry)
            for name, spec in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(
                PREFIX + name, spec.help, spec.labels, buckets=spec.buckets, registry=registry
            )
            for name, spec in HISTOGRAMS.items()
        }
        self._begin_at_zero()
        self._sleep = Gauge(
            PREFIX + SLEEP, "0 awake, else the level of its sleep.", MODEL, registry=registry
        ).labels(model_name)
        self._http_total = Counter(
            HTTP_COUNTER, "HTTP requests.", ("method", "handler", "status"), registry=registry
        )
        self._http_s = Histogram(
            HTTP_HISTOGRAM,
            "First byte in to last byte out.",
            ("method", "handler"),
            buckets=REQUEST_S,
            registry=registry,
        )
        if compat == "vllm":
            ours = [engine, *self._counters.values(), *self._histograms.values()]
            registry.register(VllmNames(model_name, ours, prefix=PREFIX))

    def describe(self, infos: Mapping[str, Mapping[str, str]]) -> None:
        """Say what runs here: one series with the value 1 for each of `INFOS`."""
        for name, labels in INFOS.items():
            gauge = Gauge(
                PREFIX + name,
                "What runs here; always 1.",
                (*MODEL, *labels),
                registry=self._registry,
            )
            gauge.labels(self._model_name, *(infos[name][label] for label in labels)).set(1)

    def watch_sleep(self, level: Callable[[], float]) -> None:
        """Whom to ask whether the engine sleeps."""
        self._sleep.set_function(level)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add to a histogram of the table; `labels` are those behind `model_name`."""
        self._histograms[name].labels(self._model_name, *labels).observe(value)

    def count(self, name: str, *labels: str, amount: float = 1) -> None:
        """Add to a counter of the table; `labels` as for `observe`."""
        self._counters[name].labels(self._model_name, *labels).inc(amount)

    def finished(self, event: Finished, *, task: Task, is_late: bool = False) -> None:
        """A request ended, well or by cancellation (by its deadline: `is_late`). Latencies are
        those of whole requests only."""
        self._tokens(event, task=task)
        if event.reason == "cancelled" and is_late:
            self.count("request_failure", task)
            return
        if event.reason == "cancelled":
            self.count("requests_cancelled", task)
            self.count("cancelled_tokens", task, amount=event.usage.output_tokens)
            return
        self.count("request_success", task, event.reason)
        timings, num_tokens = event.timings, event.usage.output_tokens
        self.observe("time_to_first_token_seconds", timings.first_s, task)
        self.observe("e2e_request_latency_seconds", timings.total_s, task)
        self.observe("request_inference_time_seconds", timings.total_s - timings.queue_s, task)
        self.observe("request_prefill_time_seconds", timings.first_s - timings.queue_s, task)
        self.observe("request_decode_time_seconds", timings.decode_s, task)
        if num_tokens > 1:
            per_token_s = timings.decode_s / (num_tokens - 1)
            self.observe("request_time_per_output_token_seconds", per_token_s, task)
        if timings.vision_encode_s:
            self.observe("vision_encode_seconds", timings.vision_encode_s)
        if event.pixels is not None:
            self.count("images_generated")
            self.observe("image_generation_seconds", timings.total_s)
            self.observe("vq_decode_seconds", timings.vq_decode_s)

    def rejected(self, reason: str, *, by_image: bool = False) -> None:
        """A request was refused before the engine worked on it, maybe because of an input image;
        `reason` is a code of ours."""
        self.count("requests_rejected", reason)
        if by_image:
            self.count("media_rejections", reason)

    def connection_refused(self, reason: str) -> None:
        """A connection was closed that had no request, or whose client does not read."""
        self.count("connections_refused", reason)

    def step(self, event: StepDone) -> None:
        """A step ran."""
        rows = {
            "text": event.num_text_rows,
            "cond": event.num_cond_rows,
            "uncond": event.num_uncond_rows,
        }
        for kind, num_rows in rows.items():
            self.count("decode_rows", kind, amount=num_rows)
        num_rows = sum(rows.values())
        self.observe("engine_batch_size", num_rows)
        self.observe("iteration_tokens", num_rows + event.num_prefill_tokens)
        self.observe("step_seconds", event.duration_s)

    def http(self, method: str, route: str, status: int, duration_s: float) -> None:
        """An HTTP request was answered. A method nobody knows counts as `other`."""
        known = method if method in _METHODS else "other"
        self._http_total.labels(known, route, str(status)).inc()
        self._http_s.labels(known, route).observe(duration_s)
        if status == CLIENT_GONE:
            self.count("client_disconnects")

    def _begin_at_zero(self) -> None:
        """Make the series that every server will have: the first event of one that was not there
        is invisible to `rate`."""
        families: list[Counter | Histogram] = [*self._counters.values(), *self._histograms.values()]
        specs: list[CounterSpec | HistogramSpec] = [*COUNTERS.values(), *HISTOGRAMS.values()]
        for family, spec in zip(families, specs, strict=True):
            if spec.labels == MODEL:
                family.labels(self._model_name)
            elif spec.labels == TASK:
                for task in TASKS:
                    family.labels(self._model_name, task)

    def _tokens(self, event: Finished, *, task: Task) -> None:
        usage = event.usage
        self.count("prompt_tokens", task, amount=usage.prompt_tokens)
        self.count("prompt_tokens_cached", task, amount=usage.cached_tokens)
        self.count("generation_tokens", task, amount=usage.output_tokens)
        self.count("image_tokens", amount=usage.image_tokens)
        self.observe("request_prompt_tokens", usage.prompt_tokens, task)
        self.observe("request_generation_tokens", usage.output_tokens, task)


class _EngineCollector(Collector):
    """Reads the engine's statistics when somebody asks, not on every step."""

    def __init__(
        self,
        model_name: str,
        stats: Callable[[], EngineStats],
        device_memory: Callable[[], Mapping[str, int]],
        lost_decoders: Callable[[], Mapping[str, int]],
        num_tasks: Callable[[], int],
    ) -> None:
        self._model_name = model_name
        self._stats = stats
        self._device_memory = device_memory
        self._lost_decoders = lost_decoders
        self._num_tasks = num_tasks

    def describe(self) -> Iterator[Metric]:
        """Nothing: there is no engine to ask when the registry is made."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One sample per metric of `ENGINE_GAUGES` and `ENGINE_COUNTERS`, and the memory."""
        values = _values(self._stats())
        for name, text in ENGINE_GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=MODEL)
            gauge.add_metric([self._model_name], values[name])
            yield gauge
        for name, text in ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=MODEL)
            counter.add_metric([self._model_name], values[name])
            yield counter
        memory = GaugeMetricFamily(
            PREFIX + MEMORY, "Memory of the device.", labels=(*MODEL, "kind")
        )
        for kind, num_bytes in self._device_memory().items():
            memory.add_metric([self._model_name, kind], num_bytes)
        yield memory
        decoders = CounterMetricFamily(
            PREFIX + DECODERS, "Decoders that ended before their time.", labels=(*MODEL, "reason")
        )
        for reason, number in self._lost_decoders().items():
            decoders.add_metric([self._model_name, reason], number)
        yield decoders
        tasks = GaugeMetricFamily(PREFIX + EVENT_LOOP_TASKS, "Tasks of the event loop.")
        tasks.add_metric([], self._num_tasks())
        yield tasks


def _values(stats: EngineStats) -> dict[str, float]:
    """The engine's numbers by the names of the tables."""
    return {
        "num_requests_running": stats.num_running + stats.num_rendering,
        "num_requests_waiting": stats.num_waiting,
        "num_requests_rendering": stats.num_rendering,
        "kv_cache_usage_perc": stats.kv_usage,
        "kv_cache_cached_perc": stats.kv_cached,
        "vision_cache_bytes": stats.vision_cache_bytes,
        "image_queue_wait_seconds": stats.image_wait_s,
        "image_eta_seconds": stats.image_eta_s,
        "num_preemptions": stats.num_set_backs,
        "prefix_cache_queries": stats.prefix_queries,
        "prefix_cache_hits": stats.prefix_hits,
        "uncond_prefix_hits": stats.uncond_prefix_hits,
        "mm_cache_queries": stats.vision_queries,
        "mm_cache_hits": stats.vision_hits,
        "failed_steps": stats.num_failed_steps,
        "dropped_previews": stats.num_dropped_previews,
        "text_compute_seconds": stats.text_s,
        "image_compute_seconds": stats.image_s,
    }
