"""Number formats of weights and of the KV pool, the body of attention, and the choice among them.

Owns the names a setting may have and what `auto` means; the layers themselves are in `linear.py`
and `torchao.py`. Knows no model. Invariant: what cannot be honoured here is refused by name, never
replaced.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from janus_core.errors import ParameterError
from janus_core.ops import torchao
from janus_core.ops.native import Native

WEIGHT_FORMATS = ("auto", "fp32", "fp16", "int8", "fp8", "int4")
KV_FORMATS = ("auto", "fp32", "fp16", "fp8")
ATTENTIONS = ("auto", "sdpa", "triton", "xformers")

FP8_CAPABILITY = (8, 9)
"""Compute capability from which kernels convert e4m3."""

_SHORT = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
}

_BYTES = {"fp16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}
"""Of a weight, without scales."""


@dataclass(frozen=True, slots=True)
class Formats:
    """`weights` is the format of linear layers, None for the model's dtype; `kv_dtype` None is the
    model's dtype too. `native` computes fp16 and int8 on a CPU, plain torch if it is None;
    `by_torchao`, torchao computes the weights on CUDA. `attention` is one of `ATTENTIONS`."""

    weights: str | None = None
    kv_dtype: torch.dtype | None = None
    native: Native | None = None
    by_torchao: bool = False
    attention: str = "auto"

    def describe(self, dtype: torch.dtype) -> str:
        """In words, for the log and `/version`."""
        weights = self.weights or _SHORT[dtype]
        path = "torch" if self.native is None else f"native {self.native.path}"
        if self.by_torchao:
            path = "torchao"
        return f"{weights} weights, {_SHORT[self.kv_dtype or dtype]} KV, {path}"

    def shrinkage(self, dtype: torch.dtype) -> float:
        """Bytes of a weight in its format over those in the model's dtype."""
        return 1.0 if self.weights is None else _BYTES[self.weights] / dtype.itemsize


PLAIN = Formats()
"""Everything in the model's dtype, by torch: the reference."""


def choose_formats(
    weight_format: str,
    kv_format: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    native: Native | None,
    attention: str = "auto",
    capability: tuple[int, int] = (0, 0),
) -> Formats:
    """The formats three settings ask for. `native` is None where the kernels are missing or off;
    `capability` is the compute capability of a CUDA device.

    On a CPU in float32, `auto` is fp16 for both where the kernels are there and have instructions
    that make them fast, and fp32 otherwise; everywhere else it is the dtype. Raises ParameterError
    for other names, and for formats on a device, beside a dtype or without a package that they
    need.
    """
    _known("weight_format", weight_format, WEIGHT_FORMATS)
    _known("kv_format", kv_format, KV_FORMATS)
    _known("attention", attention, ATTENTIONS)
    if device.type == "cuda":
        formats = _on_cuda(weight_format, kv_format, device, dtype, capability)
    elif dtype == torch.float32:
        formats = _on_cpu(weight_format, kv_format, native=native)
    else:
        for param, value in (("weight_format", weight_format), ("kv_format", kv_format)):
            if value != "auto":
                raise _misplaced(param, value, device, dtype)
        formats = PLAIN
    _check_attention(attention, formats, device=device, dtype=dtype)
    return replace(formats, attention=attention)


def _on_cpu(weight_format: str, kv_format: str, *, native: Native | None) -> Formats:
    for param, value in (("weight_format", weight_format), ("kv_format", kv_format)):
        if value in ("fp8", "int4"):
            raise ParameterError(
                f"{param} {value} needs CUDA: on a CPU there are fp32, fp16 and, for weights, "
                "int8.",
                param=param,
            )
    if weight_format == "auto":
        weight_format = "fp16" if native is not None and native.has_vectors else "fp32"
    if kv_format == "auto":
        kv_format = "fp32" if native is None or weight_format == "fp32" else "fp16"
    return Formats(
        weights=None if weight_format == "fp32" else weight_format,
        kv_dtype=torch.float16 if kv_format == "fp16" else None,
        native=None if weight_format == kv_format == "fp32" else native,
    )


def _on_cuda(
    weight_format: str,
    kv_format: str,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Formats:
    if kv_format not in ("auto", "fp8"):
        raise _misplaced("kv_format", kv_format, device, dtype)
    if kv_format == "fp8":
        _check_capability("kv_format fp8", capability, FP8_CAPABILITY)
    if weight_format == "auto":
        formats = PLAIN
    elif weight_format not in torchao.FORMATS:
        raise _misplaced("weight_format", weight_format, device, dtype)
    else:
        if dtype != torch.bfloat16:
            raise ParameterError(
                f"weight_format {weight_format} on CUDA needs bfloat16, but dtype is "
                f"{_SHORT[dtype]}.",
                param="weight_format",
            )
        if not torchao.is_installed():
            raise _missing("weight_format", weight_format, "torchao")
        least = torchao.MIN_CAPABILITY[weight_format]
        _check_capability(f"weight_format {weight_format}", capability, least)
        formats = Formats(weights=weight_format, by_torchao=True)
    return replace(formats, kv_dtype=torch.float8_e4m3fn) if kv_format == "fp8" else formats


def _check_attention(
    attention: str, formats: Formats, *, device: torch.device, dtype: torch.dtype
) -> None:
    if attention not in ("triton", "xformers"):
        return
    if device.type != "cuda":
        raise ParameterError(
            f"attention {attention} needs CUDA, but the model runs on {device}.", param="attention"
        )
    if find_spec(attention) is None:
        raise _missing("attention", attention, attention)
    if attention == "xformers" and (formats.kv_dtype is not None or dtype == torch.float32):
        raise ParameterError(
            "attention xformers reads keys and values in bf16 or fp16: leave kv_format at auto "
            "and dtype at bfloat16 or float16.",
            param="attention",
        )


def _check_capability(what: str, capability: tuple[int, int], least: tuple[int, int]) -> None:
    if capability < least:
        raise ParameterError(
            f"{what} needs a device of compute capability {least[0]}.{least[1]}, but this one has "
            f"{capability[0]}.{capability[1]}.",
            param=what.partition(" ")[0],
        )


def _misplaced(param: str, value: str, device: torch.device, dtype: torch.dtype) -> ParameterError:
    return ParameterError(
        f"{param} {value} is for a CPU in float32, but the model runs on {device} in "
        f"{_SHORT[dtype]}: leave it at auto and set dtype.",
        param=param,
    )


def _missing(param: str, value: str, package: str) -> ParameterError:
    return ParameterError(
        f"{param} {value} needs the package {package}, which is not installed: "
        f"pip install 'janus-serve[{package}]'.",
        param=param,
    )


def _known(param: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ParameterError(f"{param} must be {', '.join(known)}, but is {value}.", param=param)
