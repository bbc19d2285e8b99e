"""What a format of the weights costs in quality, against fp32.

    python -m benchmarks.quality                  the embedded checkpoint, with the recipe's exam
    python -m benchmarks.quality --shape 1b       teacher-forced logits only, at the true shapes

Two measures. Teacher-forced: fp32 draws codes one by one, every other format computes the logits
after the very same codes; how often its likeliest token is fp32's, and the mean Kullback-Leibler
divergence from fp32's distribution, of both heads. And the exam of the embedded checkpoint
(`weights.recipe.evaluate`), which says what a user would notice. Random weights make nearly flat
distributions, so their agreement is a lower bound; divergence is the better measure there.

Shape suffixes: T tokens, D width, N positions compared, V entries of a head.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import engine_side, machine, sides
from benchmarks.inputs import InputBuilder
from benchmarks.shapes import DEFAULT_FOLDER, EMBEDDED, checkpoint
from benchmarks.workloads import pictures
from janus_core.engine.settings import EngineSettings
from janus_core.models.inputs import BatchInputs, Span
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.pipeline import Pipeline
from weights.recipe.evaluate import evaluate
from weights.recipe.subjects import BATCH_ROWS, EngineSubject

HEADS = ("codes", "words")


class Examined(EngineSubject):
    """Sits the exam in one format of the weights."""

    def __init__(self, folder: Path, *, weight_format: str) -> None:
        settings = EngineSettings(max_sequences=2 * BATCH_ROWS)
        self._pipeline = Pipeline.load(
            str(folder), settings=settings, device="cpu", weight_format=weight_format
        )
        self.drawing = self._pipeline.drawing_defaults


@dataclass(frozen=True, slots=True)
class Forced:
    """Logits of both heads at each position compared, and the ids that led there."""

    ids: tuple[int, ...]
    codes_NV: torch.Tensor
    words_NV: torch.Tensor


def main(words: Sequence[str] | None = None) -> None:
    """Measure every format, print a table and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="mini", help="mini, 1b, wide, or a directory")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--codes", type=int, default=128, help="positions compared")
    parser.add_argument("--scenes", type=int, default=500, help="of the exam; 0 leaves it out")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    directory = checkpoint(arguments.shape, arguments.folder)
    report = {
        "shape": arguments.shape,
        "machine": machine.describe(),
        "positions": arguments.codes,
        "forced": forced(directory, num_codes=arguments.codes),
    }
    if directory == EMBEDDED and arguments.scenes:
        report["exam"] = {
            kind: exam(directory, kind, scenes=arguments.scenes, captions=arguments.captions)
            for kind in engine_side.FORMATS
        }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def forced(directory: Path, *, num_codes: int) -> dict[str, dict[str, float]]:
    """By format: agreement and divergence of both heads from fp32; one model in memory at a
    time."""
    builder = InputBuilder(directory)
    prompt = builder.picture(pictures(1)[0]).token_ids
    expected: Forced | None = None
    figures: dict[str, dict[str, float]] = {}
    for kind in ("fp32", *(each for each in engine_side.FORMATS if each != "fp32")):
        model = engine_side.load(directory, weight_format=kind)
        found = run(model, prompt, num_codes=num_codes, follow=expected)
        expected = expected or found
        figures[kind] = compare(expected, found)
        del model
        sides.release()
    return figures


@torch.inference_mode()
def run(
    model: JanusModel, prompt: tuple[int, ...], *, num_codes: int, follow: Forced | None
) -> Forced:
    """Logits after the prompt and each of `num_codes` codes, one decode step at a time; the codes
    are those of `follow`, or drawn here at temperature 1."""
    vocab_size = model.config.backbone.vocab_size
    num_positions = len(prompt) + num_codes
    kv = KvPool.allocate(
        model.config,
        num_positions + -num_positions % 32,
        device=model.device,
        dtype=model.kv_dtype,
    )
    noise = torch.Generator().manual_seed(0)
    ids = list(prompt)
    codes, words = [], []
    tokens: Sequence[int] = prompt
    for index in range(num_codes):
        hidden_TD = model(_inputs(tokens, context=len(ids)), kv)
        codes.append(model.code_logits(hidden_TD[-1:])[0])
        words.append(model.text_logits(hidden_TD[-1:])[0])
        if follow is None:
            code = int(torch.multinomial(codes[-1].softmax(dim=-1), 1, generator=noise))
            ids.append(vocab_size + code)
        else:
            ids.append(follow.ids[len(prompt) + index])
        tokens = ids[-1:]
    return Forced(tuple(ids), torch.stack(codes), torch.stack(words))


def compare(expected: Forced, found: Forced) -> dict[str, float]:
    """Share of positions with the same likeliest token, and mean divergence in nats, by head."""
    figures = {}
    for name, p, q in (
        ("codes", expected.codes_NV, found.codes_NV),
        ("words", expected.words_NV, found.words_NV),
    ):
        log_p, log_q = p.double().log_softmax(dim=-1), q.double().log_softmax(dim=-1)
        figures[f"{name}_agreement"] = float((p.argmax(-1) == q.argmax(-1)).double().mean())
        divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
        figures[f"{name}_divergence"] = max(float(divergence), 0.0)
        assert math.isfinite(figures[f"{name}_divergence"]), "logits are finite"
    return figures


def exam(directory: Path, kind: str, *, scenes: int, captions: int) -> dict[str, dict]:
    """The overall scores of the recipe's evaluation with one format."""
    subject = Examined(directory, weight_format=kind)
    figures, _ = evaluate(subject, scenes=scenes, captions=captions)
    scores = {"answers": figures["answers"]["overall"]}
    for manner, marks in figures["drawings"].items():
        scores[f"drawings, {manner}"] = marks["overall"]
    scores["outside answers"] = figures["outside_answers"]["overall"]
    scores["outside drawings"] = figures["outside_drawings"]["overall"]
    return scores


def _inputs(tokens: Sequence[int], *, context: int) -> BatchInputs:
    positions = torch.arange(context - len(tokens), context)
    span = Span(0, len(tokens), 0, context)
    return BatchInputs(torch.tensor(list(tokens)), positions, positions, (span,))


if __name__ == "__main__":
    main()
