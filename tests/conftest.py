"""Fixtures every package of tests shares."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.tiny import save_tiny_checkpoint

# One thread: models this small lose more time at barriers than they gain.
torch.set_num_threads(1)

# What a machine does beside the tests says nothing of what is tested.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here, because only the uppermost conftest is read before the command line.
    parser.addoption(
        "--target",
        choices=("janus", "naive"),
        default="janus",
        help="what tests/hardening attacks: the server, or a naive demo that must fail",
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model: 2 layers, 16 image tokens, 16 codes, pictures of 16 x 16 pixels."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def mini_checkpoint() -> Path:
    """The checkpoint that comes with the source."""
    return Path(__file__).parents[1] / "weights" / "janus-mini"
