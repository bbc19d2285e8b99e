"""The exam is fair and repeatable, and the committed checkpoint passes a small one."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from janus_core.options import DrawingDefaults
from weights.recipe import world
from weights.recipe.evaluate import (
    CHECKPOINT,
    Mark,
    Score,
    as_markdown,
    commission,
    contact_sheet,
    evaluate,
    examine,
    manners,
)
from weights.recipe.exam import held_out_captions, held_out_questions
from weights.recipe.language import KINDS
from weights.recipe.outsiders import outside_captions, outside_questions
from weights.recipe.subjects import subject_of
from weights.recipe.verdict import Requirement

REPOSITORY = Path(__file__).parents[2]
PLACES = {
    f"{row} {column}".strip() or "center": ((c + 0.5) / 3, (r + 0.5) / 3)
    for r, row in enumerate(("top", "", "bottom"))
    for c, column in enumerate(("left", "", "right"))
}
# Where the related pair of a drawing goes, and the third object.
PAIRS = {
    "left": ((0.22, 0.5), (0.78, 0.5), (0.5, 0.85)),
    "right": ((0.78, 0.5), (0.22, 0.5), (0.5, 0.85)),
    "above": ((0.5, 0.22), (0.5, 0.78), (0.85, 0.5)),
    "below": ((0.5, 0.78), (0.5, 0.22), (0.85, 0.5)),
}


def test_questions_are_balanced_and_repeatable():
    exam = held_out_questions(110)
    counts = Counter(question.kind for question in exam)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 5
    again = held_out_questions(110)
    assert [(q.text, q.answers, q.picture.tobytes()) for q in exam] == [
        (q.text, q.answers, q.picture.tobytes()) for q in again
    ]


def test_captions_determine_held_out_combinations():
    for task in held_out_captions(80):
        scene = scene_of(task.requirement)
        assert world.is_held_out(scene), task.caption


def scene_of(requirement: Requirement) -> world.Scene:
    """Return a scene of what is required, wherever its objects may be."""
    objects = [
        world.make_object(item.shape, item.color, item.size or "small", x=0.5, y=0.5)
        for item in requirement.objects
    ]
    return world.make_scene(objects, requirement.background or "white")


def test_outside_tasks_ask_for_what_the_world_has():
    exam = outside_questions(56)
    assert {question.kind for question in exam} == set(KINDS)
    assert all(len(question.answers) == 1 and question.answers[0] for question in exam)
    for task in outside_captions():
        for item in task.requirement.objects:
            assert item.shape in world.SHAPES
            assert item.color in world.COLORS
            assert item.place in (None, *PLACES)


def test_a_score_is_a_share_with_its_confidence():
    score = Score.of([Mark("color", "?", right=i < 95) for i in range(100)])
    assert (score.right, score.total) == (95, 100)
    # Wilson's interval for 95 of 100.
    assert (score.share, score.low, score.high) == pytest.approx((0.95, 0.888, 0.978), abs=1e-3)


class Draughtsman:
    """Draws with the world's renderer and answers with the key; or fails at both."""

    name = "draughtsman"
    drawing = DrawingDefaults(guidance=3.0, temperature=0.5, top_p=0.9)

    def __init__(self, *, able: bool) -> None:
        self._able = able
        tasks = [*held_out_captions(12), *outside_captions()]
        self._wanted = {task.caption: task.requirement for task in tasks}

    def answer(self, questions):
        return [question.answers[0] if self._able else "" for question in questions]

    def draw(self, captions, *, manner, first_seed):
        assert manner in manners(self.drawing).values()
        assert first_seed >= 0
        return [self._drawing(self._wanted[caption]) for caption in captions]

    def _drawing(self, wanted):
        relations = dict.fromkeys(w for i, w, j in wanted.relations if (i, j) == (0, 1))
        spots = PAIRS[next(iter(relations), "left")]
        objects = []
        for item, spot in zip(wanted.objects, spots, strict=False):
            x, y = PLACES[item.place] if item.place else spot
            objects.append(
                world.make_object(item.shape, item.color, item.size or "small", x=x, y=y)
            )
        if not self._able:
            objects = objects[1:]
        return world.render(world.make_scene(objects, wanted.background or "gray"))


