"""The shape of janus-mini: one function that returns its transformers configuration.

Owns every size of the network. Knows nothing of weights or training. Invariant: all modules built
by the recipe come from this configuration, so that the stages' weights fit together.
"""

from __future__ import annotations

from typing import Any

from transformers import JanusConfig

IMAGE_PX = 64
PATCH_PX = 8
NUM_CODES = (IMAGE_PX // PATCH_PX) ** 2
CODEBOOK_SIZE = 1024
WIDTH = 256


def janus_config(ids: dict[str, int], vocab_size: int) -> JanusConfig:
    """Return the configuration for a tokenizer whose special tokens have the given `ids` (see
    `tokenizer`)."""
    text: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
    }
    vision: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_PX,
        "patch_size": PATCH_PX,
        "mlp_ratio": 3.0,
        "projection_dim": WIDTH,
        "num_image_tokens": NUM_CODES,
        "depth": 2,
    }
    codes: dict[str, Any] = {
        "embed_dim": 8,
        "num_embeddings": CODEBOOK_SIZE,
        "latent_channels": 64,
        # 32 groups are fixed in the modules: 64 channels are the fewest that are not instance norm.
        "base_channels": 64,
        "channel_multiplier": [1, 1, 1, 2],
        "num_res_blocks": 1,
        "projection_dim": WIDTH,
        "image_token_embed_dim": WIDTH,
        "num_patches": IMAGE_PX // PATCH_PX,
    }
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=codes,
        image_token_id=ids["image_placeholder"],
        tie_word_embeddings=False,
    )
