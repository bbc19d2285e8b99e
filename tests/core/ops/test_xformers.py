"""xformers' masks over slots. Its kernels need a GPU: here the mask is written out for SDPA."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("xformers", reason="xformers is not installed: it needs a torch with CUDA.")

from janus_core.models.inputs import Span
from janus_core.ops.attention.sdpa import SdpaAttention
from janus_core.ops.attention.xformers import XformersAttention

SPANS = (Span(0, 1, 96, 20), Span(1, 5, 0, 9), Span(6, 1, 64, 1), Span(7, 3, 32, 3))


def _written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_bias: object
) -> torch.Tensor:
    """`[1, T, ..., H]` as xformers has them: grouped heads in a dimension of their own."""
    mask_TP = attn_bias.materialize((query.shape[1], key.shape[1]))
    q, k, v = (heads.flatten(2, -2).transpose(1, 2) for heads in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TP)
    return out.transpose(1, 2).reshape(query.shape)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_equals_sdpa(num_kv_heads: int) -> None:
    device = torch.device("cpu")
    heads_TEH = torch.randn(10, 4 + 2 * num_kv_heads, 8, generator=torch.Generator().manual_seed(1))
    kv_2KPH = torch.randn(2, num_kv_heads, 160, 8, generator=torch.Generator().manual_seed(2))
    mine, twin = XformersAttention(_written_out), SdpaAttention()
    # A part of the product that has keys and values too, as in the backbone.
    q_TNH = heads_TEH[:, :4]
    out_TNH = mine.attend(q_TNH, kv_2KPH, mine.arrange(SPANS, device=device))
    layout = twin.arrange(SPANS, device=device)
    expected_TNH = torch.empty_like(out_TNH)
    expected_TNH[layout.order_T] = twin.attend(q_TNH[layout.order_T], kv_2KPH, layout)
    torch.testing.assert_close(out_TNH, expected_TNH)
