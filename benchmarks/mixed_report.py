"""Tables and plots of `benchmarks.mixed`; measures nothing.

Owns the layout. Invariant: a point without answers or pictures leaves its cells blank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.plot import Lines

Table = tuple[list[str], list[list[str]]]


def conditions(report: Mapping[str, Any]) -> str:
    """What was done, on what."""
    about = report["machine"]
    return (
        f"{about['date'][:10]}, {about['processor']}, {report['threads']} threads of "
        f"{about['cores']} cores that server and clients share; points of {report['seconds']:g} s, "
        f"of which the last 80 % count; answers of {report['answer_tokens']} tokens. "
        f"`python -m benchmarks.mixed`"
        f"{'' if report['shape'] == 'mini' else ' --shape ' + report['shape']}."
    )


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Answers beside pictures, and pictures beside answers."""
    first = [
        [f"{point['pictures']:g}", _ms(point, "tpot_s", "p50"), _ms(point, "tpot_s", "p99"),
         _ms(point, "ttft_s", "p99"), f"{point['images_per_s']:.2f}"]
        for point in report["beside_pictures"]
    ]  # fmt: skip
    second = [
        [f"{point['chats_per_s']:g}", f"{point['images_per_s']:.2f}",
         f"{point['answers_per_s']:.2f}", _ms(point, "tpot_s", "p99")]
        for point in report["beside_chats"]
    ]  # fmt: skip
    return [
        ([f"pictures in flight beside {report['num_chats']} chats", "TPOT p50", "TPOT p99",
          "TTFT p99", "images/s"], first),
        ([f"chats a second beside {report['num_pictures']} pictures", "images/s",
          "answers/s", "TPOT p99"], second),
    ]  # fmt: skip


def plots(report: Mapping[str, Any]) -> dict[str, Lines]:
    """Both curves by the names of their files."""

    def tpot_ms(percentile: str) -> Sequence[tuple[float, float]]:
        return [
            (point["pictures"], 1e3 * point["tpot_s"][percentile])
            for point in report["beside_pictures"]
            if point["tpot_s"]
        ]

    images = [(point["chats_per_s"], point["images_per_s"]) for point in report["beside_chats"]]
    return {
        "mixed-answers": Lines(
            f"Time per token of {report['num_chats']} chats beside pictures",
            "pictures in flight",
            "ms per token",
            {"p50": tpot_ms("p50"), "p99": tpot_ms("p99")},
        ),
        "mixed-pictures": Lines(
            f"Pictures a second with {report['num_pictures']} in flight beside chats",
            "chats a second",
            "images/s",
            {"images/s": images},
        ),
    }


def _ms(point: Mapping[str, Any], name: str, percentile: str) -> str:
    return f"{1e3 * point[name][percentile]:.2f} ms" if point[name] else ""
