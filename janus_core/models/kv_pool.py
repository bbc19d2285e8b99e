"""The memory behind all slots: keys and values of every layer at numbered positions.

Owns one tensor; who uses which positions is decided by the engine (`janus_core/engine/slots.py`).
Invariant: every position always holds finite numbers, so that reading ahead of a slot's context is
harmless where it is masked.

Shape suffixes: L layers, K key/value heads, P pool positions, H head width, T packed tokens.
"""

import torch

from janus_core.config import BackboneConfig, ModelConfig


class KvPool:
    """Keys and values, `[L, 2, K, P, H]`: a slot is a slice of P, contiguous per head."""

    def __init__(self, kv_L2KPH: torch.Tensor) -> None:
        self._kv_L2KPH = kv_L2KPH
        self.layers = kv_L2KPH.unbind(0)

    @classmethod
    def allocate(
        cls,
        config: ModelConfig | BackboneConfig,
        num_positions: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KvPool":
        """Zeros; on a CPU the system backs them with memory only as they are written."""
        backbone = config.backbone if isinstance(config, ModelConfig) else config
        shape = (backbone.num_layers, 2, backbone.num_kv_heads, num_positions, backbone.head_dim)
        return cls(torch.zeros(shape, device=device, dtype=dtype))

    @property
    def num_positions(self) -> int:
        """Positions of the pool; valid ones are `[0, num_positions)`."""
        return self._kv_L2KPH.shape[3]

    @torch.inference_mode()
    def copy(self, source_start: int, target_start: int, length: int) -> None:
        """Copy `length` positions of every layer. The two runs must not overlap."""
        assert abs(source_start - target_start) >= length, "the runs overlap"
        assert max(source_start, target_start) + length <= self.num_positions, "beyond the pool"
        source = self._kv_L2KPH.narrow(3, source_start, length)
        self._kv_L2KPH.narrow(3, target_start, length).copy_(source)

    @torch.inference_mode()
    def clear(self, start: int, length: int) -> None:
        """Zero `length` positions of every layer, after a fault wrote what is not finite."""
        self._kv_L2KPH.narrow(3, start, length).zero_()


def to_pool(new: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Keys and values in the pool's dtype: fp16 and fp8 are saturated, since an infinity would be
    read for ever."""
    if new.dtype == dtype:
        return new
    limit = torch.finfo(dtype).max
    return new.clamp(-limit, limit).to(dtype)


def as_written(kv: torch.Tensor) -> torch.Tensor:
    """The same memory in a dtype that can be written by index: fp8 as bytes."""
    return kv.view(torch.uint8) if kv.dtype == torch.float8_e4m3fn else kv
