"""What the engine says and when: events, cancellation, faults, penalties, previews, usage."""

import math

import numpy as np
import pytest
import torch

from janus_core.engine.engine import Engine
from janus_core.engine.events import (
    Failed,
    Finished,
    ImageProgress,
    Preview,
    Started,
    TextDelta,
)
from janus_core.engine.request import SamplingParams
from janus_core.errors import (
    ContextLengthError,
    EngineDeadError,
    ParameterError,
    QueueFullError,
    StepError,
)
from tests.core.engine.support import GREEDY, Log, Requests, finish, run


def test_events_come_in_order(requests_for: Requests) -> None:
    log = run(requests_for.engine(), requests_for.text("t"), requests_for.image("i", progress=True))
    assert isinstance(log["t"].events[0], Started)
    assert isinstance(log["i"].events[0], Started)
    assert [event.num_codes for event in log["i"].of_type(ImageProgress)] == [4, 8, 12, 16]
    assert log["i"].end.reason == "stop"
    assert log["i"].end.pixels.shape == (16, 16, 3)
    assert log["i"].end.pixels.dtype == np.uint8
    assert len(log["i"].codes) == 16
    assert log["t"].text == requests_for.tokenizer.decode(log["t"].ids)


def test_usage_and_timings(requests_for: Requests) -> None:
    engine = requests_for.engine()
    request = requests_for.text("a", "a question", images=(3,), max_tokens=5)
    run(engine, request)
    end = run(engine, requests_for.text("b", "a question", images=(3,), max_tokens=5))["b"].end
    num_prompt = len(request.token_ids)
    assert end.usage.prompt_tokens == num_prompt
    assert end.usage.cached_tokens == num_prompt - 1
    assert end.usage.image_tokens == requests_for.model.config.vision.num_image_tokens
    assert end.usage.output_tokens == 5 or end.reason == "stop"
    times = end.timings
    assert 0 <= times.queue_s <= times.first_s <= times.total_s
    assert times.first_s + times.decode_s <= times.total_s


def test_the_tower_runs_once_per_image(requests_for: Requests) -> None:
    engine = requests_for.engine(prefix_cache=False)
    first = run(engine, requests_for.text("a", images=(5,)))["a"]
    second = run(engine, requests_for.text("b", images=(5,)))["b"]
    assert first.end.timings.vision_encode_s > 0
    assert second.end.timings.vision_encode_s == 0
    assert first.ids == second.ids
    assert (engine.stats().vision_queries, engine.stats().vision_hits) == (2, 1)


def test_tenants_do_not_share_embeddings(requests_for: Requests) -> None:
    engine = requests_for.engine()
    run(engine, requests_for.text("a", images=(5,), tenant="a"))
    run(engine, requests_for.text("b", images=(5,), tenant="b"))
    assert engine.stats().vision_hits == 0
    assert engine.stats().prefix_hits == 0


def test_the_vision_cache_keeps_to_its_bytes(requests_for: Requests) -> None:
    config = requests_for.model.config
    size = config.vision.num_image_tokens * config.backbone.width * 4
    engine = requests_for.engine(prefix_cache=False, vision_cache_bytes=2 * size + 1)
    run(engine, *[requests_for.text(f"t{seed}", images=(seed,)) for seed in range(5)])
    assert engine.stats().vision_cache_bytes == 2 * size


def test_previews_show_what_is_drawn_and_grey(requests_for: Requests) -> None:
    log = run(requests_for.engine(), requests_for.image("i", preview_at=(4, 10)))
    first, second = log["i"].of_type(Preview)
    assert [(p.index, p.num_codes) for p in (first, second)] == [(0, 4), (1, 10)]
    # 4 x 4 codes of 4 pixels each: 4 codes are the first row, 10 end in the third.
    assert (first.pixels[4:] == 127).all()
    assert (second.pixels[12:] == 127).all()
    assert (second.pixels[8:12, 8:] == 127).all()
    assert not (second.pixels[8:12, :8] == 127).all()
    assert len(np.unique(first.pixels[:4])) > 10
    # The rest is guessed from the row above.
    codes = log["i"].codes
    guess = torch.tensor([codes[:10] + codes[6:8] + codes[8:10] + codes[6:8]])
    guessed = requests_for.model.decode_codes(guess)[0].numpy()
    assert np.array_equal(second.pixels[:8], guessed[:8])
    assert np.array_equal(second.pixels[8:12, :8], guessed[8:12, :8])


