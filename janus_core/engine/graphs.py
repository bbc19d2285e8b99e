"""Steps over rows as CUDA graphs: captured once for a padded size, replayed for any mix of rows.

Owns the static memory that graphs read and write, the padded sizes, and the graphs. Knows no
requests: a row of text, a conditional row, an unconditional row and a token of a prompt are rows
alike, and which is which is data in static memory, never a branch of a graph.

Invariants: padding rows read and write the spare slot alone; nothing here waits for the device
except the first use of a size, which captures (`capture_usual` has most of that done before); what
a call returns is valid until the next call.

    rows        [ row 0 ... row T-1 | idle ... | idle ]    the last, `max_rows`, belongs to nobody:
    pictures    [ picture 0 ... I-1 | idle ... ]           idle pictures read it and feed it

Shape suffixes: T packed tokens, M places of the static memory, D model width, I pictures, F fields.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch

from janus_core.models.inputs import BatchInputs
from janus_core.models.rows import RowsModel
from janus_core.ops.cuda.decode_ops import SPLIT, Draws, Rows
from janus_core.ops.transfer import upload

ROW_COUNTS = (2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
"""Padded sizes; pictures have half of each. A padding row costs little beside reading the weights.
Chosen, not measured."""

FIXED_ROWS = 64
"""The only size in deterministic mode: a library that chooses its algorithm by the size of a matrix
chooses the same one every time."""

MAX_AHEAD = 32
"""Most steps between two plans. A step of a small model takes a millisecond on a GPU: who waits for
room waits little longer. Chosen, not measured."""

_IDS, _POSITIONS, _CACHE, _STARTS, _CONTEXTS, _EMBEDDED, _ADVANCE = range(7)
_COND, _UNCOND, _SEEDS, _PLACES = range(4)
_GUIDANCE, _TEMPERATURE = range(2)


class Capture(Protocol):
    """Records what `work` launches on the device."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` at least once; return what launches the same again."""


class CudaCapture:
    """Real graphs, which share one pool of memory: they run one after the other.

    One stream for all of it: libraries keep memory for each stream that they were used on (cuBLAS
    32 MiB on Hopper), and what they took while warming up is there when the graph is captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # compiles kernels, and lets libraries allocate what they keep
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            work()
        return graph.replay


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that draws its next code: its rows (one row twice if unguided), and how.

    `place` is the position of the code within the output.
    """

    cond_row: int
    uncond_row: int
    guidance: float
    temperature: float
    seed: int
    place: int


