"""What an answer must look like: the fields that hold it to a schema, a pattern or a grammar.

Owns OpenAI's formats, vLLM's `structured_outputs` and the older names of it and of SGLang; knows
neither grammars nor the engine. Invariant: a schema may come as JSON or as text of JSON.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError, from_json

from server.schemas.common import Bool

MAX_SOURCE_CHARS = 2**16
MAX_CHOICES = 1024


def _parsed(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        raise PydanticCustomError("schema", "Input should be a JSON schema") from None


JsonSchema = Annotated[
    dict[str, JsonValue],
    BeforeValidator(_parsed, json_schema_input_type=dict[str, JsonValue] | str),
]
Source = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_CHARS)]
Choices = Annotated[list[Source], Field(min_length=1, max_length=MAX_CHOICES)]


class _Format(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class SchemaFormat(_Format):
    """A schema with a name. `name`, `description` and `strict` have no effect: every answer is held
    to its schema."""

    schema_: JsonSchema | None = Field(None, alias="schema")


class ResponseFormat(_Format):
    """`text`, `json_object`, or `json_schema` with a schema."""

    type: Annotated[str, Field(max_length=64)]
    json_schema: SchemaFormat | None = None


class TextFormat(SchemaFormat):
    """The same in the shape of a response: the schema stands beside the type."""

    type: Annotated[str, Field(max_length=64)]


class StructuredOutputs(_Format):
    """vLLM's: one of these."""

    json_: JsonSchema | None = Field(None, alias="json")
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = None
    json_object: Bool | None = None
