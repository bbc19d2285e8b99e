"""The engine against transformers' generate: same weights, prompts, threads, one process.

    python -m benchmarks.engine                 the embedded checkpoint
    python -m benchmarks.engine --model wide    random weights, 8 layers of width 1024
    python -m benchmarks.engine --model PATH    any checkpoint on disk

On a machine that others use too, `--clock cpu` counts the time the process had instead of the time
that passed; with one thread that is what would pass on a quiet one, but for shared caches.

Owns the order of the runs and the report. The sides take turns, round after round, and the first
of each round alternates, so that a machine that slows down slows both; the medians are compared.
Beside the decode step stands its floor: the bytes it must read over the bandwidth measured in this
process. The table is for people; the last line is one JSON document.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.floor import StepShape, read_bandwidth, step_bytes
from benchmarks.sides import Clock, EngineSide, InputBuilder, Inputs, Outcome, TransformersSide
from benchmarks.wide import write_wide_checkpoint
from benchmarks.workloads import workloads
from janus_core.config import ModelConfig
from janus_core.engine.events import StepDone

EMBEDDED = Path(__file__).parent.parent / "weights" / "janus-mini"
BYTES_PER_VALUE = 4
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one workload, in seconds; `step_s` is a decode step of the engine, `floor_s` the
    time in which its bytes can be read."""

    name: str
    transformers_s: float
    engine_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    step_s: float
    floor_s: float
    same_answers: int
    num_answers: int


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    # It warns on every call that a token limit overrides a length limit: true, and meant so.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        directory = _checkpoint(arguments.model, Path(scratch))
        builder = InputBuilder(directory)
        clock = CLOCKS[arguments.clock]
        sides = (
            TransformersSide(directory, clock=clock),
            EngineSide(directory, builder=builder, clock=clock),
        )
        work = workloads(builder.config.vision.image_size, answer_tokens=arguments.answer_tokens)
        chosen = [each for each in work if arguments.only in each.name]
        print(_machine(arguments))
        results = []
        for side in sides:
            side.run(builder.build(work[0]))
        for inputs in map(builder.build, chosen):
            results.append(_measure(sides, inputs, arguments.rounds, config=builder.config))
            print(_row(results[-1]), flush=True)
    print(json.dumps(_document(arguments, results)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="mini, wide, or a directory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answer-tokens", type=int, default=16, help="tokens of every answer")
    parser.add_argument("--only", default="", help="only workloads whose name contains this")
    return parser.parse_args()


def _checkpoint(model: str, scratch: Path) -> Path:
    if model == "mini":
        return EMBEDDED
    if model != "wide":
        return Path(model)
    write_wide_checkpoint(EMBEDDED, scratch)
    return scratch


def _measure(
    sides: tuple[TransformersSide, EngineSide], inputs: Inputs, rounds: int, *, config: ModelConfig
) -> Result:
    """Run both sides `rounds` times in turns."""
    theirs: list[Outcome] = []
    ours: list[Outcome] = []
    for index in range(rounds):
        for side in sides if index % 2 else reversed(sides):
            (ours if isinstance(side, EngineSide) else theirs).append(side.run(inputs))
    pairs = list(zip(theirs, ours, strict=True))
    step_s, floor_s = _step_and_floor(ours, inputs, config)
    transformers_s = statistics.median(outcome.duration_s for outcome in theirs)
    engine_s = statistics.median(outcome.duration_s for outcome in ours)
    ratios = [their.duration_s / our.duration_s for their, our in pairs]
    return Result(
        name=inputs.name,
        transformers_s=transformers_s,
        engine_s=engine_s,
        ratio=transformers_s / engine_s,
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        step_s=step_s,
        floor_s=floor_s,
        same_answers=sum(a == b for a, b in zip(theirs[0].answers, ours[0].answers, strict=True)),
        num_answers=len(inputs.questions),
    )


def _step_and_floor(
    outcomes: list[Outcome], inputs: Inputs, config: ModelConfig
) -> tuple[float, float]:
    """Return the median duration and the floor of the fullest steps that only decode."""
    steps = [step for outcome in outcomes for step in outcome.steps if not step.num_prefill_tokens]
    fullest = max(_num_rows(step) for step in steps)
    full = [step for step in steps if _num_rows(step) == fullest]
    prompts = [len(each.token_ids) for each in (*inputs.pictures, *inputs.questions)]
    outputs = [config.vq.num_codes] * len(inputs.pictures)
    outputs += [question.num_tokens for question in inputs.questions]
    shape = StepShape(
        num_text_rows=full[0].num_text_rows,
        num_code_rows=full[0].num_cond_rows + full[0].num_uncond_rows,
        mean_context=statistics.mean(prompts) + statistics.mean(outputs) / 2,
    )
    num_bytes = step_bytes(config, shape, bytes_per_value=BYTES_PER_VALUE)
    floor_s = num_bytes / read_bandwidth(num_bytes)
    return statistics.median(step.duration_s for step in full), floor_s


def _num_rows(step: StepDone) -> int:
    return step.num_text_rows + step.num_cond_rows + step.num_uncond_rows


def _machine(arguments: argparse.Namespace) -> str:
    return (
        f"{arguments.model}, fp32, {arguments.threads} thread(s), {arguments.rounds} rounds, "
        f"{arguments.clock} clock, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {_processor()}\n\n"
        f"{'workload':<26}{'transformers':>13}{'engine':>10}{'ratio':>8}{'(low..high)':>15}"
        f"{'step':>11}{'floor':>11}  same answers"
    )


def _row(result: Result) -> str:
    spread = f"({result.ratio_low:.2f}..{result.ratio_high:.2f})"
    same = f"{result.same_answers} of {result.num_answers}" if result.num_answers else "-"
    return (
        f"{result.name:<26}{result.transformers_s:>11.3f} s{result.engine_s:>8.3f} s"
        f"{result.ratio:>7.2f}x{spread:>15}{result.step_s * 1e3:>8.2f} ms"
        f"{result.floor_s * 1e3:>8.2f} ms  {same}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _document(arguments: argparse.Namespace, results: list[Result]) -> dict[str, object]:
    return {
        "model": arguments.model,
        "dtype": "float32",
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "clock": arguments.clock,
        "answer_tokens": arguments.answer_tokens,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": _processor(),
        "results": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    main()
