"""What may come next in an answer that must have a form: JSON of a schema, a pattern, a grammar.

Owns the grammars, compiled by llguidance and kept for the next request that asks for the same, and
the place of each answer within its grammar. Knows no logits and no scheduler. Invariant: a grammar
that passes the check costs an engine step a bounded time: it is compiled and tried out before the
request is accepted, never within a step, and every mask has the same limits.

A prompt ends in a colon and the models were trained to follow it with a space. An answer whose
start is stripped (`TextRequest.strip_start`) therefore has exactly one space before what the
constraint describes, which `TextOutput` takes away again.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from janus_core.engine.request import Constraint, TextRequest
from janus_core.errors import ParameterError
from janus_core.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 2**16
"""Longer schemas, patterns and grammars are refused: compiling takes up to a second per 4,096
characters, whatever else is limited."""

MAX_COMPILED = 64
"""Grammars kept for the next request, beside those of live requests. A large one takes a few
megabytes."""

NUM_TRIED = 3
"""Tokens a grammar is tried out with when a request is checked."""

# A fifth and a tenth of the defaults: with those, `(a{1000}){1000}` would hold a step up for
# seconds. Schemas with thousands of properties and enumerations of thousands of words fit.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=20_000,
    max_lexer_states=20_000,
    verbose_errors=False,
)

_JSON_FORM = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}
"""One line, as `json.dumps` writes it: with free white space a model can go on for ever."""

Mask = npt.NDArray[np.bool_]
"""Whether each token of the vocabulary is possible, `[V]`."""


class Matcher:
    """The place of one answer within its grammar; at its beginning until a mask is asked for."""

    def __init__(self, compiled: LLMatcher, *, param: str, num_ids: int) -> None:
        """`compiled` stands at the beginning of the grammar and can be shared; `param` is the field
        of the client's request that asked for it."""
        self._compiled = compiled
        self._param = param
        self._matcher: LLMatcher | None = None
        self._num_ids = num_ids
        self._num_consumed = 0
        self._bits = allocate_token_bitmask(1, num_ids)

    def mask(self, output_ids: Sequence[int]) -> Mask:
        """Which of `num_ids` tokens may follow `output_ids`, which begin with those of the last
        call; at least one. Raises ParameterError if the grammar is too complex to go on."""
        if self._matcher is None:
            self._matcher = self._compiled.deep_copy()
        matcher = self._matcher
        new_ids = list(output_ids[self._num_consumed :])
        self._num_consumed += len(new_ids)
        if new_ids:
            matcher.consume_tokens(new_ids)
        fill_next_token_bitmask(matcher, self._bits)
        if matcher.is_error():
            raise ParameterError(
                f"{self._param} cannot be followed: {_reason(matcher)}", param=self._param
            )
        allowed = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little")
        return allowed[: self._num_ids].view(np.bool_)


class ConstraintCompiler:
    """Makes matchers for the vocabulary of one tokenizer. Threads can share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[str, str, bool], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def new_matcher(self, request: TextRequest) -> Matcher | None:
        """A matcher at the beginning of the request's answer, None without a constraint.

        Takes milliseconds, and a second for the first request of all. Raises ParameterError, naming
        the client's field, if the constraint cannot be compiled.
        """
        if request.constraint is None:
            return None
        compiled = self._compile(request.constraint, after_space=request.strip_start)
        return Matcher(compiled, param=request.constraint.param, num_ids=self._tokenizer.num_ids)

    def _compile(self, constraint: Constraint, *, after_space: bool) -> LLMatcher:
        key = (constraint.kind, constraint.source, after_space)
        with self._lock:
            compiled = self._compiled.get(key)
            if compiled is not None:
                self._compiled.move_to_end(key)
                return compiled
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer)
        compiled = self._compile_anew(constraint, self._vocabulary, after_space=after_space)
        with self._lock:
            self._compiled[key] = compiled
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _compile_anew(
        self, constraint: Constraint, vocabulary: LLTokenizer, *, after_space: bool
    ) -> LLMatcher:
        if len(constraint.source) > MAX_SOURCE_CHARS:
            raise ParameterError(
                f"{constraint.param} has {len(constraint.source)} characters; the limit is "
                f"{MAX_SOURCE_CHARS}.",
                param=constraint.param,
            )
        try:
            grammars = [_grammar(constraint)]
        except ValueError as error:
            raise _refusal(constraint, str(error)) from None
        if after_space:
            grammars[0]["name"] = "answer"
            grammars.insert(0, {"lark_grammar": 'start: " " @answer'})
        source = json.dumps({"grammars": grammars})
        compiled = LLMatcher(vocabulary, source, log_level=0, limits=_LIMITS)
        if compiled.is_error():
            raise _refusal(constraint, _reason(compiled))
        self._try_out(constraint, compiled)
        return compiled

    def _try_out(self, constraint: Constraint, compiled: LLMatcher) -> None:
        """Refuse what turns out to be too complex at the first tokens: better than inside a
        step."""
        matcher = Matcher(compiled, param=constraint.param, num_ids=self._tokenizer.num_ids)
        output_ids: list[int] = []
        for _ in range(NUM_TRIED):
            possible_ids = np.flatnonzero(matcher.mask(output_ids))
            if possible_ids[0] == self._tokenizer.eos_id:
                return
            output_ids.append(int(possible_ids[0]))


def _grammar(constraint: Constraint) -> dict[str, Any]:
    """One grammar in llguidance's own form. Raises ValueError for what cannot be read."""
    source = constraint.source
    if constraint.kind == "json_schema":
        schema = json.loads(source)
        if isinstance(schema, dict):
            return {"json_schema": schema | _JSON_FORM}
        return {"json_schema": _JSON_FORM if schema is True else schema}
    if constraint.kind == "choice":
        return {"lark_grammar": "start: " + " | ".join(map(json.dumps, json.loads(source)))}
    if constraint.kind == "regex":
        (grammar,) = json.loads(LLMatcher.grammar_from_regex(source))["grammars"]
        return dict(grammar)
    try:
        return {"lark_grammar": any_to_lark(source)}
    except Exception as error:  # plain ones, of whatever its parser stumbles over
        raise ValueError(str(error)) from None


def _refusal(constraint: Constraint, reason: str) -> ParameterError:
    return ParameterError(
        f"{constraint.param} cannot be used as a {constraint.kind.replace('_', ' ')}: {reason}",
        param=constraint.param,
    )


def _reason(matcher: LLMatcher) -> str:
    """The first paragraph of llguidance's message, without its marks for debugging."""
    return matcher.get_error().replace("<non-verbose/>", "").strip()[:500]


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))


class _Vocabulary:
    """What llguidance asks of a tokenizer. Control tokens have no bytes, so that no grammar can
    ask for one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(tokenizer.control_ids)
        self.tokens = [
            b"" if token_id in tokenizer.control_ids else tokenizer.token_bytes(token_id)
            for token_id in range(tokenizer.num_ids)
        ]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_text(text.decode(errors="ignore"))
