"""Deterministic mode off the graphs: heads and filters see one number of rows, however many ask."""

from collections.abc import Callable, Iterator

import pytest
import torch

from janus_core.engine.graphs import FIXED_ROWS
from janus_core.engine.heads import FixedHeads
from janus_core.engine.request import SamplingParams
from janus_core.ops import sampling
from janus_core.ops.sampling import SamplingRow, sample
from tests.core.engine.support import Requests, run
from tests.core.engine.tape import run_on_graphs


@pytest.mark.parametrize("num_rows", [1, FIXED_ROWS, FIXED_ROWS + 3])
def test_padded_and_in_passes_they_are_the_heads(requests_for: Requests, num_rows: int) -> None:
    model = requests_for.model
    hidden_RD, other_RD = torch.randn(2, num_rows, model.config.backbone.width)
    guidance_R = torch.linspace(1.0, 9.0, num_rows)
    fixed = FixedHeads(model)
    for mine, expected in (
        (fixed.text_logits(hidden_RD), model.text_logits(hidden_RD)),
        (fixed.code_logits(hidden_RD), model.code_logits(hidden_RD)),
        (
            fixed.guided_code_logits(hidden_RD, other_RD, guidance_R),
            model.guided_code_logits(hidden_RD, other_RD, guidance_R),
        ),
    ):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fixed_rows", [1, 2, 8])
def test_filters_at_a_fixed_number_of_rows_are_the_same(fixed_rows: int) -> None:
    """Rows without a filter in between, several passes, and one that is padded."""
    logits_RV = torch.randn(6, 300, generator=torch.Generator().manual_seed(3))
    filters = [{"top_k": 5}, {}, {"top_p": 0.6}, {"min_p": 0.2}, {}, {"top_k": 9, "top_p": 0.9}]
    rows = [
        SamplingRow(SamplingParams(seed=i, temperature=1.0, **each), position=i)
        for i, each in enumerate(filters)
    ]
    mine_RV, twin_RV = logits_RV.clone(), logits_RV.clone()
    assert torch.equal(sample(mine_RV, rows, fixed_rows=fixed_rows), sample(twin_RV, rows))
    assert torch.equal(mine_RV, twin_RV)


@pytest.fixture
def seen(requests_for: Requests, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[int]]]:
    """Numbers of rows: of the products of every head, and of sums along rows in filters."""
    rows: dict[str, set[int]] = {}

    def noting(name: str) -> Callable[..., None]:
        return lambda _, inputs: rows.setdefault(name, set()).add(len(inputs[0]))

    head = requests_for.model.generation_head
    hooks = [
        module.register_forward_pre_hook(noting(name))
        for name, module in {
            "proj_out": head.proj_out,
            "vision_head": head.vision_head,
            "lm_head": requests_for.model.lm_head,
        }.items()
    ]
    filter_rows = sampling._filter_rows

    def filtering(logits_RV, filtered, params):
        rows.setdefault("filter", set()).add(len(filtered))
        filter_rows(logits_RV, filtered, params)

    monkeypatch.setattr(sampling, "_filter_rows", filtering)
    yield rows
    for hook in hooks:
        hook.remove()


def _requests(requests_for: Requests, count: int) -> list:
    """`count` of each: filtered pictures, guided and not, with log-probabilities, and text."""
    filtered = {"temperature": 1.0, "top_p": 0.8}
    pictures = [
        requests_for.image(
            f"picture {i}",
            sampling=SamplingParams(seed=i, **filtered),
            guidance=None if i % 3 == 2 else 5.0,
            code_logprobs=i % 3 == 1,
        )
        for i in range(3 * count)
    ]
    texts = [
        requests_for.text(f"text {i}", sampling=SamplingParams(seed=i, **filtered))
        for i in range(count)
    ]
    return [*pictures, *texts]


def test_alone_and_together_heads_and_filters_have_the_same_rows(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch, seen: dict[str, set[int]]
) -> None:
    run_on_graphs(monkeypatch)
    requests = _requests(requests_for, 2)
    together = run(requests_for.engine(deterministic=True), *requests)
    for request in requests:
        alone = run(requests_for.engine(deterministic=True), request)[request.id]
        mine = together[request.id]
        assert (alone.ids or alone.codes) == (mine.ids or mine.codes)
    # Guided pictures have two rows each before guidance, and one after.
    assert seen["filter"] == seen["lm_head"] == seen["vision_head"] == {FIXED_ROWS}
    assert seen["proj_out"] == {FIXED_ROWS, 2 * FIXED_ROWS}
