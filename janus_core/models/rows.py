"""The network for batches in which every token is a row of its own: what CUDA graphs capture.

Owns the order of operations of a step over rows, with the parameters of `JanusModel`; the
operations beside matrix products come from `DecodeOps`. Knows no slots and no requests. Invariant:
computes what `JanusModel` computes, up to rounding, and decides nothing on the host: what is
launched follows from shapes and from `Rows.reach` alone.

Shape suffixes: R rows, D model width, N query heads, H head width, I pictures.
"""

import torch

from janus_core.models.backbone import DecoderLayer
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.ops.cuda.decode_ops import DecodeOps, Draws, Rows


class RowsModel:
    """A view of a model and a pool; holds no weights of its own."""

    def __init__(self, model: JanusModel, kv: KvPool, *, ops: DecodeOps) -> None:
        self.config = model.config
        self.ops = ops
        self.embeddings = model.embeddings
        self._backbone = model.language_model
        self._head = model.generation_head
        self._kv = kv

    @torch.inference_mode()
    def hidden(self, x_RD: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Hidden vectors `[R, D]` after the final norm; uses `x_RD` as working space.

        Writes the keys and values of all rows, layer by layer, before any row of that layer reads:
        rows of one prompt see each other as far as their contexts say.
        """
        ops, delta_RD = self.ops, None
        for layer, kv_2KPH in zip(self._backbone.layers, self._kv.layers, strict=True):
            assert isinstance(layer, DecoderLayer)
            attention, mlp = layer.self_attn, layer.mlp
            first, second = layer.input_layernorm, layer.post_attention_layernorm
            normed_RD = ops.add_rms_norm(x_RD, delta_RD, first.weight, eps=first.eps)
            heads_RE = attention.qkv_proj(normed_RD)
            q_RNH = ops.rotate_and_store(heads_RE, self._backbone.rotary_P21H, rows, kv_2KPH)
            delta_RD = attention.o_proj(ops.attend(q_RNH, kv_2KPH, rows).flatten(1))
            normed_RD = ops.add_rms_norm(x_RD, delta_RD, second.weight, eps=second.eps)
            delta_RD = mlp.down_proj(ops.silu_multiply(mlp.gate_up_proj(normed_RD)))
        norm = self._backbone.norm
        return ops.add_rms_norm(x_RD, delta_RD, norm.weight, eps=norm.eps)

    @torch.inference_mode()
    def draw(self, hidden_RD: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int64 `[I]` of pictures without filters and penalties, and whether their logits
        were finite; guided before the last layer, as `GenerationHead.guided` does it."""
        rows = torch.cat((draws.cond_rows_I, draws.uncond_rows_I))
        inner = self._head.proj_out(hidden_RD.index_select(0, rows))
        mixed_IM = self.ops.gelu_and_guide(inner, draws.guidance_I)
        return self.ops.draw(self._head.vision_head(mixed_IM), draws)
