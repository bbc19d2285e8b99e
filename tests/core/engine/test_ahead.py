"""Pictures whose steps run ahead of the host, against the same pictures step by step.

On a CPU, with the operations' twins in torch and a capture that replays what it recorded.
"""

from collections.abc import Callable

import pytest
import torch

from janus_core.engine.engine import Engine
from janus_core.engine.events import Failed
from janus_core.engine.graphs import StepGraphs
from janus_core.engine.request import ImageRequest, SamplingParams
from tests.core.engine.support import ImageProgress, Log, Preview, Requests, finish, run
from tests.core.engine.tape import run_on_graphs


class CountedGraphs(StepGraphs):
    """Counts the steps launched ahead; `fault` is called before each of them."""

    num_flights = 0
    num_ahead = 0
    fault: Callable[[int], None] = staticmethod(lambda _: None)

    def steps_ahead(self, inputs, pictures, *, num_steps):
        self.num_flights += 1
        step = super().steps_ahead(inputs, pictures, num_steps=num_steps)

        def counted():
            self.num_ahead += 1
            self.fault(self.num_ahead)
            return step()

        return counted


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[CountedGraphs]:
    """The graphs of the engines that are built from now on."""
    return run_on_graphs(monkeypatch, kind=CountedGraphs)


def _drawn(seed: int) -> SamplingParams:
    return SamplingParams(seed=seed, temperature=0.9)


def _forced(model) -> tuple[int | None, ...]:
    """Some at the beginning, one in the midst of a flight, and the last."""
    num_codes = model.config.vq.num_codes
    return (3, 5, None, 7, None, None, None, 9, *[None] * (num_codes - 9), 2)


def _pictures(requests_for: Requests) -> list[ImageRequest]:
    return [
        requests_for.image("guided", sampling=_drawn(1), progress=True, preview_at=(4, 9)),
        requests_for.image("unguided", "a star", guidance=None, sampling=_drawn(2)),
        requests_for.image("forced", sampling=_drawn(3), forced_codes=_forced(requests_for.model)),
        requests_for.image("greedy", "a blue square and a green one"),
    ]


def _codes(log: Log) -> dict[str, list[int]]:
    return {name: outcome.codes for name, outcome in log.outcomes.items()}


def _step_by_step(requests_for: Requests, monkeypatch: pytest.MonkeyPatch, *requests) -> Log:
    """The same requests with graphs, of which none runs ahead."""
    with monkeypatch.context() as patch:
        patch.setattr("janus_core.engine.runner.can_run_ahead", lambda _: False)
        return run(requests_for.engine(), *requests)


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_the_same_pictures(
    requests_for: Requests, monkeypatch, made: list[CountedGraphs], is_deterministic: bool
) -> None:
    expected = _step_by_step(requests_for, monkeypatch, *_pictures(requests_for))
    assert made[0].num_ahead == 0
    engine = requests_for.engine(deterministic=is_deterministic, step_token_budget=60)
    log = run(engine, *_pictures(requests_for))
    assert _codes(log) == _codes(expected)
    assert made[1].num_ahead > made[1].num_flights > 0
    for kind in (ImageProgress, Preview):
        places = [event.num_codes for event in log["guided"].of_type(kind)]
        assert places
        assert places == [event.num_codes for event in expected["guided"].of_type(kind)]


def test_every_step_is_reported_once(
    requests_for: Requests, monkeypatch, made: list[CountedGraphs]
) -> None:
    picture = requests_for.image("one", sampling=_drawn(1))
    expected = _step_by_step(requests_for, monkeypatch, picture)
    log = run(requests_for.engine(), picture)
    assert [(s.num_cond_rows, s.num_uncond_rows) for s in log.steps] == [
        (s.num_cond_rows, s.num_uncond_rows) for s in expected.steps
    ]
    assert all(step.duration_s > 0 for step in log.steps)
    # The first code comes from the prompt's last row; no step was launched beyond the last.
    assert made[1].num_ahead == requests_for.model.config.vq.num_codes - 1


