"""The operations of a step in plain torch: what the kernels must compute, on any device.

Owns the twins that tests and `make gpu-check` compare the kernels with; no serving path runs them.
Invariant: rounds to the model's dtype exactly where the backbone's own forward does.

Shape suffixes as in `decode_ops.py`; L context of a row.
"""

import torch
import torch.nn.functional as F

from janus_core.models.kv_pool import as_written, to_pool
from janus_core.ops.cuda.decode_ops import Draws, Rows
from janus_core.ops.rotary import rotate
from janus_core.ops.sampling import GREEDY_BELOW, gumbel_noise


class EagerOps:
    """Row by row where that is the obvious way."""

    name = "eager"

    def add_rms_norm(
        self,
        x_RD: torch.Tensor,
        delta_RD: torch.Tensor | None,
        weight_D: torch.Tensor,
        *,
        eps: float,
    ) -> torch.Tensor:
        if delta_RD is not None:
            x_RD += delta_RD
        return F.rms_norm(x_RD, weight_D.shape, weight_D, eps)

    def rotate_and_store(
        self,
        heads_RE: torch.Tensor,
        rotary_P21H: torch.Tensor,
        rows: Rows,
        kv_2KPH: torch.Tensor,
    ) -> torch.Tensor:
        _, num_kv_heads, _, head_dim = kv_2KPH.shape
        heads = heads_RE.view(len(heads_RE), -1, head_dim)
        num_rotated = heads.shape[1] - num_kv_heads
        rotated = rotate(heads[:, :num_rotated], rotary_P21H[rows.positions_R])
        keys_RKH, values_RKH = rotated[:, -num_kv_heads:], heads[:, num_rotated:]
        written_2KPH = as_written(kv_2KPH)
        for index, heads_RKH in enumerate((keys_RKH, values_RKH)):
            new_KRH = to_pool(heads_RKH.transpose(0, 1), kv_2KPH.dtype)
            written_2KPH[index, :, rows.cache_positions_R] = as_written(new_KRH)
        return rotated[:, :-num_kv_heads].contiguous()

    def attend(self, q_RNH: torch.Tensor, kv_2KPH: torch.Tensor, rows: Rows) -> torch.Tensor:
        outputs = []
        starts, contexts = rows.slot_starts_R.tolist(), rows.contexts_R.tolist()
        for q_NH, start, context in zip(q_RNH, starts, contexts, strict=True):
            keys_KLH, values_KLH = kv_2KPH[:, :, start : start + context].to(q_NH.dtype)
            out_NQH = F.scaled_dot_product_attention(
                q_NH[:, None], keys_KLH, values_KLH, enable_gqa=len(q_NH) != len(keys_KLH)
            )
            outputs.append(out_NQH[:, 0])
        return torch.stack(outputs)

    def silu_multiply(self, gate_up_RM: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up_RM.chunk(2, -1)
        return F.silu(gate) * up

    def gelu_and_guide(self, inner_RM: torch.Tensor, guidance_I: torch.Tensor) -> torch.Tensor:
        cond_IM, uncond_IM = F.gelu(inner_RM).float().chunk(2)
        mixed_IM = uncond_IM + guidance_I[:, None] * (cond_IM - uncond_IM)
        return mixed_IM.to(inner_RM.dtype)

    def draw(self, logits_IC: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        logits_IC = logits_IC.float()
        finite_I = logits_IC.isfinite().all(dim=-1)
        scores_IC = self.scores(logits_IC, draws)
        return scores_IC.nan_to_num(nan=-torch.inf).argmax(dim=-1), finite_I

    def scores(self, logits_IC: torch.Tensor, draws: Draws) -> torch.Tensor:
        """What the code that is drawn has most of: fp32 `logits_IC` at each picture's temperature,
        and its noise unless it is greedy."""
        noise_IC = self.noise(draws, num_tokens=logits_IC.shape[1])
        is_drawn_I1 = draws.temperatures_I[:, None] >= GREEDY_BELOW
        scaled_IC = logits_IC / draws.temperatures_I[:, None].where(is_drawn_I1, 1.0)
        return scaled_IC + noise_IC * is_drawn_I1

    def noise(self, draws: Draws, *, num_tokens: int) -> torch.Tensor:
        """Standard Gumbel noise fp32 `[I, num_tokens]` of each picture's seed and place."""
        return gumbel_noise(
            [seed % 2**64 for seed in draws.seeds_I.tolist()],
            draws.places_I.tolist(),
            num_tokens=num_tokens,
            device=draws.seeds_I.device,
        )