@pytest.mark.parametrize("num_steps", range(0, 19, 2))
def test_cancelling_at_any_step_frees_everything(requests_for: Requests, num_steps: int) -> None:
    engine, log = requests_for.engine(max_sequences=4, step_token_budget=12), Log()
    requests = [
        requests_for.image("i", preview_at=(4,)),
        requests_for.text("t", "a b c d e f", images=(1,)),
        requests_for.image("j"),
        requests_for.image("k"),
    ]
    for request in requests:
        engine.submit(request)
    for _ in range(num_steps):
        log.add(engine.step())
    for request in requests:
        engine.cancel(request.id)
    engine.check_integrity()
    assert engine.stats().num_running == engine.stats().num_waiting == 0
    finish(engine, log)
    for request in requests:
        assert isinstance(log[request.id].end, Finished)


def test_cancelling_while_the_pixels_are_decoded_ends_once(requests_for: Requests) -> None:
    class Slow:
        """A renderer that is never done before the cancellation."""

        def __init__(self, renderer) -> None:
            self.renderer = renderer
            self.hold = True

        def submit(self, job) -> bool:
            return self.renderer.submit(job)

        def poll(self) -> list:
            return [] if self.hold else self.renderer.poll()

    engine, log = requests_for.engine(), Log()
    engine._renderer = slow = Slow(engine._renderer)
    engine.submit(requests_for.image("i"))
    while engine.stats().num_rendering == 0:
        log.add(engine.step())
    assert engine.stats().kv_usage == 0, "slots are free before the pixels exist"
    assert engine.is_rendering_only
    engine.cancel("i")
    slow.hold = False
    finish(engine, log)
    log.add(engine.step())
    assert log["i"].end.reason == "cancelled"
    assert log["i"].end.pixels is None


def test_cancelling_the_unknown_is_nothing(requests_for: Requests) -> None:
    engine = requests_for.engine()
    engine.cancel("nobody")
    assert engine.step() == []


def fail_for(engine: Engine, request_id: str, error: Exception) -> None:
    """Make the runner raise whenever a plan holds that request."""
    run_plan = engine._runner.run

    def run_or_raise(plan):
        if any(state.id == request_id for state in plan.states()):
            raise error
        return run_plan(plan)

    engine._runner.run = run_or_raise


def test_a_fault_fails_its_request_only(requests_for: Requests) -> None:
    others = [requests_for.text("t"), requests_for.image("i")]
    expected = run(requests_for.engine(), *others)
    engine = requests_for.engine()
    fail_for(engine, "bad", RuntimeError("out of luck"))
    log = run(engine, others[0], requests_for.image("bad", "a star"), others[1])
    assert isinstance(log["bad"].end, Failed)
    assert isinstance(log["bad"].end.error, StepError)
    assert log["t"].ids == expected["t"].ids
    assert log["i"].codes == expected["i"].codes
    assert engine.stats().num_failed_steps == 1


def test_an_engine_that_only_fails_gives_up(requests_for: Requests) -> None:
    engine = requests_for.engine(prefix_cache=False)
    engine._runner.run = lambda _: (_ for _ in ()).throw(RuntimeError("no device"))

    def insist() -> None:
        for number in range(20):
            engine.submit(requests_for.text(f"t{number}"))
            engine.step()

    with pytest.raises(EngineDeadError):
        insist()


def test_numbers_that_are_not_finite_fail_their_request_only(requests_for: Requests) -> None:
    """Neither the poisoned prefix nor the poisoned positions reach anybody else."""
    bad = requests_for.text("bad", "b" * 60, images=(77,), max_tokens=3)
    good = requests_for.text("good", max_tokens=20)
    expected = run(requests_for.engine(), bad, good)
    engine = requests_for.engine(kv_positions=128, vision_cache_bytes=0)
    poisoned = torch.full((1, 16, requests_for.model.config.backbone.width), math.nan)
    requests_for.model.encode_images = lambda _: poisoned
    try:
        log = run(engine, bad, good)
    finally:
        del requests_for.model.encode_images  # the class's shows again
    assert isinstance(log["bad"].end.error, StepError)
    assert log["good"].ids == expected["good"].ids
    assert all(layer.isfinite().all() for layer in engine._runner._kv.layers)
    assert run(engine, bad)["bad"].ids == expected["bad"].ids


