"""What one step does, in integers: the contract between scheduler and runner.

Owns nothing and knows no tensors. Invariant: the chunks of a plan belong to different sequences,
and a request that samples has a chunk for each of its sequences, ending at the last known token.
"""

from dataclasses import dataclass, field

from janus_core.engine.sequence import RequestState, Sequence
from janus_core.engine.slots import Copy


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


@dataclass(slots=True)
class StepPlan:
    """In the order of execution: `copies`, `encodes`, `chunks`, a sample for each of `sampling`.

    `started` left the queue in this plan. The first `num_decoding` of `sampling` were only missing
    their last token; `num_prefill_tokens` counts the tokens computed for all others.
    """

    copies: list[Copy] = field(default_factory=list)
    encodes: list[Encode] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    sampling: list[RequestState] = field(default_factory=list)
    started: list[RequestState] = field(default_factory=list)
    num_decoding: int = 0
    num_prefill_tokens: int = 0

    def add_copy(self, copy: Copy | None) -> None:
        if copy is not None and copy.length:
            self.copies.append(copy)

    def add_prefill(self, state: RequestState, sequence: Sequence, num_tokens: int) -> None:
        self.chunks.append(Chunk(state, sequence, num_tokens))
        self.num_prefill_tokens += num_tokens

    def states(self) -> list[RequestState]:
        """The requests that compute something, each once, in order."""
        return list(dict.fromkeys(chunk.state for chunk in self.chunks))

    def only(self, state: RequestState) -> "StepPlan":
        """The part of this plan that concerns one request; its copies are done."""
        return StepPlan(
            encodes=[encode for encode in self.encodes if encode.state is state],
            chunks=[chunk for chunk in self.chunks if chunk.state is state],
            sampling=[state] if state in self.sampling else [],
        )
