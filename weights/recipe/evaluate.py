"""The exam of janus-mini as one command: `python -m weights.recipe.evaluate`.

Owns the marks and the report: exact answers to balanced questions on held-out scenes, drawings of
held-out captions judged by `checker`, and the same on another program's scenes and in a person's
words. Knows no model but through `subjects`. Invariant: what the report says is all that was asked;
nothing is asked again or left out for its result.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from janus_core.options import DrawingDefaults
from weights.recipe.exam import Commission, Question, held_out_captions, held_out_questions
from weights.recipe.outsiders import outside_captions, outside_questions
from weights.recipe.subjects import Subject, subject_of
from weights.recipe.verdict import check

CHECKPOINT = Path("weights/janus-mini")
FIRST_SEED = 1000
NUM_OUTSIDE_QUESTIONS = 280
# Pictures of each caption in a person's words, of which there are few.
OUTSIDE_PICTURES = 4
SHEET_PICTURES = 32
NUM_EXAMPLES = 40


@dataclass(frozen=True)
class Mark:
    """One task: what was asked, whether it was fulfilled, and what came instead.

    `shown` is for drawings: everything asked for is there, whatever else is wrong
    (`Verdict.shows_all`).
    """

    kind: str
    task: str
    right: bool
    remark: str = ""
    shown: bool = False


@dataclass(frozen=True)
class Score:
    """Shares of fulfilled tasks; `low` and `high` bound the true share with 95 % confidence."""

    right: int
    total: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, marks: Sequence[Mark]) -> Score:
        """Return the score with Wilson's interval (doi:10.1080/01621459.1927.10502953)."""
        right, total = sum(mark.right for mark in marks), len(marks)
        if total == 0:
            return cls(0, 0, math.nan, 0.0, 1.0)
        share, z = right / total, 1.96
        middle = (share + z * z / (2 * total)) / (1 + z * z / total)
        reach = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
        reach *= z / (1 + z * z / total)
        return cls(right, total, share, max(0.0, middle - reach), min(1.0, middle + reach))


def examine(subject: Subject, questions: Sequence[Question]) -> list[Mark]:
    """Return a mark per question; an answer counts only if it is exactly one of the right ones."""
    answers = subject.answer(questions)
    return [
        Mark(question.kind, question.text, answer in question.answers, _contrast(question, answer))
        for question, answer in zip(questions, answers, strict=True)
    ]


def commission(
    subject: Subject,
    commissions: Sequence[Commission],
    *,
    manner: DrawingDefaults,
    first_seed: int,
) -> tuple[list[Mark], list[Image.Image]]:
    """Return a mark and a picture per caption."""
    captions = [task.caption for task in commissions]
    pictures = subject.draw(captions, manner=manner, first_seed=first_seed)
    marks = []
    for task, picture in zip(commissions, pictures, strict=True):
        verdict = check(picture, task.requirement)
        remark = "; ".join(verdict.faults)
        marks.append(Mark(task.kind, task.caption, verdict.holds, remark, verdict.shows_all))
    return marks, pictures


def summary(marks: Sequence[Mark]) -> dict[str, Any]:
    """Return the overall score, the score of each kind, and the first failures."""
    kinds = sorted({mark.kind for mark in marks})
    failures = [mark for mark in marks if not mark.right]
    return {
        "overall": asdict(Score.of(marks)),
        "kinds": {k: asdict(Score.of([m for m in marks if m.kind == k])) for k in kinds},
        "failures": [f"[{m.kind}] {m.task} -> {m.remark}" for m in failures[:NUM_EXAMPLES]],
        "remarks": dict(Counter(m.remark for m in failures).most_common(NUM_EXAMPLES)),
    }


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 4, scale: int = 2
) -> Image.Image:
    """Return the pictures in a grid, each above its caption."""
    width, height = (side * scale for side in pictures[0].size)
    cell_width, cell_height = max(width, 190) + 12, height + 46
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = i % columns * cell_width + 6, i // columns * cell_height + 6
        large = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=(200, 200, 200))
        draw.multiline_text((left, top + height + 3), _wrapped(caption, 32), fill=(40, 40, 40))
    return sheet


def _contrast(question: Question, answer: str) -> str:
    return f'"{answer}" instead of "{question.answers[0]}"'


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3])


def manners(defaults: DrawingDefaults) -> dict[str, DrawingDefaults]:
    """Return the ways of drawing that are measured, by name; the checkpoint's own comes first."""
    return {
        "default": defaults,
        "unguided": replace(defaults, guidance=1.0),
        "unfiltered": replace(defaults, temperature=1.0, top_p=1.0),
    }


