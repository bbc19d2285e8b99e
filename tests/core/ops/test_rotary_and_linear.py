"""Rotary positions and packed linear layers against their plain definitions."""

import pytest
import torch
from torch import nn

from janus_core.ops.linear import can_pack, pack_linears
from janus_core.ops.rotary import rotary_table, rotate

CPU = torch.device("cpu")


def test_rotation_is_a_complex_product() -> None:
    """Pair (x[i], x[i + H/2]) turns by position * theta^(-2i/H)."""
    table = rotary_table(17000, 8, theta=10000.0, device=CPU)
    positions = torch.tensor([0, 1, 5, 16383])
    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turns = torch.polar(
        torch.ones(4, 4, dtype=torch.float64), positions[:, None].double() * frequencies
    )
    turned = torch.complex(x[..., :4].double(), x[..., 4:].double()) * turns[:, None]
    expected = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(rotate(x, table[positions]).double(), expected, atol=1e-6, rtol=1e-5)


def test_rotation_keeps_the_dtype() -> None:
    table = rotary_table(4, 8, theta=10000.0, device=CPU)
    assert rotate(torch.randn(4, 1, 8, dtype=torch.bfloat16), table).dtype == torch.bfloat16


@pytest.mark.skipif(not can_pack(device=CPU, dtype=torch.float32), reason="no oneDNN operators")
@pytest.mark.parametrize(
    # The widths of the models that are served: oneDNN takes other ways for large ones.
    ("width", "bias"),
    [
        (44, True),
        (44, False),
        (256, False),
        (704, False),
        (2048, True),
        (4096, False),
        (5632, True),
    ],
)
def test_packed_layers_compute_the_same_and_rows_do_not_mix(width: int, bias: bool) -> None:
    plain = nn.Linear(width, 70, bias=bias).requires_grad_(False)
    packed = nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(width, 70, bias=bias)])})
    packed["inner"][0].load_state_dict(plain.state_dict())
    packed.requires_grad_(False)
    pack_linears(packed)
    layer = packed["inner"][0]
    assert not isinstance(layer, nn.Linear)
    x = torch.randn(40, width)
    together = layer(x)
    torch.testing.assert_close(together, plain(x), atol=1e-5, rtol=1e-5)
    for num_rows in (0, 1, 2, 3, 17):
        assert torch.equal(layer(x[-num_rows:] if num_rows else x[:0]), together[40 - num_rows :])
    assert layer(x.view(5, 8, width)).shape == (5, 8, 70)
    assert layer(x[0]).shape == (70,)


def test_only_fp32_on_a_cpu_is_packed() -> None:
    assert not can_pack(device=CPU, dtype=torch.bfloat16)
    assert not can_pack(device=torch.device("cuda"), dtype=torch.float32)
