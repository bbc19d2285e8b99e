"""Attention of a packed batch over the slots of the KV pool: one function with several bodies.

Owns the seam between the backbone and the bodies; each body is a module beside this one, and SDPA
(`sdpa.py`) is the reference all others are compared with. Knows no weights and no requests.
Invariant of every body: a token sees exactly the positions of its own slot up to its own, and what
else is in the batch changes its result by no more than rounding.

Shape suffixes: T packed tokens, N query heads, K key/value heads, H head width, P pool positions.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch

from janus_core.errors import ParameterError
from janus_core.models.inputs import Span
from janus_core.ops.attention.native import NativeAttention
from janus_core.ops.attention.sdpa import SdpaAttention
from janus_core.ops.formats import Formats
from janus_core.ops.native import MAX_HEAD_DIM


class AttentionLayout(Protocol):
    """What a body needs to know of a batch, made once per step and used by every layer.

    `order_T` is the order the body wants the packed tokens in (int64 indices), None for the order
    they have. The backbone puts all rows in that order before the first layer, and back at the end.
    """

    @property
    def order_T(self) -> torch.Tensor | None: ...


LayoutT = TypeVar("LayoutT", bound=AttentionLayout)


class AttentionBackend(Protocol[LayoutT]):
    """One body. `name` is for the log and `/version`."""

    @property
    def name(self) -> str: ...

    def arrange(self, spans: Sequence[Span], *, device: torch.device) -> LayoutT:
        """Whatever `attend` needs to know of these spans."""
        ...

    def attend(self, q_TNH: torch.Tensor, kv_2KPH: torch.Tensor, layout: LayoutT) -> torch.Tensor:
        """Softmax attention (scale `H ** -0.5`) of every row over its slot; returns `[T, N, H]`.

        `kv_2KPH` is one layer of the pool, the new keys and values already written. The rows of
        `q_TNH`, which need not be contiguous, are in the order of `layout`, and so is the result.
        """
        ...


def choose_attention(formats: Formats, *, head_dim: int) -> AttentionBackend[Any]:
    """The body for these formats, beside which there may be Triton's in graphs. Raises
    ParameterError if `formats` asks for a package that cannot be imported."""
    if formats.attention == "xformers":
        try:
            from janus_core.ops.attention.xformers import XformersAttention
        except ImportError as error:
            raise ParameterError(
                f"attention xformers cannot be had: {error}", param="attention"
            ) from error
        return XformersAttention()
    if formats.attention == "auto" and formats.native is not None and head_dim <= MAX_HEAD_DIM:
        return NativeAttention(formats.native)
    return SdpaAttention()


__all__ = ["AttentionBackend", "AttentionLayout", "SdpaAttention", "choose_attention"]
