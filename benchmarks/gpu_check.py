"""One command for a machine with a GPU: is the CUDA path right, and how fast is it?

Owns the order of the parts, and the checks of whole batches: graphs against the model's own forward
pass (SDPA), and pictures drawn alone against the same in a full batch. `gpu_kernels.py` compares
the kernels with their twins in torch, `gpu_steps.py` and `gpu_engine.py` measure, `gpu_options.py`
has what is off by default, `gpu_model.py` what all run on, and `gpu_report.py` the report. Exit
status: 0 all right, 1 a check failed or a bar was missed, 3 no GPU. `--rehearse` runs every line on
a CPU at a tiny size and measures nothing.

Shape suffixes: D model width, T packed tokens.
"""

import argparse
import datetime
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_engine import check_engine
from benchmarks.gpu_kernels import ROWS, check_kernels, check_model_draw, check_waits
from benchmarks.gpu_model import CONFIGS, SLOT, batch, random_model
from benchmarks.gpu_options import check_options, measure_options
from benchmarks.gpu_report import Check, largest, median_s, remember
from benchmarks.gpu_steps import measure, step_s
from janus_core.config import ModelConfig
from janus_core.engine.graphs import Picture
from janus_core.models.inputs import BatchInputs
from janus_core.models.kv_pool import KvPool
from janus_core.ops.cuda.eager_ops import EagerOps
from janus_core.ops.formats import Formats

RESULTS = Path(__file__).parent / "results"

NO_GPU, FAILED = 3, 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="report; default: benchmarks/results/DATE-gpu")
    parser.add_argument("--models", default="1b,7b", help="sizes to measure, of 1b and 7b")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, measuring nothing")
    arguments = parser.parse_args()
    if arguments.rehearse:
        check = _rehearsal()
        _run(check, ["tiny"])
        return FAILED if check.num_failed else 0
    if not torch.cuda.is_available():
        print("No CUDA device was found: nothing was checked and nothing was measured.")
        return NO_GPU
    output = arguments.output or RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-gpu.md"
    # Line by line: whoever stops it, or whatever kills it, what was found is kept.
    with output.open("w", encoding="utf-8") as file:
        check = _on_gpu()
        check.output = file
        check.say(f"# GPU check, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC\n")
        check.say(f"{check.card}, torch {torch.__version__}, random weights.")
        try:
            _run(check, arguments.models.split(","))
        finally:
            check.say_bars()
            verdict = f"{check.num_failed} failed" if check.num_failed else "all right"
            check.say(f"\nChecks and bars: {verdict}.")
    print(f"\nWritten to {output}.")
    return FAILED if check.num_failed else 0


def _on_gpu() -> Check:
    # Triton's kernels are compiled for this device; nothing else imports them.
    from janus_core.ops.cuda.triton_ops import TritonOps

    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda", 0)
    name = torch.cuda.get_device_name(device)
    return Check(device, TritonOps(), is_rehearsal=False, card=name)


def _rehearsal() -> Check:
    check = Check(torch.device("cpu"), EagerOps(), is_rehearsal=True)
    check.say("Rehearsal on a CPU: no kernel runs, and times mean nothing.")
    return check


def _run(check: Check, names: list[str]) -> None:
    """All parts; one that raises is a failure, and the others go on."""
    options: list[tuple[str, Formats]] = []
    check.say("\n## Correctness\n\n| check | largest error | limit | |\n|---|---|---|---|")
    for part in (
        check_kernels,
        check_model_draw,
        check_waits,
        check_graphs,
        check_alone_and_together,
    ):
        check.part(part.__name__, partial(part, check))
    check.part("check_options", lambda: options.extend(check_options(check)))
    for name in names:
        check.part(f"measure {name}", partial(measure, check, name))
        check.part(f"engine {name}", partial(check_engine, check, name))
        check.part(
            f"options {name}",
            partial(measure_options, check, name, options, step_s=step_s, median_s=median_s),
        )
    if check.is_rehearsal:
        check.say_bars()


@torch.inference_mode()
def check_graphs(check: Check) -> None:
    """Mixed batches through graphs, against SDPA, and bit by bit against the same calls uncaptured.

    `n` rows: one token each of `n` slots with different contexts, one of them a piece of a prompt.
    """
    config = CONFIGS["tiny" if check.is_rehearsal else "short"]
    for dtype, limit in ((torch.float32, 2e-3), (torch.bfloat16, 0.05)):
        model = random_model(config, device=check.device, dtype=dtype)
        for num_rows in ROWS:
            contexts = [(37 * row) % 80 for row in range(num_rows)]
            fill = [(row, 0, n) for row, n in enumerate(contexts) if n]
            mixed = [(row, n, 3 if row == 1 else 1) for row, n in enumerate(contexts)]
            graphs = check.graphs(model, num_rows)
            bare = check.graphs(model, num_rows, capture=remember)
            twin_kv = KvPool.allocate(config, num_rows * SLOT, device=check.device, dtype=dtype)
            outputs = []
            for chunks in (fill, mixed):
                if chunks:
                    on_cpu, there = _both(check, chunks, config)
                    outputs = [
                        graphs.forward(on_cpu).clone(),
                        bare.forward(on_cpu).clone(),
                        model(there, twin_kv),
                    ]
            scale = largest(outputs[2])
            error = largest(outputs[0] - outputs[2]) / scale
            check.expect(f"graph against SDPA, {dtype}, {num_rows} rows", error, limit)
            error = largest(outputs[0] - outputs[1])
            check.expect(f"graph against uncaptured, {dtype}, {num_rows} rows", error, 0.0)


def _both(
    check: Check, chunks: list[tuple[int, int, int]], config: ModelConfig
) -> tuple[BatchInputs, BatchInputs]:
    """The batch with its index tensors on the CPU, and on the device."""
    vocab_size = config.backbone.vocab_size
    return (
        batch(chunks, vocab_size=vocab_size, device=torch.device("cpu")),
        batch(chunks, vocab_size=vocab_size, device=check.device),
    )


@torch.inference_mode()
def check_alone_and_together(check: Check) -> None:
    """Deterministic mode: the codes of one picture alone and as the last of many, bit by bit."""
    config = CONFIGS["tiny" if check.is_rehearsal else "short"]
    dtype = torch.float32 if check.is_rehearsal else torch.bfloat16
    model = random_model(config, device=check.device, dtype=dtype)
    num_steps, num_pictures = (4, 3) if check.is_rehearsal else (32, 32)
    drawn = []
    for count in (1, num_pictures):
        graphs = check.graphs(model, 2 * num_pictures, is_deterministic=True)
        slots = [*range(2 * (count - 1)), 2 * num_pictures - 2, 2 * num_pictures - 1]
        prompts = [(slot, 0, 20) for slot in slots]
        graphs.forward(_both(check, prompts, config)[0])
        pictures = [Picture(2 * i, 2 * i + 1, 5.0, 1.0, seed=i, place=0) for i in range(count)]
        pictures[-1] = Picture(2 * count - 2, 2 * count - 1, 5.0, 1.0, seed=99, place=0)
        step = _both(check, [(slot, 20, 1) for slot in slots], config)[0]
        codes, _ = graphs.run_ahead(step, pictures, num_steps=num_steps)
        drawn.append(codes[:, -1].cpu())
    num_different = int((drawn[0] != drawn[1]).sum())
    check.expect(f"picture alone against among {num_pictures}, codes", num_different, 0)


if __name__ == "__main__":
    sys.exit(main())
