"""Answers that must have a form: what the grammar allows is all that comes, whatever the batch."""

import json
import re

import jsonschema
import pytest
import torch

from janus_core.engine.constraint import MAX_COMPILED, MAX_SOURCE_CHARS, ConstraintCompiler
from janus_core.engine.events import Failed
from janus_core.engine.request import Constraint, SamplingParams
from janus_core.errors import ParameterError
from tests.core.engine.support import Requests, finish, run

COLOURS = Constraint.choice(["red", "dark blue", "reddish"])
POINT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "x": {"type": "integer", "minimum": -9, "maximum": 9},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 2},
    },
    "required": ["name", "x", "tags"],
    "additionalProperties": False,
}


def drawn(seed: int, **fields) -> SamplingParams:
    return SamplingParams(seed=seed, temperature=1.5, **fields)


def test_only_what_a_schema_allows_is_said_beside_pictures_and_other_text(
    requests_for: Requests,
) -> None:
    constrained = [
        requests_for.text(
            f"c{seed}",
            sampling=drawn(seed),
            max_tokens=200,
            constraint=Constraint.json_schema(POINT),
        )
        for seed in range(8)
    ]
    others = [requests_for.text("t"), requests_for.image("i"), requests_for.image("j")]
    expected = run(requests_for.engine(), *others)
    log = run(requests_for.engine(), *constrained, *others)
    answers = {log[request.id].text for request in constrained}
    for answer in answers:
        jsonschema.validate(json.loads(answer), POINT)
    assert len(answers) > 4, "the seeds draw different answers"
    assert {log[request.id].end.reason for request in constrained} == {"stop"}
    assert log["t"].ids == expected["t"].ids
    assert log["i"].codes == expected["i"].codes


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint.json_object(), None),
        (Constraint.json_schema({"type": "boolean"}), "true|false"),
        (Constraint.regex("[ab]{2,4}c"), "[ab]{2,4}c"),
        (Constraint.regex(' x?y/"'), ' x?y/"'),
        (COLOURS, "red|dark blue|reddish"),
        (Constraint.choice(['say "hi"\n', "naïve"]), 'say "hi"\n|naïve'),
        (Constraint.grammar('start: "(" start ")" | "x"'), r"\(*x\)*"),
        (Constraint.grammar('root ::= "a" | "b" digit\ndigit ::= [0-9]'), "a|b[0-9]"),
    ],
)
@pytest.mark.parametrize("strip_start", [False, True])
def test_each_kind_of_constraint(
    requests_for: Requests, constraint: Constraint, pattern: str | None, strip_start: bool
) -> None:
    requests = [
        requests_for.text(
            str(seed),
            sampling=drawn(seed),
            max_tokens=60,
            constraint=constraint,
            strip_start=strip_start,
        )
        for seed in range(6)
    ]
    log = run(requests_for.engine(), *requests)
    complete = [log[r.id].text for r in requests if log[r.id].end.reason == "stop"]
    assert complete or pattern is None
    for answer in complete:
        if pattern is None:
            assert isinstance(json.loads(answer), dict)
        else:
            assert re.fullmatch(pattern, answer), answer


def test_the_answer_begins_with_a_space_that_is_taken_away(requests_for: Requests) -> None:
    tokenizer = requests_for.tokenizer
    for strip_start in (False, True):
        request = requests_for.text("a", constraint=COLOURS, strip_start=strip_start)
        outcome = run(requests_for.engine(), request)["a"]
        assert tokenizer.decode(outcome.ids).startswith(" ") == strip_start
        assert outcome.text in ("red", "dark blue", "reddish")


def test_a_budget_that_is_too_small_ends_by_length(requests_for: Requests) -> None:
    request = requests_for.text("a", max_tokens=3, constraint=Constraint.json_schema(POINT))
    outcome = run(requests_for.engine(), request)["a"]
    assert outcome.end.reason == "length"
    assert outcome.text.startswith("{")


def test_a_constraint_wins_over_bans_and_survives_bias_and_penalties(
    requests_for: Requests,
) -> None:
    """`min_tokens` forbids EOS, which is all that is left after the word."""
    tokenizer = requests_for.tokenizer
    against = tuple((i, -100.0) for i in range(tokenizer.num_ids))
    request = requests_for.text(
        "a",
        max_tokens=20,
        min_tokens=20,
        constraint=Constraint.choice(["red"]),
        sampling=drawn(1, logit_bias=against, frequency_penalty=2.0, top_k=1, top_p=0.1),
        bad_sequences=tuple((i,) for i in range(tokenizer.num_ids)),
    )
    outcome = run(requests_for.engine(), request)["a"]
    assert (outcome.text, outcome.end.reason) == ("red", "stop")


def test_bans_hold_where_the_constraint_leaves_a_choice(requests_for: Requests) -> None:
    ids = [requests_for.tokenizer.encode_text(letter)[0] for letter in "ab"]
    for banned, said in zip(ids, "ba", strict=True):
        request = requests_for.text(
            "a", constraint=Constraint.regex("[ab]"), bad_sequences=((banned,),)
        )
        assert run(requests_for.engine(), request)["a"].text == said


def test_a_request_that_is_set_back_goes_on_within_its_grammar(requests_for: Requests) -> None:
    constraint = Constraint.json_schema(POINT)
    requests = [
        requests_for.text(str(i), sampling=drawn(i), max_tokens=150, constraint=constraint)
        for i in range(6)
    ]
    expected = run(requests_for.engine(), *requests)
    engine = requests_for.engine(kv_positions=256, prefix_cache=False, text_growth_tokens=16)
    log = run(engine, *requests)
    assert engine.stats().num_set_backs > 0
    assert [log[r.id].ids for r in requests] == [expected[r.id].ids for r in requests]


