"""`config.json` of both layouts, and of models that only look like Janus."""

import json
from pathlib import Path

import pytest

from janus_core.config import read_config, read_layout
from janus_core.errors import CheckpointError
from tests.original_layout import original_config


def _write(directory: Path, config: object) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


# As published: everything that is not here is a default of LlamaConfig.
JANUS_PRO_7B = {
    "model_type": "multi_modality",
    "architectures": ["MultiModalityCausalLM"],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "vision_config": {
        "cls": "CLIPVisionTower",
        "model_type": "vision",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
    "aligner_config": {
        "cls": "MlpProjector",
        "model_type": "aligner",
        "params": {"depth": 2, "input_dim": 1024, "n_embed": 4096, "projector_type": "mlp_gelu"},
    },
    "gen_vision_config": {
        "cls": "VQ-16",
        "model_type": "gen_vision",
        "params": {"image_token_size": 16384, "n_embed": 8},
    },
    "gen_aligner_config": {
        "cls": "MlpProjector",
        "model_type": "gen_aligner",
        "params": {"depth": 2, "input_dim": 8, "n_embed": 4096, "projector_type": "mlp_gelu"},
    },
    "gen_head_config": {
        "cls": "vision_head",
        "model_type": "gen_head",
        "params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096},
    },
    "language_config": {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 30,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
}


def test_janus_pro_7b_leaves_sizes_to_the_defaults_of_llama(tmp_path: Path) -> None:
    config = read_config(_write(tmp_path, JANUS_PRO_7B))
    backbone = config.backbone
    assert (backbone.width, backbone.num_layers, backbone.num_heads) == (4096, 30, 32)
    assert (backbone.num_kv_heads, backbone.head_dim, backbone.mlp_width) == (32, 128, 11008)
    assert (backbone.rms_eps, backbone.rope_theta, backbone.max_positions) == (1e-6, 1e4, 16384)
    assert config.vision.num_image_tokens == 576
    assert (config.vq.num_codes, config.vq.image_size) == (576, 384)
    assert config.num_ids == 102400 + 16384
    assert read_layout(tmp_path) == "original"


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    """A file that says nothing means what transformers' classes mean."""
    from transformers import JanusConfig

    reference = JanusConfig(text_config={"model_type": "llama", "hidden_size": 2048})
    config = read_config(
        _write(
            tmp_path,
            {
                "model_type": "janus",
                "text_config": {"hidden_size": 2048},
                "vision_config": {},
                "vq_config": {},
            },
        )
    )
    text, vision, vq = reference.text_config, reference.vision_config, reference.vq_config
    backbone = config.backbone
    assert backbone.num_layers == text.num_hidden_layers
    assert backbone.num_kv_heads == text.num_key_value_heads
    assert backbone.head_dim == text.head_dim
    assert backbone.mlp_width == text.intermediate_size
    assert backbone.max_positions == text.max_position_embeddings
    assert backbone.rope_theta == text.rope_parameters["rope_theta"]
    assert backbone.tied_head == reference.tie_word_embeddings
    assert config.vision.width == vision.hidden_size
    assert config.vision.num_layers == vision.num_hidden_layers
    assert config.vision.aligner_depth == vision.depth
    assert config.vision.num_image_tokens == vision.num_image_tokens
    assert config.vq.codebook_size == vq.num_embeddings
    assert config.vq.channel_multiplier == tuple(vq.channel_multiplier)
    assert config.vq.latent_channels == vq.latent_channels
    assert config.vq.grid == vq.num_patches


def test_both_layouts_say_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = read_config(tiny_checkpoint)
    assert read_config(_write(tmp_path, original_config(config))) == config


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("JanusFlow", {"model_type": "multi_modality", "vision_gen_enc_config": {}}),
        ("DeepSeek-VL", {"model_type": "multi_modality", "vision_config": {}}),
        ("'llama'", {"model_type": "llama"}),
        ("None", {}),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, name: str, config: dict) -> None:
    with pytest.raises(CheckpointError, match=name):
        read_config(_write(tmp_path, config))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("language_config.rope_scaling", {"type": "linear", "factor": 2}),
        ("language_config.attention_bias", True),
        ("language_config.hidden_act", "gelu"),
        ("language_config.num_hidden_layers", -1),
        ("language_config.num_hidden_layers", True),
        ("language_config.rms_norm_eps", "1e-6"),
        ("vision_config.params.pixel_mean", [0.5, 0.5, 0.5]),
        ("vision_config.params.select_layer", -2),
        ("vision_config.params.model_name", "siglip_so400m_patch14_384"),
        ("aligner_config.params.projector_type", "linear"),
        ("aligner_config.params.n_embed", 2048),
        ("gen_head_config.params.image_token_size", 8192),
        ("gen_vision_config.params.encoder_ch_mult", [1, 0]),
    ],
)
def test_variants_the_network_does_not_have_are_refused_by_field(
    tmp_path: Path, path: str, value: object
) -> None:
    config = json.loads(json.dumps(JANUS_PRO_7B))
    *parents, field = path.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[field] = value
    with pytest.raises(CheckpointError, match=path.replace(".", r"\.")):
        read_config(_write(tmp_path, config))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_attention_heads", 24), ("num_key_value_heads", 5), ("head_dim", 7)],
)
def test_sizes_that_contradict_each_other_are_refused(
    tmp_path: Path, field: str, value: int
) -> None:
    config = json.loads(json.dumps(JANUS_PRO_7B))
    config["language_config"] |= {field: value}
    if field == "num_attention_heads":
        config["language_config"]["num_key_value_heads"] = 7
    with pytest.raises(CheckpointError, match="inconsistent"):
        read_config(_write(tmp_path, config))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "janus"}', "\x00"])
def test_malformed_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_config(tmp_path)
