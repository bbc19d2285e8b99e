"""How an answer is drawn: the fields every endpoint that answers in text has.

Owns their names and ranges, OpenAI's and, for what OpenAI lacks, vLLM's; knows no endpoint.
Invariant: a null is a default, as OpenAI has it.
"""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from janus_core.errors import ParameterError
from server.schemas.common import Body, Bool, Float, Int, OneOrMore, Seed, TopK, TopP

MAX_TOP_LOGPROBS = 20
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
MAX_TOKENS = 2**31 - 1
"""Of limits a client sets; beyond what any context holds, they are cut to it."""

Penalty = Annotated[Float, Field(ge=-2, le=2)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TopLogprobs = Annotated[Int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


def _limit(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("zero", "Input should be at least 1, or -1 for no limit")
    return value


TokenLimit = Annotated[Int, AfterValidator(_limit), Field(ge=-1, le=MAX_TOKENS)]
"""-1 means no limit: some clients cannot leave the field out."""


class TextSampling(Body):
    """The fields that decide which tokens an answer has."""

    seed: Seed | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[Float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)]
        | None
    ) = None
    stop: Annotated[OneOrMore[StopString], Field(max_length=MAX_STOPS)] | None = None
    # vLLM's names.
    top_k: TopK | None = None
    min_p: Annotated[Float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[Int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop_token_ids: Annotated[list[Annotated[Int, Field(ge=0)]], Field(max_length=128)] | None = (
        None
    )
    bad_words: Annotated[list[StopString], Field(max_length=128)] | None = None
    include_stop_str_in_output: Bool | None = None
    ignore_eos: Bool | None = None

    def check(self) -> None:
        """Also refuses token limits that contradict one another."""
        super().check()
        if self.token_limit is not None and (self.min_tokens or 0) > self.token_limit:
            raise ParameterError(
                f"min_tokens is {self.min_tokens}, but at most {self.token_limit} are allowed.",
                param="min_tokens",
            )

    @property
    def token_limit(self) -> int | None:
        """Most tokens to answer with; None is as many as the context holds."""
        raise NotImplementedError
