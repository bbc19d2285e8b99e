"""The Llama decoder over slots.

Owns the transformer layers; the embedding tables and the heads belong to `janus.py`. Knows neither
words nor codes: a row of the batch is a row. Invariant: parameters that one product can serve are
one parameter (q, k, v; gate, up), filled piece by piece by the checkpoint reader.

Shape suffixes: T packed tokens, D model width, N query heads, K key/value heads, H head width, P
pool positions.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from janus_core.config import BackboneConfig
from janus_core.models.inputs import BatchInputs
from janus_core.models.kv_pool import KvPool, as_written, to_pool
from janus_core.models.native_layers import NativeLayers, can_run
from janus_core.ops.attention import AttentionBackend, AttentionLayout, choose_attention
from janus_core.ops.formats import PLAIN, Formats
from janus_core.ops.linear import convert_linears
from janus_core.ops.rotary import rotary_table, rotate


class RmsNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, the mean in fp32 (arXiv:1910.07467).

    In fp32 on a CPU, `F.rms_norm` is seven small operators. There it is computed as
    `x / hypot(|x|, sqrt(D * eps)) * (weight * sqrt(D))`, the same number: four operators, a
    seventh of the whole step saved at width 256.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self._is_fused = True
        self._scale_D = torch.empty(0)
        self._floor_11 = torch.empty(0)

    def build_tables(self) -> None:
        """Choose the form, and scale the weight for it. Call once the weight was read."""
        weight_D, width = self.weight.detach(), len(self.weight)
        self._is_fused = weight_D.device.type != "cpu" or weight_D.dtype != torch.float32
        self._scale_D = weight_D * math.sqrt(width)
        self._floor_11 = weight_D.new_full((1, 1), math.sqrt(width * self.eps))

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Normalise each row."""
        if self._is_fused:
            return F.rms_norm(x_TD, self.weight.shape, self.weight, self.eps)
        length_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
        return x_TD / torch.hypot(length_T1, self._floor_11) * self._scale_D


class Attention(nn.Module):
    """Causal self-attention with rotary positions; keys and values live in the pool."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        q_width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self.qkv_proj = nn.Linear(config.width, q_width + 2 * kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, config.width, bias=False)

    def forward(
        self,
        x_TD: torch.Tensor,
        rotary_T21H: torch.Tensor,
        cache_positions_T: torch.Tensor,
        kv_2KPH: torch.Tensor,
        attention: AttentionBackend[AttentionLayout],
        layout: AttentionLayout,
    ) -> torch.Tensor:
        """Write the rows' keys and values to the pool, then attend; returns `[T, D]`."""
        num_heads, num_kv_heads = self.num_heads, self.num_kv_heads
        heads = self.qkv_proj(x_TD).view(-1, num_heads + 2 * num_kv_heads, self.head_dim)
        qk = heads[:, : num_heads + num_kv_heads]
        qk.copy_(rotate(qk, rotary_T21H))
        # Keys and values lie side by side: one write serves both.
        new_T2KH = heads[:, num_heads:].view(-1, 2, num_kv_heads, self.head_dim)
        new_2KTH = to_pool(new_T2KH.permute(1, 2, 0, 3), kv_2KPH.dtype)
        as_written(kv_2KPH).index_copy_(2, cache_positions_T, as_written(new_2KTH))
        out_TNH = attention.attend(heads[:, :num_heads], kv_2KPH, layout)
        projected: torch.Tensor = self.o_proj(out_TNH.flatten(1))
        return projected

    def destinations(self) -> dict[str, torch.Tensor]:
        """Where the tensors of a checkpoint go: views of the fused parameter."""
        kv_width = self.num_kv_heads * self.head_dim
        sizes = [self.num_heads * self.head_dim, kv_width, kv_width]
        q, k, v = torch.split(self.qkv_proj.weight.detach(), sizes)
        return {
            "q_proj.weight": q,
            "k_proj.weight": k,
            "v_proj.weight": v,
            "o_proj.weight": self.o_proj.weight.detach(),
        }


