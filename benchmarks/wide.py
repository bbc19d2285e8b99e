"""A checkpoint of random weights, large enough that reading it dominates a step.

Owns sizes only; tokenizer and preprocessing are those of the checkpoint it is modelled on. Speed
does not depend on what weights say, so random ones measure as well as trained ones.
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import JanusConfig, JanusForConditionalGeneration

NUM_LAYERS = 8
WIDTH = 1024
NUM_HEADS = 8
MLP_WIDTH = 2816
GRID = 12
CODEBOOK = 16384
"""Of Janus-Pro, so that sampling a code costs what it costs there."""


def write_wide_checkpoint(template: Path, directory: Path, *, seed: int = 0) -> None:
    """Write a random model of 8 layers and width 1024 in transformers layout to `directory`.

    Everything but config and weights is copied from `template`.
    """
    config = json.loads((template / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {
        "hidden_size": WIDTH,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "head_dim": WIDTH // NUM_HEADS,
        "intermediate_size": MLP_WIDTH,
    }
    image_px = GRID * config["vision_config"]["patch_size"]
    config["vision_config"] |= {
        "image_size": image_px,
        "num_image_tokens": GRID**2,
        "projection_dim": WIDTH,
    }
    config["vq_config"] |= {
        "num_embeddings": CODEBOOK,
        "projection_dim": WIDTH,
        "image_token_embed_dim": WIDTH,
        "num_patches": GRID,
    }
    torch.manual_seed(seed)
    model = JanusForConditionalGeneration(JanusConfig.from_dict(config))
    model.save_pretrained(directory)
    for path in template.glob("*.json"):
        if path.name != "config.json":
            shutil.copy(path, directory)
    size = {"image_size": image_px, "size": {"height": image_px, "width": image_px}}
    _change(directory / "preprocessor_config.json", size)
    _change(directory / "processor_config.json", {"num_image_tokens": GRID**2})


def _change(path: Path, changes: dict[str, object]) -> None:
    """Set entries of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
