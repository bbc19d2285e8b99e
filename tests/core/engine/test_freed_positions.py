"""What was freed weighs nothing: freed positions of the KV pool are filled with large numbers, and
nobody's answer or picture changes.

Not with NaN, which no weight of zero makes a zero: attention reads whole blocks and masks what is
not a sequence's own, and the engine clears what is not finite before it frees it.
"""

import pytest

from janus_core.engine.engine import Engine
from janus_core.engine.request import SamplingParams
from tests.core.engine.support import Log, Outcome, Requests

LARGE = 1e4
"""Beside which every true key and value is nothing, whether it weighs a millionth or all."""

WARM = SamplingParams(temperature=1.0, seed=5)


def _spoil(engine: Engine) -> int:
    """Large numbers wherever no slot in use or kept as a prefix is; how many positions that are."""
    gaps = list(engine._pool._gaps(skip_cached=False))
    for layer in engine._runner._kv.layers:
        for start, end in gaps:
            layer[:, :, start:end] = LARGE
    return sum(end - start for start, end in gaps)


def _run(engine: Engine, waves: list[list], *, spoils: bool) -> tuple[Log, int]:
    """Each wave joins while the one before is still at work; some of it is cancelled."""
    log, num_spoiled = Log(), 0
    for number, wave in enumerate(waves):
        for request in wave:
            engine.submit(request)
        for _ in range(6):
            log.add(engine.step())
            if spoils:
                num_spoiled += _spoil(engine)
        engine.cancel(f"gone{number}")
    while engine.has_work:
        log.add(engine.step())
        if spoils:
            num_spoiled += _spoil(engine)
    return log, num_spoiled


def _output(outcome: Outcome) -> list[int]:
    return outcome.codes or outcome.ids


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_freed_positions_weigh_nothing(requests_for: Requests, prefix_cache: bool) -> None:
    def waves() -> list[list]:
        return [
            [
                requests_for.text(f"t{number}", "What is it?" * (number + 1), sampling=WARM),
                requests_for.text(f"v{number}", images=(number,), max_tokens=12),
                requests_for.image(f"i{number}"),
                requests_for.text(f"gone{number}", max_tokens=200, ignore_eos=True),
            ]
            for number in range(4)
        ]

    found = []
    for spoils in (False, True):
        engine = requests_for.engine(kv_positions=512, prefix_cache=prefix_cache)
        log, num_spoiled = _run(engine, waves(), spoils=spoils)
        assert bool(num_spoiled) == spoils
        names = [request.id for wave in waves() for request in wave]
        found.append({name: _output(log[name]) for name in names if not name.startswith("gone")})
    assert found[0] == found[1]
