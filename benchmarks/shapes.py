"""Checkpoints of random weights in the shapes a measurement needs, in transformers layout.

Owns sizes and the files; tokenizer and preprocessing are those of the checkpoint it is modelled on.
Speed does not depend on what weights say, so random ones measure as well as trained ones.
Invariant: shapes that differ in the size of their pictures only share the file of all other
weights, so a picture of few codes costs by the step exactly what a whole one does.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import JanusConfig, JanusForConditionalGeneration

EMBEDDED = Path(__file__).parents[1] / "weights" / "janus-mini"
DEFAULT_FOLDER = Path(__file__).parents[1] / "build" / "benchmarks"
"""Where checkpoints are kept between runs: 4.2 GB for the true shapes."""

BODY, PLACES = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PLACES_NAME = "model.vision_model.embeddings.position_embedding.weight"
"""The only tensor whose shape follows from the size of a picture."""

SPREAD = 0.02
"""Standard deviation of the weights, transformers' `initializer_range`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a random model; `grid` rows and columns of codes, as many patches of an image.

    The defaults are Janus-Pro-1B's (its `config.json`).
    """

    width: int = 2048
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 5632
    vocab_size: int = 102400
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    patch_size: int = 16
    codebook_size: int = 16384
    vq_channels: int = 128
    vq_latents: int = 256
    vq_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    vq_blocks: int = 2
    grid: int = 24


_WIDE = {
    "width": 1024,
    "num_layers": 8,
    "num_heads": 8,
    "mlp_width": 2816,
    "vocab_size": 896,
    "vision_width": 256,
    "vision_layers": 4,
    "vision_heads": 4,
    "patch_size": 8,
    "vq_channels": 64,
    "vq_latents": 64,
    "vq_multiplier": (1, 1, 1, 2),
    "vq_blocks": 1,
}
SHORT = "-short"
"""Ends the name of a shape whose pictures are few codes of the same cost."""

SHAPES = {
    "1b": Shape(),
    "1b" + SHORT: Shape(grid=6),
    "wide": Shape(**_WIDE, grid=12),  # type: ignore[arg-type]
    "wide" + SHORT: Shape(**_WIDE, grid=6),  # type: ignore[arg-type]
}
"""Whose pictures are short has the weights of the shape without that ending."""


def checkpoint(name: str, folder: Path = DEFAULT_FOLDER) -> Path:
    """The directory of a shape, of `mini` (the embedded checkpoint), or of a path; random weights
    are written once."""
    if name == "mini":
        return EMBEDDED
    if name not in SHAPES:
        return Path(name)
    directory = folder / name
    if not (directory / "model.safetensors.index.json").is_file():
        body = checkpoint(name.removesuffix(SHORT), folder) if name.endswith(SHORT) else None
        write(SHAPES[name], directory, body=body)
    return directory


def write(
    shape: Shape, directory: Path, *, template: Path = EMBEDDED, body: Path | None = None
) -> None:
    """Write a random model to `directory`, everything but config and weights from `template`;
    weights other than those of `PLACES_NAME` are linked from the directory `body`, if given."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in template.glob("*.json"):
        shutil.copy(path, directory)
    config = _config(shape, json.loads((template / "config.json").read_text(encoding="utf-8")))
    _save(directory / "config.json", config)
    side_px = shape.grid * shape.patch_size
    size = {"image_size": side_px, "size": {"height": side_px, "width": side_px}}
    _change(directory / "preprocessor_config.json", size)
    _change(directory / "processor_config.json", {"num_image_tokens": shape.grid**2})
    with torch.device("meta"):
        model = JanusForConditionalGeneration(JanusConfig.from_dict(config))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    places = _random(PLACES_NAME, shapes.pop(PLACES_NAME), seed=1)
    save_file({PLACES_NAME: places}, directory / PLACES, metadata={"format": "pt"})
    if body is None:
        tensors = {
            name: _random(name, each, seed=i) for i, (name, each) in enumerate(shapes.items())
        }
        save_file(tensors, directory / BODY, metadata={"format": "pt"})
    elif not (directory / BODY).exists():
        (directory / BODY).symlink_to((body / BODY).resolve())
    # The index last: a directory with an index is complete.
    places_of = dict.fromkeys(shapes, BODY) | {PLACES_NAME: PLACES}
    _save(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": places_of})


def _random(name: str, shape: torch.Size, *, seed: int) -> torch.Tensor:
    """bf16; vectors are ones for scales and zeros for biases, so that nothing overflows."""
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.bfloat16)
    values = torch.empty(shape, dtype=torch.float32)
    values.normal_(0.0, SPREAD, generator=torch.Generator().manual_seed(seed))
    return values.to(torch.bfloat16)


def _config(shape: Shape, config: dict) -> dict:
    side_px, num_patches = shape.grid * shape.patch_size, shape.grid**2
    config["dtype"] = "bfloat16"
    config["text_config"] |= {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads,
        "head_dim": shape.width // shape.num_heads,
        "intermediate_size": shape.mlp_width,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 4096,
    }
    config["vision_config"] |= {
        "hidden_size": shape.vision_width,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "mlp_ratio": 4.0,
        "patch_size": shape.patch_size,
        "image_size": side_px,
        "num_image_tokens": num_patches,
        "projection_dim": shape.width,
    }
    config["vq_config"] |= {
        "num_embeddings": shape.codebook_size,
        "base_channels": shape.vq_channels,
        "latent_channels": shape.vq_latents,
        "channel_multiplier": list(shape.vq_multiplier),
        "num_res_blocks": shape.vq_blocks,
        "projection_dim": shape.width,
        "image_token_embed_dim": shape.width,
        "num_patches": shape.grid,
    }
    return config


def _change(path: Path, changes: dict) -> None:
    """Set entries of a JSON file."""
    _save(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _save(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
