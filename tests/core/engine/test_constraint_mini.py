"""The embedded checkpoint under schemas: hundreds of answers, none invalid, and hardly slower."""

import json
import random
import time
from pathlib import Path
from statistics import median

import jsonschema
import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.engine.request import Constraint, SamplingParams, TextRequest
from janus_core.tokenizer import Tokenizer
from tests.core.engine.support import Log, Requests, finish, run

WORDS = ("circle", "square", "star", "red", "blue", "naïve", 'a "quoted" word', "", "0")


@pytest.fixture(scope="module")
def mini(mini_checkpoint: Path) -> Requests:
    model = load_model(mini_checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    return Requests(model, Tokenizer.load(mini_checkpoint))


def random_schema(rng: random.Random, depth: int) -> dict:
    """A schema whose answers are bounded; `depth` levels of objects and arrays at most."""
    leaves = [
        {"type": "boolean"},
        {"type": "null"},
        {"const": rng.choice(WORDS)},
        {"enum": rng.sample([*WORDS, 1, -2.5, None, True], 3)},
        {"type": "string", "maxLength": rng.randrange(0, 8)},
        {"type": "string", "pattern": "^[a-f]{2}-[0-9]{1,3}$"},
        {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])},
        {"type": "integer", "minimum": -rng.randrange(50), "maximum": rng.randrange(200)},
        {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
        {"type": ["boolean", "null"]},
    ]
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(leaves)
    inner = [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "array", "items": inner[0], "minItems": 1, "maxItems": rng.randrange(1, 3)}
    if kind == 1:
        return {"anyOf": inner}
    names = [f"{rng.choice(WORDS[:5])}_{index}" for index in range(len(inner))]
    return {
        "type": "object",
        "properties": dict(zip(names, inner, strict=True)),
        "required": names if kind == 2 else names[:1],
        "additionalProperties": False,
    }


def schema(seed: int) -> dict:
    """From a single value (seed 0, 5, ...) to four levels, by reference now and then."""
    rng = random.Random(seed)
    made = random_schema(rng, seed % 5)
    if seed % 7 == 3:
        return {"$ref": "#/$defs/made", "$defs": {"made": made}}
    return made


def asked(make: Requests, seed: int) -> TextRequest:
    return make.text(
        f"s{seed}",
        f"Describe picture {seed}.",
        sampling=SamplingParams(seed=seed, temperature=seed % 3 / 2),
        max_tokens=900,
        constraint=Constraint.json_schema(schema(seed)),
        strip_start=seed % 2 == 0,
    )


def assert_valid(log: Log, seeds: range) -> None:
    for seed in seeds:
        outcome = log[f"s{seed}"]
        assert outcome.end.reason == "stop", (seed, schema(seed), outcome.text)
        value = json.loads(outcome.text)
        jsonschema.Draft202012Validator(schema(seed)).validate(value)


def test_some_schemas_beside_a_picture(mini: Requests) -> None:
    seeds = range(10)
    log = run(mini.engine(), *[asked(mini, seed) for seed in seeds], mini.image("i"))
    assert_valid(log, seeds)
    assert log["i"].end.reason == "stop"


@pytest.mark.slow
def test_two_hundred_schemas_while_pictures_are_drawn(mini: Requests) -> None:
    seeds = range(200)
    engine, log = mini.engine(kv_positions=2**15, max_waiting=400), Log()
    for seed in seeds:
        engine.submit(asked(mini, seed))
        if seed % 20 == 0:
            sampling = SamplingParams(seed=seed)
            engine.submit(mini.image(f"i{seed}", sampling=sampling))
    finish(engine, log, max_steps=50_000)
    assert_valid(log, seeds)
    mixed = [step for step in log.steps if step.num_text_rows and step.num_cond_rows]
    assert len(mixed) > 30, "answers and pictures share steps"


@pytest.mark.slow
def test_text_with_a_schema_is_at_least_four_fifths_as_fast(mini: Requests) -> None:
    """Tokens per second of four answers at a time, side by side; both are cut off at the same
    number of tokens."""
    letters = {"type": "array", "items": {"type": "string", "minLength": 9}, "minItems": 50}
    constraint = Constraint.json_schema(
        {"type": "object", "properties": {"a": letters}, "required": ["a"]}
    )
    engine = mini.engine(prefix_cache=False)

    def duration_s(**fields) -> float:
        requests = [
            mini.text(str(i), max_tokens=60, sampling=SamplingParams(seed=i), **fields)
            for i in range(4)
        ]
        started_s = time.perf_counter()
        log = run(engine, *requests)
        taken_s = time.perf_counter() - started_s
        assert {log[request.id].end.usage.output_tokens for request in requests} == {60}
        return taken_s

    duration_s(constraint=constraint)
    pairs = [(duration_s(ignore_eos=True), duration_s(constraint=constraint)) for _ in range(5)]
    ratio = median(free_s / constrained_s for free_s, constrained_s in pairs)
    assert ratio >= 0.8, pairs
