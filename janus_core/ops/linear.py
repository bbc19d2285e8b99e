"""Linear layers packed for oneDNN, for fp32 on a CPU.

Owns the packing; knows no model. Two reasons, both measured on AVX-512 and checked by tests: from
two rows on it is up to 2.3 times as fast as `torch.nn.functional.linear` (whose BLAS has no such
kernels for every maker's processor), and a row's result does not depend on the number of rows
beside it, bit by bit, so that a picture is the same alone and in a full batch.

Invariant: `pack_linears` changes no result beyond rounding. Where torch was built without the
operators (they serve `torch.compile`, and have no public name), it does nothing.

Shape suffixes: R rows, D input width.
"""

import torch
from torch import nn

_ROWS_HINT = 16
"""Rows the layout is chosen for. With 1, oneDNN has another kernel for one row: other bits."""


class PackedLinear(nn.Module):
    """What `nn.Linear` computes, from a weight that only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.out_features, self.in_features = weight.shape
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., out_features]`."""
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
