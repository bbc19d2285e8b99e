"""Field types and base classes that all schemas share.

Owns how strictly JSON is read: a number is no string and no boolean, NaN and infinity are nowhere
allowed, a whole float counts as an integer. Knows no endpoint. Invariant: an unknown field is
accepted and logged, because OpenAI's clients grow new ones; a known one that cannot be honoured is
refused.
"""

import logging
from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeVar

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from server.errors import unsupported

logger = logging.getLogger(__name__)


def _whole(value: object) -> object:
    """`5.0` as 5: some JSON writers know only one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: object) -> object:
    return value if isinstance(value, list) or value is None else [value]


T = TypeVar("T")

Int = Annotated[int, Strict(), BeforeValidator(_whole)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Bool = Annotated[bool, Strict()]
OneOrMore = Annotated[list[T], BeforeValidator(_listed, json_schema_input_type=T | list[T])]
"""A list, or a single value that stands for a list of one."""

INT64_MAX = 2**63 - 1
Seed = Annotated[Int, Field(ge=0, le=INT64_MAX)]
TopP = Annotated[Float, Field(gt=0, le=1)]
TopK = Annotated[Int, Field(ge=-1, le=2**31 - 1)]
"""0 and -1 turn it off, as in other servers."""


class Body(BaseModel):
    """A request body. Subclasses name the fields they know of without having them:

    `without_effect` are accepted and do nothing, by design and documented; `refused` maps a field
    to the only values it may have.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    without_effect: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    def check(self) -> None:
        """Refuse what cannot be honoured (RequestError names it), log what nobody here knows."""
        extra = self.model_extra or {}
        for name, allowed in self.refused.items():
            if name in extra and extra[name] is not None and extra[name] not in allowed:
                raise unsupported(name, f"This server cannot honour {name}.")
        unknown = sorted(extra.keys() - self.without_effect - self.refused.keys())
        if unknown:
            logger.debug("Ignored %d unknown fields: %.200a", len(unknown), unknown)


class Reply(BaseModel):
    """A response body, built from what we computed."""

    model_config = ConfigDict(protected_namespaces=())

    def to_json(self) -> str:
        """The fields that were set: a chunk has `usage: null` only if it was set to None."""
        return self.model_dump_json(exclude_unset=True)


class ErrorObject(Reply):
    """What went wrong. `param` is the path of the field, as in `messages.0.content`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Reply):
    """The body of every error."""

    error: ErrorObject
