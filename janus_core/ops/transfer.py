"""From host memory to a device without waiting for it.

Owns the one way small tables of a step take. Knows nothing of what they mean. Invariant: no call
waits for a device: CUDA copies from pinned memory while the host goes on, and keeps that memory
until it is done.
"""

from collections.abc import Sequence

import torch


def upload(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values`, which are on the CPU, on `device`."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def upload_list(
    values: Sequence[int] | Sequence[float] | Sequence[bool],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.int64,
) -> torch.Tensor:
    """A one-dimensional tensor on `device`, by default of indices."""
    return upload(torch.tensor(values, dtype=dtype), device)
