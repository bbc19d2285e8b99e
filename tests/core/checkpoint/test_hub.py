"""Names of checkpoints: directories, hub ids in a cache made by hand, and nothing at all."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from janus_core.checkpoint import resolve_checkpoint
from janus_core.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, offline. The library reads its variables at import: set what it read."""
    root = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    return root


def _put(cache: Path, model: str, *names: str) -> Path:
    repository = cache / f"models--{model.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in names:
        (snapshot / name).write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_cached_id_needs_no_network(cache: Path, weights: str) -> None:
    snapshot = _put(cache, "someone/Janus", "config.json", weights)
    assert resolve_checkpoint("someone/Janus") == snapshot
    assert resolve_checkpoint("someone/Janus", revision=COMMIT) == snapshot


def test_an_id_that_is_not_cached_says_what_to_do(cache: Path) -> None:
    assert not cache.exists()
    with pytest.raises(CheckpointError, match="janus pull someone/Janus"):
        resolve_checkpoint("someone/Janus")


def test_a_revision_that_is_not_cached_is_no_other_revision(cache: Path) -> None:
    _put(cache, "someone/Janus", "config.json", "model.safetensors")
    with pytest.raises(CheckpointError, match="not in the local cache"):
        resolve_checkpoint("someone/Janus", revision="v2")


@pytest.mark.parametrize("name", ["no-such-directory", "./a/b", "a/b/c", "/nowhere/x", "", "../x"])
def test_what_is_neither_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        resolve_checkpoint(name)


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="give the directory"):
        resolve_checkpoint(str(file))
