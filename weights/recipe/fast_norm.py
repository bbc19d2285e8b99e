"""A group normalisation whose backward pass is fast for channels-last tensors on a CPU.

Owns the exchange of `torch.nn.GroupNorm` for an equal function during training. Knows nothing of
what is normalised. Invariant: same values and gradients as `torch.nn.functional.group_norm` up to
rounding; saved checkpoints do not change, because only the forward method is exchanged.

Shapes: B pictures, P pixels, C channels, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _GroupNorm(torch.autograd.Function):
    """y = x * scale + shift with one scale and shift per picture and channel, so that each pass is
    elementwise."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float
    ) -> Tensor:
        x_BPC = x.permute(0, 2, 3, 1).flatten(1, 2)
        batch, pixels, channels = x_BPC.shape
        count = pixels * channels // groups
        sum_BG = x_BPC.sum(1, dtype=torch.float32).view(batch, groups, -1).sum(-1)
        square_BG = (x_BPC * x_BPC).sum(1, dtype=torch.float32).view(batch, groups, -1).sum(-1)
        mean_BG = sum_BG / count
        rstd_BG = (square_BG / count - mean_BG**2).clamp_min(0).add(eps).rsqrt()
        scale_BC = rstd_BG.repeat_interleave(channels // groups, 1) * weight_C
        shift_BC = bias_C - mean_BG.repeat_interleave(channels // groups, 1) * scale_BC
        ctx.save_for_backward(x, weight_C, mean_BG, rstd_BG)
        dtype = x.dtype
        return torch.addcmul(
            shift_BC[:, :, None, None].to(dtype), x, scale_BC[:, :, None, None].to(dtype)
        )

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight_C, mean_BG, rstd_BG = ctx.saved_tensors
        batch, channels, height, width = x.shape
        groups = mean_BG.shape[1]
        per_group = channels // groups
        count = height * width * per_group
        dy_BC = dy.sum((2, 3), dtype=torch.float32)
        dyx_BC = (dy * x).sum((2, 3), dtype=torch.float32)
        mean_BC, rstd_BC = (
            mean_BG.repeat_interleave(per_group, 1),
            rstd_BG.repeat_interleave(per_group, 1),
        )
        dyhat_BC = (dyx_BC - mean_BC * dy_BC) * rstd_BC
        # With g = dy * weight: dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), means over the
        # group.
        mean_g_BG = (dy_BC * weight_C).view(batch, groups, -1).sum(-1) / count
        mean_gx_BG = (dyhat_BC * weight_C).view(batch, groups, -1).sum(-1) / count
        a_BC = rstd_BC * weight_C
        b_BC = -(rstd_BG**2 * mean_gx_BG).repeat_interleave(per_group, 1)
        c_BC = -(rstd_BG * mean_g_BG).repeat_interleave(per_group, 1) - b_BC * mean_BC
        dtype = x.dtype
        dx = torch.addcmul(c_BC[:, :, None, None].to(dtype), x, b_BC[:, :, None, None].to(dtype))
        dx.addcmul_(dy, a_BC[:, :, None, None].to(dtype))
        return dx, dyhat_BC.sum(0), dy_BC.sum(0), None, None


def use_fast_group_norm(model: nn.Module) -> None:
    """Exchange the forward method of every GroupNorm in `model`, which has to be fed channels-last
    tensors."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = _forward_of(module)  # type: ignore[method-assign]


def _forward_of(module: nn.GroupNorm) -> Any:
    def forward(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return _GroupNorm.apply(x, module.weight, module.bias, module.num_groups, module.eps)  # type: ignore[no-any-return]

    return forward
