"""Number formats of the whole network: how far they are from fp32, and what stays exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.errors import ParameterError
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import to_pool
from janus_core.ops import native
from janus_core.ops.formats import PLAIN, Formats, choose_formats
from tests.core.models.driving import Driver, Line
from tests.tiny import SHAPES, save_tiny_checkpoint

CPU = torch.device("cpu")
NATIVE = native.load()
HALF = torch.float16
needs_kernels = pytest.mark.skipif(NATIVE is None, reason=f"no kernels: {native.problem()}")
TWO_FORMATS = [Formats("fp16", HALF, NATIVE), Formats("int8", HALF, NATIVE)]


def _load(directory: Path, formats: Formats = PLAIN) -> JanusModel:
    return load_model(directory, device=CPU, dtype=torch.float32, formats=formats)


def _choices(model: JanusModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both heads along a fixed text and fixed codes: a prefill, then single steps."""
    generator = torch.Generator().manual_seed(3)
    side, vocab = model.config.vision.image_size, model.config.backbone.vocab_size
    words = torch.randint(0, min(vocab, 800), (60,), generator=generator).tolist()
    codes = torch.randint(0, model.config.vq.codebook_size, (40,), generator=generator) + vocab
    (image,) = model.encode_images(torch.rand(1, 3, side, side, generator=generator) * 2 - 1)
    driver = Driver(model)
    text, drawn = Line(0), Line(512)
    hidden = driver.run([(text, [*range(len(image)), *words])], [(0, image)])[0][-60:]
    driver.run([(drawn, words[:9])])
    steps = [driver.run([(drawn, [code])])[0] for code in codes.tolist()]
    return model.text_logits(hidden), model.code_logits(torch.cat(steps))


def _agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.argmax(-1) == b.argmax(-1)).float().mean().item()


