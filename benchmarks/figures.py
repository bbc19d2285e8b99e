"""From seconds to statements: what a picture takes, the bars, and whether they are met.

Owns the formulas and the bars; measures nothing and reads only reports (`benchmarks.compare`).
Invariant: a bar whose parts were not measured is reported as such, never as met.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks import sides

Rounds = list[list[float]]


class Figures:
    """The figures of one report; a figure whose parts are missing raises KeyError."""

    def __init__(self, report: Mapping) -> None:
        self.report = report
        self._samples: Mapping[str, Mapping[str, Rounds]] = report["samples"]

    @property
    def default(self) -> str:
        """This engine with the format of weights it has by default."""
        return str(self.report["default"])

    @property
    def engines(self) -> list[str]:
        """All that took part."""
        return list(self._samples)

    def seconds(self, engine: str, task: str) -> float:
        """Median of all rounds."""
        return statistics.median(self._flat(engine, task))

    def image_s(self, engine: str, *, together: int = 1) -> float:
        """Seconds from the prompt to the last code of one picture, or of four at once: the first
        code, and a decode step at the mean context for each of the others."""
        step = sides.STEP if together == 1 else sides.FOUR_STEP
        num_steps = int(self.report["num_codes"]) - 1
        return self.seconds(engine, sides.FIRST) + num_steps * self.seconds(engine, step)

    def request_s(self, engine: str) -> float:
        """Seconds of a picture with the decoding of its codes."""
        return self.image_s(engine) + self.seconds(engine, sides.PIXELS)

    def floor_s(self, engine: str, task: str) -> float:
        """Seconds in which the bytes of a step of this engine can be read."""
        return float(self.report["floors_s"][engine][task])

    def p99(self, engine: str, task: str) -> float:
        """The 99th percentile of all rounds together."""
        return quantile(self._flat(engine, task), 0.99)

    def spread(self, engine: str, task: str) -> tuple[float, float]:
        """Lowest and highest median of a round."""
        medians = [statistics.median(each) for each in self._samples[engine][task]]
        return min(medians), max(medians)

    def _flat(self, engine: str, task: str) -> list[float]:
        return [value for each in self._samples[engine][task] for value in each]


def quantile(values: list[float], share: float) -> float:
    """As NumPy's default: linear between the two nearest values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise. `shape` is the model it is about; `is_ceiling` bars must not be exceeded."""

    name: str
    limit: float
    value: Callable[[Figures], float]
    shape: str = "1b"
    is_ceiling: bool = False


FP32, BF16, INT8 = "transformers fp32", "transformers bf16", "janus int8"

BARS = (
    Bar(f"one image, default format, against {FP32}", 4.5,
        lambda f: f.image_s(FP32) / f.image_s(f.default)),
    Bar(f"one image, default format, against {BF16}", 2.4,
        lambda f: f.image_s(BF16) / f.image_s(f.default)),
    Bar(f"one image, int8, against {FP32}", 8.0, lambda f: f.image_s(FP32) / f.image_s(INT8)),
    Bar(f"one image, int8, against {BF16}", 4.3, lambda f: f.image_s(BF16) / f.image_s(INT8)),
    Bar("one image, int8, against llama.cpp Q8_0", 1.4,
        lambda f: f.image_s("llama.cpp Q8_0") / f.image_s(INT8)),
    Bar(f"four images at once, int8, against {FP32} four at once", 6.0,
        lambda f: f.image_s(FP32, together=4) / f.image_s(INT8, together=4)),
    Bar(f"whole image request with VQ decoding, int8, against {FP32}", 6.5,
        lambda f: f.request_s(FP32) / f.request_s(INT8)),
    Bar("step of two rows, int8: share of the memory bandwidth", 0.8,
        lambda f: f.floor_s(INT8, sides.STEP) / f.seconds(INT8, sides.STEP)),
    Bar(f"first word about an image, 40 words, int8, against {FP32}", 2.0,
        lambda f: f.seconds(FP32, sides.QUESTION) / f.seconds(INT8, sides.QUESTION)),
    Bar("second question on the same image against the first, int8", 20.0,
        lambda f: f.seconds(INT8, sides.QUESTION) / f.seconds(INT8, sides.AGAIN)),
    Bar("4 images and 4 chats, int8: p99 gap between words against 4 chats alone", 2.0,
        lambda f: f.p99(INT8, sides.MIXED) / f.p99(INT8, sides.ALONE), is_ceiling=True),
    Bar("embedded checkpoint: images/s at 8 in flight against transformers one by one", 8.0,
        lambda f: f.seconds(FP32, sides.EIGHT) / f.seconds(f.default, sides.EIGHT), shape="mini"),
    Bar("service overhead: images/s over HTTP against the engine alone", 0.97,
        lambda f: statistics.median(f.report["service"]["ratios"])),
    Bar("the same with the embedded checkpoint", 0.97,
        lambda f: statistics.median(f.report["service"]["ratios"]), shape="mini"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was measured; None if a part of it was not."""

    bar: Bar
    value: float | None

    @property
    def word(self) -> str:
        """How it went."""
        if self.value is None:
            return "not measured"
        is_met = (
            self.value <= self.bar.limit if self.bar.is_ceiling else self.value >= self.bar.limit
        )
        return "pass" if is_met else "miss"


def judge(reports: list[Mapping]) -> list[Verdict]:
    """A verdict for every bar, from the first report about its model that has its parts.

    A shape whose pictures are `short` counts for no bar, and neither does any other model.
    """
    return [Verdict(bar, _value(bar, reports)) for bar in BARS]


def _value(bar: Bar, reports: list[Mapping]) -> float | None:
    for report in reports:
        if report["shape"] == bar.shape:
            try:
                return bar.value(Figures(report))
            except KeyError:
                continue
    return None
