"""The report of an overload measurement, for people.

Owns the words and the bounds of the judgement; measures nothing.
"""

from collections.abc import Mapping
from typing import Any

MUCH_LONGER = 1.5
CALM_S = 2.0
"""What recovery means: see `what_is_meant`."""

GOODPUT_RATIO = 0.9
REFUSAL_MS = 50.0
RECOVERY_S = 5.0
TENANT_RATIO = 2.0


def markdown(report: Mapping[str, Any]) -> str:
    """Tables and whether each bound holds."""
    machine, crowd, tenants = report["machine"], report["overload"], report["noisy_tenant"]
    settings = report["settings"]
    lines = [
        "# Overload and a noisy tenant",
        "",
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, load before {machine['load_before']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        + f", Python {machine['python']}.",
        "",
        f"    {report['command']}",
        "",
        f"Embedded checkpoint, server and clients on the same machine, server flags "
        f"`{' '.join(settings['flags'])}`. Requests arrive at random: "
        f"{settings['picture_fraction']:.0%} pictures, the rest answers of 32 tokens. Every client "
        f"allows {settings['deadline_s']:g} s; {settings['max_waiting']} of each kind may wait, "
        f"for {settings['max_queue_s']:g} s; a phase takes {settings['seconds']:g} s. Capacity, "
        "with clients that always have a request under way: "
        f"{crowd['capacity_per_s']:.1f} answers and pictures a second.",
        "",
        *_verdicts(crowd, tenants),
        "",
        *what_is_meant(settings["max_queue_s"]),
        "",
        "| load | offered/s | good/s | pictures/s | refused | late | other | answer p50, s "
        "| p95, s | refusal p50, ms | p99, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for load, phase in zip(crowd["loads"], crowd["phases"], strict=True):
        lines.append(
            f"| {load:g}x | {phase['offered_per_s']:.1f} | {phase['goodput_per_s']:.1f} "
            f"| {phase['pictures_per_s']:.1f} | {phase['num_refused']} | {phase['num_late']} "
            f"| {phase['num_other']} | {phase['answer_p50_s']:.2f} | {phase['answer_p95_s']:.2f} "
            f"| {_number(phase['refusal_p50_ms'])} | {_number(phase['refusal_p99_ms'])} |"
        )
    lines += [
        "",
        "| questions about an image, of a tenant | p50, s | p95, s | a picture of it, s |",
        "|---|---|---|---|",
    ]
    for name, title in (("alone", "alone"), ("beside", "beside 100 pictures of another")):
        lines.append(
            f"| {title} | {tenants[f'{name}_p50_s']:.3f} | {tenants[f'{name}_p95_s']:.3f} "
            f"| {tenants[f'{name}_picture_s']:.2f} |"
        )
    return "\n".join([*lines, ""])


def _verdicts(crowd: Mapping[str, Any], tenants: Mapping[str, Any]) -> list[str]:
    """A table of what was wanted and what came."""
    refusal_ms = crowd["phases"][3]["refusal_p99_ms"]
    goodputs = [phase["goodput_per_s"] for phase in crowd["phases"]]
    verdicts = [
        (
            "goodput at 5x over the best of any load",
            goodputs[3] / max(goodputs),
            ">=",
            GOODPUT_RATIO,
        ),
        ("goodput at 5x over that at 1x", crowd["goodput_ratio"], ">=", GOODPUT_RATIO),
        ("refusals at 5x, p99, ms", refusal_ms, "<=", REFUSAL_MS),
        ("recovery, s", crowd["recovery_s"], "<=", RECOVERY_S),
        ("quiet tenant's p95, beside over alone", tenants["p95_ratio"], "<=", TENANT_RATIO),
    ]
    lines = ["| bound | measured | wanted | |", "|---|---|---|---|"]
    for name, value, sign, bound in verdicts:
        holds = value >= bound if sign == ">=" else value <= bound
        shown = "holds" if holds else "**missed**"
        lines.append(f"| {name} | {value:.2f} | {sign} {bound:g} | {shown} |")
    return lines


def what_is_meant(max_queue_s: float) -> list[str]:
    """What the bounds are of, where their names do not say it."""
    return [
        "Goodput is what was answered with 200 within a phase. Its peak is that of the best phase, "
        "not of clients that always have a request under way.",
        "",
        "Recovery is the time from the end of the crowd (the last phase, half the capacity) to the "
        f"first {CALM_S:g} s in which nobody is refused and nobody waits for more than "
        f"{MUCH_LONGER:g} times as long as the longest wait, by kind, of the first phase, which is "
        "as much load. Bursts that come later are that load's own.",
        "",
        f"Recovery and waits are those of a server that was told to keep its queue short "
        f"(`--max-queue-s {max_queue_s:g}`). The default, 300, takes whatever may wait so long: it "
        "refuses less, and works a full queue off before anybody is answered at once again.",
    ]


def _number(value: float) -> str:
    return "" if value != value else f"{value:.1f}"
