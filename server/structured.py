"""From the fields about an answer's form to the one constraint it is held to.

Owns which field means what; knows no grammar. Invariant: at most one field constrains an answer,
and an error names the one that does it wrong.
"""

from collections.abc import Iterator

from janus_core.engine.request import Constraint
from janus_core.errors import ParameterError
from server.errors import unsupported
from server.schemas.chat import ChatRequest
from server.schemas.structured import StructuredOutputs, TextFormat

_TYPES = "Formats are of type text, json_object or json_schema."


def chat_constraint(body: ChatRequest) -> Constraint | None:
    """What a chat completion is held to. Raises a RequestError that names a field."""
    constraints = [*_of_format(body), *_of_structured(body.structured_outputs), *_of_names(body)]
    if len(constraints) > 1:
        first, second = constraints[0].param, constraints[1].param
        raise ParameterError(
            f"{first} and {second} both say what the answer must look like.", param=second
        )
    return constraints[0] if constraints else None


def text_constraint(format: TextFormat | None) -> Constraint | None:
    """What a response is held to. Raises a RequestError that names a field."""
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Constraint.json_object(param="text.format")
    if format.type != "json_schema":
        raise unsupported("text.format.type", _TYPES)
    if format.schema_ is None:
        raise ParameterError("The format needs a schema.", param="text.format.schema")
    return Constraint.json_schema(format.schema_, param="text.format.schema")


def _of_format(body: ChatRequest) -> Iterator[Constraint]:
    format = body.response_format
    if format is None or format.type == "text":
        return
    if format.type == "json_object":
        yield Constraint.json_object(param="response_format")
        return
    if format.type != "json_schema":
        raise unsupported("response_format.type", _TYPES)
    if format.json_schema is None:
        raise ParameterError("The format needs a json_schema.", param="response_format.json_schema")
    if format.json_schema.schema_ is None:  # OpenAI requires no more than its name
        yield Constraint.json_object(param="response_format")
        return
    yield Constraint.json_schema(
        format.json_schema.schema_, param="response_format.json_schema.schema"
    )


def _of_structured(outputs: StructuredOutputs | None) -> Iterator[Constraint]:
    if outputs is None:
        return
    path = "structured_outputs"
    if (outputs.model_extra or {}).get("structural_tag") is not None:
        raise unsupported(f"{path}.structural_tag", "This server cannot honour structural tags.")
    if outputs.json_ is not None:
        yield Constraint.json_schema(outputs.json_, param=f"{path}.json")
    if outputs.regex is not None:
        yield Constraint.regex(outputs.regex, param=f"{path}.regex")
    if outputs.choice is not None:
        yield Constraint.choice(outputs.choice, param=f"{path}.choice")
    if outputs.grammar is not None:
        yield Constraint.grammar(outputs.grammar, param=f"{path}.grammar")
    if outputs.json_object:
        yield Constraint.json_object(param=f"{path}.json_object")


def _of_names(body: ChatRequest) -> Iterator[Constraint]:
    """vLLM's older names and SGLang's."""
    for name in ("guided_json", "json_schema"):
        if (schema := getattr(body, name)) is not None:
            yield Constraint.json_schema(schema, param=name)
    for name in ("guided_regex", "regex"):
        if (pattern := getattr(body, name)) is not None:
            yield Constraint.regex(pattern, param=name)
    if body.guided_choice is not None:
        yield Constraint.choice(body.guided_choice, param="guided_choice")
    for name in ("guided_grammar", "ebnf"):
        if (grammar := getattr(body, name)) is not None:
            yield Constraint.grammar(grammar, param=name)
