"""The definitions: from the moments of an answer to TTFT, TPOT, ITL, E2EL, goodput and the rest.

Owns the arithmetic; knows no network and no clock. Text is measured as `vllm bench serve` measures
it, so that numbers compare; pictures have no common definitions, so theirs are written down here
and in docs/benchmarks.md. All times are in seconds, on the client's clock. Invariant: a request
that failed counts in the number sent and misses every goal, and in nothing else.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from janus_core.errors import ParameterError
from server.bench.client import Exchange
from server.bench.load import Kind

GOALS = ("ttft", "tpot", "e2el", "ttfp", "image_e2el")
"""What a goal may be about: the first three are of answers, the others of pictures."""

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Record:
    """One request that was answered, or `error`.

    `first_s` is TTFT of an answer and TTFP of a picture (None if it came without previews), `end_s`
    the E2EL of an answer (its last chunk with output) and the latency of a picture (its last byte).
    `gaps_s` are between chunks with output, or between previews. `num_tokens` counts words or
    codes.
    """

    kind: Kind
    sent_s: float
    error: str = ""
    first_s: float | None = None
    end_s: float = 0.0
    gaps_s: tuple[float, ...] = ()
    num_tokens: int = 0
    num_images: int = 0

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for answers of one token."""
        if self.first_s is None or self.num_tokens < 2 or self.kind == "image":
            return None
        return (self.end_s - self.first_s) / (self.num_tokens - 1)


def record_of(kind: Kind, exchange: Exchange) -> Record:
    """What an exchange says in terms of the definitions."""
    if exchange.error:
        return Record(kind, exchange.started_s, error=exchange.error)
    made = _picture(exchange) if kind == "image" else _answer(kind, exchange)
    if not made.num_tokens:
        return Record(kind, exchange.started_s, error="the answer is empty or has no usage")
    return made


def _answer(kind: Kind, exchange: Exchange) -> Record:
    spoken = [moment.at_s for moment in exchange.moments if _has_words(moment.body)]
    first_s, end_s = (spoken[0], spoken[-1]) if spoken else (exchange.ended_s, exchange.ended_s)
    return Record(
        kind,
        exchange.started_s,
        first_s=first_s - exchange.started_s,
        end_s=end_s - exchange.started_s,
        gaps_s=_gaps(spoken),
        num_tokens=_output_tokens(exchange),
    )


def _picture(exchange: Exchange) -> Record:
    previews, finals = [], []
    for moment in exchange.moments:
        name = str(moment.body.get("type", ""))
        if name.endswith(".partial_image"):
            previews.append(moment.at_s)
        elif name.endswith(".completed"):
            finals.append(moment.at_s)
    return Record(
        "image",
        exchange.started_s,
        first_s=previews[0] - exchange.started_s if previews else None,
        end_s=(finals[-1] if finals else exchange.ended_s) - exchange.started_s,
        gaps_s=_gaps(previews),
        num_tokens=_output_tokens(exchange) if finals else 0,
        num_images=len(finals),
    )


def _has_words(body: Mapping[str, Any]) -> bool:
    """Whether a chunk carries output: as in vLLM's client, also the empty text of a token that
    shows nothing yet counts only if there is text."""
    return any(choice.get("delta", {}).get("content") for choice in body.get("choices", ()))


def _output_tokens(exchange: Exchange) -> int:
    for moment in reversed(exchange.moments):
        usage = moment.body.get("usage")
        if usage:
            return int(usage.get("completion_tokens") or usage.get("output_tokens") or 0)
    return 0


def _gaps(moments: Sequence[float]) -> tuple[float, ...]:
    return tuple(b - a for a, b in itertools.pairwise(moments))


def parse_goals(words: Iterable[str]) -> dict[str, float]:
    """`ttft:500 image_e2el:9000`, in milliseconds as vLLM's `--goodput`, to seconds by name.

    Raises ParameterError for unknown names and for what is not a positive number.
    """
    goals = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            limit_ms = float(value)
        except ValueError:
            limit_ms = math.nan
        if name not in GOALS or not limit_ms > 0:
            known = ", ".join(GOALS)
            raise ParameterError(
                f"{word} is not a goal like ttft:500, milliseconds for one of {known}.",
                param="goodput",
            )
        goals[name] = limit_ms / 1e3
    return goals


def is_good(record: Record, goals: Mapping[str, float]) -> bool:
    """Whether a request met every goal of its kind. An answer of one token has no TPOT and meets
    it (vLLM counts it as 0); a picture without previews has no TTFP and misses it."""
    if record.error:
        return False
    if record.kind == "image":
        first_s = math.inf if record.first_s is None else record.first_s
        values = {"ttfp": first_s, "image_e2el": record.end_s}
    else:
        first_s = math.inf if record.first_s is None else record.first_s
        values = {"ttft": first_s, "tpot": record.tpot_s or 0.0, "e2el": record.end_s}
    return all(values[name] <= limit for name, limit in goals.items() if name in values)


def summarise(
    records: Sequence[Record], *, duration_s: float, goals: Mapping[str, float]
) -> dict[str, Any]:
    """All figures of one run, ready for JSON. `duration_s` is from the first request sent to the
    last one ended."""
    ended = [record for record in records if not record.error]
    texts = [record for record in ended if record.kind != "image"]
    pictures = [record for record in ended if record.kind == "image"]
    num_images = sum(record.num_images for record in pictures)
    good = sum(is_good(record, goals) for record in records)
    return {
        "duration_s": duration_s,
        "sent": len(records),
        "completed": len(ended),
        "failed": len(records) - len(ended),
        "errors": sorted({record.error for record in records if record.error})[:5],
        "concurrency": sum(record.end_s for record in ended) / duration_s,
        "request_throughput": len(ended) / duration_s,
        "goodput": good / duration_s if goals else None,
        "slo_attainment": good / len(records) if goals and records else None,
        "output_token_throughput": sum(record.num_tokens for record in texts) / duration_s,
        "images_per_s": num_images / duration_s,
        "image_token_throughput": sum(record.num_tokens for record in pictures) / duration_s,
        "ttft_s": spread([r.first_s for r in texts if r.first_s is not None]),
        "tpot_s": spread([r.tpot_s for r in texts if r.tpot_s is not None]),
        "itl_s": spread([gap for r in texts for gap in r.gaps_s]),
        "e2el_s": spread([r.end_s for r in texts]),
        "ttfp_s": spread([r.first_s for r in pictures if r.first_s is not None]),
        "preview_gap_s": spread([gap for r in pictures for gap in r.gaps_s]),
        "image_latency_s": spread([r.end_s for r in pictures]),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles (linear between neighbours, as NumPy's default); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    figures = {"mean": statistics.fmean(ordered)}
    for percent in PERCENTILES:
        place = percent / 100 * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        figures[f"p{percent}"] = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    figures["max"] = ordered[-1]
    return figures