class GatedMlp(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))` (arXiv:2002.05202)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Row by row."""
        gate, up = self.gate_up_proj(x_TD).chunk(2, -1)
        out_TD: torch.Tensor = self.down_proj(_silu(gate) * up)
        return out_TD

    def destinations(self) -> dict[str, torch.Tensor]:
        """Where the tensors of a checkpoint go: views of the fused parameter."""
        gate, up = self.gate_up_proj.weight.detach().chunk(2)
        return {
            "gate_proj.weight": gate,
            "up_proj.weight": up,
            "down_proj.weight": self.down_proj.weight.detach(),
        }


def _silu(x: torch.Tensor) -> torch.Tensor:
    """`x * sigmoid(x)`. `F.silu` on a CPU computes what is left over of a thread's share by other
    means, with other last bits: a row's values would depend on how many rows the threads share."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.silu(x)
    return x / torch.exp(-x).add_(1.0)


class DecoderLayer(nn.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.width, eps=config.rms_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.width, eps=config.rms_eps)
        self.mlp = GatedMlp(config)

    def forward(
        self,
        x_TD: torch.Tensor,
        rotary_T21H: torch.Tensor,
        cache_positions_T: torch.Tensor,
        kv_2KPH: torch.Tensor,
        attention: AttentionBackend[AttentionLayout],
        layout: AttentionLayout,
    ) -> torch.Tensor:
        """One layer; `Attention.forward` says what it writes."""
        normed_TD = self.input_layernorm(x_TD)
        x_TD = x_TD + self.self_attn(
            normed_TD, rotary_T21H, cache_positions_T, kv_2KPH, attention, layout
        )
        out_TD: torch.Tensor = x_TD + self.mlp(self.post_attention_layernorm(x_TD))
        return out_TD

    def destinations(self) -> dict[str, torch.Tensor]:
        """Names of the transformers layout, relative to the layer."""
        norms = {
            "input_layernorm.weight": self.input_layernorm.weight.detach(),
            "post_attention_layernorm.weight": self.post_attention_layernorm.weight.detach(),
        }
        attention = {f"self_attn.{n}": t for n, t in self.self_attn.destinations().items()}
        mlp = {f"mlp.{n}": t for n, t in self.mlp.destinations().items()}
        return norms | attention | mlp


class Backbone(nn.Module):
    """All layers and the final norm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.width, eps=config.rms_eps)
        self.rotary_P21H = torch.empty(0)
        self.attention: AttentionBackend[Any] = choose_attention(PLAIN, head_dim=config.head_dim)
        self._native_layers: NativeLayers | None = None

    def build_tables(self, *, device: torch.device) -> None:
        """Compute what no checkpoint holds. Call once the parameters have their device."""
        config = self.config
        self.rotary_P21H = rotary_table(
            config.max_positions, config.head_dim, theta=config.rope_theta, device=device
        )
        for module in self.modules():
            if isinstance(module, RmsNorm):
                module.build_tables()

    def convert(self, formats: Formats) -> None:
        """Bring the linear layers into their format, and choose the fastest bodies for it. Call
        once, after the tables were built; the memory that `destinations` names is gone then."""
        if formats.weights is not None and not formats.by_torchao:
            convert_linears(self, format=formats.weights, native=formats.native)
        self.attention = choose_attention(formats, head_dim=self.config.head_dim)
        if formats.native is not None and formats.attention == "auto" and can_run(self):
            self._native_layers = NativeLayers(self, formats.native)

    def forward(self, x_TD: torch.Tensor, inputs: BatchInputs, kv: KvPool) -> torch.Tensor:
        """Hidden vectors after the final norm, `[T, D]`. Writes the pool at `cache_positions_T`;
        `x_TD` may serve as working space."""
        if self._native_layers is not None:
            return self._native_layers.forward(x_TD, inputs, kv)
        layout = self.attention.arrange(inputs.spans, device=x_TD.device)
        order_T = layout.order_T
        positions_T, cache_positions_T = inputs.positions_T, inputs.cache_positions_T
        if order_T is None:
            return self.run_layers(x_TD, positions_T, cache_positions_T, kv, layout)
        hidden_TD = self.run_layers(
            x_TD[order_T], positions_T[order_T], cache_positions_T[order_T], kv, layout
        )
        return torch.empty_like(hidden_TD).index_copy_(0, order_T, hidden_TD)

    def run_layers(
        self,
        x_TD: torch.Tensor,
        positions_T: torch.Tensor,
        cache_positions_T: torch.Tensor,
        kv: KvPool,
        layout: AttentionLayout,
    ) -> torch.Tensor:
        """`forward` for rows in the order of `layout`. Decides nothing on the host: what it does
        depends on shapes and on the layout alone, so that it can be captured."""
        rotary_T21H = self.rotary_P21H[positions_T]
        for layer, kv_2KPH in zip(self.layers, kv.layers, strict=True):
            x_TD = layer(x_TD, rotary_T21H, cache_positions_T, kv_2KPH, self.attention, layout)
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD

    def destinations(self) -> dict[str, torch.Tensor]:
        """Where the tensors of a checkpoint go, by their names in the transformers layout."""
        views = {"norm.weight": self.norm.weight.detach()}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            views |= {f"layers.{index}.{n}": t for n, t in layer.destinations().items()}
        return views
