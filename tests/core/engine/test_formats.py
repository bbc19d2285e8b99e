"""The same request in a number format, alone and beside others: the same codes and words, and the
same log-probabilities to the last bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.engine.events import TextDelta
from janus_core.engine.request import ImageRequest, SamplingParams
from janus_core.ops import native
from janus_core.ops.formats import Formats
from janus_core.tokenizer import Tokenizer
from tests.core.engine.support import Requests, run

HALF = torch.float16
KERNELS = native.load()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f"no kernels: {native.problem()}")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Formats("fp16", HALF, KERNELS), id="fp16", marks=needs_kernels),
        pytest.param(Formats("int8", HALF, KERNELS), id="int8", marks=needs_kernels),
        # Not fp16 in torch, whose sums take the order of the library.
        pytest.param(Formats("int8", HALF), id="int8 in torch"),
    ],
)
def make(tiny_checkpoint: Path, request: pytest.FixtureRequest) -> Requests:
    model = load_model(
        tiny_checkpoint, device=torch.device("cpu"), dtype=torch.float32, formats=request.param
    )
    return Requests(model, Tokenizer.load(tiny_checkpoint))


def test_what_is_alone_is_the_same_beside_sixteen_pictures(make: Requests) -> None:
    def picture(seed: int, prompt: str) -> ImageRequest:
        sampling = SamplingParams(seed=seed)
        return make.image(f"p{seed}", prompt, sampling=sampling, code_logprobs=True)

    words = "a large red circle above two small green stars"
    pictures = [picture(seed, words[: 3 + 2 * seed]) for seed in range(16)]
    texts = [make.text(f"t{seed}", words[seed:], images=(seed,), logprobs=3) for seed in range(3)]
    together = run(make.engine(), *texts, *pictures)
    for index in (0, 7, 15):
        alone = run(make.engine(), pictures[index])[f"p{index}"]
        beside = together[f"p{index}"]
        assert beside.codes == alone.codes
        assert beside.end.code_logprobs == alone.end.code_logprobs
        assert np.array_equal(beside.end.pixels, alone.end.pixels)
    for text in texts:
        alone = run(make.engine(), text)[text.id]
        assert together[text.id].of_type(TextDelta) == alone.of_type(TextDelta)
