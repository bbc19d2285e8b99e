"""The time below which no step can go: the bytes it must read over the bandwidth of the memory.

Owns the arithmetic of bytes and the measurement of bandwidth; knows no engine. A step reads every
weight of the backbone once, the weights of the heads it uses once, and the keys and values of every
row. Embedding rows, activations, scales of quantised weights and what is written are left out, so
the bytes are a little too few. The bandwidth is the best of several ways to read; a step that
reads in a better one still shows a share above 100 %.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch

from janus_core.config import ModelConfig

WEIGHT_BYTES = {
    **{"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0},
    # ggml's blocks of 32 values: with the scale of a block, 34 bytes of Q8_0 and 18 of Q4_0.
    **{"F16": 2.0, "Q8_0": 34 / 32, "Q4_0": 18 / 32},
}
"""Bytes of a weight by the last word of an engine's name."""

MAX_BUFFER_BYTES = 2**30
"""Of the measurement of bandwidth: many times what any cache holds."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The rows of a typical decode step and the mean number of positions each attends to."""

    num_text_rows: int
    num_code_rows: int
    mean_context: float


def step_bytes(
    config: ModelConfig, shape: StepShape, *, weight_bytes: float, kv_bytes: float
) -> int:
    """Bytes one decode step has to read, with so many bytes to a weight, and to a value of the KV
    pool."""
    num_rows = shape.num_text_rows + shape.num_code_rows
    weights = _backbone_values(config)
    weights += _code_head_values(config) if shape.num_code_rows else 0
    weights += config.backbone.vocab_size * config.backbone.width if shape.num_text_rows else 0
    kv_values = num_rows * shape.mean_context * _kv_values_per_position(config)
    return int(weights * weight_bytes + kv_values * kv_bytes)


def read_bandwidth(num_bytes: int, *, num_reads: int = 10) -> float:
    """Bytes per second when a buffer of `num_bytes` is read again and again, at the current number
    of threads, by sums, extremes and products in turn; the best of `num_reads` of each, because
    anything slower is somebody else's load.

    A buffer as large as the step reads finds the caches in the state in which the step finds them.
    """
    num_values = max(min(num_bytes, MAX_BUFFER_BYTES) // 4, 1)
    buffer = torch.ones(num_values, dtype=torch.float32)
    best_s = float("inf")
    reads = (buffer.sum, buffer.amax, partial(torch.dot, buffer, buffer))
    for read in reads * num_reads:
        start = time.perf_counter()
        read()
        best_s = min(best_s, time.perf_counter() - start)
    return buffer.numel() * 4 / best_s


def _backbone_values(config: ModelConfig) -> int:
    backbone = config.backbone
    query_width = backbone.num_heads * backbone.head_dim
    kv_width = backbone.num_kv_heads * backbone.head_dim
    attention = backbone.width * (2 * query_width + 2 * kv_width)
    mlp = 3 * backbone.width * backbone.mlp_width
    return backbone.num_layers * (attention + mlp + 2 * backbone.width) + backbone.width


def _code_head_values(config: ModelConfig) -> int:
    head_width = config.vq.head_width
    return head_width * (config.backbone.width + 1) + config.vq.codebook_size * (head_width + 1)


def _kv_values_per_position(config: ModelConfig) -> int:
    backbone = config.backbone
    return 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim
