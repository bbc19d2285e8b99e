"""What one forward pass reads: the packed tokens of a batch and where their keys and values go.

Owns the tensors' meaning; built by the engine, read by the backbone and the attention function.
Invariant: the spans tile `[0, T)` in order, and no two spans share a slot.

Shape suffixes: T packed tokens of all sequences, S image slots, D model width.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's share of the batch.

        slot positions   [0, context - num_tokens)         computed in earlier steps
                         [context - num_tokens, context)   written by this step
        packed tokens    [first, first + num_tokens)

    `slot_start` is the pool position of the slot's position 0.
    """

    first: int
    num_tokens: int
    slot_start: int
    context: int


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """`token_ids_T` are ids of the joint space (code + vocab_size), `positions_T` rotary positions,
    `cache_positions_T` pool positions to write. Each pair in `image_embeddings` replaces the
    embeddings of
    packed tokens `[first, first + S')` by the rows of an `[S', D]` tensor. All index tensors are
    int64."""

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    cache_positions_T: torch.Tensor
    spans: tuple[Span, ...]
    image_embeddings: tuple[tuple[int, torch.Tensor], ...] = ()
