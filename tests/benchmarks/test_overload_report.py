"""The report of an overload measurement: its judgement, and that it is the one of its numbers."""

import json
from pathlib import Path

import pytest

from benchmarks.overload_report import markdown

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
REPORTS = sorted(RESULTS.glob("*-overload.json"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_report_is_what_its_numbers_say(path: Path):
    report = json.loads(path.read_text("utf-8"))
    assert markdown(report) == path.with_suffix(".md").read_text("utf-8")


def test_the_best_phase_is_the_measure_beside_the_full_load():
    report = json.loads(REPORTS[-1].read_text("utf-8"))
    for phase, goodput in zip(report["overload"]["phases"], (50, 80, 100, 85, 50), strict=True):
        phase["goodput_per_s"] = goodput
    report["overload"]["goodput_ratio"] = 85 / 80
    text = markdown(report)
    assert "| goodput at 5x over the best of any load | 0.85 | >= 0.9 | **missed** |" in text
    assert "| goodput at 5x over that at 1x | 1.06 | >= 0.9 | holds |" in text


def test_a_report_says_how_it_was_measured():
    text = markdown(json.loads(REPORTS[-1].read_text("utf-8")))
    assert "--max-queue-s 1" in text
    assert "Recovery is the time from the end of the crowd" in text
