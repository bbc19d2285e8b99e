"""What one step does and what it brought, in integers: the contract between scheduler and runner.

Owns nothing and knows no tensors. Invariant: the chunks of a plan belong to different sequences,
and a request that samples has a chunk for each of its sequences, ending at the last known token.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from janus_core.engine.events import SampledToken
from janus_core.engine.sequence import RequestState, Sequence
from janus_core.engine.slots import Copy
from janus_core.engine.step_model import StepLoad
from janus_core.errors import JanusError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute tokens `[num_computed, num_computed + num_tokens)` of a sequence of `state`."""

    state: RequestState
    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Encode:
    """Provide the embeddings of image `index` of `state`; `runs_tower` unless they are cached."""

    state: RequestState
    index: int
    runs_tower: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """What a step drew for one request: a word, or a code as a plain number. The token means
    nothing if the model's output was not a number (not `is_finite`), or with an `error` that ends
    the request."""

    state: RequestState
    token: SampledToken
    is_finite: bool
    error: JanusError | None = None


@dataclass(slots=True)
class StepPlan:
    """In the order of execution: `copies`, `encodes`, `chunks`, a sample for each of `sampling`.

    `started` left the queue in this plan. The first `num_decoding` of `sampling` were only missing
    their last token, and theirs are the first `load.rows` of `chunks`; `load` says what the step
    computes in all.
    """

    copies: list[Copy] = field(default_factory=list)
    encodes: list[Encode] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    sampling: list[RequestState] = field(default_factory=list)
    started: list[RequestState] = field(default_factory=list)
    num_decoding: int = 0
    load: StepLoad = field(default_factory=StepLoad)

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens computed for requests that do not decode."""
        return self.load.prefill_tokens

    def add_copy(self, copy: Copy | None) -> None:
        if copy is not None and copy.length:
            self.copies.append(copy)

    def add_decode(self, state: RequestState) -> None:
        """One token for every sequence of a request that misses no other."""
        rows = self.load.rows
        self.chunks[rows:rows] = [Chunk(state, sequence, 1) for sequence in state.sequences]
        self.sampling.insert(self.num_decoding, state)
        self.num_decoding += 1
        self.load += decode_load(state)

    def add_prefill(self, state: RequestState, sequence: Sequence, num_tokens: int) -> None:
        self.chunks.append(Chunk(state, sequence, num_tokens))
        self.load += StepLoad(prefill_tokens=num_tokens, context=sequence.num_computed + num_tokens)

    def add_encode(self, encode: Encode) -> None:
        self.encodes.append(encode)
        self.load += StepLoad(tower_runs=int(encode.runs_tower))

    def states(self) -> list[RequestState]:
        """The requests that compute something, each once, in order."""
        return list(dict.fromkeys(chunk.state for chunk in self.chunks))

    def only(self, states: Collection[RequestState]) -> "StepPlan":
        """The part of this plan that concerns some requests; its copies are done."""
        return StepPlan(
            encodes=[encode for encode in self.encodes if encode.state in states],
            chunks=[chunk for chunk in self.chunks if chunk.state in states],
            sampling=[state for state in self.sampling if state in states],
        )


def decode_load(state: RequestState) -> StepLoad:
    """What one token for every sequence of a request costs."""
    return StepLoad(
        rows=len(state.sequences),
        context=sum(len(sequence.tokens) for sequence in state.sequences),
        codes=int(state.is_image),
    )
