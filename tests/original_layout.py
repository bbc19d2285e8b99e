"""The original checkpoint layout (`deepseek-ai/*`), written down by hand for tests.

Owns its names and shapes as deepseek's modules have them, and a writer that turns a checkpoint of
the transformers layout into it. Shares nothing with `janus_core/checkpoint/layouts.py`, which it
checks.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from janus_core.config import ModelConfig, VisionConfig, VqConfig, read_config

Shapes = dict[str, tuple[int, ...]]


def original_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of such a checkpoint, dropped ones included, with its shape."""
    width, vision, vq = config.backbone.width, config.vision, config.vq
    shapes = {
        "gen_embed.weight": (vq.codebook_size, vq.code_dim),
        **_linear("gen_head.output_mlp_projector", width, vq.head_width),
        **_linear("gen_head.vision_head", vq.head_width, vq.codebook_size),
        **_aligner("aligner", vision.width, width, vision.aligner_depth),
        **_aligner("gen_aligner", vq.code_dim, width, vq.aligner_depth),
    }
    return shapes | _llama(config) | _siglip(vision) | _vq(vq)


def _linear(name: str, width_in: int, width_out: int) -> Shapes:
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, channels_in: int, channels_out: int, kernel: int) -> Shapes:
    return {
        f"{name}.weight": (channels_out, channels_in, kernel, kernel),
        f"{name}.bias": (channels_out,),
    }


def _aligner(name: str, width_in: int, width: int, depth: int) -> Shapes:
    shapes = _linear(f"{name}.layers.0", width_in, width)
    for index in range(1, depth):
        shapes |= _linear(f"{name}.layers.{2 * index}", width, width)
    return shapes


def _llama(config: ModelConfig) -> Shapes:
    backbone = config.backbone
    width, mlp = backbone.width, backbone.mlp_width
    q_width = backbone.num_heads * backbone.head_dim
    kv_width = backbone.num_kv_heads * backbone.head_dim
    shapes: Shapes = {
        "language_model.lm_head.weight": (backbone.vocab_size, width),
        "language_model.model.embed_tokens.weight": (backbone.vocab_size, width),
        "language_model.model.norm.weight": (width,),
    }
    layer = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (q_width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, q_width),
        "mlp.gate_proj": (mlp, width),
        "mlp.up_proj": (mlp, width),
        "mlp.down_proj": (width, mlp),
    }
    for index in range(backbone.num_layers):
        prefix = f"language_model.model.layers.{index}."
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in layer.items()}
    return shapes


def _siglip(vision: VisionConfig) -> Shapes:
    width, mlp = vision.width, int(vision.width * vision.mlp_ratio)
    prefix = "vision_model.vision_tower."
    shapes = {
        f"{prefix}pos_embed": (1, vision.num_image_tokens, width),
        **_conv(f"{prefix}patch_embed.proj", 3, width, vision.patch_size),
        **_norm(f"{prefix}norm", width),
        # Never used by Janus.
        f"{prefix}attn_pool.latent": (1, 1, width),
        **_linear(f"{prefix}attn_pool.q", width, width),
        **_linear(f"{prefix}attn_pool.kv", width, 2 * width),
        **_linear(f"{prefix}attn_pool.proj", width, width),
        **_norm(f"{prefix}attn_pool.norm", width),
        **_linear(f"{prefix}attn_pool.mlp.fc1", width, mlp),
        **_linear(f"{prefix}attn_pool.mlp.fc2", mlp, width),
    }
    for index in range(vision.num_layers):
        block = f"{prefix}blocks.{index}."
        shapes |= _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width)
        shapes |= _linear(f"{block}attn.qkv", width, 3 * width)
        shapes |= _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.fc1", width, mlp) | _linear(f"{block}mlp.fc2", mlp, width)
    return shapes


