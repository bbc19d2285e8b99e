"""The comparison runs, on a model so small that it proves nothing but that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import compare, service, sides
from benchmarks.figures import Figures
from tests.serving import ServerInThread

PARTS = {sides.STEP, sides.FOUR_STEP, sides.FIRST, sides.PIXELS, sides.QUESTION, sides.AGAIN}
WHOLE = {"one image", "8 images", "8 questions", "4 images and 4 questions"}


@pytest.fixture(scope="module")
def report(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("report") / "report.json"
    words = f"--shape {tiny_checkpoint} --threads 1 --rounds 1 --steps 3 --answer-tokens 3"
    sides = ["--only", "janus", "transformers bf16"]
    compare.main([*words.split(), *sides, "--no-service", "--out", str(out)])
    return json.loads(out.read_text())


def test_every_side_does_every_task(report: dict) -> None:
    samples = report["samples"]
    assert set(samples["janus fp32"]) == PARTS | WHOLE | {sides.ALONE, sides.MIXED}
    assert set(samples["transformers bf16"]) == PARTS | WHOLE
    assert set(samples["deepseek loop bf16"]) == {sides.STEP, sides.FOUR_STEP}
    for tasks in samples.values():
        for name, rounds in tasks.items():
            assert len(rounds) == 1, name
            assert all(value > 0 for each in rounds for value in each), name


def test_as_many_steps_and_words_as_asked_for(report: dict) -> None:
    for engine, tasks in report["samples"].items():
        for task in (sides.STEP, sides.FOUR_STEP):
            assert [len(each) for each in tasks[task]] == [3], engine
    gaps = report["samples"]["janus fp32"]
    # Four answers of three words have two gaps each.
    assert [len(each) for each in gaps[sides.MIXED] + gaps[sides.ALONE]] == [8, 8]


def test_a_report_says_what_its_figures_need(report: dict) -> None:
    figures = Figures(report)
    assert report["num_codes"] == 16
    for engine in ("janus fp32", "transformers bf16"):
        step_s = figures.seconds(engine, sides.STEP)
        first_s = figures.seconds(engine, sides.FIRST)
        assert figures.image_s(engine) == pytest.approx(first_s + 15 * step_s)
        assert 0 < figures.floor_s(engine, sides.STEP) < step_s


def test_sides_are_loaded_once_or_for_each_round() -> None:
    class Side:
        def tasks(self):
            return {
                ("e", "t"): lambda: log.append("task") or [1.0],
                ("e", sides.FIRST): lambda: log.append("short") or [3.0],
            }

        def whole_tasks(self):
            return {("e", "whole"): lambda: log.append("whole") or [2.0]}

        def close(self) -> None:
            log.append("close")

    def opened() -> Side:
        log.append("open")
        return Side()

    log: list[str] = []
    entry = sides.Entry("e", opened)
    samples = compare.measure([entry], rounds=2, keep=False)
    # What is done once a round is done before.
    assert log == ["open", "short", "task", "short", "whole", "close"] * 2
    measured = {"t": [[1.0]] * 2, sides.FIRST: [[3.0]] * 2, "whole": [[2.0]] * 2}
    assert samples == {"e": measured}
    log.clear()
    compare.measure([entry], rounds=2, keep=True)
    # Once to warm up what stays.
    assert log == ["open", "task", "short", *["task", "short", "whole"] * 2, "close"]


def test_the_order_turns_round() -> None:
    class Side:
        def tasks(self):
            return {}

        whole_tasks = tasks

        def close(self) -> None:
            pass

    def entry(name: str) -> sides.Entry:
        return sides.Entry(name, lambda: order.append(name) or Side())

    order: list[str] = []
    compare.measure([entry("a"), entry("b")], rounds=3, keep=False)
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_a_side_that_crashes_costs_nobody_elses_figures() -> None:
    class Side:
        def __init__(self, name: str) -> None:
            self.name = name

        def tasks(self):
            return {(self.name, "t"): self.task}

        def whole_tasks(self):
            return {}

        def task(self) -> list[float]:
            if self.name == "b":
                raise sides.SideFailed("it has crashed")
            return [1.0]

        def close(self) -> None:
            pass

    entries = [sides.Entry(name, lambda name=name: Side(name)) for name in "abc"]
    samples = compare.measure(entries, rounds=2, keep=False)
    assert samples == {name: {"t": [[1.0], [1.0]]} for name in "ac"}


def test_the_service_is_compared_with_the_engine(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def serving(directory: str, *_: str) -> Iterator[str]:
        with ServerInThread(model=directory) as server:
            yield server.url

    monkeypatch.setattr(service, "serving", serving)
    figures = service.overhead(tiny_checkpoint, rounds=1, num_images=3)
    assert {len(values) for values in figures.values()} == {1}
    (http,), (engine,), (ratio,) = figures.values()
    assert http > 0
    assert ratio == http / engine