class StepGraphs:
    """`spare_start` is the pool position of a slot that belongs to no sequence.

    `is_deterministic` computes everything at one padded size, in several passes if needed, so that
    the same instructions compute a row alone and in a full batch. `capture` is `CudaCapture`, or in
    tests a tape of operations.
    """

    def __init__(
        self, model: RowsModel, *, capture: Capture, spare_start: int, is_deterministic: bool
    ) -> None:
        self._model = model
        self._capture = capture
        self._sizes = (FIXED_ROWS,) if is_deterministic else ROW_COUNTS
        self.is_deterministic = is_deterministic
        self.attention = model.ops.name
        self.max_rows = self._sizes[-1]
        self.max_pictures = self.max_rows // 2
        size, table = self.max_rows + 1, model.embeddings
        self._device = table.device
        self._idle_rows_FM = _columns([0, 0, spare_start, spare_start, 1, 0, 0], size)
        self._idle_pictures_FM = _columns([self.max_rows, self.max_rows, 0, 0], size)
        self._idle_numbers_FM = _columns([1.0, 0.0], size)
        self._rows_FM = self._idle_rows_FM.to(self._device, copy=True)
        self._pictures_FM = self._idle_pictures_FM.to(self._device, copy=True)
        self._numbers_FM = self._idle_numbers_FM.to(self._device, copy=True)
        self._embedded_MD = table.new_zeros(size, table.shape[1])
        self._hidden_MD = torch.zeros_like(self._embedded_MD)
        self._pairs_MD = torch.zeros_like(self._embedded_MD)
        self._codes_M = self._rows_FM.new_zeros(size)
        self._finite_M = torch.ones_like(self._codes_M, dtype=torch.bool)
        self._graphs: dict[tuple[str, int, int], Callable[[], None]] = {}

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    @torch.inference_mode()
    def capture_usual(self, max_sequences: int) -> None:
        """Capture what most steps are made of: rows of every size with contexts of the smallest
        reach, and codes of as many pictures as there may be."""
        largest = self._padded(min(max_sequences, self.max_rows))
        for size in self._sizes:
            self._graph("forward", size, _reach(1))
            if size <= largest:
                self._graph("draw", size)
                self._graph("feed", size)

    def takes(self, num_tokens: int) -> bool:
        """Whether `forward` is the way for so many packed tokens: a long prompt has calls of its
        own that read its keys once, but whoever asked for one size gets one size."""
        return self.is_deterministic or num_tokens <= self.max_rows

    def takes_ahead(self, inputs: BatchInputs, pictures: Sequence[Picture]) -> bool:
        """Whether a batch of pictures fits into one pass."""
        num_rows = len(inputs.token_ids_T)
        return num_rows <= self.max_rows and len(pictures) <= self.max_pictures

    @torch.inference_mode()
    def forward(self, inputs: BatchInputs) -> torch.Tensor:
        """Hidden vectors `[T, D]` of a batch whose index tensors are on the CPU.

        In passes of `max_rows` if the batch has more. Earlier tokens of a prompt come first, so
        later ones find their keys and values.
        """
        fields_FT = _row_fields(inputs)
        num_tokens = fields_FT.shape[1]
        if num_tokens <= self.max_rows:
            self._forward_pass(fields_FT, inputs, first=0)()
            return self._hidden_MD[:num_tokens]
        hidden_TD = self._hidden_MD.new_empty(num_tokens, self._hidden_MD.shape[1])
        for first in range(0, num_tokens, self.max_rows):
            part_TD = hidden_TD[first : first + self.max_rows]
            self._forward_pass(fields_FT[:, first : first + len(part_TD)], inputs, first=first)()
            part_TD.copy_(self._hidden_MD[: len(part_TD)])
        return hidden_TD

    @torch.inference_mode()
    def draw(
        self, hidden_TD: torch.Tensor, pictures: Sequence[Picture]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int64 and whether the logits were finite, `[I]` each, for rows of `hidden_TD`."""
        codes, finite = [], []
        for first in range(0, len(pictures), self.max_pictures):
            part = pictures[first : first + self.max_pictures]
            graph = self._graph("draw", self._padded(2 * len(part)))
            rows = [p.cond_row for p in part] + [p.uncond_row for p in part]
            rows_M = self._upload(torch.tensor(rows))
            self._pairs_MD[: len(rows)] = hidden_TD.index_select(0, rows_M)
            self._load_pictures(part, range(len(part)), range(len(part), 2 * len(part)))
            graph()
            codes.append(self._codes_M[: len(part)].clone())
            finite.append(self._finite_M[: len(part)].clone())
        return torch.cat(codes), torch.cat(finite)

    @torch.inference_mode()
    def steps_ahead(
        self, inputs: BatchInputs, pictures: Sequence[Picture], *, num_steps: int
    ) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """Steps of a batch that consists of the last tokens of these pictures.

        Returns what may be called up to `num_steps` times: each call launches one step, and returns
        its codes and finiteness, `[I]` each. A code is fed to the next step on the device. The
        slots must have room for as many tokens as calls, `takes_ahead` the batch; once anything
        else of these graphs is used, no call may follow.
        """
        assert self.takes_ahead(inputs, pictures), "one pass"
        assert 1 <= num_steps <= MAX_AHEAD, "as many steps as allowed"
        fields_FT, num_pictures = _row_fields(inputs), len(pictures)
        fields_FT[_ADVANCE] = 1
        # Before anything is loaded: capturing overwrites the static memory.
        feed = self._graph("feed", self._padded(2 * len(pictures)))
        forward = self._forward_pass(fields_FT, inputs, first=0, num_steps=num_steps)
        self._load_pictures(
            pictures, [p.cond_row for p in pictures], [p.uncond_row for p in pictures]
        )

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            with torch.inference_mode():
                forward()
                feed()
                return self._codes_M[:num_pictures], self._finite_M[:num_pictures]

        return step

    def run_ahead(
        self, inputs: BatchInputs, pictures: Sequence[Picture], *, num_steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`num_steps` of `steps_ahead` at once: codes and finiteness, `[num_steps, I]` each."""
        step = self.steps_ahead(inputs, pictures, num_steps=num_steps)
        drawn = [tuple(part.clone() for part in step()) for _ in range(num_steps)]
        codes, finite = zip(*drawn, strict=True)
        return torch.stack(codes), torch.stack(finite)

    def _forward_pass(
        self, fields_FT: torch.Tensor, inputs: BatchInputs, *, first: int, num_steps: int = 1
    ) -> Callable[[], None]:
        """Load packed tokens `[first, first + T)`; returns the graph that computes them."""
        num_rows = fields_FT.shape[1]
        longest = int(fields_FT[_CONTEXTS].max()) + num_steps - 1
        graph = self._graph("forward", self._padded(num_rows), _reach(longest))
        fields_FM = self._idle_rows_FM.clone()
        fields_FM[:, :num_rows] = fields_FT
        self._rows_FM.copy_(self._upload(fields_FM))
        for start, embeddings_SD in inputs.image_embeddings:
            low = max(start, first)
            high = min(start + len(embeddings_SD), first + num_rows)
            if low < high:
                part_SD = embeddings_SD[low - start : high - start]
                self._embedded_MD[low - first : high - first] = part_SD
        return graph

    def _load_pictures(
        self, pictures: Sequence[Picture], cond_rows: Sequence[int], uncond_rows: Sequence[int]
    ) -> None:
        num_pictures = len(pictures)
        fields_FM, numbers_FM = self._idle_pictures_FM.clone(), self._idle_numbers_FM.clone()
        fields_FM[_COND, :num_pictures] = torch.tensor(list(cond_rows))
        fields_FM[_UNCOND, :num_pictures] = torch.tensor(list(uncond_rows))
        fields_FM[_SEEDS, :num_pictures] = torch.tensor([p.seed for p in pictures])
        fields_FM[_PLACES, :num_pictures] = torch.tensor([p.place for p in pictures])
        numbers_FM[_GUIDANCE, :num_pictures] = torch.tensor([p.guidance for p in pictures])
        numbers_FM[_TEMPERATURE, :num_pictures] = torch.tensor([p.temperature for p in pictures])
        self._pictures_FM.copy_(self._upload(fields_FM))
        self._numbers_FM.copy_(self._upload(numbers_FM))

    def _upload(self, values: torch.Tensor) -> torch.Tensor:
        """To the device, without waiting for it."""
        return upload(values, self._device)

    def _padded(self, num_rows: int) -> int:
        return next(size for size in self._sizes if size >= num_rows)

    def _graph(self, kind: str, size: int, reach: int = 0) -> Callable[[], None]:
        """The graph for a padded number of rows, captured over idle rows at its first use."""
        key = (kind, size, reach)
        if key not in self._graphs:
            self._rows_FM.copy_(self._idle_rows_FM)
            self._pictures_FM.copy_(self._idle_pictures_FM)
            self._numbers_FM.copy_(self._idle_numbers_FM)
            self._graphs[key] = self._capture(self._work(kind, size, reach))
        return self._graphs[key]

    def _work(self, kind: str, size: int, reach: int) -> Callable[[], None]:
        """What a graph consists of; `size` is in rows, a picture has two."""
        if kind == "forward":
            return lambda: self._compute_rows(size, reach)
        if kind == "draw":
            return lambda: self._draw_codes(size // 2, self._pairs_MD)
        return lambda: self._feed_codes(size // 2)

    def _compute_rows(self, size: int, reach: int) -> None:
        fields_FM = self._rows_FM[:, :size]
        table_MD = torch.nn.functional.embedding(fields_FM[_IDS], self._model.embeddings)
        is_embedded_M1 = (fields_FM[_EMBEDDED] != 0)[:, None]
        x_MD = torch.where(is_embedded_M1, self._embedded_MD[:size], table_MD)
        rows = Rows(
            positions_R=fields_FM[_POSITIONS],
            cache_positions_R=fields_FM[_CACHE],
            slot_starts_R=fields_FM[_STARTS],
            contexts_R=fields_FM[_CONTEXTS],
            reach=reach,
        )
        self._hidden_MD[:size] = self._model.hidden(x_MD, rows)

    def _draw_codes(self, num_pictures: int, hidden_MD: torch.Tensor) -> None:
        fields_FM = self._pictures_FM[:, :num_pictures]
        draws = Draws(
            cond_rows_I=fields_FM[_COND],
            uncond_rows_I=fields_FM[_UNCOND],
            guidance_I=self._numbers_FM[_GUIDANCE, :num_pictures],
            temperatures_I=self._numbers_FM[_TEMPERATURE, :num_pictures],
            seeds_I=fields_FM[_SEEDS],
            places_I=fields_FM[_PLACES],
        )
        codes_I, finite_I = self._model.draw(hidden_MD, draws)
        self._codes_M[:num_pictures] = codes_I
        self._finite_M[:num_pictures] = finite_I

    def _feed_codes(self, num_pictures: int) -> None:
        """Draw, and make the codes the next tokens of their rows."""
        self._draw_codes(num_pictures, self._hidden_MD)
        ids_I = self._codes_M[:num_pictures] + self._model.config.backbone.vocab_size
        for field in (_COND, _UNCOND):
            rows_I = self._pictures_FM[field, :num_pictures]
            self._rows_FM[_IDS].index_copy_(0, rows_I, ids_I)
        for field in (_POSITIONS, _CACHE, _CONTEXTS):
            self._rows_FM[field] += self._rows_FM[_ADVANCE]
        self._pictures_FM[_PLACES] += 1


def _row_fields(inputs: BatchInputs) -> torch.Tensor:
    """The fields `[F, T]` of packed tokens: a chunk of a prompt is as many rows as tokens.

    A span of 3 tokens that ends at context 9 has rows with contexts 7, 8 and 9.
    """
    spans = inputs.spans
    starts = [[span.slot_start] * span.num_tokens for span in spans]
    contexts = [range(span.context - span.num_tokens + 1, span.context + 1) for span in spans]
    embedded_T = torch.zeros_like(inputs.token_ids_T)
    for first, embeddings_SD in inputs.image_embeddings:
        embedded_T[first : first + len(embeddings_SD)] = 1
    return torch.stack(
        (
            inputs.token_ids_T,
            inputs.positions_T,
            inputs.cache_positions_T,
            torch.tensor(list(chain.from_iterable(starts))),
            torch.tensor(list(chain.from_iterable(contexts))),
            embedded_T,
            torch.zeros_like(embedded_T),
        )
    )


def _reach(longest: int) -> int:
    """Few sizes for contexts too: 4, 16, 64, ... splits. Splits beyond a context cost a launch."""
    reach = 4 * SPLIT
    while reach < longest:
        reach *= 4
    return reach


def _columns(values: list[int] | list[float], size: int) -> torch.Tensor:
    """`[F, size]`, the same values in every column."""
    return torch.tensor(values)[:, None].repeat(1, size)
