"""Prometheus metrics: vLLM's stems with our prefix, so that its boards port by search and replace.

Owns the registry of one app and what each event counts for; knows the engine's events and
statistics, no HTTP route, and the names by their table. Invariant: a request that was accepted is
counted as ended once, whatever its end.
"""

from collections.abc import Callable, Iterator, Mapping
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

from janus_core.engine.events import Failed, Finished, StepDone
from janus_core.engine.stats import EngineStats
from server.errors import reply_for
from server.metric_table import (
    COUNTERS,
    ENGINE_COUNTERS,
    ENGINE_GAUGES,
    HISTOGRAMS,
    MODEL,
    PREFIX,
    REQUEST_S,
    TASK,
    TASKS,
    CounterSpec,
    HistogramSpec,
)
from server.middleware import CLIENT_GONE
from server.record import Task
from server.vllm_metrics import VllmNames

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
        self._engine = engine
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
        is_late = is_late and event.reason == "cancelled"
        if task == "image":
            self.count("images", "deadline" if is_late else event.reason)
        if is_late:
            self.count("request_failure", task, "deadline_exceeded")
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

    def failed(self, event: Failed, *, task: Task) -> None:
        """A request ended with an error."""
        reply = reply_for(event.error)
        self.count("request_failure", task, reply.code or reply.type)
        if task == "image":
            self.count("images", "error")

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
        for branch, num_rows in rows.items():
            self.observe("decode_rows", num_rows, branch)
        self._engine.num_cfg_rows = 2 * event.num_uncond_rows
        if event.num_cond_rows:
            self.observe("image_step_seconds", event.duration_s)
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
            own = spec.labels[:-1] if spec.values else spec.labels
            if own not in (MODEL, TASK):
                continue
            for task in TASKS if own == TASK else (None,):
                for value in spec.values or (None,):
                    labels = [each for each in (task, value) if each is not None]
                    family.labels(self._model_name, *labels)

    def _tokens(self, event: Finished, *, task: Task) -> None:
        usage = event.usage
        self.count("prompt_tokens", task, amount=usage.prompt_tokens)
        self.count("prompt_tokens_cached", task, amount=usage.cached_tokens)
        self.count("generation_tokens", task, amount=usage.output_tokens)
        self.count("image_tokens", amount=usage.image_tokens)
        self.observe("request_prompt_tokens", usage.prompt_tokens, task)
        self.observe("request_generation_tokens", usage.output_tokens, task)


class _EngineCollector(Collector):
    """Reads the engine's statistics when somebody asks, not on every step. `num_cfg_rows` is of the
    last one."""

    num_cfg_rows = 0

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
        stats = self._stats()
        values = _values(stats)
        values["cfg_rows_running"] = self.num_cfg_rows if stats.num_running else 0
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
