"""Attention by the C++ kernels: fp32 queries over keys and values in fp16 or fp32, on a CPU.

Knows no weights. Invariant: a row's result depends, bit by bit, on its own query and slot alone,
however its sequence was cut into steps and whatever shares the batch.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from janus_core.models.inputs import Span
from janus_core.ops.native import Native, pack_spans


@dataclass(frozen=True, slots=True)
class NativeLayout:
    """The spans as the library reads them; rows keep their order."""

    spans: ctypes.Array[ctypes.c_int64]
    order_T: None = None


class NativeAttention:
    """A body of `AttentionBackend`."""

    def __init__(self, native: Native) -> None:
        self.name = f"native-{native.path}"
        self._native = native

    def arrange(self, spans: Sequence[Span], *, device: torch.device) -> NativeLayout:  # noqa: ARG002
        """No grouping: every row is its own."""
        return NativeLayout(pack_spans(spans))

    def attend(
        self, q_TNH: torch.Tensor, kv_2KPH: torch.Tensor, layout: NativeLayout
    ) -> torch.Tensor:
        """One call for all rows."""
        return self._native.attend(q_TNH, kv_2KPH, layout.spans)