def test_text_does_not_run_ahead(requests_for: Requests, made: list[CountedGraphs]) -> None:
    run(requests_for.engine(), requests_for.text("words"))
    filtered = SamplingParams(seed=1, temperature=1.0, top_k=3)
    run(requests_for.engine(), requests_for.image("filtered", sampling=filtered))
    assert [graphs.num_ahead for graphs in made] == [0, 0]


def _until_ahead(engine: Engine, graphs: CountedGraphs) -> Log:
    """Step until some steps ran ahead, of which one is not read yet."""
    log = Log()
    for _ in range(50):
        log.add(engine.step())
        if graphs.num_ahead >= 3:
            return log
    raise AssertionError("nothing runs ahead")


@pytest.mark.parametrize("ended", [["first"], ["second"], ["first", "second"]])
def test_what_is_cancelled_disturbs_nobody(
    requests_for: Requests, monkeypatch, made: list[CountedGraphs], ended: list[str]
) -> None:
    requests = [requests_for.image(n, n, sampling=_drawn(5)) for n in ("first", "second", "third")]
    expected = _codes(_step_by_step(requests_for, monkeypatch, *requests))
    engine = requests_for.engine()
    for request in requests[:2]:
        engine.submit(request)
    log = _until_ahead(engine, made[1])
    for request_id in ended:
        engine.cancel(request_id)
    # Whoever comes now gets slots that the step in flight still writes to.
    engine.submit(requests[2])
    log = finish(engine, log)
    for name in {"first", "second", "third"} - set(ended):
        assert log[name].codes == expected[name]


def test_all_are_cancelled(requests_for: Requests, made: list[CountedGraphs]) -> None:
    engine = requests_for.engine()
    engine.submit(requests_for.image("only", sampling=_drawn(5)))
    log = _until_ahead(engine, made[0])
    engine.cancel("only")
    finish(engine, log)
    later = requests_for.image("only", sampling=_drawn(6))
    assert run(engine, later)["only"].codes == run(requests_for.engine(), later)["only"].codes


def test_text_joins_between_two_steps(
    requests_for: Requests, monkeypatch, made: list[CountedGraphs]
) -> None:
    picture, text = requests_for.image("picture", sampling=_drawn(7)), requests_for.text("text")
    expected = _step_by_step(requests_for, monkeypatch, picture, text)
    engine = requests_for.engine()
    engine.submit(picture)
    log = _until_ahead(engine, made[1])
    engine.submit(text)
    num_steps = len(log.steps)
    # One step is in flight; the next one has the prompt.
    log.add(engine.step())
    log.add(engine.step())
    assert len(log.steps) == num_steps + 2
    assert log.steps[-1].num_prefill_tokens > 0
    log = finish(engine, log)
    assert log["picture"].codes == expected["picture"].codes
    assert log["text"].ids == expected["text"].ids


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_step_that_raises_is_repeated(
    requests_for: Requests, monkeypatch, made: list[CountedGraphs], at: int
) -> None:
    requests = _pictures(requests_for)
    expected = _codes(_step_by_step(requests_for, monkeypatch, *requests))
    engine = requests_for.engine()

    def fault(number: int) -> None:
        if number == at:
            raise RuntimeError("The device had enough.")

    made[1].fault = fault
    log = run(engine, *requests)
    assert _codes(log) == expected
    assert engine.stats().num_failed_steps == 1


def test_numbers_that_are_not_finite_end_their_request_only(
    requests_for: Requests, monkeypatch, made: list[CountedGraphs]
) -> None:
    requests = [requests_for.image(n, n, sampling=_drawn(5)) for n in ("first", "second")]
    expected = _codes(_step_by_step(requests_for, monkeypatch, *requests))
    engine = requests_for.engine()
    for request in requests:
        engine.submit(request)
    log = _until_ahead(engine, made[1])
    state = engine._states["first"]
    slot = state.sequences[0].slot
    made[1]._model._kv.layers[0][:, :, slot.start] = torch.nan
    log = finish(engine, log)
    assert isinstance(log["first"].end, Failed)
    assert log["second"].codes == expected["second"]
    for layer in made[1]._model._kv.layers:
        assert layer.isfinite().all(), "whoever gets these positions reads numbers"
