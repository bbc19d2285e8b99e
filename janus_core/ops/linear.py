"""Linear layers in the formats a CPU is fast with: packed fp32, fp16 and int8.

Owns the replacement of `nn.Linear` by layers that compute the same from a weight stored otherwise;
knows no model. fp32 is packed for oneDNN, for two reasons, both measured on AVX-512 and checked by
tests: from two rows on it is up to 2.3 times as fast as `torch.nn.functional.linear` (whose BLAS
has no such kernels for every maker's processor), and a row's result does not depend on the number
of rows beside it, bit by bit, so that a picture is the same alone and in a full batch. fp16 and
int8 are computed by the C++ kernels, which keep that promise, or by plain torch without them.

Invariant: `pack_linears` changes no result beyond rounding. Where torch was built without the
operators (they serve `torch.compile`, and have no public name), it does nothing.

Shape suffixes: R rows, D input width, N output width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from janus_core.ops.native import Native

_ROWS_HINT = 16
"""Rows the layout is chosen for. With 1, oneDNN has another kernel for one row: other bits."""


class PackedLinear(nn.Module):
    """What `nn.Linear` computes, from a weight that only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.out_features, self.in_features = weight.shape
        self.bias: nn.Parameter | None = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., out_features]`."""
        if x.numel() == self.in_features:
            # From some width on, oneDNN adds a single row up in another order than several.
            return self._multiply(x.expand(2, *x.shape))[0]
        return self._multiply(x)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, "none", [], ""
        )
        return out


def can_pack(*, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing helps here, and this torch can do it."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack_linears(module: nn.Module) -> None:
    """Replace every `nn.Linear` below `module`; frees each weight before packing the next."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)


class NativeLinear(nn.Module):
    """What `nn.Linear` computes, with a weight in fp16 or int8, by the C++ kernels."""

    def __init__(self, linear: nn.Linear, *, format: str, native: Native) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self._native = native
        self.packed = native.pack(linear.weight, linear.bias, format=format)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., out_features]`."""
        out_RN = self._native.linear(self.packed, x.reshape(-1, self.in_features))
        return out_RN.view(*x.shape[:-1], self.out_features)


class HalfLinear(nn.Module):
    """An fp16 weight in plain torch, for machines without the kernels: half the memory."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        limit = torch.finfo(torch.float16).max
        self.weight = linear.weight.detach().clamp(-limit, limit).half()
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., out_features]`."""
        return F.linear(x, self.weight.float(), self.bias)


class Int8Linear(nn.Module):
    """An int8 weight in plain torch, for machines without the kernels: a quarter of the memory.

    Weights have one scale per output, activations one per row, both at 127 steps each way. Sums of
    integers are exact, so a row's result does not depend on its batch, nor on who computes it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.scale_N = quantize_rows(linear.weight.detach())
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., out_features]`."""
        q, scale = quantize_rows(x)
        total = torch.zeros(*x.shape[:-1], len(self.weight), dtype=torch.float64)
        for first in range(0, x.shape[-1], _EXACT_WIDTH):
            part = slice(first, first + _EXACT_WIDTH)
            total += F.linear(q[..., part].float(), self.weight[:, part].float())
        out = total.float() * scale[..., None] * self.scale_N
        return out if self.bias is None else out + self.bias


_EXACT_WIDTH = 1024
"""Terms of at most 127 * 127 that fp32 adds without rounding, in any order: below 2 ** 24."""


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 `[..., D]` and one scale for each row, `[...]`: `x` is about `q * scale`."""
    limit = x.abs().amax(-1)
    # One division, as in the kernels (a number over a tensor is a product with the reciprocal): the
    # last bit decides which way a half is rounded.
    factor = torch.where(limit > 0, torch.tensor(127.0) / limit, 0.0)
    return (x * factor[..., None]).round().to(torch.int8), limit / 127.0


def convert_linears(module: nn.Module, *, format: str, native: Native | None) -> None:
    """Replace every `nn.Linear` below `module` by one with a weight in `format`; frees each weight
    before converting the next."""
    for name, child in module.named_children():
        if type(child) is not nn.Linear:
            convert_linears(child, format=format, native=native)
        elif native is not None:
            setattr(module, name, NativeLinear(child, format=format, native=native))
        else:
            setattr(module, name, HalfLinear(child) if format == "fp16" else Int8Linear(child))
