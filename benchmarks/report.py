"""From reports to what people read: tables in text and Markdown, plots in SVG.

    python -m benchmarks.report        rewrites the tables and plots of docs/benchmarks.md

Owns the layout; measures nothing. The reports are the JSON files of `benchmarks/results`; of each
shape the newest counts. Invariant: between the two marks of docs/benchmarks.md stands exactly what
the reports say, so that nobody edits a number by hand.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import mixed_report, sides
from benchmarks.figures import Figures, Verdict, judge
from benchmarks.plot import Bars, bars_svg, lines_svg

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "images"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

Cells = list[str]


def main() -> None:
    """Rewrite docs/benchmarks.md between its marks, and the plots beside it."""
    reports, quality = load(RESULTS), load_newest(RESULTS, "forced")
    mixed = load_newest(RESULTS, "beside_pictures")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = page(reports, quality, mixed)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")
    for report in reports:
        plot = _seconds_plot(Figures(report))
        if plot.values:
            path = PLOTS / f"benchmark-{_plain(report)}.svg"
            path.write_text(bars_svg(plot), encoding="utf-8")
    for report in mixed:
        for name, lines in mixed_report.plots(report).items():
            path = PLOTS / f"{name}-{_plain(report)}.svg"
            path.write_text(lines_svg(lines), encoding="utf-8")


def load(folder: Path) -> list[dict]:
    """The newest report of every shape, with all instructions and with AVX2 alone, the true shapes
    first."""
    newest: dict[tuple[str, bool], dict] = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "samples" in report:
            newest[report["shape"], is_limited(report)] = report
    return sorted(
        newest.values(),
        key=lambda report: (report["shape"] != "1b", report["shape"], is_limited(report)),
    )


def load_newest(folder: Path, key: str) -> list[dict]:
    """The newest report of every shape among those that have `key`."""
    newest: dict[str, dict] = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if key in report:
            newest[report["shape"]] = report
    return [newest[shape] for shape in sorted(newest)]


def is_limited(report: Mapping) -> bool:
    """Whether everybody had to do without instructions newer than AVX2."""
    return bool(report.get("avx2_only"))


def page(
    reports: Sequence[Mapping], quality: Sequence[Mapping] = (), mixed: Sequence[Mapping] = ()
) -> str:
    """All tables, in Markdown."""
    if not reports:
        return "No report has been committed yet.\n"
    parts = ["## The bars", markdown(*verdict_table(judge(_limited(reports, False))))]
    if limited := _limited(reports, True):
        known = [verdict for verdict in judge(limited) if verdict.value is not None]
        parts += ["With no instructions newer than AVX2, for everybody:",
                  markdown(*verdict_table(known))]  # fmt: skip
    for report in reports:
        figures = Figures(report)
        parts += [f"## {_title(report)}", _conditions(report)]
        plot = PLOTS / f"benchmark-{_plain(report)}.svg"
        if _seconds_plot(figures).values:
            parts.append(f"![seconds of a picture, by engine](images/{plot.name})")
        parts += [markdown(*table) for table in tables(figures) if table[1]]
    for report in mixed:
        parts += [f"## Answers and pictures at once: {_title(report)}"]
        parts += [mixed_report.conditions(report)]
        for name, lines in mixed_report.plots(report).items():
            parts.append(f"![{lines.title}](images/{name}-{_plain(report)}.svg)")
        parts += [markdown(*table) for table in mixed_report.tables(report)]
    for report in quality:
        parts += [f"## What formats cost in quality: {_title(report)}", _quality_conditions(report)]
        parts += [markdown(*table) for table in quality_tables(report) if table[1]]
    return "\n\n".join(parts) + "\n"


def _limited(reports: Sequence[Mapping], wanted: bool) -> list[Mapping]:
    return [report for report in reports if is_limited(report) is wanted]


def summary(report: Mapping, verdicts: Sequence[Verdict]) -> str:
    """The same for a terminal."""
    parts = [_title(report), _conditions(report)]
    parts += [plain(*table) for table in tables(Figures(report)) if table[1]]
    known = [verdict for verdict in verdicts if verdict.value is not None]
    return "\n\n".join([*parts, plain(*verdict_table(known))])


# ---- tables -------------------------------------------------------------------------------------


def tables(figures: Figures) -> list[tuple[Cells, list[Cells]]]:
    """Head and rows of each table of one report."""
    return [_picture_table(figures), _step_table(figures), _answer_table(figures),
            _whole_table(figures), _service_table(figures)]  # fmt: skip


def verdict_table(verdicts: Sequence[Verdict]) -> tuple[Cells, list[Cells]]:
    """The bars and how they went."""
    rows = []
    for verdict in verdicts:
        limit = f"{'at most' if verdict.bar.is_ceiling else 'at least'} {verdict.bar.limit:g}"
        value = "" if verdict.value is None else f"{verdict.value:.2f}"
        rows.append([verdict.bar.name, limit, value, verdict.word])
    return ["bar", "", "measured", ""], rows


def _picture_table(figures: Figures) -> tuple[Cells, list[Cells]]:
    head = ["engine", "one picture", "four at once, each", "VQ decoding", "first code"]
    rows = []
    for engine in figures.engines:
        made = [
            _or_blank(lambda e=engine: _seconds(figures.image_s(e))),
            _or_blank(lambda e=engine: _seconds(figures.image_s(e, together=4) / 4)),
            _or_blank(lambda e=engine: _seconds(figures.seconds(e, sides.PIXELS))),
            _or_blank(lambda e=engine: _seconds(figures.seconds(e, sides.FIRST))),
        ]
        if any(made):
            rows.append([engine, *made])
    return head, rows


def _step_table(figures: Figures) -> tuple[Cells, list[Cells]]:
    head = ["engine", "step", "rounds", "floor", "share", "step of 8 rows", "floor", "share"]
    rows = []
    for engine in figures.engines:
        row = [engine]
        for task in (sides.STEP, sides.FOUR_STEP):
            try:
                step_s, floor_s = figures.seconds(engine, task), figures.floor_s(engine, task)
            except KeyError:
                row += [""] * (4 if task == sides.STEP else 3)
                continue
            low, high = figures.spread(engine, task)
            rounds = [f"{_seconds(low)} to {_seconds(high)}"] if task == sides.STEP else []
            row += [_seconds(step_s), *rounds, _seconds(floor_s), f"{floor_s / step_s:.0%}"]
        if any(row[1:]):
            rows.append(row)
    return head, rows


def _answer_table(figures: Figures) -> tuple[Cells, list[Cells]]:
    head = ["engine", "first word about an image", "of a second question",
            "p99 gap of 4 chats", "beside 4 images"]  # fmt: skip
    rows = []
    for engine in figures.engines:
        made = [
            _or_blank(lambda e=engine: _seconds(figures.seconds(e, sides.QUESTION))),
            _or_blank(lambda e=engine: _seconds(figures.seconds(e, sides.AGAIN))),
            _or_blank(lambda e=engine: _seconds(figures.p99(e, sides.ALONE))),
            _or_blank(lambda e=engine: _seconds(figures.p99(e, sides.MIXED))),
        ]
        if any(made):
            rows.append([engine, *made])
    return head, rows


def _whole_table(figures: Figures) -> tuple[Cells, list[Cells]]:
    names = ["one image", sides.EIGHT, "8 questions", "4 images and 4 questions"]
    rows = []
    for engine in figures.engines:
        made = [
            _or_blank(lambda e=engine, n=name: _seconds(figures.seconds(e, n))) for name in names
        ]
        if any(made):
            rows.append([engine, *made])
    return ["engine", *names], rows


def _service_table(figures: Figures) -> tuple[Cells, list[Cells]]:
    service = figures.report.get("service")
    if not service:
        return [], []
    rows = [
        [f"{http:.2f}", f"{engine:.2f}", f"{ratio:.3f}"]
        for http, engine, ratio in zip(
            service["http_images_per_s"],
            service["engine_images_per_s"],
            service["ratios"],
            strict=True,
        )
    ]
    return ["images/s over HTTP", "images/s of the engine alone", "ratio"], rows


def quality_tables(report: Mapping) -> list[tuple[Cells, list[Cells]]]:
    """The logits of every format beside fp32's, and the marks of its exam."""
    forced = [
        [f"janus {kind}", *(f"{f[f'{head}_agreement']:.1%}" for head in ("codes", "words")),
         *(f"{f[f'{head}_divergence']:.2g}" for head in ("codes", "words"))]
        for kind, f in report["forced"].items()
    ]  # fmt: skip
    head = ["engine", "likeliest code is fp32's", "likeliest word", "divergence, codes", "words"]
    exam = report.get("exam", {})
    subjects = list(next(iter(exam.values()), {}))
    marks = [
        [f"janus {kind}", *(_mark(scores[subject]) for subject in subjects)]
        for kind, scores in exam.items()
    ]
    return [(head, forced), (["engine", *subjects], marks)]


