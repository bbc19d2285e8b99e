"""The comparison: this engine, transformers, DeepSeek's loop and llama.cpp, on one machine at once.

    python -m benchmarks.compare                       the embedded checkpoint, whole pictures
    python -m benchmarks.compare --shape 1b --prepare  write random weights, compile llama.cpp
    python -m benchmarks.compare --shape 1b            Janus-Pro-1B's shapes, some steps of each
    python -m benchmarks.compare --shape 1b --avx2     the same without newer instructions
    python -m benchmarks.compare --shape PATH          any checkpoint on disk

Owns the order of the runs and the report. The sides take turns, round after round, and every other
round goes backwards, so that a machine that slows down slows all; medians are compared. Where
models are large, one is in memory at a time. Beside a step stands its floor: the bytes it must read
over the bandwidth measured in this process. The tables are for people; `--out` gets the JSON that
`benchmarks.report` makes the documentation's tables and plots of.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers

from benchmarks import engine_side, llama_side, machine, service, sides
from benchmarks.engine_side import EngineSide
from benchmarks.figures import judge
from benchmarks.floor import WEIGHT_BYTES, StepShape, read_bandwidth, step_bytes
from benchmarks.inputs import InputBuilder
from benchmarks.llama_side import LlamaSide
from benchmarks.report import summary
from benchmarks.shapes import DEFAULT_FOLDER, SHAPES, SHORT, checkpoint
from benchmarks.sides import Effort, Entry, Side, SideFailed, Work
from benchmarks.transformers_side import DTYPES, TransformersSide
from janus_core.config import ModelConfig

LARGE_BYTES = 2**30
"""Weights above this are loaded one model at a time, and their pictures are not drawn whole."""

SERVICE_ROUNDS, SERVICE_IMAGES, SHORT_IMAGES = 3, 64, 16
"""Rounds of the service, and pictures of one, small or short. The ratio is close to one: a few
seconds would say too little."""

BACKWARDS_FROM = 1
"""Every second round, beginning with this one, takes the sides in the opposite order."""


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and write the report."""
    arguments = _arguments(words)
    if arguments.avx2 and not machine.is_avx2_only():
        command = [sys.executable, "-m", "benchmarks.compare", *(words or sys.argv[1:])]
        os.execve(sys.executable, command, os.environ | machine.AVX2_ONLY)
    torch.set_num_threads(arguments.threads)
    # It warns on every call that a token limit overrides a length limit: true, and meant so.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = checkpoint(arguments.shape, arguments.folder)
    if arguments.prepare:
        prepare(directory, arguments.folder, with_llama=not arguments.no_llama)
        return
    report = compare(arguments, directory)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(summary(report, judge([report])))


def prepare(directory: Path, folder: Path, *, with_llama: bool) -> None:
    """Write what the runs need and may keep: an environment and files of llama.cpp."""
    if not with_llama:
        return
    if not llama_side.is_ready():
        llama_side.build()
    llama_side.files(directory, folder)


def compare(arguments: argparse.Namespace, directory: Path) -> dict:
    """Run all rounds; returns the report."""
    started_s = time.monotonic()
    about = machine.describe()
    builder = InputBuilder(directory)
    effort = Effort(num_steps=arguments.steps, answer_tokens=arguments.answer_tokens)
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    is_large = size > LARGE_BYTES
    work = Work.build(builder, effort, is_whole=not is_large)
    entries = [
        entry
        for entry in _entries(arguments, directory, work, is_large=is_large)
        if not arguments.only or any(part in entry.name for part in arguments.only)
    ]
    samples = measure(entries, rounds=arguments.rounds, keep=not is_large)
    report = {
        "shape": arguments.shape,
        "avx2_only": arguments.avx2,
        "machine": about,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "num_codes": work.num_codes,
        "prompt_tokens": len(work.pictures[0].token_ids),
        "question_tokens": len(work.first_question.token_ids),
        "mean_context": work.mean_context,
        "steps": arguments.steps,
        "is_extrapolated": is_large,
        "default": f"janus {engine_side.default_format()}",
        "kernels": engine_side.placement("auto").formats_name,
        "samples": samples,
        **_floors(list(samples), builder.config, work),
    }
    if is_large:
        # Whole pictures over HTTP would take hours.
        short = arguments.shape + SHORT
        drawn = checkpoint(short, arguments.folder) if short in SHAPES else None
    else:
        drawn = directory
    if drawn is not None and not arguments.no_service:
        _say("service over HTTP and engine alone")
        report["service"] = service.overhead(
            drawn,
            rounds=max(arguments.rounds, SERVICE_ROUNDS),
            num_images=SHORT_IMAGES if is_large else SERVICE_IMAGES,
        )
    report["duration_s"] = round(time.monotonic() - started_s)
    return report


