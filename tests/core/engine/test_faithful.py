"""The engine against transformers, token for token, code for code, pixel for pixel.

Greedy outputs of the oracle are computed once, one request at a time; the engine must repeat them
in every situation it may bring a request into.
"""

from pathlib import Path

import numpy as np
import pytest
from transformers import JanusForConditionalGeneration

from janus_core.engine.request import ImageRequest, SamplingParams, TextRequest
from tests.core.engine.oracle import Oracle, ask_oracle, assert_equal, levels_of
from tests.core.engine.support import Log, Requests, finish, run


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> JanusForConditionalGeneration:
    return JanusForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()


@pytest.fixture(scope="module")
def mixed(requests_for: Requests) -> list[TextRequest | ImageRequest]:
    """16 requests of different kinds, lengths and guidances."""
    make = requests_for
    return [
        make.text("t0", "How many shapes are there?", max_tokens=20),
        make.image("i0", "a large red circle to the left of a small blue square", guidance=5.0),
        make.text("t1", "What is in the picture?", images=(1,), max_tokens=12),
        make.image("i1", "a star", guidance=2.5),
        make.text("t2", "Which is which?", images=(2, 1), max_tokens=6),
        make.image("i2", "a star", guidance=7.0),
        make.text("t3", "a", max_tokens=1),
        make.image("i3", "Which color is the star? a large red circle", guidance=1.5),
        make.text("t4", "You are a helpful language and vision assistant.", max_tokens=30),
        make.image("i4", "a small blue square on a white background", guidance=10.0),
        make.text("t5", "What is in the picture? Which color is it?", images=(1,), max_tokens=9),
        make.image("i5", "a large red circle to the left of a small blue star", guidance=3.0),
        make.text("t6", "How many shapes are here?", max_tokens=16),
        make.image("i6", "q", guidance=5.0),
        make.text("t7", "x y z " * 12, max_tokens=7),
        make.image("i7", "a white background", guidance=4.0),
    ]


@pytest.fixture(scope="module")
def expected(
    reference: JanusForConditionalGeneration,
    requests_for: Requests,
    mixed: list[TextRequest | ImageRequest],
) -> Oracle:
    return {request.id: ask_oracle(reference, requests_for, request) for request in mixed}


def test_the_oracle_is_worth_its_name(expected: Oracle) -> None:
    """Answers differ from each other and are not constant, so that equality means something."""
    assert len({tuple(said) for said in expected.values()}) == len(expected)
    assert len(set(expected["i0"])) > 2
    assert len(set(expected["t4"])) > 5


def test_alone(requests_for: Requests, mixed, expected: Oracle) -> None:
    for request in mixed:
        log = run(requests_for.engine(), request)
        assert_equal(log, expected, [request.id])


def test_in_a_mixed_batch_of_16(requests_for: Requests, mixed, expected: Oracle) -> None:
    log = run(requests_for.engine(), *mixed)
    assert_equal(log, expected)
    widest = max(step.num_text_rows + step.num_cond_rows for step in log.steps)
    assert widest >= 12, "the requests did not run together"


def test_one_step_holds_all_three_roles(requests_for: Requests, mixed) -> None:
    steps = run(requests_for.engine(), *mixed).steps
    assert any(s.num_text_rows and s.num_cond_rows and s.num_uncond_rows for s in steps)
    assert all(s.num_cond_rows == s.num_uncond_rows for s in steps)


@pytest.mark.parametrize("budget", [6, 11])
def test_with_chunked_prefill(requests_for: Requests, mixed, expected: Oracle, budget: int) -> None:
    """Chunks cut inside images and in one sequence of a pair only."""
    log = run(requests_for.engine(max_sequences=4, step_token_budget=budget), *mixed)
    assert_equal(log, expected)
    assert max(step.num_prefill_tokens for step in log.steps) <= budget


def test_with_prefix_hits(requests_for: Requests, mixed, expected: Oracle) -> None:
    engine = requests_for.engine()
    run(engine, *mixed)
    log = run(engine, *mixed)
    assert_equal(log, expected)
    cached = {request.id: log[request.id].end.usage.cached_tokens for request in mixed}
    assert all(cached[r.id] == len(r.token_ids) - 1 for r in mixed if len(r.token_ids) > 9), cached


def test_without_any_cache(requests_for: Requests, mixed, expected: Oracle) -> None:
    engine = requests_for.engine(prefix_cache=False, vision_cache_bytes=0)
    run(engine, *mixed)
    assert_equal(run(engine, *mixed), expected)
    assert engine.stats().prefix_hits == engine.stats().vision_hits == 0


def test_after_set_backs(requests_for: Requests, mixed, expected: Oracle) -> None:
    engine = requests_for.engine(kv_positions=256, text_growth_tokens=1, image_reserve=0.0)
    log = run(engine, *mixed)
    assert_equal(log, expected)
    assert engine.stats().num_set_backs > 0, "the pool was large enough after all"


def test_beside_cancelled_requests(requests_for: Requests, mixed, expected: Oracle) -> None:
    """Others end at every stage of their lives; those that stay do not notice."""
    engine = requests_for.engine()
    log = Log()
    leaving = [request.id for request in mixed[::2]]
    for request in mixed:
        engine.submit(request)
    while leaving:
        log.add(engine.step())
        engine.cancel(leaving.pop())
        engine.check_integrity()
    finish(engine, log)
    assert_equal(log, expected, [request.id for request in mixed[1::2]])


def test_pixels(reference, requests_for: Requests, mixed, expected: Oracle) -> None:
    log = run(requests_for.engine(), *mixed)
    for request_id in ("i0", "i6"):
        levels = levels_of(reference, expected[request_id])
        assert np.array_equal(log[request_id].end.pixels, levels)


def test_a_seed_gives_one_picture_whoever_is_beside(requests_for: Requests, mixed) -> None:
    picture = requests_for.image("p", sampling=SamplingParams(seed=7))
    alone = run(requests_for.engine(), picture)["p"]
    beside = run(requests_for.engine(), *mixed[:8], picture, *mixed[8:15])["p"]
    assert beside.codes == alone.codes
    assert np.array_equal(beside.end.pixels, alone.end.pixels)


def test_pictures_of_consecutive_seeds_are_the_single_ones(requests_for: Requests) -> None:
    def picture(seed: int) -> ImageRequest:
        return requests_for.image(f"p{seed}", sampling=SamplingParams(seed=seed))

    together = run(requests_for.engine(), *[picture(seed) for seed in range(40, 44)])
    for seed in range(40, 44):
        alone = run(requests_for.engine(), picture(seed))
        assert together[f"p{seed}"].codes == alone[f"p{seed}"].codes
    assert len({tuple(together[f"p{seed}"].codes) for seed in range(40, 44)}) == 4


def test_guidance_matters_and_1_is_unguided(requests_for: Requests) -> None:
    log = run(
        requests_for.engine(),
        requests_for.image("none", guidance=None),
        requests_for.image("one", guidance=1.0),
        requests_for.image("five", guidance=5.0),
    )
    assert log["one"].codes == log["none"].codes
    assert log["five"].codes != log["one"].codes
