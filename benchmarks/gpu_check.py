"""One command for a machine with a GPU: is the CUDA path right, and how fast is it?

Owns the checks, the measurements and the report; `gpu_model.py` makes what they run on. Checks
compare the kernels with their twins in torch, graphs with the model's own forward pass (SDPA), and
pictures drawn alone with the same in a full batch. Exit status: 0 all right, 1 a check failed, 3 no
GPU. `--rehearse` runs every line on a CPU at a tiny size and measures nothing.

Shape suffixes: R rows, D model width, N heads, H head width, P pool positions, T packed tokens.
"""

import argparse
import datetime
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu_model import CONFIGS, SLOT, batch, random_model
from benchmarks.gpu_options import check_options, measure_options
from janus_core.config import ModelConfig
from janus_core.engine.ahead import CodeCopy
from janus_core.engine.graphs import Capture, CudaCapture, Picture, StepGraphs
from janus_core.engine.settings import bytes_per_position
from janus_core.models.inputs import BatchInputs
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.models.rows import RowsModel
from janus_core.ops.cuda.decode_ops import DecodeOps, Rows
from janus_core.ops.cuda.eager_ops import EagerOps
from janus_core.ops.sampling import gumbel_noise

RESULTS = Path(__file__).parent / "results"
ROWS = (1, 7, 8, 9, 16, 64, 128)
TABLE_ROWS = (2, 8, 32, 128)
CONTEXTS = (318, 600)
"""The mean and the longest context of a picture after a prompt of 30 tokens."""

NO_GPU, FAILED = 3, 1


@dataclass
class Check:
    """Where things run, and what was found; lines of the report are added as they come."""

    device: torch.device
    ops: DecodeOps
    is_rehearsal: bool
    lines: list[str] = field(default_factory=list)
    num_failed: int = 0

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def expect(self, name: str, error: float, limit: float) -> None:
        """One line of the table of checks; errors that are not numbers fail."""
        is_right = error <= limit
        self.num_failed += not is_right
        self.say(f"| {name} | {error:.2e} | {limit:.0e} | {'ok' if is_right else '**FAILED**'} |")

    def graphs(
        self,
        model: JanusModel,
        num_slots: int,
        *,
        is_deterministic: bool = False,
        capture: Capture | None = None,
    ) -> StepGraphs:
        """Over a pool of its own; `capture` is by default what this device has."""
        if capture is None:
            capture = _remember if self.is_rehearsal else CudaCapture(self.device)
        kv = KvPool.allocate(
            model.config, num_slots * SLOT + 32, device=self.device, dtype=model.kv_dtype
        )
        return StepGraphs(
            RowsModel(model, kv, ops=self.ops),
            capture=capture,
            spare_start=num_slots * SLOT,
            is_deterministic=is_deterministic,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="report; default: benchmarks/results/DATE-gpu")
    parser.add_argument("--models", default="1b,7b", help="sizes to measure, of 1b and 7b")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, measuring nothing")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        print("No CUDA device was found: nothing was checked and nothing was measured.")
        return NO_GPU
    check = _rehearsal() if arguments.rehearse else _on_gpu()
    check.say("\n## Correctness\n\n| check | largest error | limit | |\n|---|---|---|---|")
    check_kernels(check)
    check_graphs(check)
    check_alone_and_together(check)
    options = check_options(check)
    names = ["tiny"] if arguments.rehearse else arguments.models.split(",")
    for name in names:
        measure(check, name)
        measure_options(check, name, options, step_s=_step_s, median_s=_median_s)
    if not arguments.rehearse:
        today = datetime.datetime.now(datetime.UTC).date()
        output = arguments.output or RESULTS / f"{today}-gpu.md"
        output.write_text("\n".join(check.lines) + "\n", encoding="utf-8")
        print(f"\nWritten to {output}.")
    return FAILED if check.num_failed else 0


