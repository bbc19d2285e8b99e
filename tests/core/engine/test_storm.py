"""Requests that come, wait, are set back, share prefixes, meet faults and leave, all at random:
whoever stays gets what it would have got alone."""

import random
from collections.abc import Callable, Container

import pytest

from janus_core.engine.engine import Engine
from janus_core.engine.events import Failed, Finished
from janus_core.engine.plan import StepPlan
from janus_core.engine.request import Constraint, ImageRequest, SamplingParams, TextRequest
from tests.core.engine.support import Log, Requests, finish, run
from tests.core.engine.test_faults import broken, not_a_number

NUM_REQUESTS = 60

PROMPTS = [
    "What is in the picture?",
    "What is in the picture on the left?",
    "a large red circle to the left of a small blue square",
    "a large red circle",
    "q",
]


FORMS = [
    Constraint.regex("[ab]{3,30}[cd]{2}"),
    Constraint.json_schema({"type": "array", "items": {"enum": ["x", "xy", 1]}, "maxItems": 5}),
]


def forced_codes(num_codes: int, seed: int) -> tuple[int | None, ...]:
    """A few codes to begin with, and every other one of those that follow."""
    rng = random.Random(seed)
    begun = [rng.randrange(8) for _ in range(num_codes // 3)]
    return (*begun, *[rng.choice([None, 5]) for _ in range(num_codes - len(begun) - 1)], None)


def random_request(make: Requests, rng: random.Random, request_id: str):
    prompt = rng.choice(PROMPTS)
    sampling = SamplingParams(seed=rng.randrange(3), temperature=rng.choice([0.0, 0.7]))
    if rng.random() < 0.4:
        guidance = rng.choice([None, 2.0, 5.0])
        num_codes = make.model.config.vq.num_codes
        return make.image(
            request_id,
            prompt,
            guidance=guidance,
            sampling=sampling,
            forced_codes=rng.choice([(), forced_codes(num_codes, 1), forced_codes(num_codes, 2)]),
            code_logprobs=rng.random() < 0.3,
            tenant=rng.choice(["", "x"]),
        )
    return make.text(
        request_id,
        prompt,
        images=rng.choice([(), (), (1,), (2, 1)]),
        sampling=sampling,
        max_tokens=rng.choice([1, 5, 40]),
        min_tokens=rng.choice([0, 1]),
        logprobs=rng.choice([None, None, 2]),
        constraint=rng.choice([None, None, *FORMS]),
        bad_sequences=rng.choice([(), ((40,), (50, 60))]),
        tenant=rng.choice(["", "x"]),
    )


def described(request: TextRequest | ImageRequest) -> tuple:
    """Everything that should determine the answer: neither the id nor the tenant."""
    kind = (request.token_ids, request.sampling)
    if isinstance(request, ImageRequest):
        return (*kind, request.guidance, request.uncond_token_ids, request.forced_codes)
    images = tuple(image.digest for image in request.images)
    limits = (request.max_tokens, request.min_tokens)
    return (*kind, *limits, images, request.constraint, request.bad_sequences)


def small_engine(make: Requests, seed: int, **more) -> Engine:
    """Another one for each seed, in which room, rows or tokens are short."""
    return make.engine(
        kv_positions=[256, 320, 512, 1024][seed],
        max_sequences=[6, 10, 16, 16][seed],
        step_token_budget=[9, 20, 40, 300][seed],
        text_growth_tokens=[1, 8, 32, 128][seed],
        patience_steps=10,
        **more,
    )


def raise_storm(
    make: Requests,
    engine: Engine,
    rng: random.Random,
    *,
    on_request: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, TextRequest | ImageRequest], Log]:
    """Let requests come and some of them leave, to the end of all; `on_request` is told the id of
    each before it is submitted."""
    requests, log = {}, Log()
    for number in range(NUM_REQUESTS):
        request = random_request(make, rng, f"r{number}")
        requests[request.id] = request
        on_request(request.id)
        engine.submit(request)
        for _ in range(rng.choice([0, 0, 1, 4])):
            log.add(engine.step())
            engine.check_integrity()
        if rng.random() < 0.15:
            engine.cancel(rng.choice(list(requests)))
    finish(engine, log)
    return requests, log


def num_as_alone(
    make: Requests,
    requests: dict[str, TextRequest | ImageRequest],
    log: Log,
    *,
    guilty: Container[str] = (),
) -> int:
    """How many came to their end, each with what it would have got alone; the `guilty` may fail."""
    alone: dict[tuple, list[int]] = {}
    num_compared = 0
    for request_id, request in requests.items():
        end = log[request_id].end
        if isinstance(end, Failed):
            assert request_id in guilty
            continue
        assert isinstance(end, Finished)
        if end.reason == "cancelled":
            continue
        if described(request) not in alone:
            expected = run(make.engine(prefix_cache=False), request)[request_id]
            alone[described(request)] = expected.ids or expected.codes
        said = log[request_id].ids or log[request_id].codes
        assert said == alone[described(request)], request_id
        num_compared += 1
    return num_compared


@pytest.mark.parametrize("seed", range(4))
def test_everybody_gets_what_it_would_have_got_alone(requests_for: Requests, seed: int) -> None:
    vision_cache_bytes = [0, 4000, 10**6, 10**6][seed]
    engine = small_engine(requests_for, seed, vision_cache_bytes=vision_cache_bytes)
    requests, log = raise_storm(requests_for, engine, random.Random(seed))
    assert num_as_alone(requests_for, requests, log) > 40
    assert engine.stats().prefix_hits > 0
    if seed < 2:
        assert engine.stats().num_set_backs > 0


@pytest.mark.parametrize("seed", range(4))
def test_in_a_storm_with_faults_the_others_get_what_they_would_get_alone(
    requests_for: Requests, seed: int
) -> None:
    """Requests that come, leave, are set back, are poison or meet a hiccup of the machine: each
    ends once, the innocent with the very same tokens."""
    rng, hiccups, spoilt_rows = (random.Random(seed + more) for more in (0, 100, 200))
    engine = small_engine(requests_for, seed)
    poison: dict[str, Exception] = {}

    def poison_some(request_id: str) -> None:
        if rng.random() < 0.15:
            poison[request_id] = rng.choice([MemoryError(), ValueError("out of luck")])

    def fault(plan: StepPlan) -> None:
        for state in plan.states():
            if state.id in poison and state.num_output >= 2:
                raise type(poison[state.id])(*poison[state.id].args)
        if len(plan.states()) > 1 and hiccups.random() < 0.05:
            raise hiccups.choice([MemoryError(), RuntimeError("a hiccup")])

    broken(engine, fault)
    not_a_number(
        engine,
        lambda _, sampling: [0] if len(sampling) > 1 and spoilt_rows.random() < 0.03 else [],
    )
    requests, log = raise_storm(requests_for, engine, rng, on_request=poison_some)
    assert num_as_alone(requests_for, requests, log, guilty=poison) > 30
    assert sum(isinstance(log[id].end, Failed) for id in requests) > 1
    assert engine.stats().num_failed_steps > 5
