"""The curves of answers beside pictures, on a tiny model; and what is said of them."""

import asyncio
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import mixed, mixed_report
from benchmarks import report as reports
from benchmarks.plot import lines_svg
from server.bench.load import CHAT_PATH
from tests.serving import ServerInThread


def test_every_point_counts_what_was_under_way_in_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "PICTURES_IN_FLIGHT", (0, 2))
    monkeypatch.setattr(mixed, "CHATS_PER_S", (0.0, 8.0))
    monkeypatch.setattr(mixed, "ANSWER_TOKENS", 4)
    with ServerInThread(model=str(tiny_checkpoint)) as server:
        curves = asyncio.run(mixed.sweep(server.url, seconds=1.5))
    alone, beside = curves["beside_pictures"]
    assert alone["images_per_s"] == 0
    assert beside["images_per_s"] > 0
    assert alone["answers"] > mixed.NUM_CHATS < beside["answers"]
    assert 0 < alone["tpot_s"]["p50"] <= alone["tpot_s"]["p99"]
    drawing, both = curves["beside_chats"]
    assert drawing["answers"] == 0
    assert drawing["tpot_s"] is None
    assert 0 < both["answers_per_s"] <= 2 * 8.0
    assert both["images_per_s"] > 0

    about = {"date": "2026-01-01T00:00:00", "processor": "p", "cores": 2}
    kept = {"shape": "mini", "machine": about, "threads": 2, "seconds": 1.5, "num_chats": 4}
    report = kept | {"num_pictures": 4, "answer_tokens": 4} | curves
    (tmp_path / "mixed.json").write_text(json.dumps(report), encoding="utf-8")
    (loaded,) = reports.load_newest(tmp_path, "beside_pictures")
    for lines in mixed_report.plots(loaded).values():
        ElementTree.fromstring(lines_svg(lines))
    (_, rows), (_, others) = mixed_report.tables(loaded)
    assert [row[0] for row in rows] == ["0", "2"]
    assert others[0][-1] == ""  # nobody spoke


def test_a_failure_is_no_measurement(tiny_checkpoint: Path) -> None:
    with ServerInThread(model=str(tiny_checkpoint)) as server:
        point = mixed.Point(mixed.Client(server.url), seconds=1.0)
        with pytest.raises(RuntimeError, match="a request failed"):
            asyncio.run(point.one(mixed.Job("chat", CHAT_PATH, {"messages": []})))
