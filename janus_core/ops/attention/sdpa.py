"""Attention by `torch.nn.functional.scaled_dot_product_attention`: the reference, on every device.

Owns the choice of calls for a batch: sequences whose slots lie at equal distances and whose
contexts are equal (above all the two sequences of a guided image) share one call, without copying
their keys and values. On a CPU, sequences that decode one token read ahead to the next multiple of
`READ_UNIT` positions, masked, so that contexts need not be equal to share a call. Knows no weights
and no requests. Invariant: a token sees exactly the positions of its own slot up to its own; how
sequences are grouped changes no result beyond rounding, and on a CPU no bit of a decoded row.

Shape suffixes: T packed tokens, G sequences of a group, N query heads, K key/value heads, H head
width, P pool positions, Q new tokens of one sequence, L context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F

from janus_core.engine.settings import SLOT_UNIT
from janus_core.models.inputs import Span
from janus_core.ops.transfer import upload_list

READ_UNIT = SLOT_UNIT
"""A slot's room is a multiple of it, so reading ahead stays inside. A multiple of every vector
width: masked positions then fall into lanes of their own and add exact zeros."""


@dataclass(frozen=True, slots=True)
class SpanGroup:
    """Sequences served by one attention call.

    Sequence `g` of the group has the `num_tokens` rows from `first + g * num_tokens` (after
    `SdpaLayout.order_T`) and the slot at `slot_start + g * slot_stride`, of which `num_read`
    positions are read. `mask_G1QL` (one for all, or one for each) is given where neither "all" (one
    new token) nor "causal from position 0" describes what is seen.
    """

    first: int
    num_sequences: int
    num_tokens: int
    slot_start: int
    slot_stride: int
    num_read: int
    mask_G1QL: torch.Tensor | None

    @property
    def end(self) -> int:
        """One past the last row."""
        return self.first + self.num_sequences * self.num_tokens


@dataclass(frozen=True, slots=True)
class SdpaLayout:
    """The groups of a batch, tiling `[0, T)` in order, and the row order they need.

    `order_T` lists the packed tokens in group order, None if that is the order they have.
    """

    groups: tuple[SpanGroup, ...]
    order_T: torch.Tensor | None


class SdpaAttention:
    """The reference body of `AttentionBackend`."""

    name = "sdpa"

    def arrange(self, spans: Sequence[Span], *, device: torch.device) -> SdpaLayout:
        """Group the spans of a batch."""
        unit = READ_UNIT if device.type == "cpu" else 1

        def shape(span: Span) -> tuple[int, int]:
            is_decode = span.num_tokens == 1
            return span.num_tokens, span.context + (-span.context % unit if is_decode else 0)

        ordered = sorted(spans, key=lambda span: (*shape(span), span.slot_start))
        groups: list[SpanGroup] = []
        first = 0
        for (num_tokens, num_read), equals in groupby(ordered, shape):
            for run in _equidistant(list(equals)):
                stride = run[1].slot_start - run[0].slot_start if len(run) > 1 else 0
                group = SpanGroup(
                    first=first,
                    num_sequences=len(run),
                    num_tokens=num_tokens,
                    slot_start=run[0].slot_start,
                    slot_stride=stride,
                    num_read=num_read,
                    mask_G1QL=_mask(run, num_read, device=device),
                )
                groups.append(group)
                first = group.end
        order = [t for span in ordered for t in range(span.first, span.first + span.num_tokens)]
        if order == list(range(first)):
            return SdpaLayout(tuple(groups), None)
        return SdpaLayout(tuple(groups), upload_list(order, device))

    def attend(
        self, q_TNH: torch.Tensor, kv_2KPH: torch.Tensor, layout: SdpaLayout
    ) -> torch.Tensor:
        """One call of SDPA per group."""
        outputs = [
            _attend_group(q_TNH[group.first : group.end], kv_2KPH, group) for group in layout.groups
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_group(q_TNH: torch.Tensor, kv_2KPH: torch.Tensor, group: SpanGroup) -> torch.Tensor:
    _, num_kv_heads, _, head_dim = kv_2KPH.shape
    num_heads = q_TNH.shape[1]
    k_GKLH, v_GKLH = _slots(kv_2KPH, group, q_TNH.dtype)
    q_GQNH = q_TNH.view(group.num_sequences, group.num_tokens, num_heads, head_dim)
    if group.num_tokens == 1:
        # The query heads that share a key/value head become rows of one query: no repeated keys.
        q_GKQH = q_GQNH.view(group.num_sequences, num_kv_heads, -1, head_dim)
        out_GKQH = F.scaled_dot_product_attention(q_GKQH, k_GKLH, v_GKLH, attn_mask=group.mask_G1QL)
        return out_GKQH.reshape(group.num_sequences, num_heads, head_dim)
    out_GNQH = F.scaled_dot_product_attention(
        q_GQNH.transpose(1, 2),
        k_GKLH,
        v_GKLH,
        attn_mask=group.mask_G1QL,
        is_causal=group.mask_G1QL is None,
        enable_gqa=num_kv_heads != num_heads,
    )
    return out_GNQH.transpose(1, 2).reshape(-1, num_heads, head_dim)


def _slots(
    kv_2KPH: torch.Tensor, group: SpanGroup, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The used part of the group's slots as views `[G, K, L, H]` into the pool; copies if the pool
    has another dtype."""
    _, num_kv_heads, num_positions, head_dim = kv_2KPH.shape
    shape = (2, group.num_sequences, num_kv_heads, group.num_read, head_dim)
    head_stride = num_positions * head_dim
    strides = (num_kv_heads * head_stride, group.slot_stride * head_dim, head_stride, head_dim, 1)
    offset = kv_2KPH.storage_offset() + group.slot_start * head_dim
    keys, values = kv_2KPH.as_strided(shape, strides, offset).unbind(0)
    return keys.to(dtype), values.to(dtype)


def _mask(run: Sequence[Span], num_read: int, *, device: torch.device) -> torch.Tensor | None:
    """Which of `num_read` positions the new tokens see; None where a flag of SDPA says it.

    Spans of several tokens have equal contexts, and the last of `num_read` positions is their last.
    """
    num_tokens, contexts = run[0].num_tokens, [span.context for span in run]
    if num_tokens == 1:
        if contexts == [num_read] * len(run):
            return None
        contexts_G111 = upload_list(contexts, device)[:, None, None, None]
        return torch.arange(num_read, device=device) < contexts_G111
    if num_tokens == num_read:
        return None
    seen = torch.ones(1, 1, num_tokens, num_read, dtype=torch.bool, device=device)
    return seen.tril(num_read - num_tokens)


def _equidistant(spans: list[Span]) -> list[list[Span]]:
    """Cut into runs of equal distance: [0, 5, 10, 12, 30] -> [0, 5, 10], [12, 30]."""
    runs: list[list[Span]] = []
    for span in spans:
        run = runs[-1] if runs else []
        if len(run) == 1 or (
            len(run) > 1
            and span.slot_start - run[-1].slot_start == run[1].slot_start - run[0].slot_start
        ):
            run.append(span)
        else:
            runs.append([span])
    return runs
