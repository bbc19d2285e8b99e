"""The operations of a step as Triton kernels.

Owns grids, block sizes and the memory between two kernels; the kernels know no tensors. Importing
this imports triton: do it on CUDA only. Invariant: no call waits for the device, and block sizes
follow from widths alone, never from the number of rows, so that a row's result does not depend on
its neighbours.

Shape suffixes as in `decode_ops.py`; S splits, B tiles.
"""

import math

import torch
import triton

from janus_core.ops.cuda import kernels
from janus_core.ops.cuda.decode_ops import SPLIT, Draws, Rows
from janus_core.ops.sampling import GREEDY_BELOW

ATTENTION_TILE = 64
"""Positions a program reads at once: with a head width of 128, 32 KiB of keys and values in bf16.
Fixed for the same reason as `SPLIT`. Chosen, not measured."""

INNER_BLOCK = 1024
"""Columns of one program of the element-wise kernels. Chosen, not measured."""

CODE_BLOCK = 1024
"""Codes of one program: 16 programs a picture for Janus' 16,384. Chosen, not measured."""


class TritonOps:
    """On CUDA, or on a CPU under Triton's interpreter."""

    name = "triton"

    def add_rms_norm(
        self,
        x_RD: torch.Tensor,
        delta_RD: torch.Tensor | None,
        weight_D: torch.Tensor,
        *,
        eps: float,
    ) -> torch.Tensor:
        num_rows, width = x_RD.shape
        assert x_RD.is_contiguous(), "rows lie one after the other"
        out_RD = torch.empty_like(x_RD)
        kernels.add_rms_norm[(num_rows,)](
            x_RD,
            x_RD if delta_RD is None else delta_RD,
            weight_D,
            out_RD,
            eps,
            D=width,
            BLOCK_D=triton.next_power_of_2(width),
            HAS_DELTA=delta_RD is not None,
        )
        return out_RD

    def rotate_and_store(
        self,
        heads_RE: torch.Tensor,
        rotary_P21H: torch.Tensor,
        rows: Rows,
        kv_2KPH: torch.Tensor,
    ) -> torch.Tensor:
        _, num_kv_heads, num_positions, head_dim = kv_2KPH.shape
        assert heads_RE.is_contiguous(), "heads lie one after the other"
        assert kv_2KPH.is_contiguous(), "keys and values lie one after the other"
        num_rows, width = heads_RE.shape
        num_heads = width // head_dim - 2 * num_kv_heads
        q_RNH = heads_RE.new_empty(num_rows, num_heads, head_dim)
        kernels.rotate_and_store[(num_rows, num_heads + 2 * num_kv_heads)](
            heads_RE,
            rotary_P21H,
            rows.positions_R,
            rows.cache_positions_R,
            q_RNH,
            kv_2KPH,
            num_positions * head_dim,
            # Saturated where the pool's dtype holds less than the model's.
            math.inf if kv_2KPH.dtype == heads_RE.dtype else torch.finfo(kv_2KPH.dtype).max,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            H=head_dim,
            BLOCK_H=triton.next_power_of_2(head_dim),
        )
        return q_RNH

    def attend(self, q_RNH: torch.Tensor, kv_2KPH: torch.Tensor, rows: Rows) -> torch.Tensor:
        num_rows, num_heads, head_dim = q_RNH.shape
        _, num_kv_heads, num_positions, _ = kv_2KPH.shape
        num_splits = math.ceil(rows.reach / SPLIT)
        # Splits beyond a row's context stay unwritten and are never read.
        sums_RNSH = q_RNH.new_empty(num_rows, num_heads, num_splits, head_dim, dtype=torch.float32)
        peaks_RNS, totals_RNS = sums_RNSH.new_empty(2, num_rows, num_heads, num_splits)
        out_RNH = torch.empty_like(q_RNH)
        head_stride, block = num_positions * head_dim, triton.next_power_of_2(head_dim)
        kernels.attend_split[(num_rows, num_heads, num_splits)](
            q_RNH,
            kv_2KPH,
            rows.slot_starts_R,
            rows.contexts_R,
            sums_RNSH,
            peaks_RNS,
            totals_RNS,
            num_heads * head_dim,
            head_stride,
            num_kv_heads * head_stride,
            # The kernels take powers of two, which the hardware has, instead of e.
            head_dim**-0.5 * math.log2(math.e),
            H=head_dim,
            BLOCK_H=block,
            GROUP=num_heads // num_kv_heads,
            SPLIT=SPLIT,
            TILE=ATTENTION_TILE,
        )
        kernels.merge_splits[(num_rows, num_heads)](
            sums_RNSH,
            peaks_RNS,
            totals_RNS,
            rows.contexts_R,
            out_RNH,
            num_splits,
            H=head_dim,
            BLOCK_H=block,
            SPLIT=SPLIT,
        )
        return out_RNH

    def silu_multiply(self, gate_up_RM: torch.Tensor) -> torch.Tensor:
        num_rows, width = gate_up_RM.shape
        assert gate_up_RM.is_contiguous(), "rows lie one after the other"
        out_RM = gate_up_RM.new_empty(num_rows, width // 2)
        kernels.silu_multiply[(num_rows, triton.cdiv(width // 2, INNER_BLOCK))](
            gate_up_RM, out_RM, M=width // 2, BLOCK_M=INNER_BLOCK
        )
        return out_RM

    def gelu_and_guide(self, inner_RM: torch.Tensor, guidance_I: torch.Tensor) -> torch.Tensor:
        num_pictures, width = len(guidance_I), inner_RM.shape[1]
        assert inner_RM.is_contiguous(), "rows lie one after the other"
        assert len(inner_RM) == 2 * num_pictures, "two vectors a picture"
        out_IM = inner_RM.new_empty(num_pictures, width)
        kernels.gelu_and_guide[(num_pictures, triton.cdiv(width, INNER_BLOCK))](
            inner_RM, guidance_I, out_IM, num_pictures, M=width, BLOCK_M=INNER_BLOCK
        )
        return out_IM

    def draw(self, logits_IC: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        num_pictures, num_codes = logits_IC.shape
        assert logits_IC.is_contiguous(), "rows lie one after the other"
        num_tiles = triton.cdiv(num_codes, CODE_BLOCK)
        scores_IB = logits_IC.new_empty(num_pictures, num_tiles, dtype=torch.float32)
        codes_IB = torch.empty_like(scores_IB, dtype=torch.int32)
        finite_IB = torch.empty_like(scores_IB, dtype=torch.bool)
        kernels.draw_tile[(num_pictures, num_tiles)](
            logits_IC,
            draws.seeds_I,
            draws.places_I,
            draws.temperatures_I,
            scores_IB,
            codes_IB,
            finite_IB,
            num_codes,
            GREEDY_BELOW,
            BLOCK_V=CODE_BLOCK,
        )
        codes_I = torch.empty_like(draws.places_I)
        finite_I = torch.empty_like(codes_I, dtype=torch.bool)
        kernels.merge_tiles[(num_pictures,)](
            scores_IB,
            codes_IB,
            finite_IB,
            codes_I,
            finite_I,
            num_tiles,
            BLOCK=triton.next_power_of_2(num_tiles),
        )
        return codes_I, finite_I

    def noise(
        self, seeds_R: torch.Tensor, places_R: torch.Tensor, *, num_tokens: int
    ) -> torch.Tensor:
        """What `draw` adds, fp32 `[R, num_tokens]`: the numbers of `gumbel_noise`."""
        out_RV = torch.empty(len(seeds_R), num_tokens, dtype=torch.float32, device=seeds_R.device)
        kernels.write_noise[(len(seeds_R), triton.cdiv(num_tokens, CODE_BLOCK))](
            seeds_R, places_R, out_RV, num_tokens, BLOCK_V=CODE_BLOCK
        )
        return out_RV