def measure(entries: Sequence[Entry], *, rounds: int, keep: bool) -> dict:
    """Seconds by engine, task and round; sides stay loaded between rounds if `keep`. Before a side
    is measured it does once, whenever it was loaded, every task, or where models are large those
    that are measured once a round: `sides.SHORT`. Steps warm up by themselves."""
    samples: dict[str, dict[str, list[list[float]]]] = {}
    loaded: dict[str, Side] = {}
    failed: set[str] = set()
    for index in range(rounds):
        turn = [entry for entry in entries if entry.name not in failed]
        if index % 2 == BACKWARDS_FROM:
            turn.reverse()
        for entry in turn:
            _say(f"round {index + 1} of {rounds}: {entry.name}")
            side = loaded.get(entry.name)
            is_new = side is None
            side = loaded[entry.name] = side or entry.open()
            try:
                if is_new:
                    _warm_up(side, every_task=keep)
                _do(side, samples)
            except SideFailed as error:
                _say(f"{entry.name} takes no further part: {error}")
                failed.add(entry.name)
            if not keep:
                loaded.pop(entry.name).close()
    for side in loaded.values():
        side.close()
    return samples


def _warm_up(side: Side, *, every_task: bool) -> None:
    for (_, name), task in side.tasks().items():
        if every_task or name in sides.SHORT:
            task()


def _do(side: Side, samples: dict[str, dict[str, list[list[float]]]]) -> None:
    for (engine, name), task in {**side.tasks(), **side.whole_tasks()}.items():
        seconds = task()
        samples.setdefault(engine, {}).setdefault(name, []).append(seconds)


def _entries(
    arguments: argparse.Namespace, directory: Path, work: Work, *, is_large: bool
) -> list[Entry]:
    def entry(name: str, open: Callable[[], Side]) -> Entry:
        return Entry(name, open)

    made = [
        entry(f"janus {kind}", partial(EngineSide, directory, work, weight_format=kind))
        for kind in engine_side.FORMATS
    ]
    made += [
        entry(f"transformers {kind}", partial(TransformersSide, directory, work, dtype=kind))
        for kind in DTYPES
    ]
    # llama.cpp was compiled for this very processor, and cannot be told to do without.
    if arguments.no_llama or arguments.avx2 or not is_large:
        return made
    if not llama_side.is_ready():
        _say("llama.cpp is not built and takes no part: run with --prepare first")
        return made
    paths = llama_side.files(directory, arguments.folder)
    made += [
        entry(
            f"llama.cpp {kind}",
            partial(LlamaSide, paths[kind], work, kind=kind, threads=arguments.threads),
        )
        for kind in llama_side.FORMATS
    ]
    return made


def _floors(engines: list[str], config: ModelConfig, work: Work) -> dict[str, dict]:
    """By engine and task, the bytes of a step and the seconds in which they can be read."""
    num_bytes: dict[str, dict[str, int]] = {}
    floors: dict[str, dict[str, float]] = {}
    bandwidths: dict[str, float] = {}
    for engine in engines:
        kind = engine.split()[-1]
        weight_bytes = WEIGHT_BYTES[kind]
        # llama.cpp's cache is f16, and transformers' is of the dtype of its weights.
        kv_bytes = 4 if kind == "fp32" else 2
        if engine.startswith("janus"):
            kv_bytes = engine_side.kv_bytes(kind)
        for task, num_rows in ((sides.STEP, 2), (sides.FOUR_STEP, 2 * sides.NUM_TOGETHER)):
            shape = StepShape(0, num_rows, work.mean_context)
            size = step_bytes(config, shape, weight_bytes=weight_bytes, kv_bytes=kv_bytes)
            bandwidth = read_bandwidth(size)
            num_bytes.setdefault(engine, {})[task] = size
            floors.setdefault(engine, {})[task] = size / bandwidth
            bandwidths[f"{engine}, {task}"] = bandwidth
    return {"bytes": num_bytes, "floors_s": floors, "bandwidths": bandwidths}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="mini", help="mini, 1b, wide, or a directory")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="for what is kept")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="decode steps of pictures in a round")
    parser.add_argument("--answer-tokens", type=int, default=26)
    parser.add_argument("--only", nargs="*", help="sides whose names contain one of these")
    parser.add_argument(
        "--avx2", action="store_true", help="no instructions newer than AVX2; without llama.cpp"
    )
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--no-service", action="store_true")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--out", type=Path, help="file for the report, JSON")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
