"""From a plan to tensors: the packed tokens of a step, and which row is whose.

Owns the meaning of positions in a batch: this is the only place that decides it. Invariant: the
conditional and the unconditional row of picture `i` are `cond_rows_I[i]` and `uncond_rows_I[i]`,
and both belong to sequences of the same length.

Shape suffixes: T packed tokens, R text rows, I guided images, J unguided images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch

from janus_core.engine.plan import Chunk, StepPlan
from janus_core.engine.sequence import RequestState, Role, Sequence
from janus_core.models.inputs import BatchInputs, Span
from janus_core.ops.transfer import upload

Embeddings = Callable[[RequestState, int], torch.Tensor]
"""The `[S, D]` embeddings of image `index` of a request."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`inputs` for the backbone; the rows of `[0, T)` each head reads, int64; and whose they are.

    `texts[r]`, `guided[i]` and `unguided[j]` own row `text_rows_R[r]`, and so on.
    """

    inputs: BatchInputs
    text_rows_R: torch.Tensor
    cond_rows_I: torch.Tensor
    uncond_rows_I: torch.Tensor
    solo_rows_J: torch.Tensor
    texts: list[RequestState]
    guided: list[RequestState]
    unguided: list[RequestState]

    @property
    def images(self) -> list[RequestState]:
        """The pictures, in the order their codes are drawn in."""
        return self.guided + self.unguided


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its index tensors on `device`."""
    inputs = batch.inputs

    def moved(indices: torch.Tensor) -> torch.Tensor:
        return upload(indices, device)

    return replace(
        batch,
        inputs=replace(
            inputs,
            token_ids_T=moved(inputs.token_ids_T),
            positions_T=moved(inputs.positions_T),
            cache_positions_T=moved(inputs.cache_positions_T),
        ),
        text_rows_R=moved(batch.text_rows_R),
        cond_rows_I=moved(batch.cond_rows_I),
        uncond_rows_I=moved(batch.uncond_rows_I),
        solo_rows_J=moved(batch.solo_rows_J),
    )


def build_batch(plan: StepPlan, embeddings: Embeddings, *, device: torch.device) -> Batch:
    """Lay the chunks of a plan out one after the other, and find the rows that are sampled."""
    token_ids: list[int] = []
    positions: list[int] = []
    cache_positions: list[int] = []
    spans: list[Span] = []
    last_row: dict[Sequence, int] = {}
    image_embeddings: list[tuple[int, torch.Tensor]] = []
    for chunk in plan.chunks:
        sequence, slot, first = chunk.sequence, chunk.sequence.slot, len(token_ids)
        assert slot is not None, "a planned sequence has a slot"
        start, end = slot.num_computed, slot.num_computed + chunk.num_tokens
        assert end <= slot.capacity, "a sequence outgrew its slot"
        token_ids += sequence.tokens[start:end]
        positions += range(start, end)
        cache_positions += range(slot.start + start, slot.start + end)
        spans.append(Span(first, chunk.num_tokens, slot.start, end))
        if end == len(sequence.tokens):
            last_row[sequence] = len(token_ids) - 1
        if sequence.role is Role.TEXT and start < chunk.state.num_prompt:
            image_embeddings += _placed_embeddings(chunk, start, first, embeddings)
    texts, guided, unguided = _sort_by_head(plan.sampling)
    # One transfer for all indices.
    tensors = _to_device(
        [
            token_ids,
            positions,
            cache_positions,
            [last_row[state.sequences[0]] for state in texts],
            [last_row[state.sequences[0]] for state in guided],
            [last_row[state.sequences[1]] for state in guided],
            [last_row[state.sequences[0]] for state in unguided],
        ],
        device,
    )
    inputs = BatchInputs(
        token_ids_T=tensors[0],
        positions_T=tensors[1],
        cache_positions_T=tensors[2],
        spans=tuple(spans),
        image_embeddings=tuple(image_embeddings),
    )
    return Batch(
        inputs=inputs,
        text_rows_R=tensors[3],
        cond_rows_I=tensors[4],
        uncond_rows_I=tensors[5],
        solo_rows_J=tensors[6],
        texts=texts,
        guided=guided,
        unguided=unguided,
    )


def _sort_by_head(
    states: list[RequestState],
) -> tuple[list[RequestState], list[RequestState], list[RequestState]]:
    texts: list[RequestState] = []
    guided: list[RequestState] = []
    unguided: list[RequestState] = []
    for state in states:
        roles = [sequence.role for sequence in state.sequences]
        if roles == [Role.TEXT]:
            texts.append(state)
        elif roles == [Role.COND, Role.UNCOND]:
            cond, uncond = state.sequences
            assert len(cond.tokens) == len(uncond.tokens), "a pair samples at equal lengths"
            guided.append(state)
        else:
            assert roles == [Role.COND], f"no head reads {roles}"
            unguided.append(state)
    return texts, guided, unguided


def _placed_embeddings(
    chunk: Chunk, start: int, first: int, embeddings: Embeddings
) -> list[tuple[int, torch.Tensor]]:
    """The parts of images whose placeholders lie in the chunk, each with its packed token.

    prompt positions   start        image.first                       start + num_tokens
                       |<- chunk ->|<- placeholders, cut at both ends ->|
    packed tokens      first
    """
    placed = []
    end = start + chunk.num_tokens
    for index, image in enumerate(getattr(chunk.state.request, "images", ())):
        low, high = max(start, image.first), min(end, image.first + image.num_tokens)
        if low < high:
            part_SD = embeddings(chunk.state, index)[low - image.first : high - image.first]
            placed.append((first + low - start, part_SD))
    return placed


def _to_device(lists: list[list[int]], device: torch.device) -> list[torch.Tensor]:
    """int64 tensors, copied together."""
    packed = torch.from_numpy(np.fromiter((i for ids in lists for i in ids), dtype=np.int64))
    ends = list(accumulate(len(ids) for ids in lists))
    packed = upload(packed, device)
    return [packed[end - len(ids) : end] for ids, end in zip(lists, ends, strict=True)]
