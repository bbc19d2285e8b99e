"""Drives a `JanusModel` the way the engine does, one batch at a time, for tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from janus_core.models.inputs import BatchInputs, Span
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool


@dataclass
class Line:
    """A sequence with its slot."""

    slot_start: int
    num_computed: int = 0


@dataclass
class Driver:
    """A model and a pool; `run` appends tokens to sequences in one forward pass."""

    model: JanusModel
    num_positions: int = 2048
    kv: KvPool = field(init=False)

    def __post_init__(self) -> None:
        self.kv = KvPool.allocate(
            self.model.config,
            self.num_positions,
            device=self.model.device,
            dtype=self.model.kv_dtype,
        )

    def run(
        self,
        work: Sequence[tuple[Line, Sequence[int]]],
        images: Sequence[tuple[int, torch.Tensor]] = (),
    ) -> list[torch.Tensor]:
        """Hidden vectors `[tokens, D]` per sequence. `images` address packed tokens."""
        ids: list[int] = []
        positions: list[int] = []
        cache: list[int] = []
        spans: list[Span] = []
        for line, tokens in work:
            first_position = line.num_computed
            line.num_computed += len(tokens)
            spans.append(Span(len(ids), len(tokens), line.slot_start, line.num_computed))
            ids += tokens
            positions += range(first_position, line.num_computed)
            cache += range(line.slot_start + first_position, line.slot_start + line.num_computed)
        inputs = BatchInputs(
            torch.tensor(ids),
            torch.tensor(positions),
            torch.tensor(cache),
            tuple(spans),
            tuple(images),
        )
        hidden = self.model(inputs, self.kv)
        return list(hidden.split([span.num_tokens for span in spans]))