def evaluate(subject: Subject, *, scenes: int, captions: int) -> tuple[dict[str, Any], Image.Image]:
    """Return the report's figures, and a sheet of the first drawings in the checkpoint's manner."""
    started = time.monotonic()
    held_out, outside = held_out_captions(captions), outside_captions() * OUTSIDE_PICTURES
    drawing: dict[str, Any] = {}
    pictures: dict[str, list[Image.Image]] = {}
    for name, manner in manners(subject.drawing).items():
        marks, pictures[name] = commission(subject, held_out, manner=manner, first_seed=FIRST_SEED)
        shown = Score.of([replace(mark, right=mark.shown) for mark in marks])
        drawing[name] = {"manner": asdict(manner), "shown": asdict(shown), **summary(marks)}
    first = [task.caption for task in held_out[:SHEET_PICTURES]]
    sheet = contact_sheet(pictures["default"][:SHEET_PICTURES], first)
    marks, _ = commission(subject, outside, manner=subject.drawing, first_seed=FIRST_SEED)
    figures = {
        "backend": subject.name,
        "scenes": scenes,
        "captions": captions,
        "answers": summary(examine(subject, held_out_questions(scenes))),
        "drawings": drawing,
        "outside_answers": summary(examine(subject, outside_questions(NUM_OUTSIDE_QUESTIONS))),
        "outside_drawings": summary(marks),
        "duration_s": round(time.monotonic() - started, 1),
    }
    return figures, sheet


_LEGEND = (
    "Shares with 95 % confidence intervals (Wilson). An answer is right only if it is exactly the",
    "expected one; a drawing only if the pixel checker (`weights/recipe/checker.py`) finds every",
    "requested object with its colour, shape, size and place, every relation and the background,",
    "and nothing else. *Shown* counts drawings with every requested object in its shape, colour,",
    "place and relations, whatever its size, the background, and what else there is.",
    "No combination of the held-out scenes and captions was trained on.",
)


def as_markdown(figures: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        "# Evaluation of janus-mini",
        "",
        f"{figures['date']}, `{figures['command']}`, weights sha256 `{figures['sha256'][:16]}…`, "
        f"backend {figures['backend']}, {figures['duration_s']} s.",
        "",
        *_LEGEND,
        "",
        *_table(f"Answers on {figures['scenes']} held-out scenes", figures["answers"]),
    ]
    for name, result in figures["drawings"].items():
        how = "guidance {guidance}, temperature {temperature}, top-p {top_p}"
        title = f"Drawings of {figures['captions']} held-out captions, {name}"
        lines += _table(f"{title}: {how.format(**result['manner'])}", result)
    lines += _table("Answers on another program's scenes, other words", figures["outside_answers"])
    lines += _table("Drawings of a person's captions", figures["outside_drawings"])
    return "\n".join(lines)


def _table(title: str, result: dict[str, Any]) -> list[str]:
    rows = [*result["kinds"].items(), ("**overall**", result["overall"])]
    if "shown" in result:
        rows.append(("*shown*", result["shown"]))
    return [
        f"## {title}",
        "",
        "| kind | right | of | share | interval |",
        "|---|---:|---:|---:|---|",
        *(
            f"| {kind} | {s['right']} | {s['total']} | {s['share']:.1%} "
            f"| {s['low']:.1%} to {s['high']:.1%} |"
            for kind, s in rows
        ),
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine a checkpoint and write evaluation.json, evaluation.md and drawings.png."""
    parser = argparse.ArgumentParser(description="Examine janus-mini.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--backend", choices=("engine", "transformers"), default="engine")
    parser.add_argument("--out", type=Path, help="folder of the reports (default: the checkpoint)")
    options = parser.parse_args(arguments)
    subject = subject_of(options.backend, options.checkpoint)
    figures, sheet = evaluate(subject, scenes=options.scenes, captions=options.captions)
    words = sys.argv[1:] if arguments is None else arguments
    figures["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    figures["command"] = shlex.join(["python", "-m", "weights.recipe.evaluate", *words])
    weights = (options.checkpoint / "model.safetensors").read_bytes()
    figures["sha256"] = hashlib.sha256(weights).hexdigest()
    folder = options.out or options.checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "evaluation.md").write_text(as_markdown(figures))
    sheet.save(folder / "drawings.png", optimize=True)
    print(as_markdown(figures))


if __name__ == "__main__":
    main()
