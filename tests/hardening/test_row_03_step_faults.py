"""Row 3: an exception, a lack of memory or no number in a step with a full batch."""

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
from tests.hardening.target import Target

POISON = 900
EXPECTED = {
    "error": (500, "step_failed", "false"),
    "nan": (500, "step_failed", "false"),
    "oom": (503, "server_is_overloaded", "true"),
    "cpu_oom": (503, "server_is_overloaded", "true"),
}


@pytest.fixture(scope="module")
def house(_make_target, tmp_path_factory):
    """One server for all faults that it must survive."""
    faults = Faults(tmp_path_factory.mktemp("faults") / "rules")
    target = _make_target(env=faults.env)
    yield target, faults
    target.stop()


@pytest.fixture
def under_fault(house):
    """The server, and its faults, which are gone when P0 is checked."""
    target, faults = house
    yield target, faults
    faults.disarm()
    target.check_p0()


def batch(*, stream: bool = False) -> list[tuple]:
    """As much as runs at once: questions with pictures and without, and pictures."""
    return [
        *[question(seed, words=f"question {seed}", stream=stream) for seed in range(8)],
        *[image_question(seed, side_px=32 + seed, stream=stream) for seed in range(4)],
        *[drawing(seed, stream=stream) for seed in range(4)],
    ]


@pytest.fixture(scope="module")
def golden(house) -> dict[bool, list[str]]:
    target, _ = house
    said = {stream: [ask(target, r).text for r in batch(stream=stream)] for stream in (False, True)}
    assert all(said[False])
    assert all(said[True])
    return said


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", EXPECTED)
def test_one_request_fails_and_the_others_get_the_very_same(
    under_fault: tuple[Target, Faults], golden, kind: str, stream: bool
) -> None:
    target, faults = under_fault
    pid = target.process.pid
    faults.arm(f"seed:{POISON}:{kind}")
    *others, poisoned = ask_all(target, [*batch(stream=stream), question(POISON, stream=stream)])
    assert set(faults.met()) == {kind}, NOT_MET
    status, code, hint = EXPECTED[kind]
    assert poisoned.error == code
    if stream:
        assert poisoned.status == 200
    else:
        assert (poisoned.status, poisoned.headers["x-should-retry"]) == (status, hint)
        assert ("retry-after" in poisoned.headers) == (hint == "true")
    assert [seen.text for seen in others] == golden[stream]
    assert all((seen.status, seen.error, seen.broke) == (200, None, False) for seen in others)
    assert target.process.pid == pid
    assert target.process.poll() is None


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_fault_that_does_not_repeat_fails_nobody(
    under_fault: tuple[Target, Faults], golden, kind: str
) -> None:
    target, faults = under_fault
    before = target.metrics()
    faults.arm(f"step:6:{kind}", f"step:15:{kind}")
    seen = ask_all(target, batch())
    assert faults.met() == [kind, kind], NOT_MET
    assert [each.text for each in seen] == golden[False]
    after = target.metrics()
    failed = [name for name in after if "failed_steps_total" in name]
    assert failed
    assert all(after[name] - before[name] == 2 for name in failed)


def test_a_picture_whose_pixels_fail_is_lost_alone(
    under_fault: tuple[Target, Faults], golden
) -> None:
    target, faults = under_fault
    faults.arm("step:1:render_fail")
    lost = ask(target, drawing(POISON))
    assert set(faults.met()) == {"render_fail"}, NOT_MET
    assert (lost.status, lost.error) == (500, "step_failed")
    faults.disarm()
    assert [each.text for each in ask_all(target, batch())] == golden[False]


def test_an_image_that_cannot_be_encoded_is_its_requests_alone(
    under_fault: tuple[Target, Faults], golden
) -> None:
    target, faults = under_fault
    others = Asked(target, [question(s, words=f"question {s}", stream=True) for s in range(8)])
    others.wait_until_begun(target.patience_s)
    faults.arm(f"seed:{POISON}:encode_fail")
    lost = ask(target, image_question(POISON, side_px=77))
    assert set(faults.met()) == {"encode_fail"}, NOT_MET
    assert (lost.status, lost.error) == (500, "step_failed")
    assert [each.text for each in others.answers()] == golden[True][:8]


def test_what_finds_no_slot_waits(under_fault: tuple[Target, Faults], golden) -> None:
    target, faults = under_fault
    faults.arm("step:2:alloc_fail")
    assert [each.text for each in ask_all(target, batch())] == golden[False]
    assert faults.met() == ["alloc_fail"], NOT_MET
