"""What is wrong with a checkpoint is said at once, in one line, by name."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_core.checkpoint import load_model
from janus_core.errors import CheckpointError
from tests.original_layout import save_original

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def _edit_weights(checkpoint: Path, change: Callable[[State], object]) -> None:
    state = load_file(checkpoint / "model.safetensors")
    change(state)
    save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})


def _edit_config(checkpoint: Path, change: Callable[[dict], object]) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _refusal(checkpoint: Path, dtype: torch.dtype = torch.float32) -> str:
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint, device=CPU, dtype=dtype)
    assert time.monotonic() - started < 10
    message = caught.value.message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_missing_tensors_are_named(checkpoint: Path) -> None:
    _edit_weights(checkpoint, lambda state: [state.pop(n) for n in list(state) if "up_proj" in n])
    message = _refusal(checkpoint)
    assert "2 missing" in message
    assert "model.language_model.layers.0.mlp.up_proj.weight" in message


def test_surplus_tensors_are_named(checkpoint: Path) -> None:
    _edit_weights(checkpoint, lambda state: state.update({"model.adapter.weight": torch.ones(2)}))
    assert "1 not expected (model.adapter.weight)" in _refusal(checkpoint)


def test_misshapen_tensors_are_named_with_both_shapes(checkpoint: Path) -> None:
    name = "model.language_model.layers.1.self_attn.k_proj.weight"
    _edit_weights(checkpoint, lambda state: state.update({name: torch.ones(4, 48)}))
    message = _refusal(checkpoint)
    assert name in message
    assert "[4, 48]" in message
    assert "[48, 48]" in message


def test_transposed_shapes_of_equal_size_are_not_taken(checkpoint: Path) -> None:
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    _edit_weights(checkpoint, lambda state: state.update({name: state[name].t().contiguous()}))
    assert f"1 of the wrong shape ({name}" in _refusal(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(checkpoint: Path, value: float) -> None:
    name = "model.vision_model.encoder.layers.1.mlp.fc2.bias"
    _edit_weights(checkpoint, lambda state: state[name][-1:].fill_(value))
    message = _refusal(checkpoint)
    assert name in message
    assert "NaN" in message


def test_numbers_beyond_the_dtype_are_refused(checkpoint: Path) -> None:
    _edit_weights(checkpoint, lambda state: state["lm_head.weight"][0, :1].fill_(1e6))
    load_model(checkpoint, device=CPU, dtype=torch.float32)
    assert "float16" in _refusal(checkpoint, torch.float16)


@pytest.mark.parametrize("keep", [0, 7, 2000, -1000])
def test_a_truncated_safetensors_file_is_named(checkpoint: Path, keep: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = _refusal(checkpoint)
    assert str(file) in message
    assert "Download it again" in message


@pytest.mark.parametrize("keep", [0, 2000, -1000])
def test_a_truncated_bin_file_is_named(checkpoint: Path, tmp_path: Path, keep: int) -> None:
    original = save_original(checkpoint, tmp_path / "original", binary=True)
    file = original / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in _refusal(original)


def test_a_bin_file_cannot_run_code(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (target,))

    (checkpoint / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, checkpoint / "pytorch_model.bin")
    assert "pytorch_model.bin" in _refusal(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    assert "pytorch_model.bin" in _refusal(checkpoint)
    assert not target.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_bottomless_json_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00001.safetensors")
    (checkpoint / name).write_text('{"a":' * 100_000)
    assert name in _refusal(checkpoint)


def test_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    original = save_original(checkpoint, tmp_path / "original", num_shards=3)
    (original / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors (1 of 3 shards)" in _refusal(original)


def test_an_index_cannot_leave_its_directory(checkpoint: Path, tmp_path: Path) -> None:
    original = save_original(checkpoint, tmp_path / "original", num_shards=2)
    index = original / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../model/model.safetensors"}}))
    assert "outside its directory" in _refusal(original)


def test_a_tensor_in_two_shards_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    original = save_original(checkpoint, tmp_path / "original", num_shards=2)
    second = original / "model-00002-of-00002.safetensors"
    first = load_file(original / "model-00001-of-00002.safetensors")
    name = next(iter(first))
    save_file(load_file(second) | {name: first[name]}, second)
    assert f"{name} is stored twice" in _refusal(original)


def test_no_weights_at_all(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "has no weights" in _refusal(checkpoint)


def test_a_head_that_is_tied_and_absent_is_the_embedding_table(checkpoint: Path) -> None:
    _edit_weights(checkpoint, lambda state: state.pop("lm_head.weight"))
    assert "1 missing (lm_head.weight)" in _refusal(checkpoint)
    _edit_config(checkpoint, lambda config: config.update(tie_word_embeddings=True))
    model = load_model(checkpoint, device=CPU, dtype=torch.float32)
    hidden = torch.randn(3, 48)
    words = model.embeddings[: model.config.backbone.vocab_size]
    torch.testing.assert_close(model.text_logits(hidden), hidden @ words.T)


def test_a_head_that_is_there_is_used_whatever_the_flag_says(checkpoint: Path) -> None:
    hidden = torch.randn(3, 48)
    expected = load_model(checkpoint, device=CPU, dtype=torch.float32).text_logits(hidden)
    _edit_config(checkpoint, lambda config: config.update(tie_word_embeddings=True))
    model = load_model(checkpoint, device=CPU, dtype=torch.float32)
    assert torch.equal(model.text_logits(hidden), expected)
