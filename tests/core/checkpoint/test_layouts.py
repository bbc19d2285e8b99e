"""Both layouts end in the same network; every tensor of Janus-Pro has its place."""

import math
from pathlib import Path

import pytest
import torch

from janus_core.checkpoint.layouts import translate
from janus_core.checkpoint.loader import match_tensors, read_weights
from janus_core.config import (
    BackboneConfig,
    ModelConfig,
    VisionConfig,
    VqConfig,
    read_config,
)
from janus_core.models.janus import JanusModel
from tests.original_layout import original_shapes, save_original
from tests.tiny import TinyShape, save_tiny_checkpoint

CPU = torch.device("cpu")

SIGLIP_LARGE = VisionConfig(
    image_size=384, patch_size=16, width=1024, num_layers=24, num_heads=16, mlp_ratio=4.0
)


def _janus_pro(width: int, num_layers: int, num_heads: int, mlp_width: int) -> ModelConfig:
    backbone = BackboneConfig(
        width=width, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_heads,
        head_dim=128, mlp_width=mlp_width, vocab_size=102400, max_positions=16384,
    )  # fmt: skip
    vq = VqConfig(
        codebook_size=16384, code_dim=8, base_channels=128, channel_multiplier=(1, 1, 2, 2, 4),
        num_res_blocks=2, latent_channels=256, grid=24, head_width=width,
    )  # fmt: skip
    return ModelConfig(backbone=backbone, vision=SIGLIP_LARGE, vq=vq)


JANUS_PRO_1B = _janus_pro(2048, 24, 16, 5632)
JANUS_PRO_7B = _janus_pro(4096, 30, 32, 11008)


@pytest.mark.parametrize(
    ("config", "num_tensors", "num_parameters"),
    [(JANUS_PRO_1B, 882, 2_089_232_011), (JANUS_PRO_7B, 882 + 6 * 9, 7_420_368_523)],
    ids=["1B", "7B"],
)
def test_every_tensor_of_janus_pro_has_its_place(
    config: ModelConfig, num_tensors: int, num_parameters: int
) -> None:
    stored = original_shapes(config)
    assert len(stored) == num_tensors

    model = JanusModel.skeleton(config, device=torch.device("meta"), dtype=torch.bfloat16)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.destinations()}
    translations = match_tensors("original", stored, wanted)

    dropped = [name for name, translation in translations.items() if not translation.targets]
    assert len(dropped) == 14
    assert len(translations) == num_tensors
    # The published counts include the attention pool, but not the statistic `codebook_used`.
    numbers = {name: math.prod(shape) for name, shape in stored.items()}
    unused = sum(numbers[name] for name in dropped)
    assert sum(numbers.values()) - 65536 == num_parameters
    assert sum(math.prod(shape) for shape in wanted.values()) == sum(numbers.values()) - unused


def test_reference_counts_of_the_parts() -> None:
    """The parts of Janus-Pro-1B, each computed from its modules' shapes."""
    sizes: dict[str, int] = {}
    for name, shape in original_shapes(JANUS_PRO_1B).items():
        part = "attn_pool" if "attn_pool" in name else name.partition(".")[0]
        if not name.endswith("codebook_used"):
            sizes[part] = sizes.get(part, 0) + math.prod(shape)
    assert sizes == {
        "language_model": 1_652_656_128,
        "vision_model": 303_688_704,
        "attn_pool": 12_595_200,
        "aligner": 6_295_552,
        "gen_embed": 131_072,
        "gen_aligner": 4_214_784,
        "gen_head": 37_767_168,
        "gen_vision_model": 71_883_403,
    }


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyShape(
        width=36, num_heads=3, num_kv_heads=3, head_dim=14, mlp_width=50, vision_layers=3,
        aligner_depth=3, channel_multiplier=(1, 2), seed=5,
    )  # fmt: skip
    return save_tiny_checkpoint(tmp_path_factory.mktemp("odd"), shape)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_the_original_layout_loads_to_identical_tensors(
    odd_checkpoint: Path, tmp_path: Path, num_shards: int, binary: bool
) -> None:
    original = save_original(odd_checkpoint, tmp_path, num_shards=num_shards, binary=binary)
    assert read_config(original) == read_config(odd_checkpoint)

    expected = dict(read_weights(odd_checkpoint, device=CPU, dtype=torch.float32).destinations())
    loaded = dict(read_weights(original, device=CPU, dtype=torch.float32).destinations())
    assert loaded.keys() == expected.keys()
    different = [name for name, tensor in loaded.items() if not torch.equal(tensor, expected[name])]
    assert different == []


def test_the_hand_written_list_is_what_the_writer_writes(
    odd_checkpoint: Path, tmp_path: Path
) -> None:
    from janus_core.checkpoint.files import stored_shapes

    original = save_original(odd_checkpoint, tmp_path)
    assert stored_shapes(original / "model.safetensors") == original_shapes(read_config(original))


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("aligner.layers.4.bias", ("model.aligner.hidden_layers.1.bias",)),
        ("language_model.model.layers.3.self_attn.rotary_emb.inv_freq", ()),
        ("vision_model.vision_tower.attn_pool.mlp.fc1.weight", ()),
    ],
)
def test_names(name: str, targets: tuple[str, ...]) -> None:
    translation = translate("original", name)
    assert translation is not None
    assert translation.targets == targets


@pytest.mark.parametrize("name", ["aligner.layers.1.weight", "vision_gen_enc_model.x", "gen_embed"])
def test_unknown_names_stay_unknown(name: str) -> None:
    assert translate("original", name) is None
