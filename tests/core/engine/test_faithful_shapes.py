"""The engine against transformers on random models of other shapes, in all situations at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration

from janus_core.checkpoint import load_model
from janus_core.tokenizer import Tokenizer
from tests.core.engine.oracle import Oracle, ask_oracle, assert_equal, levels_of
from tests.core.engine.support import Requests, run
from tests.tiny import SHAPES, save_tiny_checkpoint


@pytest.mark.parametrize("shape", ["grouped heads", "one kv head, deep", "odd sizes"])
def test_a_mixed_batch_of_another_shape(shape: str, tmp_path: Path) -> None:
    """Together, in small chunks, behind prefix hits, and set back in a pool that is too small."""
    directory = save_tiny_checkpoint(tmp_path / "model", SHAPES[shape])
    reference = JanusForConditionalGeneration.from_pretrained(directory).eval()
    model = load_model(directory, device=torch.device("cpu"), dtype=torch.float32)
    make = Requests(model, Tokenizer.load(directory))
    requests = [
        make.text("t0", "How many shapes are there?", max_tokens=40),
        make.image("i0", "a large red circle to the left of a star", guidance=3.0),
        make.text("t1", "What is in the picture?", images=(1,), max_tokens=30),
        make.image("i1", "a star", guidance=6.0),
        make.text("t2", "Which color is it?", images=(2, 1), max_tokens=40),
    ]
    expected: Oracle = {request.id: ask_oracle(reference, make, request) for request in requests}
    assert len({tuple(said) for said in expected.values()}) == len(expected)

    engine = make.engine()
    log = run(engine, *requests)
    assert_equal(log, expected)
    assert np.array_equal(log["i0"].end.pixels, levels_of(reference, expected["i0"]))
    assert_equal(run(engine, *requests), expected)
    assert engine.stats().prefix_hits > 0
    assert_equal(run(make.engine(max_sequences=6, step_token_budget=9), *requests), expected)
    small = make.engine(kv_positions=192, text_growth_tokens=1, image_reserve=0.0)
    assert_equal(run(small, *requests), expected)
    assert small.stats().num_set_backs > 0, "the pool was large enough after all"
