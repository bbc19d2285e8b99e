"""Steps over rows: static memory, padding and passes, against the model's own forward pass.

On a CPU, with the operations' twins in torch and a capture that records operations and replays them
without Python, as CUDA does.
"""

import pytest
import torch

from janus_core.engine.graphs import FIXED_ROWS, CudaCapture, Picture, StepGraphs
from janus_core.engine.request import SamplingParams
from janus_core.models.inputs import BatchInputs, Span
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.models.rows import RowsModel
from janus_core.ops.cuda.decode_ops import Rows
from janus_core.ops.sampling import SamplingRow, sample
from tests.core.engine.fake_cuda import FakeCuda
from tests.core.engine.support import Requests
from tests.core.engine.tape import RecordedOps, Refused, record

SPARE = 1024
NUM_POSITIONS = SPARE + 32


class CountedOps(RecordedOps):
    """Remembers how many rows every captured call has."""

    def __init__(self) -> None:
        self.num_rows: set[int] = set()

    def attend(self, q_RNH: torch.Tensor, kv_2KPH: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.num_rows.add(len(q_RNH))
        return super().attend(q_RNH, kv_2KPH, rows)


class Bench:
    """A pool for the graphs and one for the model's own forward pass, filled alike."""

    def __init__(self, model: JanusModel, *, is_deterministic: bool = False) -> None:
        self.model = model
        self.kv, self.twin_kv = (
            KvPool.allocate(model.config, NUM_POSITIONS, device=model.device, dtype=model.dtype)
            for _ in range(2)
        )
        self.ops = CountedOps()
        self.graphs = StepGraphs(
            RowsModel(model, self.kv, ops=self.ops),
            capture=record,
            spare_start=SPARE,
            is_deterministic=is_deterministic,
        )

    def forward(self, inputs: BatchInputs) -> torch.Tensor:
        """Hidden vectors from the graphs, which must be the model's, as must be the pool."""
        hidden_TD = self.graphs.forward(inputs)
        expected_TD = self.model(inputs, self.twin_kv)
        torch.testing.assert_close(hidden_TD, expected_TD, atol=2e-5, rtol=1e-4)
        for mine, twin in zip(self.kv.layers, self.twin_kv.layers, strict=True):
            torch.testing.assert_close(mine[:, :, :SPARE], twin[:, :, :SPARE], atol=2e-5, rtol=1e-4)
        return hidden_TD


def _inputs(
    *chunks: tuple[int, int, int], images: tuple[tuple[int, torch.Tensor], ...] = ()
) -> BatchInputs:
    """Chunks of (slot start, tokens computed before, tokens now); ids differ everywhere."""
    spans, positions, cache = [], [], []
    for start, before, num_tokens in chunks:
        spans.append(Span(len(positions), num_tokens, start, before + num_tokens))
        positions += range(before, before + num_tokens)
        cache += range(start + before, start + before + num_tokens)
    ids = [5 + (7 * place) % 290 for place in cache]
    tensors = (torch.tensor(values) for values in (ids, positions, cache))
    return BatchInputs(*tensors, tuple(spans), images)


@pytest.fixture
def model(requests_for: Requests) -> JanusModel:
    return requests_for.model


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_any_mix_of_prompts_and_decoding_rows(model: JanusModel, is_deterministic: bool) -> None:
    bench = Bench(model, is_deterministic=is_deterministic)
    bench.forward(_inputs((0, 0, 9)))
    bench.forward(_inputs((0, 9, 1), (64, 0, 20), (128, 0, 1)))
    bench.forward(_inputs((64, 20, 1), (0, 10, 1), (128, 1, 5)))
    bench.forward(_inputs((64, 21, 1)))


def test_a_batch_of_more_rows_than_a_graph_has_takes_passes(model: JanusModel) -> None:
    bench = Bench(model, is_deterministic=True)
    bench.forward(_inputs((0, 0, 3)))
    bench.forward(_inputs((512, 0, 2 * FIXED_ROWS + 13), (0, 3, 1), (256, 0, 40)))


def test_deterministic_mode_computes_at_one_size(model: JanusModel) -> None:
    bench = Bench(model, is_deterministic=True)
    for num_tokens in (1, 8, 65):
        bench.graphs.forward(_inputs((0, 0, num_tokens)))
    assert bench.ops.num_rows == {FIXED_ROWS}


def test_embeddings_of_images_replace_those_of_ids(model: JanusModel) -> None:
    """Across passes, cut at both ends; and the memory they lie in is ignored afterwards."""
    bench = Bench(model, is_deterministic=True)
    image_SD = torch.randn(100, model.config.backbone.width)
    bench.forward(_inputs((0, 0, 140), images=((30, image_SD),)))
    bench.forward(_inputs((256, 0, 60)))


def test_one_family_of_graphs_for_every_mix(model: JanusModel) -> None:
    """What is captured depends on the padded size; a mix is data."""
    bench = Bench(model)
    bench.forward(_inputs((0, 0, 5)))
    assert bench.graphs.num_graphs == 1
    bench.forward(_inputs((0, 5, 1), (64, 0, 7)))
    bench.forward(_inputs((0, 6, 6)))
    assert bench.graphs.num_graphs == 1
    bench.forward(_inputs((0, 12, 9)))
    assert bench.graphs.num_graphs == 2


def test_padding_touches_the_spare_slot_only(model: JanusModel) -> None:
    bench = Bench(model)
    before = [layer.clone() for layer in bench.kv.layers]
    bench.graphs.forward(_inputs((64, 0, 3)))
    for layer, old in zip(bench.kv.layers, before, strict=True):
        touched = (layer != old).any(-1).any(0).any(0).nonzero().flatten().tolist()
        assert touched == [64, 65, 66, SPARE]


PICTURES = (
    Picture(0, 1, guidance=5.0, temperature=1.0, seed=2**63 - 3, place=0),
    Picture(2, 3, guidance=1.5, temperature=0.7, seed=7, place=5),
    Picture(4, 4, guidance=9.0, temperature=1.0, seed=8, place=6),
    Picture(6, 5, guidance=3.0, temperature=0.0, seed=8, place=6),
)


@torch.inference_mode()
def _expected_code(model: JanusModel, hidden_TD: torch.Tensor, picture: Picture) -> int:
    cond_ID, uncond_ID = (hidden_TD[[row]] for row in (picture.cond_row, picture.uncond_row))
    if picture.cond_row == picture.uncond_row:
        logits_IC = model.code_logits(cond_ID)
    else:
        logits_IC = model.guided_code_logits(cond_ID, uncond_ID, torch.tensor([picture.guidance]))
    params = SamplingParams(seed=picture.seed, temperature=picture.temperature)
    return int(sample(logits_IC, [SamplingRow(params, position=picture.place)])[0])


@pytest.mark.parametrize("num_copies", [1, 9])
def test_codes_are_those_of_the_sampler(model: JanusModel, num_copies: int) -> None:
    """Guided, unguided and greedy, in one pass and in two."""
    bench = Bench(model, is_deterministic=True)
    hidden_TD = bench.forward(_inputs(*((32 * slot, 0, 1) for slot in range(7)))).clone()
    codes_I, finite_I = bench.graphs.draw(hidden_TD, PICTURES * num_copies)
    expected = [_expected_code(model, hidden_TD, picture) for picture in PICTURES]
    assert codes_I.tolist() == expected * num_copies
    assert finite_I.all()


def test_hidden_vectors_outlive_a_draw(model: JanusModel) -> None:
    bench = Bench(model)
    hidden_TD = bench.forward(_inputs(*((32 * slot, 0, 1) for slot in range(7))))
    before_TD = hidden_TD.clone()
    bench.graphs.draw(hidden_TD, PICTURES)
    assert torch.equal(hidden_TD, before_TD)


def test_what_is_not_finite_is_told(model: JanusModel) -> None:
    bench = Bench(model)
    hidden_TD = bench.forward(_inputs(*((32 * slot, 0, 1) for slot in range(7)))).clone()
    hidden_TD[3] = torch.nan
    _, finite_I = bench.graphs.draw(hidden_TD, PICTURES)
    assert finite_I.tolist() == [True, False, True, True]


def test_steps_ahead_are_the_steps_one_by_one(model: JanusModel) -> None:
    """Codes feed the next step on the device; the twin goes through the host each time."""
    bench, twin = Bench(model), Bench(model)
    prompts = _inputs(*((32 * slot, 0, 6) for slot in range(7)))
    vocab_size, num_steps = model.config.backbone.vocab_size, 5
    for each in (bench, twin):
        each.graphs.forward(prompts)
    inputs = _inputs(*((32 * slot, 6, 1) for slot in range(7)))
    codes, finite = bench.graphs.run_ahead(inputs, PICTURES, num_steps=num_steps)
    assert finite.all()

    expected = []
    pictures = PICTURES
    for step in range(num_steps):
        codes_I, _ = twin.graphs.draw(twin.graphs.forward(inputs), pictures)
        expected.append(codes_I.tolist())
        inputs = _inputs(*((32 * slot, 7 + step, 1) for slot in range(7)))
        for picture, code in zip(pictures, codes_I.tolist(), strict=True):
            for row in (picture.cond_row, picture.uncond_row):
                inputs.token_ids_T[row] = vocab_size + code
        pictures = tuple(
            Picture(p.cond_row, p.uncond_row, p.guidance, p.temperature, p.seed, p.place + 1)
            for p in pictures
        )
    assert codes.tolist() == expected
    assert len(set(map(tuple, expected))) > 1, "the steps differ"
    for mine, other in zip(bench.kv.layers, twin.kv.layers, strict=True):
        assert torch.equal(mine[:, :, :SPARE], other[:, :, :SPARE])


def test_a_batch_after_steps_ahead_starts_from_idle_rows(model: JanusModel) -> None:
    bench = Bench(model)
    inputs = _inputs(*((32 * slot, 0, 1) for slot in range(7)))
    bench.graphs.run_ahead(inputs, PICTURES, num_steps=3)
    before = [layer.clone() for layer in bench.kv.layers]
    bench.graphs.forward(_inputs((512, 0, 1)))
    for layer, old in zip(bench.kv.layers, before, strict=True):
        touched = (layer != old).any(-1).any(0).any(0).nonzero().flatten().tolist()
        assert set(touched) <= {512, SPARE}


def test_contexts_are_within_the_reach_of_their_graph(model: JanusModel) -> None:
    """What lies beyond would not be read."""
    bench, asked = Bench(model), []
    graph = bench.graphs._graph

    def noting(kind: str, size: int, reach: int = 0):
        asked.append(reach)
        return graph(kind, size, reach)

    bench.graphs._graph = noting
    for num_tokens in (1, 5, 90):
        bench.graphs.forward(_inputs((0, 0, num_tokens)))
        assert asked[-1] >= num_tokens
    inputs = _inputs(*((32 * slot, 0, 1) for slot in range(7)))
    bench.graphs.run_ahead(inputs, PICTURES, num_steps=5)
    assert asked[-1] >= 5


@pytest.mark.parametrize(
    "read",
    [
        lambda rows: int(rows.contexts_R.max()),
        lambda rows: rows.contexts_R.tolist(),
        lambda rows: rows.contexts_R[rows.contexts_R > 1],
        lambda rows: bool(rows.positions_R.any()),
    ],
)
def test_what_the_host_reads_while_capturing_is_found(model: JanusModel, read) -> None:
    """It would be the idle rows' value for ever."""

    class Asking(RecordedOps):
        def attend(self, q_RNH: torch.Tensor, kv_2KPH: torch.Tensor, rows: Rows) -> torch.Tensor:
            read(rows)
            return super().attend(q_RNH, kv_2KPH, rows)

    bench = Bench(model)
    bench.graphs._model.ops = Asking()
    with pytest.raises(Refused, match="makes the host wait"):
        bench.graphs.forward(_inputs((0, 0, 5)))


def test_what_python_decides_while_capturing_is_decided_for_ever(model: JanusModel) -> None:
    """The tape has no Python: a step that depends on something else than memory would differ."""
    bench, calls = Bench(model), []

    class Counting(RecordedOps):
        def silu_multiply(self, gate_up_RM: torch.Tensor) -> torch.Tensor:
            calls.append(len(gate_up_RM))
            return super().silu_multiply(gate_up_RM)

    bench.graphs._model.ops = Counting()
    bench.forward(_inputs((0, 0, 5)))
    num_calls = len(calls)
    bench.forward(_inputs((0, 5, 1), (64, 0, 7)))
    assert len(calls) == num_calls > 0


def test_all_captures_share_a_stream_and_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries keep memory for each stream they were used on."""
    cuda = FakeCuda(monkeypatch)
    capture = CudaCapture(torch.device("cuda", 1))
    used = []
    for _ in range(3):
        capture(lambda: used.append(cuda.current))
    (mine,) = cuda.streams[1:]
    assert used == [mine] * 6, "once to warm up, once to be captured"
    assert mine.device == torch.device("cuda", 1)
    assert [(pool, stream) for _, pool, stream in cuda.captures] == [("pool", mine)] * 3
