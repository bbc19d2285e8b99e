"""Bars, tables and plots, from reports written by hand."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report as reports
from benchmarks import sides
from benchmarks.figures import BARS, Figures, judge, quantile
from benchmarks.plot import Bars, Lines, bars_svg, lines_svg


def _report(shape: str = "1b", **engines: dict[str, float]) -> dict:
    samples = {
        engine.replace("_", " "): {task: [[value], [value]] for task, value in tasks.items()}
        for engine, tasks in engines.items()
    }
    return {
        "shape": shape,
        "num_codes": 577,
        "mean_context": 300,
        "steps": 4,
        "is_extrapolated": True,
        "default": "janus fp16",
        "kernels": "fp16 weights",
        "threads": 2,
        "rounds": 2,
        "duration_s": 1,
        "machine": {
            "date": "2026-01-01T00:00:00",
            "processor": "a processor",
            "cores": 2,
            "memory_gib": 24,
            "flags": ["avx2"],
            "packages": {"torch": "2"},
            "environment": {},
            "load_before": 0.0,
        },
        "samples": samples,
        "floors_s": {engine: {sides.STEP: 0.05} for engine in samples},
    }


def _verdicts(*documents: dict) -> dict[str, tuple[float | None, str]]:
    return {verdict.bar.name: (verdict.value, verdict.word) for verdict in judge(list(documents))}


def test_a_picture_is_its_first_code_and_the_steps_after_it() -> None:
    figures = Figures(_report(janus_int8={sides.FIRST: 2.0, sides.STEP: 0.1, sides.PIXELS: 5.0}))
    assert figures.image_s("janus int8") == pytest.approx(2.0 + 576 * 0.1)
    assert figures.request_s("janus int8") == pytest.approx(2.0 + 576 * 0.1 + 5.0)


def test_bars_are_met_missed_or_not_measured() -> None:
    document = _report(
        transformers_fp32={sides.FIRST: 0.0, sides.STEP: 0.9},
        janus_int8={sides.FIRST: 0.0, sides.STEP: 0.1, sides.ALONE: 0.1, sides.MIXED: 0.3},
        janus_fp16={sides.FIRST: 0.0, sides.STEP: 0.3},
    )
    verdicts = _verdicts(document)
    value, word = verdicts["one image, int8, against transformers fp32"]
    assert value == pytest.approx(9.0)
    assert word == "pass"
    value, word = verdicts["one image, default format, against transformers fp32"]
    assert value == pytest.approx(3.0)
    assert word == "miss"
    # A ceiling is missed from above.
    mix = "4 images and 4 chats, int8: p99 gap between words against 4 chats alone"
    assert verdicts[mix][1] == "miss"
    assert verdicts["step of two rows, int8: share of the memory bandwidth"] == (
        pytest.approx(0.5),
        "miss",
    )
    assert verdicts["one image, int8, against llama.cpp Q8_0"] == (None, "not measured")
    assert len(verdicts) == len(BARS)


def test_a_bar_about_one_model_is_not_met_by_another() -> None:
    tasks = {"transformers_fp32": {sides.EIGHT: 9.0}, "janus_fp16": {sides.EIGHT: 1.0}}
    name = "embedded checkpoint: images/s at 8 in flight against transformers one by one"
    assert _verdicts(_report("1b", **tasks))[name] == (None, "not measured")
    assert _verdicts(_report("mini", **tasks))[name] == (9.0, "pass")


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.99, 3.97), (1.0, 4.0)])
def test_quantiles_lie_between_neighbours(share: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(expected)


def test_tables_show_what_was_measured_and_leave_the_rest_blank() -> None:
    document = _report(
        janus_int8={sides.FIRST: 1.0, sides.STEP: 0.1, sides.QUESTION: 4.0},
        deepseek_loop_fp32={sides.STEP: 0.2},
    )
    page = reports.page([document])
    assert "| janus int8 | 58.6 s |  |  | 1 s |" in page
    assert "| deepseek loop fp32 | 200 ms | 200 ms to 200 ms | 50 ms | 25% |" in page
    assert "| janus int8 | 4 s |  |  |  |" in page
    assert "not measured" in page
    text = reports.summary(document, judge([document]))
    assert "janus int8" in text
    assert "not measured" not in text


def test_no_reports_is_said() -> None:
    assert "No report" in reports.page([])


def test_plots_are_well_formed_and_to_scale() -> None:
    svg = bars_svg(Bars("a < b", "s", {"janus int8": 1.0, "other & one": 4.0}))
    root = ElementTree.fromstring(svg)
    widths = [float(e.get("width")) for e in root.iter() if e.tag.endswith("rect") and e.get("x")]
    assert widths[1] == pytest.approx(4 * widths[0], rel=1e-2)
    ElementTree.fromstring(lines_svg(Lines("t", "x", "y", {"a": [(0, 1), (4, 2)], "b": []})))


def test_reports_of_fewer_instructions_have_bars_of_their_own(tmp_path: Path) -> None:
    tasks = {"transformers_fp32": {sides.EIGHT: 9.0}, "janus_fp16": {sides.EIGHT: 1.0}}
    limited = _report("mini", **tasks | {"janus_fp16": {sides.EIGHT: 3.0}}) | {"avx2_only": True}
    for name, document in (("1", _report("mini", **tasks)), ("2", limited)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    documents = reports.load(tmp_path)
    assert [reports.is_limited(document) for document in documents] == [False, True]
    before, _, after = reports.page(documents).partition("With no instructions newer than AVX2")
    assert "| at least 8 | 9.00 | pass |" in before
    assert "| at least 8 | 3.00 | miss |" in after
    assert "The embedded checkpoint, AVX2 only" in after


def test_what_formats_cost_stands_behind_the_speeds(tmp_path: Path) -> None:
    figures = {"codes_agreement": 0.875, "words_agreement": 1.0}
    figures |= {"codes_divergence": 0.0012, "words_divergence": 0.0}
    document = {
        "shape": "mini",
        "positions": 8,
        "machine": {"date": "2026-01-01T00:00:00"},
        "forced": {"int8": figures},
        "exam": {"int8": {"answers": {"right": 3, "total": 4, "share": 0.75}}},
    }
    (tmp_path / "quality.json").write_text(json.dumps(document), encoding="utf-8")
    page = reports.page([_report("mini")], reports.load_newest(tmp_path, "forced"))
    assert "| janus int8 | 87.5% | 100.0% | 0.0012 | 0 |" in page
    assert "| janus int8 | 75.0% of 4 |" in page
    assert not reports.load(tmp_path)
