"""What a step over rows asks of a device: the operations beside its matrix products.

Owns the contract that the Triton kernels and their twins in torch share; knows no model. A row is
one token of one sequence with the context it sees, so that a decoding sequence is one row and a
chunk of a prompt as many rows as it has tokens.

Shape suffixes: R rows, D model width, E width of queries, keys and values together, N query heads,
K key/value heads, H head width, P pool positions or rotary positions, M inner width, I pictures,
C codes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

SPLIT = 256
"""Positions of one split of a row's context: fixed, because it decides the order of additions."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where each row reads and writes; all int64.

    Row `r` is rotated by `positions_R[r]`, writes its key and value at pool position
    `cache_positions_R[r]` and sees `[slot_starts_R[r], slot_starts_R[r] + contexts_R[r])`, of which
    its own position is the last. No context is longer than `reach`.
    """

    positions_R: torch.Tensor
    cache_positions_R: torch.Tensor
    slot_starts_R: torch.Tensor
    contexts_R: torch.Tensor
    reach: int


@dataclass(frozen=True, slots=True)
class Draws:
    """How to draw the code of each picture: fp32 guidance and temperatures, int64 seeds and places.

    `places_I` are positions in the output. A picture without an unconditional row names its
    conditional row twice: any guidance then gives that row's logits exactly.
    """

    cond_rows_I: torch.Tensor
    uncond_rows_I: torch.Tensor
    guidance_I: torch.Tensor
    temperatures_I: torch.Tensor
    seeds_I: torch.Tensor
    places_I: torch.Tensor


class DecodeOps(Protocol):
    """One device's bodies."""

    name: str

    def add_rms_norm(
        self,
        x_RD: torch.Tensor,
        delta_RD: torch.Tensor | None,
        weight_D: torch.Tensor,
        *,
        eps: float,
    ) -> torch.Tensor:
        """Add `delta_RD` to `x_RD` in place, if given; return the RMS norm of the sum."""

    def rotate_and_store(
        self,
        heads_RE: torch.Tensor,
        rotary_P21H: torch.Tensor,
        rows: Rows,
        kv_2KPH: torch.Tensor,
    ) -> torch.Tensor:
        """Rotate queries and keys, write keys and values to the pool; return queries `[R, N, H]`.

        `heads_RE` is contiguous and holds the heads of queries, keys and values in this order.
        """

    def attend(self, q_RNH: torch.Tensor, kv_2KPH: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Softmax attention (scale `H ** -0.5`) of each row over its context, `[R, N, H]`."""

    def silu_multiply(self, gate_up_RM: torch.Tensor) -> torch.Tensor:
        """`silu` of the first half of the columns times the second, `[R, M / 2]`."""

    def gelu_and_guide(self, inner_RM: torch.Tensor, guidance_I: torch.Tensor) -> torch.Tensor:
        """`[I, M]` of `[2 I, M]`: GELU, then `uncond + guidance * (cond - uncond)` in fp32.

        The conditional vectors come first.
        """

    def draw(self, logits_IC: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int64 `[I]`, always within the codebook, and whether all logits were finite.

        `argmax(logits / temperature + noise)`, without noise below `GREEDY_BELOW`, with the noise
        of `janus_core.ops.sampling.gumbel_noise`.
        """
