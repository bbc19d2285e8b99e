"""Every kind of fault in every situation: idle, one in flight, a full batch, streams, and a drain.

What a fault does to the request it belongs to is said by `EXPECTED`; what it must not do to the
others is that they get, to the letter, what they get without it. Those that end the process, and
lacks of files and disks, stand in files of their own.
"""

import signal

import pytest

from tests.hardening.injection import (
    NOT_MET,
    Asked,
    Faults,
    ask,
    ask_all,
    drawing,
    image_question,
    question,
)
from tests.hardening.situations import (
    DRAIN,
    EXIT_S,
    SITUATIONS,
    SLOWLY,
    SURVIVED,
    cases,
    drain,
    golden_of,
    in_flight,
)
from tests.hardening.target import Target

POISON = 900
EXPECTED = {
    "error": (500, "step_failed"),
    "nan": (500, "step_failed"),
    "oom": (503, "server_is_overloaded"),
    "cpu_oom": (503, "server_is_overloaded"),
    "encode_fail": (500, "step_failed"),
}
HARMLESS = ("sleep:0.3", "slow:0.01", "alloc_fail")
"""What only costs time."""


@pytest.fixture(scope="module")
def house(_make_target, tmp_path_factory):
    faults = Faults(tmp_path_factory.mktemp("faults") / "rules")
    target: Target = _make_target(env=faults.env)
    yield target, faults
    target.stop()


@pytest.fixture(scope="module")
def golden(house) -> dict[str, list[str]]:
    target, _ = house
    return golden_of(target)


@pytest.fixture
def under_fault(house):
    target, faults = house
    yield target, faults
    faults.disarm()
    target.check_p0()


def poison(kind: str, seed: int = POISON, *, stream: bool = False) -> tuple:
    """The request that a fault of this kind belongs to."""
    if kind == "encode_fail":
        # The width is the picture's own, so that no cache knows it.
        return image_question(seed, side_px=50 + seed % 50, stream=stream)
    return question(seed, stream=stream)


@pytest.mark.parametrize("situation", SURVIVED)
@pytest.mark.parametrize("kind", EXPECTED)
def test_a_fault_is_its_requests_own(
    under_fault: tuple[Target, Faults], golden, kind: str, situation: str
) -> None:
    target, faults = under_fault
    stream = situation == "streams"
    faults.arm(f"seed:{POISON}:{kind}")
    *others, failed = ask_all(target, [*SITUATIONS[situation], poison(kind, stream=stream)])
    assert set(faults.met()) == {kind}, NOT_MET
    status, code = EXPECTED[kind]
    assert (failed.status, failed.error) == (200 if stream else status, code)
    assert [seen.text for seen in others] == golden[situation]
    assert all(seen.error is None for seen in others)


@pytest.mark.parametrize("situation", SURVIVED)
@pytest.mark.parametrize("kind", HARMLESS)
def test_a_fault_that_only_costs_time_fails_nobody(
    under_fault: tuple[Target, Faults], golden, kind: str, situation: str
) -> None:
    target, faults = under_fault
    if situation == "idle":
        # Whoever comes first meets it, or where no slot is found, whoever comes next.
        faults.arm(f"step:1:{kind}")
        for _ in range(2):
            assert ask(target, SITUATIONS["one"][0]).text == golden["one"][0]
    else:
        faults.arm(f"step:3:{kind}")
        seen = ask_all(target, SITUATIONS[situation])
        assert [each.text for each in seen] == golden[situation]
    assert set(faults.met()) == {kind.partition(":")[0]}, NOT_MET


@pytest.mark.parametrize("situation", SURVIVED)
def test_pixels_that_cannot_be_made_concern_one_picture(
    under_fault: tuple[Target, Faults], golden, situation: str
) -> None:
    target, faults = under_fault
    if situation in ("idle", "one"):
        beside = SITUATIONS[situation]
        faults.arm("step:1:render_fail")
        *others, lost = ask_all(target, [*beside, drawing(1)])
        assert (lost.status, lost.error) == (500, "step_failed")
        assert [each.text for each in others] == golden[situation]
        return
    # Whichever picture, or half-drawn one, meets it; the one that does loses, and no other.
    faults.arm("step:8:render_fail")
    seen = ask_all(target, SITUATIONS[situation])
    lost = [each for each in seen if each.error]
    assert len(lost) == 1
    assert lost[0].error == "step_failed"
    pairs = zip(seen, golden[situation], strict=True)
    assert all(each.text == text for each, text in pairs if not each.error)


IN_A_DRAIN = EXPECTED | dict.fromkeys(HARMLESS, (200, None)) | {"render_fail": (500, "step_failed")}
QUICK = dict.fromkeys(IN_A_DRAIN, "") | {"encode_fail": "draining"}


@pytest.mark.parametrize(("kind", "situation"), cases(IN_A_DRAIN, ["draining"], QUICK))
def test_a_drain_goes_on_whatever_fails(
    start_target, tmp_path, golden, kind: str, situation: str
) -> None:
    """The one whom it concerns is the last in the queue when the server is told to stop."""
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(env=faults.env, **DRAIN, max_sequences=8)
    concerned = poison(kind) if kind in EXPECTED else drawing(1)
    faults.arm(SLOWLY)
    asked = in_flight(target, SITUATIONS[situation])
    asked.add([concerned])
    asked.wait_until_accepted(target.patience_s)
    drain(target)
    faults.arm(f"seed:{POISON}:{kind}" if kind in EXPECTED else f"step:1:{kind}")
    *others, last = asked.answers()
    assert [seen.text for seen in others] == golden[situation]
    expected = EXPECTED.get(kind) or (
        (500, "step_failed") if kind == "render_fail" else (200, None)
    )
    assert (last.status, last.error) == expected
    assert kind.partition(":")[0] in faults.met(), NOT_MET
    assert target.wait(EXIT_S) == 0


def test_a_drain_with_every_kind_of_fault_in_flight(start_target, tmp_path) -> None:
    faults = Faults(tmp_path / "rules")
    target: Target = start_target(env=faults.env, drain_delay_s=0, grace_s=60)
    innocent = [question(seed, stream=True, max_tokens=300) for seed in range(6)]
    expected = [seen.text for seen in ask_all(target, innocent)]
    seeds = {kind: POISON + number for number, kind in enumerate(EXPECTED) if kind != "encode_fail"}
    guilty = [question(seed, stream=True, max_tokens=800) for seed in seeds.values()]
    asked = Asked(target, [*innocent, *guilty])
    asked.wait_until_begun(target.patience_s)
    target.signal(signal.SIGTERM)
    faults.arm("step:1:slow:0.002", *[f"seed:{seed}:{kind}" for kind, seed in seeds.items()])
    seen = asked.answers()
    assert [each.text for each in seen[: len(innocent)]] == expected
    assert [each.error for each in seen[len(innocent) :]] == [EXPECTED[kind][1] for kind in seeds]
    assert target.wait(EXIT_S) == 0