@needs_kernels
@pytest.mark.parametrize(("formats", "bar"), [(TWO_FORMATS[0], 0.98), (TWO_FORMATS[1], 0.9)])
def test_the_embedded_model_says_the_same(
    mini_checkpoint: Path, formats: Formats, bar: float
) -> None:
    """Teacher-forced: the likeliest token is that of fp32 almost everywhere."""
    exact, close = _choices(_load(mini_checkpoint)), _choices(_load(mini_checkpoint, formats))
    for a, b in zip(exact, close, strict=True):
        assert _agreement(a, b) >= bar
        similarity = torch.nn.functional.cosine_similarity(a, b, dim=-1)
        assert similarity.min() > (0.9999 if formats.weights == "fp16" else 0.99)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_the_layers_in_one_call_are_the_layers_one_by_one(tmp_path: Path, shape: str) -> None:
    model = _load(save_tiny_checkpoint(tmp_path, SHAPES[shape]), Formats("fp16", None, NATIVE))
    at_once = _choices(model)
    assert model.language_model._native_layers is not None
    model.language_model._native_layers = None
    for a, b in zip(at_once, _choices(model), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("formats", TWO_FORMATS, ids=lambda formats: formats.weights)
def test_no_bit_depends_on_the_batch_or_the_cut(mini_checkpoint: Path, formats: Formats) -> None:
    """A sequence in one piece, in chunks beside others, and token by token."""
    model = _load(mini_checkpoint, formats)
    tokens = list(range(40, 87))
    (expected,) = Driver(model).run([(Line(0), tokens)])
    for cuts in ([1] * 47, [7, 8, 32], [46, 1]):
        driver = Driver(model)
        line, others = Line(256), [Line(512 + 64 * i) for i in range(15)]
        parts, first = [], 0
        for size in cuts:
            chunk, first = tokens[first : first + size], first + size
            beside = [(other, [5 + i]) for i, other in enumerate(others)]
            parts.append(driver.run([*beside[:7], (line, chunk), *beside[7:]])[7])
        assert torch.equal(torch.cat(parts), expected)


@needs_kernels
@pytest.mark.parametrize("path", native.paths())
def test_every_instruction_set_runs_the_network(tiny_checkpoint: Path, path: str) -> None:
    exact = _choices(_load(tiny_checkpoint))
    for weights in ("fp16", "int8"):
        close = _choices(_load(tiny_checkpoint, Formats(weights, HALF, native.load(path))))
        for a, b in zip(exact, close, strict=True):
            assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.99


@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_formats_work_without_the_kernels(tiny_checkpoint: Path, weights: str) -> None:
    plain = _load(tiny_checkpoint, Formats(weights, HALF, None))
    assert plain.language_model.attention.name == "sdpa"
    for a, b in zip(_choices(_load(tiny_checkpoint)), _choices(plain), strict=True):
        assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.99


@needs_kernels
def test_sdpa_can_be_asked_for(tiny_checkpoint: Path) -> None:
    """Weights stay with the kernels."""
    formats = Formats("fp16", HALF, NATIVE, attention="sdpa")
    by_torch, by_kernels = _load(tiny_checkpoint, formats), _load(tiny_checkpoint, TWO_FORMATS[0])
    assert by_torch.language_model.attention.name == "sdpa"
    assert by_kernels.language_model.attention.name.startswith("native")
    for a, b in zip(_choices(by_torch), _choices(by_kernels), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_keys_and_values_in_fp8(tiny_checkpoint: Path) -> None:
    """A CPU can compute what CUDA is offered: near fp32, with random weights that never saw it."""
    close = _load(tiny_checkpoint, Formats(kv_dtype=torch.float8_e4m3fn))
    for a, b in zip(_choices(_load(tiny_checkpoint)), _choices(close), strict=True):
        assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.95
        assert not torch.equal(a, b)
    assert to_pool(torch.tensor([1e6, -1e6]), torch.float8_e4m3fn).tolist() == [448.0, -448.0]


def test_the_pool_saturates_in_fp16() -> None:
    new = torch.tensor([1e6, -1e6, 0.1])
    assert to_pool(new, HALF).tolist() == [65504.0, -65504.0, torch.tensor(0.1).half().item()]
    assert to_pool(new, torch.float32) is new


def _choose(weights: str, kv: str = "auto", **where: object) -> Formats:
    place = {"device": CPU, "dtype": torch.float32, "native": NATIVE} | where
    return choose_formats(weights, kv, **place)


@needs_kernels
def test_auto_is_fp16_where_the_kernels_are() -> None:
    assert _choose("auto") == Formats("fp16", HALF, NATIVE)
    assert _choose("int8") == Formats("int8", HALF, NATIVE)
    assert _choose("int8", "fp32") == Formats("int8", None, NATIVE)
    assert _choose("fp32", "fp16") == Formats(None, HALF, NATIVE)


@needs_kernels
def test_auto_stays_fp32_where_the_kernels_are_slow() -> None:
    """On a processor without AVX2, oneDNN's fp32 is many times as fast as plain C++."""
    scalar = native.load(native.SCALAR)
    assert _choose("auto", native=scalar) == PLAIN
    assert _choose("fp16", native=scalar) == Formats("fp16", HALF, scalar)


def test_fp32_is_the_reference() -> None:
    assert _choose("fp32") == PLAIN
    assert _choose("auto", native=None) == PLAIN
    assert _choose("auto", dtype=torch.bfloat16) == PLAIN
    assert PLAIN.describe(torch.bfloat16) == "bf16 weights, bf16 KV, torch"
    assert replace(PLAIN, weights="int8", kv_dtype=HALF).describe(torch.float32) == (
        "int8 weights, fp16 KV, torch"
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weights": "int4"}, "weight_format"),
        ({"weights": "auto", "kv": "int8"}, "kv_format"),
        ({"weights": "int8", "dtype": torch.bfloat16}, "weight_format"),
        ({"weights": "auto", "kv": "fp16", "device": torch.device("cuda")}, "kv_format"),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments: dict[str, str], named: str) -> None:
    with pytest.raises(ParameterError) as refused:
        _choose(**arguments)
    assert refused.value.param == named
