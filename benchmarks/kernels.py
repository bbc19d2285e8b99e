"""The C++ kernels at the shapes of Janus-Pro-1B, one by one, beside torch's linear layers.

Reports time, bytes of weights per second, and their share of the bandwidth a plain sum reaches in
the same run. Owns its shapes; random weights, so nothing is loaded. Several copies of each weight
take turns, so that no cache holds them.

Shape suffixes: R rows, K input width.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from janus_core.ops import native
from janus_core.ops.linear import NativeLinear, PackedLinear

SHAPES = {"qkv": (6144, 2048), "out": (2048, 2048), "gate_up": (11264, 2048), "down": (2048, 5632)}
HEAD = {"code head": (16384, 2048)}


def main() -> None:
    """Print one line per shape, format and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 600])
    parser.add_argument("--copies", type=int, default=6, help="weights of a shape, used in turn")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print("kernels:", native.problem() or ", ".join(native.paths()))
    print(f"threads: {torch.get_num_threads()}")
    bandwidth = measure_bandwidth()
    print(f"bandwidth of a sum: {bandwidth / 1e9:.1f} GB/s")
    with torch.inference_mode():
        for name, (n, k) in (SHAPES | HEAD).items():
            for label, num_bytes, calls in contestants(n, k, arguments.copies):
                for rows in arguments.rows:
                    x_RK = torch.randn(rows, k)
                    seconds = time_of(calls, x_RK, arguments.repeats)
                    speed = num_bytes / seconds
                    print(
                        f"{name:10} {label:10} rows {rows:4} {seconds * 1e3:9.3f} ms "
                        f"{speed / 1e9:7.1f} GB/s {speed / bandwidth:6.0%} "
                        f"{2 * rows * n * k / seconds / 1e9:8.0f} GFLOP/s",
                        flush=True,
                    )


def measure_bandwidth() -> float:
    """Bytes per second of summing 512 MiB, the best of several runs."""
    values = torch.ones(2**27)
    best = min(timed(lambda: values.sum()) for _ in range(5))
    return values.numel() * 4 / best


def contestants(
    n: int, k: int, copies: int
) -> list[tuple[str, int, list[Callable[[torch.Tensor], torch.Tensor]]]]:
    """Name, bytes of one weight, and the layers that take turns."""
    linear = nn.Linear(k, n, bias=False).requires_grad_(False)
    half = nn.Linear(k, n, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    result: list[tuple[str, int, list[Callable[[torch.Tensor], torch.Tensor]]]] = [
        ("fp32", 4 * n * k, [PackedLinear(linear) for _ in range(copies)]),
        ("bf16", 2 * n * k, [partial(_in_bf16, copy.deepcopy(half)) for _ in range(copies)]),
    ]
    kernels = native.load()
    if kernels is not None:
        for format, width in (("fp16", 2), ("int8", 1)):
            layers = [NativeLinear(linear, format=format, native=kernels) for _ in range(copies)]
            result.append((format, width * n * k, layers))
    return result


def _in_bf16(layer: nn.Linear, x_RK: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = layer(x_RK.bfloat16())
    return out


def time_of(
    calls: list[Callable[[torch.Tensor], torch.Tensor]], x_RK: torch.Tensor, repeats: int
) -> float:
    """Seconds of one call, the median of `repeats` rounds over all copies."""
    for call in calls:
        call(x_RK)
    return statistics.median(
        timed(lambda: [call(x_RK) for call in calls]) / len(calls) for _ in range(repeats)
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
