"""Linear layers in the formats of torchao, on CUDA: int8, fp8 and int4.

Owns the choice of its configurations, and what shapes they ask for; knows no model. torchao is
imported when a format is asked for, never before. Invariant: every layer that was to be converted
is, or nothing is: a shape that a format cannot have is refused by name.

- `int8` stores weights with one scale per output and computes in bf16: half the memory.
- `fp8` (e4m3) also rounds activations, with one scale per row, and multiplies in fp8.
- `int4` stores groups of 128 weights with a scale and an offset, and computes in bf16.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from janus_core.errors import ParameterError

FORMATS = ("int8", "fp8", "int4")

MIN_CAPABILITY = {"int8": (8, 0), "fp8": (8, 9), "int4": (8, 0)}
"""Compute capability of the device: fp8 products came with 8.9, the int4 ones with 8.0."""

INPUT_UNITS = {"int8": 1, "fp8": 16, "int4": 128}
"""Input widths must be multiples: of what fp8 products take, of an int4 group."""

OUTPUT_UNITS = {"int8": 1, "fp8": 16, "int4": 8}
"""Output widths must be multiples of these."""


def is_installed() -> bool:
    """Whether torchao can be imported; does not import it."""
    return find_spec("torchao") is not None


def quantize_linears(module: nn.Module, *, format: str, parts: Sequence[str]) -> None:
    """Convert every `nn.Linear` below the named parts of `module`.

    Raises ParameterError, before anything is converted, if a layer has a shape that the format
    cannot have.
    """

    def is_meant(child: nn.Module, name: str) -> bool:
        return isinstance(child, nn.Linear) and name.partition(".")[0] in parts

    for name, child in module.named_modules():
        if is_meant(child, name):
            _check_shape(name, child.weight, format=format)
    quantizer().quantize_(module, configuration(format), filter_fn=is_meant)


def quantizer() -> Any:
    """torchao's module of quantization. Raises ParameterError if it cannot be imported."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise ParameterError(
            f"weight_format needs torchao, which cannot be imported: {error}",
            param="weight_format",
        ) from error
    return quantization


def configuration(format: str) -> Any:
    """What `quantize_` is to do. Compilers of others are left as they are."""
    ao = quantizer()
    makers: dict[str, Callable[[], Any]] = {
        "int8": lambda: ao.Int8WeightOnlyConfig(set_inductor_config=False),
        "fp8": lambda: ao.Float8DynamicActivationFloat8WeightConfig(
            granularity=ao.PerRow(), set_inductor_config=False
        ),
        "int4": lambda: ao.Int4WeightOnlyConfig(
            group_size=INPUT_UNITS["int4"],
            int4_packing_format="tile_packed_to_4d",
            set_inductor_config=False,
        ),
    }
    return makers[format]()


def _check_shape(name: str, weight: Any, *, format: str) -> None:
    assert isinstance(weight, torch.Tensor)
    num_outputs, num_inputs = weight.shape
    if num_inputs % INPUT_UNITS[format] or num_outputs % OUTPUT_UNITS[format]:
        raise ParameterError(
            f"weight_format {format} needs widths that are multiples of {INPUT_UNITS[format]} and "
            f"{OUTPUT_UNITS[format]}, but {name} has {num_inputs} inputs and {num_outputs} "
            "outputs: leave it at auto.",
            param="weight_format",
        )
