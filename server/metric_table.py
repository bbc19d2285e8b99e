"""The table of metrics: names, meanings, buckets, labels, and the values labels begin with.

Owns what can be said of a metric before there is a server; counts nothing. Invariant: every label
takes its values from a closed set, so no client can grow the number of series.
"""

from dataclasses import dataclass

from server.record import Task

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


TASKS: tuple[Task, ...] = ("chat", "image", "caption")
BRANCHES = ("text", "cond", "uncond")
"""Rows of answers, and of pictures with their prompt and without it."""

FAILURES = (
    "aborted",
    "deadline_exceeded",
    "draining",
    "engine_dead",
    "internal_error",
    "server_is_overloaded",
    "step_failed",
)
"""The codes of what can end a request that was accepted."""

BLOCKED = ("address", "disabled", "host", "port", "redirect", "scheme", "url")
"""Why an image is not fetched; `RefusedError` says what each means."""


@dataclass(frozen=True, slots=True)
class CounterSpec:
    """A counter; Prometheus adds `_total` to its name. `values` of the last label, where they are
    known, have series from the start."""

    help: str
    labels: tuple[str, ...] = TASK
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HistogramSpec:
    """A histogram with its upper bounds."""

    help: str
    buckets: tuple[float, ...]
    labels: tuple[str, ...] = TASK
    values: tuple[str, ...] = ()


COUNTERS = {
    "request_success": CounterSpec("Requests that ended well.", (*TASK, "finished_reason")),
    "request_failure": CounterSpec(
        "Requests that ended with an error, by its code.", (*TASK, "reason"), FAILURES
    ),
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
        "HTTP requests whose deadline passed, by stage: queued or running.",
        (*MODEL, "stage"),
        ("queued", "running"),
    ),
    "prompt_tokens": CounterSpec("Prompt tokens of ended requests."),
    "prompt_tokens_cached": CounterSpec("Prompt tokens found in the prefix cache."),
    "generation_tokens": CounterSpec("Tokens and codes sampled."),
    "image_tokens": CounterSpec("Prompt tokens that stand for input images.", MODEL),
    "images_generated": CounterSpec("Pictures completed.", MODEL),
    "images": CounterSpec(
        "Pictures begun or waited for, by their end.",
        (*MODEL, "finish_reason"),
        ("stop", "cancelled", "deadline", "error"),
    ),
    "image_fetch_blocked": CounterSpec(
        "Input images not fetched, because the rules forbid it.", (*MODEL, "reason"), BLOCKED
    ),
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
    "decode_rows": HistogramSpec(
        "Rows a step decoded of answers (text) and of pictures (cond, uncond).",
        ROWS,
        (*MODEL, "branch"),
        BRANCHES,
    ),
    "step_seconds": HistogramSpec("Duration of a step.", PER_TOKEN_S, MODEL),
    "image_step_seconds": HistogramSpec(
        "Duration of a step that drew a code of a picture.", PER_TOKEN_S, MODEL
    ),
}
ENGINE_GAUGES = {
    "num_requests_running": "Requests that have slots, or a picture to render.",
    "num_requests_waiting": "Requests in the queue.",
    "cfg_rows_running": "Rows of guided pictures in the last step, two each; 0 if nothing runs.",
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
