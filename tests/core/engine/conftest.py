"""A tiny model, loaded once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.tokenizer import Tokenizer
from tests.core.engine.service_house import ServiceHouse
from tests.core.engine.support import Requests


@pytest.fixture(scope="session")
def requests_for(tiny_checkpoint: Path) -> Requests:
    """Makes requests and engines for the tiny random model."""
    model = load_model(tiny_checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    return Requests(model, Tokenizer.load(tiny_checkpoint))


@pytest.fixture
def house(requests_for: Requests) -> Iterator[ServiceHouse]:
    """A service that runs."""
    house = ServiceHouse(requests_for, max_waiting=8, max_sequences=8, threaded_rendering=True)
    house.service.start()
    yield house
    house.service.stop()
