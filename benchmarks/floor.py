"""The time below which no step can go: the bytes it must read over the bandwidth of the memory.

Owns the arithmetic of bytes and the measurement of bandwidth; knows no engine. A step reads every
weight of the backbone once, the weights of the heads it uses once, and the keys and values of every
row. Embedding rows, activations and what is written are left out, so the floor is a little too low,
never too high.
"""

import time
from dataclasses import dataclass

import torch

from janus_core.config import ModelConfig


@dataclass(frozen=True, slots=True)
class StepShape:
    """The rows of a typical decode step and the mean number of positions each attends to."""

    num_text_rows: int
    num_code_rows: int
    mean_context: float


def step_bytes(config: ModelConfig, shape: StepShape, *, bytes_per_value: int) -> int:
    """Return the bytes one decode step has to read."""
    num_rows = shape.num_text_rows + shape.num_code_rows
    values = _backbone_values(config)
    values += _code_head_values(config) if shape.num_code_rows else 0
    values += config.backbone.vocab_size * config.backbone.width if shape.num_text_rows else 0
    values += int(num_rows * shape.mean_context * _kv_values_per_position(config))
    return values * bytes_per_value


def read_bandwidth(num_bytes: int, *, num_reads: int = 20) -> float:
    """Return bytes per second when a buffer of `num_bytes` is read again and again, at the current
    number of threads; the best of `num_reads`, because anything slower is somebody else's load.

    A buffer as large as the step reads finds the caches in the state in which the step finds them.
    """
    buffer = torch.ones(max(num_bytes // 4, 1), dtype=torch.float32)
    best_s = float("inf")
    for _ in range(num_reads):
        start = time.perf_counter()
        buffer.sum()
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
