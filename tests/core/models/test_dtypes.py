"""Half precision follows fp32 closely, and the parts that need fp32 keep it."""

from pathlib import Path

import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.models.janus import JanusModel, vq_dtype
from tests.core.models.driving import Driver, Line

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOKENS = list(range(30, 60))


def _logits(model: JanusModel) -> tuple[torch.Tensor, torch.Tensor]:
    side = model.config.vision.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (image,) = model.encode_images(pixels)
    (hidden,) = Driver(model).run([(Line(0), TOKENS)], [(4, image)])
    guidance = torch.full((15,), 2.0)
    return model.text_logits(hidden), model.guided_code_logits(hidden[:15], hidden[15:], guidance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_single(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    exact = load_model(tiny_checkpoint, device=CPU, dtype=torch.float32)
    half = load_model(tiny_checkpoint, device=CPU, dtype=dtype)
    assert half.dtype == dtype
    for close, logits in zip(_logits(half), _logits(exact), strict=True):
        assert close.dtype == torch.float32
        similarity = torch.nn.functional.cosine_similarity(close, logits, dim=-1)
        assert similarity.min() > 0.99


def test_pictures_do_not_depend_on_the_dtype_of_the_backbone(tiny_checkpoint: Path) -> None:
    codes = torch.arange(16)[None]
    exact = load_model(tiny_checkpoint, device=CPU, dtype=torch.float32).decode_codes(codes)
    half = load_model(tiny_checkpoint, device=CPU, dtype=torch.bfloat16).decode_codes(codes)
    assert torch.equal(half, exact)


def test_the_vq_autoencoder_never_runs_in_fp16() -> None:
    assert vq_dtype(CUDA, torch.bfloat16) == torch.bfloat16
    assert vq_dtype(CUDA, torch.float16) == torch.float32
    assert vq_dtype(CPU, torch.bfloat16) == torch.float32


def test_a_code_embeds_as_its_aligner_says(tiny_checkpoint: Path) -> None:
    from transformers import JanusForConditionalGeneration

    reference = JanusForConditionalGeneration.from_pretrained(tiny_checkpoint)
    model = load_model(tiny_checkpoint, device=CPU, dtype=torch.float32)
    codes = torch.arange(model.config.vq.codebook_size)
    with torch.no_grad():
        expected = reference.prepare_embeddings_for_image_generation(codes)
    table = model.embeddings[model.config.backbone.vocab_size :]
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=1e-5)
