"""Fixtures every package of tests shares."""

from pathlib import Path

import pytest
import torch

from tests.tiny import save_tiny_checkpoint

# One thread: models this small lose more time at barriers than they gain.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random model of 2 layers, 16 image tokens, 16 codes and 16x16 px pictures."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def mini_checkpoint() -> Path:
    """The checkpoint that comes with the source."""
    return Path(__file__).parents[1] / "weights" / "janus-mini"