def _on_gpu() -> Check:
    # Triton's kernels are compiled for this device; nothing else imports them.
    from janus_core.ops.cuda.triton_ops import TritonOps

    torch.backends.cuda.matmul.allow_tf32 = False
    check = Check(torch.device("cuda", 0), TritonOps(), is_rehearsal=False)
    today = datetime.datetime.now(datetime.UTC)
    check.say(f"# GPU check, {today:%Y-%m-%d %H:%M} UTC\n")
    check.say(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, random weights.")
    return check


def _rehearsal() -> Check:
    check = Check(torch.device("cpu"), EagerOps(), is_rehearsal=True)
    check.say("Rehearsal on a CPU: no kernel runs, and times mean nothing.")
    return check


def _remember(work: Callable[[], None]) -> Callable[[], None]:
    work()
    return work


@torch.inference_mode()
def check_kernels(check: Check) -> None:
    """Attention and noise against their twins, at every number of rows and both dtypes."""
    heads, head_dim = (2, 16) if check.is_rehearsal else (16, 128)
    twin = EagerOps()
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        for num_rows in ROWS:
            generator = torch.Generator(check.device).manual_seed(num_rows)
            shape = (2, heads, num_rows * SLOT, head_dim)
            kv_2KPH = torch.randn(shape, generator=generator, device=check.device).to(dtype)
            q_RNH = torch.randn(
                num_rows, heads, head_dim, generator=generator, device=check.device
            ).to(dtype)
            starts_R = torch.arange(num_rows, device=check.device) * SLOT
            contexts_R = 1 + (97 * torch.arange(num_rows, device=check.device)) % SLOT
            rows = Rows(contexts_R - 1, starts_R + contexts_R - 1, starts_R, contexts_R, SLOT)
            error = check.ops.attend(q_RNH, kv_2KPH, rows) - twin.attend(q_RNH, kv_2KPH, rows)
            check.expect(f"attention, {dtype}, {num_rows} rows", _largest(error), limit)
    if check.device.type == "cuda":
        from janus_core.ops.cuda.triton_ops import TritonOps

        seeds = torch.arange(4, device=check.device) * 2**40
        mine = TritonOps().noise(seeds, torch.full_like(seeds, 575), num_tokens=16384)
        for name, device in (("this device", check.device), ("a CPU", torch.device("cpu"))):
            noise = gumbel_noise(seeds.tolist(), [575] * 4, num_tokens=16384, device=device)
            check.expect(f"noise against {name}", _largest(mine.cpu() - noise.cpu()), 5e-6)


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
            bare = check.graphs(model, num_rows, capture=_remember)
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
            scale = _largest(outputs[2])
            error = _largest(outputs[0] - outputs[2]) / scale
            check.expect(f"graph against SDPA, {dtype}, {num_rows} rows", error, limit)
            error = _largest(outputs[0] - outputs[1])
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


@torch.inference_mode()
def measure(check: Check, name: str) -> None:
    """Steps against the floor of this device's own bandwidth, then the other stages."""
    config = CONFIGS[name]
    dtype = torch.float32 if check.is_rehearsal else torch.bfloat16
    model = random_model(config, device=check.device, dtype=dtype)
    bandwidth = _bandwidth(check)
    check.say(f"\n## {name}, {dtype}, copy at {bandwidth / 1e12:.2f} TB/s\n")
    check.say("| rows | context | step ms | floor ms | share | s/image | images/s |")
    check.say("|---|---|---|---|---|---|---|")
    table_rows = (2, 8) if check.is_rehearsal else TABLE_ROWS
    num_codes = 576
    for num_rows in table_rows:
        for context in CONTEXTS:
            step_s = _step_s(check, model, num_rows, context)
            num_bytes = _step_bytes(model, num_rows=num_rows, context=context)
            floor_s = num_bytes / bandwidth
            check.say(
                f"| {num_rows} | {context} | {step_s * 1e3:.3f} | {floor_s * 1e3:.3f} | "
                f"{floor_s / step_s:.0%} | {num_codes * step_s:.2f} | "
                f"{num_rows / 2 / (num_codes * step_s):.1f} |"
            )
    check.say("\n| a step of 2 rows, read by the host | ms |\n|---|---|")
    for label, is_late in (("at once", False), ("while the next one runs", True)):
        check.say(f"| {label} | {_read_step_s(check, model, is_late=is_late) * 1e3:.3f} |")
    check.say("\n| stage | ms |\n|---|---|")
    for label, work in _stages(check, model):
        check.say(f"| {label} | {_median_s(check, work) * 1e3:.2f} |")


def _step_s(check: Check, model: JanusModel, num_rows: int, context: int) -> float:
    """One step of `num_rows / 2` guided pictures: rows, head and draw, without the host between."""
    num_steps = 2 if check.is_rehearsal else 16
    graphs = check.graphs(model, num_rows)
    chunks = [(row, context - 1, 1) for row in range(num_rows)]
    inputs = batch(chunks, vocab_size=model.config.backbone.vocab_size, device=torch.device("cpu"))
    pictures = [Picture(2 * i, 2 * i + 1, 5.0, 1.0, seed=i, place=0) for i in range(num_rows // 2)]
    return (
        _median_s(check, lambda: graphs.run_ahead(inputs, pictures, num_steps=num_steps))
        / num_steps
    )


def _read_step_s(check: Check, model: JanusModel, *, is_late: bool) -> float:
    """One step of a picture whose every code reaches the host: before the next step is launched, or
    one step later, as the engine does it."""
    num_steps = 2 if check.is_rehearsal else 16
    graphs = check.graphs(model, 2)
    inputs = batch(
        [(0, 300, 1), (1, 300, 1)],
        vocab_size=model.config.backbone.vocab_size,
        device=torch.device("cpu"),
    )
    pictures = [Picture(0, 1, 5.0, 1.0, seed=0, place=0)]

    def work() -> None:
        copies: deque[CodeCopy] = deque()
        step = graphs.steps_ahead(inputs, pictures, num_steps=num_steps)
        for _ in range(num_steps):
            copies.append(CodeCopy(*step()))
            if len(copies) > is_late:
                copies.popleft().wait()

    return _median_s(check, work) / num_steps


def _step_bytes(model: JanusModel, *, num_rows: int, context: int) -> int:
    """What a step must read: the backbone, the head of the codes, and the rows' keys and values."""
    parts = (model.language_model, model.generation_head)
    weights = sum(p.numel() for part in parts for p in part.parameters())
    per_position = bytes_per_position(model.config.backbone, model.dtype.itemsize)
    return weights * model.dtype.itemsize + num_rows * context * per_position


def _stages(check: Check, model: JanusModel) -> list[tuple[str, Callable[[], object]]]:
    config, device = model.config, check.device
    side_px = config.vision.image_size
    pixels = torch.zeros(1, 3, side_px, side_px, device=device)
    codes = {n: torch.zeros(n, config.vq.num_codes, dtype=torch.int64) for n in (1, 8)}
    kv = KvPool.allocate(config, SLOT, device=device, dtype=model.dtype)
    prompt = batch([(0, 0, 600)], vocab_size=config.backbone.vocab_size, device=device)
    return [
        ("VQ decoding, 1 picture", lambda: model.decode_codes(codes[1])),
        ("VQ decoding, 8 pictures", lambda: model.decode_codes(codes[8])),
        ("SigLIP tower, 1 image", lambda: model.encode_images(pixels)),
        ("prefill of 600 tokens", lambda: model(prompt, kv)),
    ]


def _bandwidth(check: Check) -> float:
    """Bytes read and written per second by a large copy."""
    num_bytes = 2**20 if check.is_rehearsal else 2**32
    source = torch.empty(num_bytes, dtype=torch.uint8, device=check.device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _median_s(check, lambda: target.copy_(source))


def _median_s(check: Check, work: Callable[[], object]) -> float:
    """Median of several runs after two that warm up."""
    seconds = []
    for run in range(3 if check.is_rehearsal else 12):
        _wait(check)
        started_s = time.perf_counter()
        work()
        _wait(check)
        if run >= 2:
            seconds.append(time.perf_counter() - started_s)
    return sorted(seconds)[len(seconds) // 2]


def _wait(check: Check) -> None:
    if check.device.type == "cuda":
        torch.cuda.synchronize(check.device)


def _largest(values: torch.Tensor) -> float:
    return float(values.float().abs().max())


if __name__ == "__main__":
    sys.exit(main())