def _vq(vq: VqConfig) -> Shapes:
    prefix = "gen_vision_model."
    shapes = {
        f"{prefix}quantize.embedding.weight": (vq.codebook_size, vq.code_dim),
        f"{prefix}quantize.codebook_used": (65536,),
        **_conv(f"{prefix}quant_conv", vq.latent_channels, vq.code_dim, 1),
        **_conv(f"{prefix}post_quant_conv", vq.code_dim, vq.latent_channels, 1),
    }
    levels = [vq.base_channels * factor for factor in vq.channel_multiplier]
    last = len(levels) - 1
    encoder, decoder = f"{prefix}encoder.", f"{prefix}decoder."
    shapes |= _conv(f"{encoder}conv_in", 3, vq.base_channels, 3)
    channels = vq.base_channels
    for index, width in enumerate(levels):
        level = f"{encoder}conv_blocks.{index}."
        shapes |= _level(level, channels, width, vq.num_res_blocks, attends=index == last)
        if index != last:
            shapes |= _conv(f"{level}downsample.conv", width, width, 3)
        channels = width
    shapes |= _middle(encoder, channels) | _norm(f"{encoder}norm_out", channels)
    shapes |= _conv(f"{encoder}conv_out", channels, vq.latent_channels, 3)
    shapes |= _conv(f"{decoder}conv_in", vq.latent_channels, channels, 3)
    shapes |= _middle(decoder, channels)
    for index, width in enumerate(reversed(levels)):
        level = f"{decoder}conv_blocks.{index}."
        shapes |= _level(level, channels, width, vq.num_res_blocks + 1, attends=index == 0)
        if index != last:
            shapes |= _conv(f"{level}upsample.conv", width, width, 3)
        channels = width
    return (
        shapes | _norm(f"{decoder}norm_out", channels) | _conv(f"{decoder}conv_out", channels, 3, 3)
    )


def _level(prefix: str, channels: int, width: int, num_blocks: int, *, attends: bool) -> Shapes:
    shapes: Shapes = {}
    for index in range(num_blocks):
        shapes |= _residual(f"{prefix}res.{index}.", channels if index == 0 else width, width)
        if attends:
            shapes |= _vq_attention(f"{prefix}attn.{index}.", width)
    return shapes


def _middle(prefix: str, width: int) -> Shapes:
    return (
        _residual(f"{prefix}mid.0.", width, width)
        | _vq_attention(f"{prefix}mid.1.", width)
        | _residual(f"{prefix}mid.2.", width, width)
    )


def _residual(prefix: str, channels: int, width: int) -> Shapes:
    shapes = _norm(f"{prefix}norm1", channels) | _conv(f"{prefix}conv1", channels, width, 3)
    shapes |= _norm(f"{prefix}norm2", width) | _conv(f"{prefix}conv2", width, width, 3)
    return (
        shapes if channels == width else shapes | _conv(f"{prefix}nin_shortcut", channels, width, 1)
    )


def _vq_attention(prefix: str, width: int) -> Shapes:
    shapes = _norm(f"{prefix}norm", width)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{prefix}{name}", width, width, 1)
    return shapes


def save_original(
    source: Path, directory: Path, *, num_shards: int = 1, binary: bool = False
) -> Path:
    """Write the checkpoint at `source` (transformers layout) to `directory` in the original."""
    directory.mkdir(parents=True, exist_ok=True)
    config = read_config(source)
    (directory / "config.json").write_text(json.dumps(original_config(config), indent=2))
    state = original_state(load_file(source / "model.safetensors"), config)
    stem, suffix = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    names = [f"{stem}.{suffix}"]
    if num_shards > 1:
        names = [f"{stem}-{i + 1:05}-of-{num_shards:05}.{suffix}" for i in range(num_shards)]
        weight_map = {key: names[i % num_shards] for i, key in enumerate(sorted(state))}
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for position, name in enumerate(names):
        shard = {key: state[key] for key in sorted(state)[position::num_shards]}
        if binary:
            torch.save(shard, directory / name)
        else:
            save_file(shard, directory / name, metadata={"format": "pt"})
    return directory


