"""A whole engine whose steps run from static memory, against one that runs them call by call.

On a CPU, with the operations' twins in torch in place of the kernels, and a capture that replays
what it recorded.
"""

import logging
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from janus_core.engine import graph_choice
from janus_core.engine.graphs import Picture, StepGraphs
from janus_core.engine.request import SamplingParams
from janus_core.engine.settings import EngineSettings
from janus_core.errors import ParameterError
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.ops.cuda.decode_ops import Rows
from janus_core.ops.cuda.eager_ops import EagerOps
from tests.core.engine.support import Log, Requests, run
from tests.core.engine.tape import run_on_graphs


def _mix(requests_for: Requests) -> list:
    """Words and pictures; guided, unguided, filtered, with log-probabilities, with an image."""
    drawn = SamplingParams(seed=3, temperature=0.9)
    filtered = SamplingParams(seed=4, temperature=1.0, top_k=5)
    return [
        requests_for.text("question", images=(1,)),
        requests_for.image("guided", sampling=drawn),
        requests_for.image("filtered", "a blue square", sampling=filtered),
        requests_for.image("unguided", guidance=None, sampling=SamplingParams(seed=9)),
        requests_for.image("greedy", "a star"),
        requests_for.image("with logprobs", sampling=drawn, code_logprobs=True),
        requests_for.text("drawn", "How many?", sampling=drawn, logprobs=2),
    ]


def _said(log: Log) -> dict[str, list[int]]:
    return {name: outcome.ids or outcome.codes for name, outcome in log.outcomes.items()}


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_the_same_answers_and_pictures(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch, is_deterministic: bool
) -> None:
    expected = _said(run(requests_for.engine(), *_mix(requests_for)))
    made = run_on_graphs(monkeypatch)
    engine = requests_for.engine(deterministic=is_deterministic, step_token_budget=60)
    assert _said(run(engine, *_mix(requests_for))) == expected
    assert made[0].num_graphs > 0


