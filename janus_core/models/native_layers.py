"""All layers of the backbone in one call of the C++ kernels.

Owns the description of the layers for the library; the modules of `backbone.py` stay the owners of
the weights, and their `forward`, layer by layer, is the slow twin. Invariant: a row's hidden vector
depends, bit by bit, on its own token and slot alone, however its sequence was cut into steps.

Shape suffixes: T packed tokens, D model width.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from janus_core.models.inputs import BatchInputs
from janus_core.models.kv_pool import KvPool
from janus_core.ops.linear import NativeLinear
from janus_core.ops.native import (
    MAX_HEAD_DIM,
    LayerStruct,
    LinearStruct,
    Native,
    StepStruct,
    pack_spans,
)

if TYPE_CHECKING:
    from janus_core.models.backbone import Backbone


class NativeLayers:
    """The layers of one backbone, whose linear layers are `NativeLinear`."""

    def __init__(self, backbone: "Backbone", native: Native) -> None:
        self._native = native
        self._config = backbone.config
        # The library reads these by address: they must not move while this object lives.
        self._backbone = backbone
        self._layers = (LayerStruct * len(backbone.layers))(*map(_describe, backbone.layers))

    def forward(self, x_TD: torch.Tensor, inputs: BatchInputs, kv: KvPool) -> torch.Tensor:
        """Hidden vectors after the final norm, `[T, D]`; uses `x_TD` as working space."""
        config, first_layer = self._config, kv.layers[0]
        hidden_TD = torch.empty_like(x_TD)
        spans = pack_spans(inputs.spans)
        step = StepStruct(
            x_TD=x_TD.data_ptr(),
            hidden_TD=hidden_TD.data_ptr(),
            layers=ctypes.addressof(self._layers),
            final_norm_D=self._backbone.norm.weight.data_ptr(),
            rotary_P2H=self._backbone.rotary_P21H.data_ptr(),
            positions_T=inputs.positions_T.data_ptr(),
            cache_positions_T=inputs.cache_positions_T.data_ptr(),
            spans=ctypes.addressof(spans),
            kv_L2KPH=first_layer.data_ptr(),
            num_tokens=len(x_TD),
            num_spans=len(inputs.spans),
            num_layers=len(self._layers),
            width=config.width,
            mlp_width=config.mlp_width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_positions=kv.num_positions,
            eps=config.rms_eps,
            is_half=first_layer.dtype == torch.float16,
        )
        self._native.step(step)
        return hidden_TD


def can_run(backbone: "Backbone") -> bool:
    """Whether the library has room for heads this wide, and all linear layers are its own."""
    linears = [getattr(part, name) for part, name in _linears(backbone.layers)]
    return backbone.config.head_dim <= MAX_HEAD_DIM and all(
        type(linear) is NativeLinear for linear in linears
    )


def _linears(layers: Sequence[torch.nn.Module] | torch.nn.ModuleList) -> list[tuple[object, str]]:
    return [
        (getattr(layer, part), name)
        for layer in layers
        for part, name in (
            ("self_attn", "qkv_proj"),
            ("self_attn", "o_proj"),
            ("mlp", "gate_up_proj"),
            ("mlp", "down_proj"),
        )
    ]


def _describe(layer: torch.nn.Module) -> LayerStruct:
    structs: list[LinearStruct] = [
        getattr(part, name).packed.struct for part, name in _linears([layer])
    ]
    norms = [
        getattr(layer, name).weight.data_ptr()
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    return LayerStruct(*norms, *structs)