def original_config(config: ModelConfig) -> dict:
    """`config.json` of the original layout, sizes that `VQ-16` and SigLIP-L fix included."""
    backbone, vision, vq = config.backbone, config.vision, config.vq

    def aligner(depth: int, width_in: int) -> dict:
        params = {"depth": depth, "input_dim": width_in, "n_embed": backbone.width}
        return {"cls": "MlpProjector", "params": params | {"projector_type": "mlp_gelu"}}

    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "aligner_config": aligner(vision.aligner_depth, vision.width),
        "gen_aligner_config": aligner(vq.aligner_depth, vq.code_dim),
        "gen_head_config": {
            "cls": "vision_head",
            "params": {
                "image_token_embed": vq.head_width,
                "image_token_size": vq.codebook_size,
                "n_embed": backbone.width,
            },
        },
        "gen_vision_config": {
            "cls": "VQ-16",
            "params": {
                "image_token_size": vq.codebook_size,
                "n_embed": vq.code_dim,
                "ch": vq.base_channels,
                "encoder_ch_mult": list(vq.channel_multiplier),
                "decoder_ch_mult": list(vq.channel_multiplier),
                "num_res_blocks": vq.num_res_blocks,
                "z_channels": vq.latent_channels,
            },
        },
        "vision_config": {
            "cls": "CLIPVisionTower",
            "params": {
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.width,
                "layers": vision.num_layers,
                "heads": vision.num_heads,
                "mlp_ratio": vision.mlp_ratio,
            },
        },
        "language_config": {
            "model_type": "llama",
            "hidden_size": backbone.width,
            "intermediate_size": backbone.mlp_width,
            "num_hidden_layers": backbone.num_layers,
            "num_attention_heads": backbone.num_heads,
            "num_key_value_heads": backbone.num_kv_heads,
            "head_dim": backbone.head_dim,
            "vocab_size": backbone.vocab_size,
            "max_position_embeddings": backbone.max_positions,
            "torch_dtype": "bfloat16",
        },
    }


def original_state(state: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Tensors under their original names; dropped ones are filled with numbers that would show."""
    renamed = dict(_renamed(state, config.vision.num_layers))
    for name, shape in original_shapes(config).items():
        if name.endswith("codebook_used") or ".attn_pool." in name:
            renamed[name] = torch.full(shape, 1e6)
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _renamed(state: dict[str, torch.Tensor], num_blocks: int) -> Iterator[tuple[str, torch.Tensor]]:
    tower = "vision_model.vision_tower."
    for name, tensor in state.items():
        if ".vision_model.encoder.layers." in name and "self_attn." in name:
            continue
        if name.endswith("position_embedding.weight"):
            yield f"{tower}pos_embed", tensor[None]
            continue
        for old, new in (
            ("model.vision_model.embeddings.patch_embedding.", f"{tower}patch_embed.proj."),
            ("model.vision_model.encoder.layers.", f"{tower}blocks."),
            ("model.vision_model.post_layernorm.", f"{tower}norm."),
            (".layer_norm", ".norm"),
            ("model.aligner.fc1.", "aligner.layers.0."),
            ("model.aligner.hidden_layers.0.", "aligner.layers.2."),
            ("model.aligner.hidden_layers.1.", "aligner.layers.4."),
            ("model.generation_aligner.fc1.", "gen_aligner.layers.0."),
            ("model.generation_aligner.hidden_layers.0.", "gen_aligner.layers.2."),
            ("model.generation_aligner.hidden_layers.1.", "gen_aligner.layers.4."),
            ("model.generation_embeddings.", "gen_embed."),
            ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
            ("model.generation_head.vision_head.", "gen_head.vision_head."),
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vqmodel.", "gen_vision_model."),
            (".down.", ".conv_blocks."),
            (".up.", ".conv_blocks."),
            (".block.", ".res."),
            (".mid.block_1.", ".mid.0."),
            (".mid.attn_1.", ".mid.1."),
            (".mid.block_2.", ".mid.2."),
        ):
            name = name.replace(old, new)
        yield name, tensor
    for index in range(num_blocks):
        source = f"model.vision_model.encoder.layers.{index}.self_attn."
        for part in ("weight", "bias"):
            qkv = [state[f"{source}{letter}_proj.{part}"] for letter in "qkv"]
            yield f"{tower}blocks.{index}.attn.qkv.{part}", torch.cat(qkv)
            projection = state[f"{source}projection_layer.{part}"]
            yield f"{tower}blocks.{index}.attn.proj.{part}", projection
