"""Compiles every Triton kernel for Hopper, as `TritonOps` launches it, on a machine without a GPU.

Owns the shapes: those of Janus-Pro-1B. Run as a program, because under Triton's interpreter, which
the tests beside it use, nothing is compiled. Prints a line for each kernel and dtype: its name, the
dtype, and bytes of machine code. Invariant: nothing is launched.
"""

import sys
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from janus_core.ops.cuda.decode_ops import Draws, Rows
from janus_core.ops.cuda.triton_ops import TritonOps

HOPPER = GPUTarget("cuda", 90, 32)
WIDTH, HEADS, HEAD_DIM, INNER, CODES, POSITIONS = 2048, 16, 128, 5632, 16384, 704
NUM_ROWS = 4

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}
"""Triton's names."""

Launch = tuple[JITFunction, tuple[object, ...], dict[str, object]]


def main() -> int:
    JITFunction.__getitem__ = _noted
    for label, dtype, pool in (
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp32", torch.float32, torch.float32),
        ("bf16 over fp8", torch.bfloat16, torch.float8_e4m3fn),
    ):
        _launches.clear()
        _use_all(dtype, pool)
        for kernel, arguments, constants in _launches:
            source = ASTSource(
                kernel, _signature(kernel, arguments, constants), constexprs=constants
            )
            binary = triton.compile(source, target=HOPPER)
            sys.stdout.write(f"{kernel.__name__}, {label}: {len(binary.asm['cubin'])}\n")
    return 0


_launches: list[Launch] = []


def _noted(kernel: JITFunction, grid: object) -> Callable[..., None]:  # noqa: ARG001
    return lambda *arguments, **constants: _launches.append((kernel, arguments, constants))


def _signature(
    kernel: JITFunction, arguments: tuple[object, ...], constants: dict[str, object]
) -> dict[str, str]:
    values = dict(zip(kernel.arg_names, arguments, strict=False))
    return {
        name: "constexpr" if name in constants else _type(values[name]) for name in kernel.arg_names
    }


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _use_all(dtype: torch.dtype, pool: torch.dtype) -> None:
    """Every operation of a step, at the model's shapes."""
    ops, indices_R = TritonOps(), torch.ones(NUM_ROWS, dtype=torch.int64)
    numbers_R = torch.ones(NUM_ROWS)
    rows = Rows(indices_R, indices_R, indices_R, indices_R, reach=1024)
    draws = Draws(indices_R, indices_R, numbers_R, numbers_R, indices_R, indices_R)
    x_RD, weight_D = torch.zeros(NUM_ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, dtype=dtype)
    kv_2KPH = torch.zeros(2, HEADS, POSITIONS, HEAD_DIM).to(pool)
    for delta_RD in (None, x_RD):
        ops.add_rms_norm(x_RD, delta_RD, weight_D, eps=1e-6)
    heads_RE = torch.zeros(NUM_ROWS, 3 * HEADS * HEAD_DIM, dtype=dtype)
    ops.rotate_and_store(heads_RE, torch.zeros(POSITIONS, 2, 1, HEAD_DIM), rows, kv_2KPH)
    ops.attend(torch.zeros(NUM_ROWS, HEADS, HEAD_DIM, dtype=dtype), kv_2KPH, rows)
    ops.silu_multiply(torch.zeros(NUM_ROWS, 2 * INNER, dtype=dtype))
    ops.gelu_and_guide(torch.zeros(2 * NUM_ROWS, WIDTH, dtype=dtype), numbers_R)
    ops.draw(torch.zeros(NUM_ROWS, CODES, dtype=dtype), draws)
    ops.noise(indices_R, indices_R, num_tokens=CODES)


if __name__ == "__main__":
    sys.exit(main())
