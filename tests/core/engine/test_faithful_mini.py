"""The engine against transformers on the checkpoint that comes with the source: whole pictures and
answers of a trained model, in one batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration

from janus_core.checkpoint import load_model
from janus_core.tokenizer import Tokenizer
from tests.core.engine.oracle import Oracle, ask_oracle, assert_equal, levels_of
from tests.core.engine.support import Requests, run


@pytest.fixture(scope="module")
def make(mini_checkpoint: Path) -> Requests:
    model = load_model(mini_checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    return Requests(model, Tokenizer.load(mini_checkpoint))


@pytest.fixture(scope="module")
def reference(mini_checkpoint: Path) -> JanusForConditionalGeneration:
    dtype = torch.float32
    return JanusForConditionalGeneration.from_pretrained(mini_checkpoint, dtype=dtype).eval()


def test_a_mixed_batch_of_a_trained_model(
    make: Requests, reference: JanusForConditionalGeneration
) -> None:
    requests = [
        make.image("i0", "<|User|>: a large red circle\n\n<|Assistant|>:", guidance=5.0),
        make.text("t0", "<|User|>: What is in the picture?\n\n<|Assistant|>:", images=(1,)),
        make.image("i1", "a small blue square to the left of a green star", guidance=2.0),
        make.text("t1", "How many shapes are there?", max_tokens=24),
    ]
    expected: Oracle = {r.id: ask_oracle(reference, make, r) for r in requests}
    engine = make.engine()
    log = run(engine, *requests)
    assert_equal(log, expected)
    for request_id in ("i0", "i1"):
        levels = levels_of(reference, expected[request_id])
        assert np.array_equal(log[request_id].end.pixels, levels)
    log = run(make.engine(max_sequences=4, step_token_budget=9), *requests)
    assert_equal(log, expected)
    log = run(engine, *requests)
    assert_equal(log, expected)
    assert all(log[request_id].end.usage.cached_tokens for request_id in ("i0", "t0", "i1"))
