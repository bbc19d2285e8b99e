"""Number formats of weights and of the KV pool, and the choice among them.

Owns the names a setting may have and what `auto` means; the layers themselves are in `linear.py`.
Knows no model. Invariant: what cannot be honoured here is refused by name, never replaced.
"""

from dataclasses import dataclass

import torch

from janus_core.errors import ParameterError
from janus_core.ops.native import Native

WEIGHT_FORMATS = ("auto", "fp32", "fp16", "int8")
KV_FORMATS = ("auto", "fp32", "fp16")

_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, slots=True)
class Formats:
    """`weights` is fp16 or int8 for linear layers in that format, None for the model's dtype;
    `kv_dtype` None is the model's dtype too. `native` computes them, plain torch if it is None."""

    weights: str | None = None
    kv_dtype: torch.dtype | None = None
    native: Native | None = None

    def describe(self, dtype: torch.dtype) -> str:
        """In words, for the log and `/version`."""
        weights = self.weights or _SHORT[dtype]
        path = "torch" if self.native is None else f"native {self.native.path}"
        return f"{weights} weights, {_SHORT[self.kv_dtype or dtype]} KV, {path}"


PLAIN = Formats()
"""Everything in the model's dtype, by torch: the reference."""


def choose_formats(
    weight_format: str,
    kv_format: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    native: Native | None,
) -> Formats:
    """The formats two settings ask for. `native` is None where the kernels are missing or off.

    On a CPU in float32, `auto` is fp16 for both where the kernels are there and have instructions
    that make them fast, and fp32 otherwise; everywhere else it is the dtype. Raises ParameterError
    for other names, and for formats on a device or beside a dtype that has no use for them.
    """
    _known("weight_format", weight_format, WEIGHT_FORMATS)
    _known("kv_format", kv_format, KV_FORMATS)
    if device.type != "cpu" or dtype != torch.float32:
        for param, value in (("weight_format", weight_format), ("kv_format", kv_format)):
            if value != "auto":
                raise ParameterError(
                    f"{param} {value} is for a CPU in float32, but the model runs on {device} in "
                    f"{_SHORT[dtype]}: leave it at auto and set dtype.",
                    param=param,
                )
        return PLAIN
    if weight_format == "auto":
        weight_format = "fp16" if native is not None and native.has_vectors else "fp32"
    if kv_format == "auto":
        kv_format = "fp32" if native is None or weight_format == "fp32" else "fp16"
    return Formats(
        weights=None if weight_format == "fp32" else weight_format,
        kv_dtype=torch.float16 if kv_format == "fp16" else None,
        native=None if weight_format == kv_format == "fp32" else native,
    )


def _known(param: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ParameterError(f"{param} must be {', '.join(known)}, but is {value}.", param=param)