def test_the_report_tells_the_able_from_the_unable():
    able, sheet = evaluate(Draughtsman(able=True), scenes=12, captions=12)
    unable, _ = evaluate(Draughtsman(able=False), scenes=12, captions=12)
    assert able["answers"]["overall"]["share"] == 1.0
    assert able["outside_answers"]["overall"]["share"] == 1.0
    assert able["drawings"]["default"]["manner"]["guidance"] == 3.0
    assert able["drawings"]["unguided"]["manner"]["guidance"] == 1.0
    assert able["drawings"]["unfiltered"]["manner"]["temperature"] == 1.0
    # A third object related to a pair is more than this draughtsman can place.
    assert able["drawings"]["default"]["overall"]["share"] > 0.7
    assert able["drawings"]["default"]["shown"]["share"] > 0.7
    assert able["outside_drawings"]["overall"]["share"] > 0.9
    assert unable["answers"]["overall"]["share"] == 0.0
    assert unable["drawings"]["default"]["overall"]["share"] == 0.0
    assert unable["drawings"]["default"]["shown"]["share"] == 0.0
    assert unable["outside_drawings"]["failures"]
    report = as_markdown(able | {"date": "today", "command": "evaluate", "sha256": "0" * 64})
    assert "| **overall** | 36 | 36 | 100.0% |" in report
    assert sheet.width > 4 * 128


def test_a_contact_sheet_holds_every_picture():
    pictures = [world.render(scene_of(t.requirement)) for t in held_out_captions(5)]
    two_rows = contact_sheet(pictures, ["a caption"] * 5)
    one_row = contact_sheet(pictures[:4], ["a caption"] * 4)
    assert two_rows.width == one_row.width
    assert two_rows.height == 2 * one_row.height


@pytest.fixture(scope="module")
def subject():
    return subject_of("engine", REPOSITORY / CHECKPOINT)


@pytest.fixture(scope="module")
def record():
    """The full evaluation that is committed with the checkpoint."""
    return json.loads((REPOSITORY / CHECKPOINT / "evaluation.json").read_text())


def bar(score, total):
    """Return how many of `total` a checkpoint that earned `score` reaches 49 times in 50."""
    low = score["low"]
    return total * low - 2 * math.sqrt(total * low * (1 - low))


def test_the_record_is_of_the_committed_checkpoint(record):
    weights = (REPOSITORY / CHECKPOINT / "model.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(weights).hexdigest()
    assert record["scenes"] >= 500
    assert record["captions"] >= 200


def test_the_committed_checkpoint_answers(subject, record):
    marks = examine(subject, held_out_questions(20, seed=11))
    least = max(50, bar(record["answers"]["overall"], len(marks)))
    assert sum(mark.right for mark in marks) >= least, [m for m in marks if not m.right]


def test_the_committed_checkpoint_draws(subject, record):
    tasks = held_out_captions(24, seed=12)
    marks, _ = commission(subject, tasks, manner=subject.drawing, first_seed=0)
    least = bar(record["drawings"]["default"]["overall"], len(marks))
    assert sum(mark.right for mark in marks) >= least, [m for m in marks if not m.right]


def test_the_answers_on_record_reach_their_bar(record):
    answers = record["answers"]
    assert answers["overall"]["share"] >= 0.95
    assert {kind: s["share"] for kind, s in answers["kinds"].items() if s["share"] < 0.90} == {}


def test_the_drawings_on_record_reach_their_bar(record):
    assert record["drawings"]["default"]["overall"]["share"] >= 0.90
    assert record["drawings"]["unguided"]["manner"]["guidance"] == 1.0
