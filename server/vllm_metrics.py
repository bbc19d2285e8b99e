"""vLLM's names for our numbers, so that what was made for it works unchanged: routers, rules for
autoscaling, dashboards.

Owns the table of names; knows where none of the numbers come from. Invariant: what is exported
under a name means what vLLM means by it, and has vLLM's labels: `model_name`, and `engine`, which
is always 0. Tasks are added up, because vLLM has only one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

VLLM_PREFIX = "vllm:"

NAMES: Mapping[str, tuple[str, ...]] = {
    name: (name,)
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_preemptions",
        "prompt_tokens",
        "prompt_tokens_cached",
        "generation_tokens",
        "mm_cache_queries",
        "mm_cache_hits",
        "time_to_first_token_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_params_n",
        "request_params_max_tokens",
    )
} | {
    # The second name is the one of older releases, which many boards still ask for.
    "kv_cache_usage_perc": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "prefix_cache_queries": ("prefix_cache_queries", "gpu_prefix_cache_queries"),
    "prefix_cache_hits": ("prefix_cache_hits", "gpu_prefix_cache_hits"),
    "inter_token_latency_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "iteration_tokens": ("iteration_tokens_total",),
}
"""Our stems and vLLM's (`vllm/v1/metrics/loggers.py`)."""

SUCCESS = "request_success"
ENDS: Mapping[str, str | None] = {
    "request_success": None,
    "requests_cancelled": "abort",
    "request_failure": "error",
}
"""What vLLM counts in `request_success`: the reason where ours is a counter of its own."""

_ONLY_OURS = frozenset({"task", "reason"})
"""Labels that vLLM's metrics do not have: their series are added up."""


class Source(Protocol):
    """Something that has metrics."""

    def collect(self) -> Iterable[Metric]:
        """Its metrics now."""


class VllmNames(Collector):
    """Exports what `sources` have, as far as vLLM has it too."""

    def __init__(self, model_name: str, sources: Sequence[Source], *, prefix: str) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._sources = sources
        self._prefix = prefix

    def describe(self) -> Iterator[Metric]:
        """Nothing: the sources have no numbers yet when the registry asks."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One family for each of vLLM's names."""
        success: Metric | None = None
        for source in self._sources:
            for family in source.collect():
                stem = family.name.removeprefix(self._prefix)
                for name in NAMES.get(stem, ()):
                    yield self._renamed(family, name)
                if stem in ENDS:
                    ends = self._renamed(family, SUCCESS, reason=ENDS[stem])
                    if success is None:
                        success = ends
                    else:
                        success.samples += ends.samples
        if success is not None:
            yield success

    def _renamed(self, family: Metric, name: str, *, reason: str | None = None) -> Metric:
        """`family` under vLLM's name and labels."""
        renamed = Metric(VLLM_PREFIX + name, family.documentation, family.type)
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for sample in family.samples:
            ending = sample.name.removeprefix(family.name)
            if ending == "_created":
                continue
            labels = {k: value for k, value in sample.labels.items() if k not in _ONLY_OURS}
            labels |= self._labels
            if reason is not None:
                labels["finished_reason"] = reason
            key = (renamed.name + ending, tuple(labels.items()))
            sums[key] = sums.get(key, 0.0) + sample.value
        for (sample_name, pairs), value in sums.items():
            renamed.add_sample(sample_name, dict(pairs), value)
        return renamed
