"""Formats on CUDA: what is refused, and by torchao, if it is installed, what is converted."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from janus_core.errors import ParameterError
from janus_core.ops import formats, torchao
from janus_core.ops.formats import Formats, choose_formats
from janus_core.ops.torchao import quantize_linears

CUDA, CPU, BF16 = torch.device("cuda", 0), torch.device("cpu"), torch.bfloat16
FP8 = torch.float8_e4m3fn
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every package were installed."""
    monkeypatch.setattr(torchao, "find_spec", lambda name: name)
    monkeypatch.setattr(formats, "find_spec", lambda name: name)


def _choose(weights: str = "auto", kv: str = "auto", **where: object) -> Formats:
    place = {"device": CUDA, "dtype": BF16, "native": None, "capability": (9, 0)} | where
    return choose_formats(weights, kv, **place)


def _refusal(*arguments: str, **where: object) -> ParameterError:
    with pytest.raises(ParameterError) as refused:
        _choose(*arguments, **where)
    return refused.value


@pytest.mark.usefixtures("packages")
def test_formats_of_cuda() -> None:
    assert _choose() == Formats()
    for weights in ("int8", "fp8", "int4"):
        assert _choose(weights) == Formats(weights, by_torchao=True)
    assert _choose("auto", "fp8", dtype=torch.float16) == Formats(kv_dtype=FP8)
    both = _choose("int8", "fp8", attention="triton")
    assert both == Formats("int8", FP8, by_torchao=True, attention="triton")
    assert both.describe(BF16) == "int8 weights, fp8 KV, torchao"


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("arguments", "where", "param"),
    [
        (("fp16",), {}, "weight_format"),
        (("auto", "fp16"), {}, "kv_format"),
        (("fp8",), {"capability": (8, 6)}, "weight_format"),
        (("int4",), {"capability": (7, 5)}, "weight_format"),
        (("auto", "fp8"), {"capability": (8, 0)}, "kv_format"),
        (("int8",), {"dtype": torch.float16}, "weight_format"),
        (("fp8",), {"device": CPU, "dtype": torch.float32}, "weight_format"),
        (("int4",), {"device": CPU, "dtype": BF16}, "weight_format"),
        (("auto", "fp8"), {"device": CPU, "dtype": torch.float32}, "kv_format"),
        ((), {"device": CPU, "attention": "triton"}, "attention"),
        ((), {"device": CPU, "attention": "xformers"}, "attention"),
        (("auto", "fp8"), {"attention": "xformers"}, "attention"),
        ((), {"attention": "xformers", "dtype": torch.float32}, "attention"),
        ((), {"attention": "flash"}, "attention"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    arguments: tuple[str, ...], where: dict[str, object], param: str
) -> None:
    assert _refusal(*arguments, **where).param == param


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchao, "find_spec", lambda _: None)
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    assert "janus-serve[torchao]" in _refusal("int8").message
    assert "janus-serve[xformers]" in _refusal(attention="xformers").message
    assert "janus-serve[triton]" in _refusal(attention="triton").message


def _network() -> nn.ModuleDict:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(256, 128, bias=False), nn.GELU(), nn.Linear(128, 64))
    return nn.ModuleDict({"body": body, "tower": nn.Linear(256, 64)}).bfloat16()


@needs_torchao
def test_int8_by_torchao() -> None:
    """The parts that are named, and no others; other formats need the device."""
    network, exact = _network(), _network()
    quantize_linears(network, format="int8", parts=("body",))
    assert type(network["tower"].weight) is nn.Parameter
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert not torch.equal(network["body"](x), exact["body"](x))
    torch.testing.assert_close(network["body"](x), exact["body"](x), atol=0.03, rtol=0.03)


@needs_torchao
def test_every_format_has_a_configuration() -> None:
    for name in torchao.FORMATS:
        assert torchao.configuration(name).set_inductor_config is False


@pytest.mark.parametrize(("format", "width"), [("fp8", 24), ("int4", 192)])
def test_a_shape_that_does_not_fit_is_refused(format: str, width: int) -> None:
    network = nn.ModuleDict({"head": nn.Linear(width, 64)})
    with pytest.raises(ParameterError, match=f"head has {width} inputs") as refused:
        quantize_linears(network, format=format, parts=("head",))
    assert refused.value.param == "weight_format"
