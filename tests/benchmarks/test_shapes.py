"""Random checkpoints: they load everywhere, and short ones share their weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks.floor import StepShape, step_bytes
from benchmarks.inputs import InputBuilder
from benchmarks.llama_files import interleaved, reader
from benchmarks.shapes import BODY, SHAPES, Shape, write
from benchmarks.workloads import FORTY_WORDS, pictures
from janus_core.checkpoint import load_model
from janus_core.config import BackboneConfig, ModelConfig, VisionConfig, VqConfig

SMALL = Shape(
    width=32, num_layers=2, num_heads=2, mlp_width=48, vocab_size=900, vision_width=32,
    vision_layers=1, vision_heads=4, patch_size=8, codebook_size=64, vq_channels=32, vq_latents=32,
    vq_multiplier=(1, 1), vq_blocks=1, grid=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    write(SMALL, directory)
    return directory


def test_a_random_checkpoint_is_complete(small: Path) -> None:
    model = load_model(small, device=torch.device("cpu"), dtype=torch.float32)
    assert model.config.vq.num_codes == 36
    assert model.config.backbone.width == 32
    assert InputBuilder(small).picture(pictures(1)[0]).token_ids


def test_a_short_one_shares_the_file_of_the_weights(small: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    write(replace(SMALL, grid=4), short, body=small)
    assert (short / BODY).resolve() == (small / BODY).resolve()
    model = load_model(short, device=torch.device("cpu"), dtype=torch.float32)
    assert model.config.vq.num_codes == model.config.vision.num_image_tokens == 16


def test_the_true_shapes_are_true() -> None:
    """Every size, by the weights a step reads: 1.271 G at Janus-Pro-1B (layers, norms and the
    generation head: 1,233,223,680 + 2,048 + 37,767,168)."""
    shape = SHAPES["1b"]
    config = _config(shape)
    values = step_bytes(config, StepShape(0, 2, 0), weight_bytes=1, kv_bytes=0)
    assert values == 1_233_223_680 + 2_048 + 37_767_168
    # 2 * 2048 * 24 values for each position of each row.
    more = step_bytes(config, StepShape(0, 2, 10), weight_bytes=1, kv_bytes=2) - values
    assert more == 2 * 10 * (2 * 2048 * 24) * 2


def test_the_long_questions_have_forty_words() -> None:
    assert [len(text.split()) for text in FORTY_WORDS] == [40, 40]


def test_a_lengthened_prompt_keeps_its_ends(small: Path) -> None:
    picture = InputBuilder(small).picture(pictures(1)[0])
    longer = picture.lengthened(100)
    for short, long in (
        (picture.token_ids, longer.token_ids),
        (picture.uncond_token_ids, longer.uncond_token_ids),
    ):
        assert len(long) == 100
        assert long[: len(short) - 1] == short[:-1]
        assert long[-1] == short[-1]
    assert picture.lengthened(3) == picture


def test_tensors_are_read_as_safetensors_reads_them(small: Path) -> None:
    read = reader(small)
    index = json.loads((small / "model.safetensors.index.json").read_text())["weight_map"]
    for name in list(index)[:: len(index) // 7]:
        with safe_open(small / index[name], framework="pt") as handle:
            expected = handle.get_tensor(name).float().numpy()
        assert np.array_equal(read(name), expected), name


def test_interleaved_projections_give_the_same_scores() -> None:
    """Queries and keys turned by halves, as transformers does it, and by neighbours, as llama.cpp
    does it with the permuted rows: the products agree."""
    rng = np.random.default_rng(0)
    num_heads, width, positions = 3, 8, (5, 11)
    weights = [rng.standard_normal((num_heads * width, 16)) for _ in range(2)]
    inputs = [rng.standard_normal(16) for _ in range(2)]
    angles = [position / 10 ** (np.arange(width // 2)) for position in positions]

    def turned(vector: np.ndarray, angle: np.ndarray, *, first, second) -> np.ndarray:
        heads = vector.reshape(num_heads, width).copy()
        a, b = heads[:, first].copy(), heads[:, second].copy()
        heads[:, first] = a * np.cos(angle) - b * np.sin(angle)
        heads[:, second] = b * np.cos(angle) + a * np.sin(angle)
        return heads

    halves = {"first": slice(0, width // 2), "second": slice(width // 2, None)}
    neighbours = {"first": slice(0, None, 2), "second": slice(1, None, 2)}
    q, k = (turned(w @ x, a, **halves) for w, x, a in zip(weights, inputs, angles, strict=True))
    q2, k2 = (
        turned(interleaved(w, num_heads) @ x, a, **neighbours)
        for w, x, a in zip(weights, inputs, angles, strict=True)
    )
    assert np.allclose((q * k).sum(axis=1), (q2 * k2).sum(axis=1))


def _config(shape: Shape) -> ModelConfig:
    return ModelConfig(
        backbone=BackboneConfig(
            width=shape.width, num_layers=shape.num_layers, num_heads=shape.num_heads,
            num_kv_heads=shape.num_heads, head_dim=shape.width // shape.num_heads,
            mlp_width=shape.mlp_width, vocab_size=shape.vocab_size, max_positions=4096,
        ),
        vision=VisionConfig(
            image_size=384, patch_size=16, width=1024, num_layers=24, num_heads=16, mlp_ratio=4.0
        ),
        vq=VqConfig(
            codebook_size=shape.codebook_size, code_dim=8, base_channels=128,
            channel_multiplier=shape.vq_multiplier, num_res_blocks=2, latent_channels=256, grid=24,
            head_width=shape.width,
        ),
    )  # fmt: skip