def _mark(score: Mapping) -> str:
    return f"{score['share']:.1%} of {score['total']}"


def _quality_conditions(report: Mapping) -> str:
    return (
        f"{report['machine']['date'][:10]}; {report['positions']} positions, teacher-forced, mean "
        "Kullback-Leibler divergence from fp32 in nats. `python -m benchmarks.quality`"
        f"{'' if report['shape'] == 'mini' else ' --shape ' + report['shape']}."
    )


def markdown(head: Cells, rows: list[Cells]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(head: Cells, rows: list[Cells]) -> str:
    """A table of aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *rows)
    )


# ---- below: words and plots ---------------------------------------------------------------------


def _title(report: Mapping) -> str:
    names = {"1b": "Janus-Pro-1B's shapes, random weights", "mini": "The embedded checkpoint"}
    name = names.get(report["shape"], f"Shape {report['shape']}")
    return f"{name}, AVX2 only" if is_limited(report) else name


def _conditions(report: Mapping) -> str:
    about = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    variables = ", ".join(f"{name}={value}" for name, value in about["environment"].items())
    extrapolated = (
        f" Pictures are extrapolated: the first code, and {report['num_codes'] - 1} times the "
        f"median of {report['steps']} steps a round, around the mean context of "
        f"{report['mean_context']} positions."
        if report["is_extrapolated"]
        else f" Pictures of {report['num_codes']} codes; `one picture` is made of the median step."
    )
    return (
        f"{about['date'][:10]}, {about['processor']}, {report['threads']} threads of "
        f"{about['cores']} cores, {about['memory_gib']} GiB, {' '.join(about['flags'])}; "
        f"{packages}; {report['kernels']} by default; {report['rounds']} rounds in "
        f"{report['duration_s']} s, load before {about['load_before']}; "
        f"environment: {variables or 'nothing set'}.{extrapolated}"
    )


def _plain(report: Mapping) -> str:
    return Path(report["shape"]).name + ("-avx2" if is_limited(report) else "")


def _seconds_plot(figures: Figures) -> Bars:
    values = {}
    for engine in figures.engines:
        try:
            values[engine] = figures.image_s(engine)
        except KeyError:
            continue
    return Bars(f"Seconds of one picture: {_title(figures.report)}", "s", values)


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _or_blank(text) -> str:  # type: ignore[no-untyped-def]
    """What `text` returns, or nothing if a part of it was not measured."""
    try:
        return str(text())
    except KeyError:
        return ""


if __name__ == "__main__":
    main()
