"""The layers of the backbone, where they are more than a chain of torch's functions."""

import pytest
import torch

from janus_core.config import BackboneConfig
from janus_core.models.backbone import GatedMlp
from janus_core.ops.linear import can_pack, pack_linears

CPU = torch.device("cpu")
CONFIG = BackboneConfig(
    width=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32, mlp_width=5632,
    vocab_size=8, max_positions=8,
)  # fmt: skip


@pytest.mark.skipif(not can_pack(device=CPU, dtype=torch.float32), reason="no oneDNN operators")
@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_rows_of_the_mlp_do_not_mix_whatever_the_number_of_threads(num_threads: int) -> None:
    """Threads share a large batch amidst a row."""
    torch.manual_seed(0)
    mlp = GatedMlp(CONFIG).requires_grad_(False)
    pack_linears(mlp)
    x_TD, before = torch.randn(40, CONFIG.width) * 8, torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        alone = torch.cat([mlp(row_D[None]) for row_D in x_TD])
        for num_rows in (2, 16, 17, 23, 33, 40):
            assert torch.equal(mlp(x_TD[:num_rows]), alone[:num_rows]), f"{num_rows} rows"
    finally:
        torch.set_num_threads(before)


def test_the_gate_is_silu() -> None:
    mlp = GatedMlp(CONFIG).requires_grad_(False)
    x_TD = torch.randn(3, CONFIG.width) * 300
    gate, up = mlp.gate_up_proj(x_TD).chunk(2, -1)
    assert gate.min() < -90, "where its exponential is infinite"
    expected = mlp.down_proj(torch.nn.functional.silu(gate) * up)
    torch.testing.assert_close(mlp(x_TD), expected)