def test_a_picture_that_cannot_be_decoded_fails(requests_for: Requests) -> None:
    requests_for.model.decode_codes = lambda _: (_ for _ in ()).throw(RuntimeError("no memory"))
    try:
        log = run(requests_for.engine(), requests_for.image("i"), requests_for.text("t"))
    finally:
        del requests_for.model.decode_codes  # the class's shows again
    assert isinstance(log["i"].end.error, StepError)
    assert isinstance(log["t"].end, Finished)


def test_requests_that_never_fit_are_refused(requests_for: Requests) -> None:
    engine = requests_for.engine(kv_positions=64)
    assert engine.context_limit == 64
    with pytest.raises(ContextLengthError, match="64 positions"):
        engine.submit(requests_for.text("t", max_tokens=64))
    engine.submit(requests_for.text("fits", "a", max_tokens=63))
    with pytest.raises(ContextLengthError):
        engine.submit(requests_for.image("pair", "a b c d e f g h i j k l m n o p"))
    unguided = requests_for.image("one", "a b c d e f g h i j k l m n o p", guidance=None)
    engine.submit(unguided)
    assert isinstance(finish(engine)["one"].end, Finished)


def test_a_bias_on_no_token_is_refused(requests_for: Requests) -> None:
    size = requests_for.model.config.backbone.vocab_size
    sampling = SamplingParams(seed=0, logit_bias=((size, 1.0),))
    with pytest.raises(ParameterError, match="logit_bias"):
        requests_for.engine().submit(requests_for.text("t", sampling=sampling))


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_stop_token_that_does_not_exist_is_refused(requests_for: Requests, token_id: int) -> None:
    with pytest.raises(ParameterError, match="stop_token_ids"):
        requests_for.engine().submit(requests_for.text("t", stop_token_ids=(token_id,)))


def test_a_full_queue_refuses(requests_for: Requests) -> None:
    engine = requests_for.engine(max_waiting=2)
    engine.submit(requests_for.text("a"))
    engine.submit(requests_for.text("b"))
    with pytest.raises(QueueFullError):
        engine.submit(requests_for.text("c"))
    assert len(finish(engine).outcomes) == 2


def test_logprobs_are_the_models_own(requests_for: Requests) -> None:
    """Of the plain distribution, whatever the sampling parameters; the sampled token may be
    unlikely."""
    hot = SamplingParams(seed=3, temperature=5.0, top_k=50, presence_penalty=1.0)
    log = run(requests_for.engine(), requests_for.text("t", sampling=hot, logprobs=4))
    greedy = run(requests_for.engine(), requests_for.text("g", logprobs=2))
    for delta in log["t"].of_type(TextDelta):
        (token,) = delta.tokens
        values = [top.logprob for top in token.top]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) < 1.0
        assert token.logprob <= values[0]
        ids = [top.token_id for top in token.top]
        if token.token_id in ids:
            assert token.logprob == pytest.approx(values[ids.index(token.token_id)])
    for delta in greedy["g"].of_type(TextDelta):
        assert delta.tokens[0].token_id == delta.tokens[0].top[0].token_id
    # The first distribution is the same for both.
    first, other = log["t"].of_type(TextDelta)[0], greedy["g"].of_type(TextDelta)[0]
    assert first.tokens[0].top[0] == pytest.approx(other.tokens[0].top[0], abs=1e-5) or (
        first.tokens[0].top[0].logprob == pytest.approx(other.tokens[0].top[0].logprob, abs=1e-5)
    )


def test_logprobs_of_some_rows_do_not_mix(requests_for: Requests) -> None:
    def make(request_id: str, num_top: int | None):
        prompt = f"question {request_id}"
        return requests_for.text(request_id, prompt, logprobs=num_top, max_tokens=3)

    tops = {"a": 3, "b": None, "c": 0, "d": 5}
    together = run(requests_for.engine(), *[make(name, top) for name, top in tops.items()])
    for name, num_top in tops.items():
        alone = run(requests_for.engine(), make(name, num_top))
        for mine, other in zip(
            together[name].of_type(TextDelta), alone[name].of_type(TextDelta), strict=True
        ):
            assert mine.tokens[0].token_id == other.tokens[0].token_id
            assert len(mine.tokens[0].top) == (num_top or 0)
            if num_top is None:
                assert mine.tokens[0].logprob is None
            else:
                assert mine.tokens[0].logprob == pytest.approx(other.tokens[0].logprob, abs=1e-4)


