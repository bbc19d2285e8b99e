"""Tiny checkpoints with random weights, in the transformers layout, written by transformers.

Owns their shapes and the spread of their weights: large enough that the best logit leads clearly,
so that greedy decoding is the same on every machine. The oracle is `JanusForConditionalGeneration`,
loaded from the very same files.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import nn

# U+FF5C is a full-width bar, U+2581 the underscore of SentencePiece.
BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
PAD = "<\uff5c\u2581pad\u2581\uff5c>"
BEGIN_OF_IMAGE, END_OF_IMAGE = "<begin_of_image>", "<end_of_image>"
IMAGE_PLACEHOLDER = "<image_placeholder>"
# Names and order of Janus-Pro-1B.
SPECIAL_TOKENS = (
    BOS,
    EOS,
    PAD,
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    IMAGE_PLACEHOLDER,
    "<patch_placeholder>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<|User|>",
    "<|Assistant|>",
)
NUM_BASE_TOKENS = 300
VOCAB_SIZE = 320  # more rows than the tokenizer has ids, as in every Janus

CORPUS = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.",
    "a large red circle to the left of a small blue square on a white background",
    "What is in the picture? Which color is the star? How many shapes are there?",
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a random model; the defaults make the `tiny_checkpoint` fixture."""

    width: int = 48
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 12
    mlp_width: int = 96
    vision_width: int = 32
    vision_layers: int = 2
    patch_size: int = 8
    image_size: int = 32
    aligner_depth: int = 2
    codebook_size: int = 96
    code_dim: int = 4
    channel_multiplier: tuple[int, ...] = (1, 1, 1)
    max_positions: int = 1024
    seed: int = 0


SHAPES = {
    "default": TinyShape(),
    "grouped heads": TinyShape(
        width=48, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=10, mlp_width=80, seed=1
    ),
    "one kv head, deep": TinyShape(
        width=32, num_layers=7, num_heads=4, num_kv_heads=1, head_dim=16, mlp_width=44, seed=2
    ),
    "odd sizes": TinyShape(
        width=36, num_heads=3, num_kv_heads=3, head_dim=14, mlp_width=50, vision_layers=3,
        patch_size=6, image_size=18, aligner_depth=3, codebook_size=51, code_dim=3,
        channel_multiplier=(1, 2), seed=3,
    ),
}  # fmt: skip
"""Models unlike each other in whatever the network could get wrong."""


def save_tiny_checkpoint(directory: Path, shape: TinyShape | None = None) -> Path:
    """Write all files of a checkpoint to `directory` and return it."""
    shape = shape or TinyShape()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    build_reference(shape, tokenizer).save_pretrained(directory)
    _save_tokenizer(directory, tokenizer)
    num_image_tokens = (shape.image_size // shape.patch_size) ** 2
    _save_json(
        directory / "generation_config.json",
        {
            "bos_token_id": tokenizer.token_to_id(BOS),
            "eos_token_id": tokenizer.token_to_id(EOS),
            "pad_token_id": tokenizer.token_to_id(PAD),
            "guidance_scale": 5,
            "generation_kwargs": {"boi_token_id": tokenizer.token_to_id(BEGIN_OF_IMAGE)},
        },
    )
    _save_json(
        directory / "preprocessor_config.json",
        {
            "background_color": [127, 127, 127],
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "JanusImageProcessor",
            "image_size": shape.image_size,
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 2,
            "processor_class": "JanusProcessor",
            "rescale_factor": 1 / 255,
            "size": {"height": shape.image_size, "width": shape.image_size},
        },
    )
    _save_json(
        directory / "processor_config.json",
        {
            "num_image_tokens": num_image_tokens,
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": True,
        },
    )
    return directory


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE whose `encode` puts BOS in front, as Janus's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BASE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    return tokenizer


def build_reference(shape: TinyShape, tokenizer: Tokenizer) -> nn.Module:
    """transformers' model of that shape with random weights."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    config = JanusConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": shape.width,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "intermediate_size": shape.mlp_width,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": shape.max_positions,
            "rms_norm_eps": 1e-6,
            "bos_token_id": tokenizer.token_to_id(BOS),
            "eos_token_id": tokenizer.token_to_id(EOS),
            "pad_token_id": tokenizer.token_to_id(PAD),
            "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": shape.vision_width,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": 4,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "mlp_ratio": 2.0,
            "projection_dim": shape.width,
            "depth": shape.aligner_depth,
            "num_image_tokens": (shape.image_size // shape.patch_size) ** 2,
        },
        vq_config={
            "num_embeddings": shape.codebook_size,
            "embed_dim": shape.code_dim,
            "base_channels": 32,
            "latent_channels": 32,
            "channel_multiplier": list(shape.channel_multiplier),
            "num_res_blocks": 1,
            "projection_dim": shape.width,
            "image_token_embed_dim": shape.width,
            "num_hidden_layers": shape.aligner_depth,
        },
        image_token_id=tokenizer.token_to_id(IMAGE_PLACEHOLDER),
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config).eval()
    _randomise(model, shape.seed)
    return model


@torch.no_grad()
def _randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter values of its own, so that no two could be exchanged unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            is_scale = name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_scale else 0.1 * noise)
        elif "embed" in name and "patch" not in name:
            parameter.copy_(noise)
        else:
            fan_in = parameter.numel() // parameter.shape[0]
            parameter.copy_(_gain(name) * noise / fan_in**0.5)


def _gain(name: str) -> float:
    """Attention is far from uniform, logits lie some units apart, and pixels stay mostly within
    [-1, 1], where a difference shows."""
    if "vqmodel" in name:
        return 0.8 if "decoder.conv_out" in name else 1.0
    return {"lm_head.weight": 3.0}.get(name, 1.7)


def _save_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    others = [token for token in SPECIAL_TOKENS if token not in (BOS, EOS, PAD)]
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    _save_json(directory / "special_tokens_map.json", names | {"additional_special_tokens": others})
    images = {
        "image_token": IMAGE_PLACEHOLDER,
        "boi_token": BEGIN_OF_IMAGE,
        "eoi_token": END_OF_IMAGE,
    }
    _save_json(
        directory / "tokenizer_config.json",
        names
        | images
        | {
            "extra_special_tokens": images,
            "additional_special_tokens": others,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
            "processor_class": "JanusProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _save_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
