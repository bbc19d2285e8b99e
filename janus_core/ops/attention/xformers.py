"""Attention by xformers with its gappy-key masks: one call for a whole batch, on CUDA.

Owns the translation of spans into such a mask: blocks of queries, each with keys that begin
anywhere in the pool. Knows no weights and no requests. Invariant: a token sees exactly the
positions of its own slot up to its own. Importing this imports xformers: do it on CUDA only.

Shape suffixes: T packed tokens, N query heads, K key/value heads, G query heads that share one, H
head width, P pool positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from xformers.ops import memory_efficient_attention_forward
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetGappyKeysMask

from janus_core.models.inputs import Span


@dataclass(frozen=True, slots=True)
class XformersLayout:
    """The mask of a batch, and how much of the pool it reaches; rows keep their order."""

    mask: Any
    end: int
    order_T: None = None


class XformersAttention:
    """A body of `AttentionBackend`. `forward` is replaced in tests, where there is no GPU."""

    name = "xformers"

    def __init__(
        self, forward: Callable[..., torch.Tensor] = memory_efficient_attention_forward
    ) -> None:
        self._forward = forward

    def arrange(self, spans: Sequence[Span], *, device: torch.device) -> XformersLayout:
        """The last query of a block sees all its keys, the one before one key less, ..."""
        end = max(span.slot_start + span.context for span in spans)
        mask = BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(
            q_seqlen=[span.num_tokens for span in spans],
            kv_seqstarts=[*(span.slot_start for span in spans), end],
            kv_seqlen=[span.context for span in spans],
            device=device,
        )
        return XformersLayout(mask, end)

    def attend(
        self, q_TNH: torch.Tensor, kv_2KPH: torch.Tensor, layout: XformersLayout
    ) -> torch.Tensor:
        """One call; keys and values are read where they are."""
        num_kv_heads = kv_2KPH.shape[1]
        num_tokens, num_heads, head_dim = q_TNH.shape
        group = num_heads // num_kv_heads
        q_1TKGH = q_TNH.view(1, num_tokens, num_kv_heads, group, head_dim)
        keys_1PKGH, values_1PKGH = (
            heads_KPH.transpose(0, 1)[None, :, :, None].expand(-1, -1, -1, group, -1)
            for heads_KPH in kv_2KPH[:, :, : layout.end].unbind(0)
        )
        if group == 1:
            q_1TNH, keys_1PNH, values_1PNH = (
                heads.squeeze(3) for heads in (q_1TKGH, keys_1PKGH, values_1PKGH)
            )
            return self._forward(q_1TNH, keys_1PNH, values_1PNH, attn_bias=layout.mask)[0]
        out = self._forward(q_1TKGH, keys_1PKGH, values_1PKGH, attn_bias=layout.mask)
        return out[0].flatten(1, 2)
