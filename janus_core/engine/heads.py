"""The heads at one number of rows, for deterministic mode.

Owns the padding and the passes; `JanusModel` owns the heads. Knows no requests. Invariant: whatever
is asked for is computed at `FIXED_ROWS` rows, because a library may choose another algorithm for
another number, and with it another order of additions.

Shape suffixes: R rows, I guided images, D model width, V text vocabulary, C codebook.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from janus_core.engine.graphs import FIXED_ROWS


class Heads(Protocol):
    """From hidden vectors to logits in fp32; see `JanusModel`."""

    def text_logits(self, hidden_RD: torch.Tensor) -> torch.Tensor: ...

    def code_logits(self, hidden_RD: torch.Tensor) -> torch.Tensor: ...

    def guided_code_logits(
        self, cond_ID: torch.Tensor, uncond_ID: torch.Tensor, guidance_I: torch.Tensor
    ) -> torch.Tensor: ...


class FixedHeads:
    """Those of `heads`, in passes of `FIXED_ROWS` rows, the last one padded with zeros."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    @torch.inference_mode()
    def text_logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        return _in_passes(self._heads.text_logits, hidden_RD)

    @torch.inference_mode()
    def code_logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        return _in_passes(self._heads.code_logits, hidden_RD)

    @torch.inference_mode()
    def guided_code_logits(
        self, cond_ID: torch.Tensor, uncond_ID: torch.Tensor, guidance_I: torch.Tensor
    ) -> torch.Tensor:
        return _in_passes(self._heads.guided_code_logits, cond_ID, uncond_ID, guidance_I)


def _in_passes(compute: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """`compute` of rows of all `inputs`, which have as many each."""
    outputs = []
    for first in range(0, len(inputs[0]), FIXED_ROWS):
        parts = [values[first : first + FIXED_ROWS] for values in inputs]
        num_rows = len(parts[0])
        outputs.append(compute(*map(_padded, parts))[:num_rows])
    return torch.cat(outputs)


def _padded(part: torch.Tensor) -> torch.Tensor:
    padded = part.new_zeros(FIXED_ROWS, *part.shape[1:])
    padded[: len(part)] = part
    return padded