def test_log_probabilities_are_those_of_the_model_without_the_constraint(
    requests_for: Requests,
) -> None:
    free = run(requests_for.engine(), requests_for.text("a", logprobs=5, max_tokens=1))["a"]
    request = requests_for.text("a", logprobs=5, max_tokens=1, constraint=COLOURS)
    forced = run(requests_for.engine(), request)["a"]
    (free_token,), (token,) = free.events[1].tokens, forced.events[1].tokens
    assert [t.token_id for t in token.top] == [t.token_id for t in free_token.top]
    assert token.token_id not in {t.token_id for t in token.top}
    assert token.logprob < token.top[-1].logprob


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.json_schema({"type": "objec"}, param="p"), "objec"),
        (Constraint.json_schema({"not": {}}, param="p"), '"not"'),
        (Constraint.json_schema(False, param="p"), "false"),
        (Constraint.json_schema({"$ref": "http://127.0.0.1/x"}, param="p"), "fetch"),
        (Constraint("json_schema", "[1]", "p"), "object or boolean"),
        (Constraint.regex("(", param="p"), "unclosed group"),
        (Constraint.regex("(?=a)", param="p"), "look-around"),
        (Constraint.regex("(a{1000}){1000}", param="p"), "too many"),
        (Constraint.grammar("nope", param="p"), "Expected"),
        (Constraint.grammar("", param="p"), ""),
        (Constraint.regex("a" * (MAX_SOURCE_CHARS + 1), param="p"), str(MAX_SOURCE_CHARS)),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(
    requests_for: Requests, constraint: Constraint, message: str
) -> None:
    engine = requests_for.engine()
    for strip_start in (False, True):
        request = requests_for.text("a", constraint=constraint, strip_start=strip_start)
        with pytest.raises(ParameterError) as raised:
            engine.validate(request)
        assert raised.value.param == "p"
        assert message in raised.value.message


def test_a_schema_that_nests_without_end_is_refused() -> None:
    schema: dict = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(ParameterError) as raised:
        Constraint.json_schema(schema, param="p")
    assert raised.value.param == "p"


def test_ignore_eos_and_empty_choices_are_refused(requests_for: Requests) -> None:
    with pytest.raises(ParameterError) as raised:
        requests_for.text("a", constraint=COLOURS, ignore_eos=True)
    assert raised.value.param == "ignore_eos"
    for choices in ([], ["a", ""]):
        with pytest.raises(ParameterError) as raised:
            Constraint.choice(choices, param="p")
        assert raised.value.param == "p"


def test_nothing_is_compiled_within_a_step(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many grammars were asked for since the request was accepted."""
    request = requests_for.text("a", images=(1,), constraint=COLOURS, max_tokens=20)
    expected = run(requests_for.engine(), request)["a"].text
    engine = requests_for.engine(kv_positions=128)
    engine.submit(request)
    for number in range(MAX_COMPILED):
        engine.validate(requests_for.text("b", constraint=Constraint.choice([f"w{number}"])))
    monkeypatch.setattr(ConstraintCompiler, "_compile_anew", None)
    assert finish(engine)["a"].text == expected


def test_a_grammar_that_becomes_too_complex_fails_its_own_request_only(
    requests_for: Requests,
) -> None:
    """It is not repeated either: the others lose no time."""
    rules = "\n".join(f'r{i}: r{i + 1} | r{i + 1} "x"' for i in range(1200))
    late = Constraint.grammar(f'start: HEAD r0\nHEAD: /[a-z]{{16}}/\n{rules}\nr1200: "a"')
    others = [requests_for.text("t", max_tokens=40), requests_for.image("i")]
    others.append(requests_for.text("c", constraint=COLOURS, max_tokens=40))
    expected = run(requests_for.engine(), *others)
    engine = requests_for.engine()
    log = run(
        engine, others[0], requests_for.text("late", constraint=late, max_tokens=40), *others[1:]
    )
    assert isinstance(log["late"].end, Failed)
    assert log["late"].end.error.param == late.param
    assert log["late"].text
    assert [log[r.id].ids for r in others] == [expected[r.id].ids for r in others]
    assert log["i"].codes == expected["i"].codes
    assert engine.stats().num_failed_steps == 0


def test_compiled_grammars_are_kept_and_bounded(requests_for: Requests) -> None:
    compiler = ConstraintCompiler(requests_for.tokenizer)
    for number in range(MAX_COMPILED + 5):
        constraint = Constraint.choice([f"w{number}"])
        compiler.new_matcher(requests_for.text("a", constraint=constraint))
    assert len(compiler._compiled) == MAX_COMPILED
    request = requests_for.text("a", constraint=COLOURS)
    compiler.new_matcher(request)
    kept = compiler._compiled[("choice", COLOURS.source, False)]
    first, second = compiler.new_matcher(request), compiler.new_matcher(request)
    assert compiler._compiled[("choice", COLOURS.source, False)] is kept
    word = requests_for.tokenizer.encode_text("r")
    assert not first.mask(word)[word[0]]
    assert second.mask([])[word[0]], "the answers of one grammar do not share their place"


def test_no_control_token_is_ever_allowed_but_eos(requests_for: Requests) -> None:
    tokenizer = requests_for.tokenizer
    request = requests_for.text("a", constraint=Constraint.regex("(?s).*"))
    mask = ConstraintCompiler(tokenizer).new_matcher(request).mask([])
    allowed = set(torch.from_numpy(mask).nonzero().flatten().tolist())
    assert allowed & tokenizer.control_ids == {tokenizer.eos_id}