def test_a_prompt_longer_than_a_graph_takes_the_other_way(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = requests_for.text("long", "word " * 90)
    assert len(request.token_ids) > 256
    expected = _said(run(requests_for.engine(), request))
    run_on_graphs(monkeypatch)
    assert _said(run(requests_for.engine(), request)) == expected


def test_no_graphs_on_a_cpu(requests_for: Requests) -> None:
    assert (
        graph_choice.new_step_graphs(requests_for.model, None, EngineSettings(), spare_start=0)
        is None
    )


def test_deterministic_is_refused_where_it_cannot_be_kept(requests_for: Requests) -> None:
    with pytest.raises(ParameterError, match="deterministic needs CUDA"):
        requests_for.engine(deterministic=True)
    with pytest.raises(ParameterError, match="needs cuda_graphs"):
        EngineSettings(deterministic=True, cuda_graphs=False)


def test_what_computes_attention_is_named(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requests_for.engine().attention_backend == "sdpa"
    run_on_graphs(monkeypatch)
    assert requests_for.engine().attention_backend == "eager+sdpa"
    assert requests_for.engine(deterministic=True).attention_backend == "eager"


def test_graphs_yield_to_another_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that could have them."""
    made = []
    monkeypatch.setattr(graph_choice, "_ops", lambda model: made.append(model))
    model = SimpleNamespace(device=torch.device("cuda"), attention_choice="xformers")
    settings = EngineSettings()
    assert graph_choice.new_step_graphs(model, None, settings, spare_start=0) is None
    assert not made
    model.attention_choice = "triton"
    # The kernels were tried, and were not there.
    with pytest.raises(ParameterError, match="attention triton") as refused:
        graph_choice.new_step_graphs(model, None, settings, spare_start=0)
    assert refused.value.param == "attention"
    assert made
    with pytest.raises(ParameterError, match="attention triton"):
        graph_choice.new_step_graphs(model, None, EngineSettings(cuda_graphs=False), spare_start=0)


class Wrong(EagerOps):
    """Sees one position less than there are."""

    def attend(self, q_RNH: torch.Tensor, kv_2KPH: torch.Tensor, rows: Rows) -> torch.Tensor:
        fewer_R = (rows.contexts_R - 1).clamp(min=1)
        short = Rows(
            rows.positions_R, rows.cache_positions_R, rows.slot_starts_R, fewer_R, rows.reach
        )
        return super().attend(q_RNH, kv_2KPH, short)


class Broken(EagerOps):
    """As Triton where there is no compiler: importing works, and the first launch does not."""

    def attend(self, *_) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler.")


class NoNorm(EagerOps):
    """Attention works, another kernel does not."""

    def add_rms_norm(self, *_, **__) -> torch.Tensor:
        raise RuntimeError("out of resources: shared memory")


class Lost(EagerOps):
    def attend(self, *_) -> torch.Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure")


class Elsewhere:
    """A model that says it is on CUDA, and computes where it is."""

    def __init__(self, model: JanusModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


def _choose(
    monkeypatch: pytest.MonkeyPatch, model: JanusModel, ops: type[EagerOps], **settings
) -> StepGraphs | None:
    """The choice on a machine with CUDA where `ops` are Triton's kernels."""
    module = SimpleNamespace(TritonOps=ops)
    monkeypatch.setitem(sys.modules, "janus_core.ops.cuda.triton_ops", module)
    check = graph_choice.attention_error
    monkeypatch.setattr(graph_choice, "attention_error", lambda ops, _: check(ops, model))
    monkeypatch.setattr(graph_choice, "CudaCapture", lambda _: lambda work: (work(), work)[1])
    kv = KvPool.allocate(model.config, 64, device=model.device, dtype=model.dtype)
    asked = EngineSettings(max_sequences=8, **settings)
    return graph_choice.new_step_graphs(Elsewhere(model), kv, asked, spare_start=32)


def test_what_most_steps_need_is_captured_at_start(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = _choose(monkeypatch, requests_for.model, EagerOps)
    before = graphs.num_graphs
    graphs.capture_usual(8)
    assert graphs.num_graphs == before > 0
    hidden_RD = torch.zeros(9, requests_for.model.config.backbone.width)
    pictures = [Picture(2 * i, 2 * i + 1, 5.0, 1.0, seed=i, place=0) for i in range(4)]
    graphs.draw(hidden_RD, pictures)
    assert graphs.num_graphs == before
    graphs.draw(hidden_RD, [*pictures, pictures[0]])
    assert graphs.num_graphs == before + 1, "more than max_sequences"


@pytest.mark.parametrize("ops", [Broken, NoNorm])
def test_kernels_that_cannot_run_leave_steps_call_by_call(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch, caplog, ops: type[EagerOps]
) -> None:
    with caplog.at_level(logging.ERROR):
        assert _choose(monkeypatch, requests_for.model, ops) is None
    assert "Triton's kernels cannot run" in caplog.text
    with pytest.raises(ParameterError, match="deterministic needs"):
        _choose(monkeypatch, requests_for.model, ops, deterministic=True)
    monkeypatch.setattr(requests_for.model, "attention_choice", "triton")
    with pytest.raises(ParameterError, match="attention triton"):
        _choose(monkeypatch, requests_for.model, ops)


def test_a_lost_device_is_no_reason_to_go_on_without_graphs(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="launch failure"):
        _choose(monkeypatch, requests_for.model, Lost)


def test_a_step_in_which_a_graph_was_captured_tells_nothing_of_the_next(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capturing takes long here, as it does on a device, and steps do not."""
    captured_s = 0.5

    def slowly(work):
        time.sleep(captured_s)
        work()
        return work

    run_on_graphs(monkeypatch, ops=EagerOps, capture=slowly)
    engine = requests_for.engine()
    log = run(engine, requests_for.text("one"), requests_for.image("two"))
    assert max(step.duration_s for step in log.steps) > captured_s
    kinds = engine._step_model._kinds.values()
    assert kinds
    assert max(kind.typical.duration_s for kind in kinds) < captured_s


def test_kernels_that_are_wrong_are_found_at_start(requests_for: Requests) -> None:
    assert graph_choice.attention_error(EagerOps(), requests_for.model) == 0.0
    assert graph_choice.attention_error(Wrong(), requests_for.model) > graph_choice.MAX_ERROR