def test_penalties_see_prompt_and_output(requests_for: Requests) -> None:
    plain = run(requests_for.engine(), requests_for.text("t", max_tokens=40))["t"].ids
    strong = SamplingParams(seed=0, temperature=0.0, frequency_penalty=2.0, presence_penalty=2.0)
    varied = run(requests_for.engine(), requests_for.text("t", max_tokens=40, sampling=strong))
    assert len(set(varied["t"].ids)) > len(set(plain))
    prompt = requests_for.text("t").token_ids
    shy = SamplingParams(seed=0, temperature=0.0, repetition_penalty=100.0)
    log = run(requests_for.engine(), requests_for.text("t", max_tokens=40, sampling=shy))
    assert len(set(log["t"].ids)) == len(log["t"].ids)
    assert not set(log["t"].ids) & set(prompt)


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_no_penalty_makes_a_token_of_what_is_impossible(
    requests_for: Requests, penalty: float
) -> None:
    """The prompt holds control tokens, which answers never do."""
    params = SamplingParams(seed=0, temperature=0.0, repetition_penalty=penalty)
    ids = run(requests_for.engine(), requests_for.text("t", images=(1,), sampling=params))["t"].ids
    assert not requests_for.tokenizer.control_ids.intersection(ids)
    with pytest.raises(ParameterError) as raised:
        SamplingParams(seed=0, repetition_penalty=1e-46)
    assert raised.value.param == "repetition_penalty"


def test_a_bias_forces_a_token_and_a_code(requests_for: Requests) -> None:
    forced = SamplingParams(seed=0, temperature=0.0, logit_bias=((40, 100.0),))
    log = run(
        requests_for.engine(),
        requests_for.text("t", sampling=forced),
        requests_for.image("i", sampling=forced),
    )
    assert log["t"].ids == [40] * 8
    assert log["i"].codes == [40] * 16


def test_marks_are_never_said(requests_for: Requests) -> None:
    """Even where a bias wants them: they would break the prompt format of the next turn."""
    tokenizer = requests_for.tokenizer
    marks = [*(tokenizer.control_ids - {tokenizer.eos_id}), tokenizer.num_ids]
    wanting = SamplingParams(seed=1, logit_bias=tuple((mark, 100.0) for mark in marks))
    log = run(requests_for.engine(), requests_for.text("t", sampling=wanting, max_tokens=30))
    assert not set(log["t"].ids) & set(marks)


def test_min_tokens_holds_the_end_off(requests_for: Requests) -> None:
    eos = requests_for.tokenizer.eos_id
    eager = SamplingParams(seed=0, temperature=0.0, logit_bias=((eos, 100.0),))
    log = run(
        requests_for.engine(),
        requests_for.text("now", sampling=eager),
        requests_for.text("later", sampling=eager, min_tokens=5),
    )
    assert log["now"].end.reason == log["later"].end.reason == "stop"
    assert log["now"].end.usage.output_tokens == 1
    assert log["later"].end.usage.output_tokens == 6


def test_stop_strings_end_the_request(requests_for: Requests) -> None:
    letters = SamplingParams(seed=0, temperature=0.0, logit_bias=((40, 100.0),))
    letter = requests_for.tokenizer.decode([40])
    log = run(requests_for.engine(), requests_for.text("t", sampling=letters, stop=(letter * 3,)))
    assert (log["t"].text, log["t"].end.reason) == ("", "stop")
    assert log["t"].end.usage.output_tokens == 3


def test_fail_all_ends_every_request_once(requests_for: Requests) -> None:
    engine, log = requests_for.engine(max_sequences=2, step_token_budget=20), Log()
    for name in "abc":
        engine.submit(requests_for.image(name, sampling=GREEDY))
    log.add(engine.step())
    log.add(engine.fail_all(StepError("over")))
    finish(engine, log)
    assert all(isinstance(log[name].end, Failed) for name in "abc")
