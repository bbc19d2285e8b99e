"""The soak: a short one passes, one against a server with planted leaks does not."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.prometheus import is_installed
from benchmarks.soak import MIB, Options, Report, Sample, growth_mib, markdown, soak
from benchmarks.soak_books import totals
from benchmarks.soak_clients import CHAT, Ledger

LEAKING = Path(__file__).with_name("leaking.py")

needs_prometheus = pytest.mark.skipif(
    not is_installed(), reason="prometheus is not installed (Debian: apt install prometheus)"
)


def _samples(rss_of) -> list[Sample]:
    return [Sample(i, 100 * i, int(rss_of(100 * i)), 10, 5, 3) for i in range(40)]


def test_growth_is_per_thousand_requests_after_the_first_quarter():
    warm_up = 500 * MIB
    samples = _samples(lambda n: warm_up * min(n, 900) / 900 + 3 * MIB * n / 1000)
    assert growth_mib(samples) == pytest.approx(3.0, abs=0.01)


def test_one_spike_is_no_growth():
    assert growth_mib(_samples(lambda n: 10**9 if n == 2500 else 10**8)) == 0


def test_too_few_samples_are_no_proof():
    report = Report(
        growth_mib=growth_mib(_samples(float)[:4]), start=_samples(float)[0], exit_code=0
    )
    report.end, report.num_totals = report.start, 1
    assert [text for text in report.failures() if "memory" in text]
    assert "Failed" in markdown(report, Options(minutes=1))


def test_the_books_know_every_number_of_the_ledger():
    """Whatever the clients count, some query must equal it: counting one more changes one more."""
    ledger = Ledger()
    ledger.enter(CHAT, 200)
    ledger.left(CHAT, prompt=3)
    before = totals(ledger)
    for change in (
        lambda: ledger.enter(CHAT, 200),
        lambda: ledger.enter(CHAT, 400),
        lambda: ledger.enter("/v1/ask", 200),
        lambda: ledger.left(CHAT, prompt=5),
        lambda: ledger.answered("chat", "length", prompt=1, output=2),
        lambda: ledger.answered("image", "stop", prompt=1, output=16),
        lambda: ledger.rejections.update(Counter(invalid_image_url=1)),
        lambda: setattr(ledger, "num_pictures", ledger.num_pictures + 1),
        lambda: setattr(ledger, "num_fetched", ledger.num_fetched + 1),
    ):
        change()
        after = totals(ledger)
        assert after != before
        before = after


@pytest.mark.slow
@needs_prometheus
def test_mixed_traffic_leaves_nothing_behind(tiny_checkpoint: Path):
    options = Options(minutes=1, model=str(tiny_checkpoint), sample_s=2, warm_up_rounds=40)
    report = soak(options)
    assert report.failures() == []
    assert report.num_requests > 100
    assert report.num_totals > 25


@pytest.mark.slow
@needs_prometheus
def test_planted_leaks_are_found(tiny_checkpoint: Path):
    command = (sys.executable, str(LEAKING), "serve")
    report = soak(Options(minutes=1, model=str(tiny_checkpoint), sample_s=2, command=command))
    failures = " ".join(report.failures())
    assert "memory grows" in failures
    assert "descriptors" in failures
    assert "totals differ" in failures
