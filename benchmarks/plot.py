"""Plots as SVG text: horizontal bars, and lines over a common axis.

Owns the drawing; knows no measurement and needs no library. Invariant: the same values give the
same text, so that a plot in the repository changes only when its numbers do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABEL, ROW, TOP = 720, 190, 26, 46
OURS, OTHERS, INK = "#2a6f97", "#b5b5b5", "#333333"
LINES = ("#2a6f97", "#c8553d", "#588157", "#8367c7")


@dataclass(frozen=True, slots=True)
class Bars:
    """A value for each name; names that begin with `janus` stand out."""

    title: str
    unit: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Lines:
    """Points `(x, y)` for each name."""

    title: str
    x_label: str
    y_label: str
    points: Mapping[str, Sequence[tuple[float, float]]]


def bars_svg(bars: Bars) -> str:
    """Horizontal bars, the longest over the whole width."""
    longest = max(bars.values.values(), default=1.0)
    room = WIDTH - LABEL - 80
    parts = [_text(8, 24, bars.title, size=15)]
    for index, (name, value) in enumerate(bars.values.items()):
        y = TOP + index * ROW
        length = room * value / longest
        color = OURS if name.startswith("janus") else OTHERS
        parts += [
            _text(LABEL - 8, y + 15, name, anchor="end"),
            f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="20" fill="{color}"/>',
            _text(LABEL + length + 6, y + 15, f"{value:.3g} {bars.unit}"),
        ]
    return _document(parts, height=TOP + ROW * len(bars.values) + 10)


def lines_svg(lines: Lines) -> str:
    """Lines from the origin, with the largest values written at the axes."""
    height, left, bottom = 340, 70, 60
    points = [point for each in lines.points.values() for point in each]
    x_max = max((x for x, _ in points), default=0) or 1
    y_max = max((y for _, y in points), default=0) or 1
    wide, tall = WIDTH - left - 150, height - TOP - bottom
    parts = [
        _text(8, 24, lines.title, size=15),
        f'<path d="M{left} {TOP}V{TOP + tall}H{left + wide}" stroke="{INK}" fill="none"/>',
        _text(left - 6, TOP + 5, f"{y_max:.3g}", anchor="end"),
        _text(left - 6, TOP + tall, "0", anchor="end"),
        _text(left + wide, TOP + tall + 18, f"{x_max:.3g}", anchor="middle"),
        _text(left + wide / 2, TOP + tall + 38, lines.x_label, anchor="middle"),
        _text(left, TOP - 8, lines.y_label),
    ]
    for index, (name, each) in enumerate(lines.points.items()):
        color = LINES[index % len(LINES)]
        places = [(left + wide * x / x_max, TOP + tall * (1 - y / y_max)) for x, y in each]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        parts.append(_text(WIDTH - 140, TOP + 16 + 20 * index, name, color=color))
    return _document(parts, height=height)


def _text(
    x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", color: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">'
        f"{escape(text)}</text>"
    )


def _document(parts: Sequence[str], *, height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif">'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"
