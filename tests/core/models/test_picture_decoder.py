"""The hastened VQ decoder draws the same pictures, and only the decoder is touched."""

from pathlib import Path

import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.models.janus import JanusModel
from janus_core.models.picture_decoder import (
    cpu_capabilities,
    decode_latents,
    fast_decoder_dtype,
    hasten_decoder,
)

CPU = torch.device("cpu")


def _codes(model: JanusModel) -> torch.Tensor:
    vq = model.config.vq
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vq.codebook_size, (2, vq.num_codes), generator=generator)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1), (torch.bfloat16, 12)], ids=["fp32", "bf16"]
)
def test_levels_hardly_change(mini_checkpoint: Path, dtype: torch.dtype, most: int) -> None:
    model = load_model(mini_checkpoint, device=CPU, dtype=torch.float32)
    codes = _codes(model)
    exact = model.decode_codes(codes).int()
    hasten_decoder(model.vqmodel, dtype=dtype)
    hastened = model.decode_codes(codes)
    difference = (hastened.int() - exact).abs()
    assert hastened.dtype == torch.uint8
    assert difference.max() <= most
    assert difference.float().mean() < most / 12


def test_the_encoder_stays_exact(mini_checkpoint: Path) -> None:
    model = load_model(mini_checkpoint, device=CPU, dtype=torch.float32)
    side = model.config.vq.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = model.encode_codes(pixels)
    hasten_decoder(model.vqmodel, dtype=torch.bfloat16)
    assert torch.equal(model.encode_codes(pixels), codes)
    assert model.vqmodel.encoder.conv_in.weight.dtype == torch.float32


def test_pixels_are_fp32_whatever_the_decoder_computes_in(mini_checkpoint: Path) -> None:
    model = load_model(mini_checkpoint, device=CPU, dtype=torch.float32)
    hasten_decoder(model.vqmodel, dtype=torch.bfloat16)
    grid, width = model.config.vq.grid, model.config.vq.code_dim
    with torch.inference_mode():
        pixels = decode_latents(model.vqmodel, torch.zeros(1, width, grid, grid))
    assert pixels.dtype == torch.float32
    assert pixels.shape[1:] == (3, model.config.vq.image_size, model.config.vq.image_size)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_bf16_only_where_the_processor_has_it(
    capabilities: dict[str, object], dtype: torch.dtype
) -> None:
    assert fast_decoder_dtype(capabilities) == dtype


def test_this_cpu_can_be_asked() -> None:
    assert isinstance(cpu_capabilities().get("avx512_bf16", False), bool)
