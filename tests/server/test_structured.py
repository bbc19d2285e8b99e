"""Answers held to a schema, a pattern or a grammar, under every name clients have for that."""

import json
import re
from typing import Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tests.server.test_bad_input import CHAT, refused
from tests.server.test_chat import HELLO, ask, chunks
from tests.server.test_responses import QUESTION, respond
from tests.serving import ServerInThread

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "filled": {"type": "boolean"}},
    "required": ["color", "filled"],
    "additionalProperties": False,
}
NAMED = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}}
FREE = {"ignore_eos": None, "max_tokens": 64}
PATTERN = "(red|blue) [0-9]{2}"
GRAMMAR = 'start: "red" | "blue"'


class Shape(BaseModel):
    color: Literal["red", "blue"]
    filled: bool


def said(client: httpx2.Client, **body: object) -> str:
    (choice,) = ask(client, **FREE, **body)["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": NAMED},
        {"response_format": NAMED | {"json_schema": {"name": "x", "schema": json.dumps(SCHEMA)}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": SCHEMA},
        {"json_schema": json.dumps(SCHEMA)},
    ],
    ids=["response_format", "as text", "structured_outputs", "guided_json", "json_schema"],
)
def test_a_schema_holds(client: httpx2.Client, field: dict):
    for seed in range(3):
        text = said(client, **field, temperature=1.5, seed=seed)
        assert Shape.model_validate_json(text)


@pytest.mark.parametrize(
    "field",
    [
        {"structured_outputs": {"regex": PATTERN}},
        {"guided_regex": PATTERN},
        {"regex": PATTERN},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_pattern_holds(client: httpx2.Client, field: dict):
    assert re.fullmatch(PATTERN, said(client, **field, temperature=1.5, seed=1))


@pytest.mark.parametrize(
    "field",
    [
        {"structured_outputs": {"choice": ["red", "blue"]}},
        {"guided_choice": ["red", "blue"]},
        {"structured_outputs": {"grammar": GRAMMAR}},
        {"guided_grammar": GRAMMAR},
        {"ebnf": 'root ::= "red" | "blue"'},
    ],
    ids=str,
)
def test_a_choice_and_a_grammar_hold(client: httpx2.Client, field: dict):
    assert said(client, **field, temperature=1.5, seed=1) in ("red", "blue")


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "anything"}}},
        {"structured_outputs": {"json_object": True}},
    ],
    ids=["json_object", "json_schema without a schema", "structured_outputs"],
)
def test_an_object_is_json_or_cut_short(client: httpx2.Client, field: dict):
    (choice,) = ask(client, **FREE, **field, temperature=1, seed=3)["choices"]
    text = choice["message"]["content"]
    assert text.startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_every_choice_and_every_chunk_is_held(client: httpx2.Client):
    body = FREE | {"response_format": NAMED, "n": 3, "temperature": 1.5, "seed": 1}
    texts = [choice["message"]["content"] for choice in ask(client, **body)["choices"]]
    assert all(Shape.model_validate_json(text) for text in texts)
    streamed = {0: "", 1: "", 2: ""}
    for chunk in chunks(client, **body):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert list(streamed.values()) == texts


def test_a_response_is_held_to_its_format(client: httpx2.Client):
    format = {"type": "json_schema", "name": "shape", "schema": SCHEMA, "strict": True}
    body = {"text": {"format": format}, "ignore_eos": None, "max_output_tokens": 64}
    response = respond(client, **body)
    assert Shape.model_validate_json(response["output"][0]["content"][0]["text"])
    assert response["text"]["format"] == format
    object_format = {"format": {"type": "json_object"}}
    response = respond(client, **body | {"text": object_format})
    assert response["output"][0]["content"][0]["text"].startswith("{")
    assert response["text"] == object_format


def test_the_official_client_parses(server: ServerInThread):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        completion = client.chat.completions.parse(
            model="tiny", messages=HELLO, response_format=Shape, max_tokens=64
        )
        assert isinstance(completion.choices[0].message.parsed, Shape)
        response = client.responses.parse(
            model="tiny", input=QUESTION, text_format=Shape, max_output_tokens=64
        )
        assert isinstance(response.output_parsed, Shape)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "{"}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "structured_outputs.choice"),
        ({"guided_grammar": "start: missing"}, "guided_grammar"),
        ({"guided_json": SCHEMA, "response_format": NAMED}, "guided_json"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"response_format": NAMED, "modalities": ["image"]}, "response_format"),
        ({"structured_outputs": {"regex": "a"}, "modalities": ["image"]}, "structured_outputs"),
        ({"guided_json": SCHEMA, "modalities": ["image"]}, "guided_json"),
        ({"guided_regex": "a", "modalities": ["image"]}, "guided_regex"),
        ({"guided_choice": ["a"], "modalities": ["image"]}, "guided_choice"),
        ({"guided_grammar": GRAMMAR, "modalities": ["image"]}, "guided_grammar"),
        ({"json_schema": SCHEMA, "modalities": ["image"]}, "json_schema"),
        ({"regex": "a", "modalities": ["image"]}, "regex"),
        ({"ebnf": GRAMMAR, "modalities": ["image"]}, "ebnf"),
    ],
)
def test_a_refusal_names_the_field(client: httpx2.Client, changed: dict, param: str):
    error = refused(client, CHAT, {"messages": HELLO, "max_tokens": 8} | changed)
    assert error["param"] == param


def test_a_response_s_format_is_refused_by_name(client: httpx2.Client):
    for format, param in (
        ({"type": "xml"}, "text.format.type"),
        ({"type": "json_schema", "name": "x"}, "text.format.schema"),
        ({"type": "json_schema", "name": "x", "schema": {"type": 5}}, "text.format.schema"),
    ):
        body = {"input": QUESTION, "text": {"format": format}}
        assert refused(client, "/v1/responses", body)["param"] == param


def test_a_grammar_that_becomes_too_complex_within_the_answer_is_named(client: httpx2.Client):
    """Sixteen letters, then a rule with more ways on than are followed."""
    ways = "\n".join(f'r{i}: r{i + 1} | r{i + 1} "x"' for i in range(1200))
    late = f'start: HEAD r0\nHEAD: /[a-z]{{16}}/\n{ways}\nr1200: "a"'
    body = {"messages": HELLO, "max_tokens": 64, "guided_grammar": late}
    assert refused(client, CHAT, body)["param"] == "guided_grammar"
    assert said(client, guided_grammar=GRAMMAR) in ("red", "blue")
