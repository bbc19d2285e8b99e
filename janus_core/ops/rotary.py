"""Rotary position embedding, rotate-half form (arXiv:2104.09864, as in transformers' Llama).

Owns the table of cosines and sines; knows nothing of slots. Invariant: angles are computed and
applied in fp32, whatever the model's dtype.

Shape suffixes: P positions, T packed tokens, N heads, H head width.
"""

import torch


def rotary_table(
    num_positions: int, head_dim: int, *, theta: float, device: torch.device
) -> torch.Tensor:
    """Cosines and signed sines, fp32 `[P, 2, 1, H]`.

    The sines of the first half carry the minus sign of `rotate_half`, so that rotating is a
    product, a roll and a fused multiply-add.
    """
    # float64 for the angles: position x frequency loses up to 3 digits in fp32 at position 16383.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    positions = torch.arange(num_positions, dtype=torch.float64, device=device)
    angles = torch.outer(positions, theta**-exponents)
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
    return table.unsqueeze(2).to(torch.float32)


def rotate(x_TNH: torch.Tensor, rotary_T21H: torch.Tensor) -> torch.Tensor:
    """Rotate every head of every token by the row of the table that belongs to its position."""
    cos_T1H, sin_T1H = rotary_T21H.unbind(1)
    swapped_TNH = x_TNH.roll(x_TNH.shape[-1] // 2, -1)
    return torch.addcmul(x_TNH * cos_T1H, swapped_TNH, sin_T1H).to(x_TNH.dtype)
