"""Models of random weights in the memory of a device, and batches over them, for checks on a GPU.

Owns sizes and construction; no checkpoint is read, so that a machine with nothing but this tree can
run them. Speed does not depend on what weights say.
"""

import torch

from janus_core.config import BackboneConfig, ModelConfig, VisionConfig, VqConfig
from janus_core.models.inputs import BatchInputs, Span
from janus_core.models.janus import JanusModel
from janus_core.ops.formats import PLAIN, Formats

SPREAD = 0.02
"""Standard deviation of the weights, transformers' `initializer_range`."""

SLOT = 704
"""Positions of a slot: a prompt of 128 tokens and Janus-Pro's 576 codes."""


def _janus_pro(*, width: int, num_layers: int, num_heads: int, mlp_width: int) -> ModelConfig:
    """What the two sizes of Janus-Pro share, from their `config.json`."""
    return ModelConfig(
        backbone=BackboneConfig(
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=128,
            mlp_width=mlp_width,
            vocab_size=102400,
            max_positions=4096,
        ),
        vision=VisionConfig(
            image_size=384, patch_size=16, width=1024, num_layers=24, num_heads=16, mlp_ratio=4.0
        ),
        vq=VqConfig(
            codebook_size=16384,
            code_dim=8,
            base_channels=128,
            channel_multiplier=(1, 1, 2, 2, 4),
            num_res_blocks=2,
            latent_channels=256,
            grid=24,
            head_width=width,
        ),
    )


CONFIGS = {
    "1b": _janus_pro(width=2048, num_layers=24, num_heads=16, mlp_width=5632),
    "7b": _janus_pro(width=4096, num_layers=30, num_heads=32, mlp_width=11008),
    # Its own width of a head and number of layers, for correctness in fp32.
    "short": _janus_pro(width=2048, num_layers=2, num_heads=16, mlp_width=5632),
    "tiny": ModelConfig(
        backbone=BackboneConfig(
            width=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            head_dim=16,
            mlp_width=64,
            vocab_size=320,
            max_positions=1024,
        ),
        vision=VisionConfig(
            image_size=32, patch_size=8, width=32, num_layers=1, num_heads=2, mlp_ratio=2.0
        ),
        vq=VqConfig(
            codebook_size=96,
            code_dim=4,
            base_channels=32,
            channel_multiplier=(1, 1),
            num_res_blocks=1,
            latent_channels=32,
            grid=4,
            head_width=32,
        ),
    ),
}


@torch.inference_mode()
def random_model(
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    formats: Formats = PLAIN,
) -> JanusModel:
    """Normal weights; ones for scales of norms and zeros for biases, so that nothing overflows."""
    model = JanusModel.skeleton(config, device=device, dtype=dtype)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(float(name.endswith("weight")))
        else:
            parameter.normal_(0.0, SPREAD, generator=generator)
    model.finish_loading(formats)
    return model


def batch(
    chunks: list[tuple[int, int, int]], *, vocab_size: int, device: torch.device
) -> BatchInputs:
    """Chunks of (slot, tokens computed before, tokens now); index tensors on `device`."""
    spans: list[Span] = []
    positions: list[int] = []
    cache: list[int] = []
    for slot, before, num_tokens in chunks:
        start = slot * SLOT
        spans.append(Span(len(positions), num_tokens, start, before + num_tokens))
        positions += range(before, before + num_tokens)
        cache += range(start + before, start + before + num_tokens)
    ids = [(7 * place + 5) % vocab_size for place in cache]
    token_ids, places, cached = (
        torch.tensor(values, device=device) for values in (ids, positions, cache)
    )
    return BatchInputs(token_ids, places, cached, tuple(spans))
