"""The measures of a format's quality tell equal from unequal."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks import engine_side, quality
from benchmarks.quality import Forced, compare


def _forced(codes: torch.Tensor, words: torch.Tensor) -> Forced:
    return Forced((), codes, words)


def test_agreement_and_divergence_of_known_distributions() -> None:
    """Two positions: the first alike, the second (1/4, 3/4) against (1/2, 1/2)."""
    p = torch.tensor([[0.0, 1.0], [math.log(1 / 4), math.log(3 / 4)]])
    q = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    figures = compare(_forced(p, p), _forced(q, p))
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert figures["codes_divergence"] == pytest.approx(divergence / 2, abs=1e-6)
    # Of two equal logits the first counts as the likeliest.
    assert figures["codes_agreement"] == 0.5
    assert figures["words_agreement"] == 1.0
    assert figures["words_divergence"] == pytest.approx(0.0, abs=1e-12)


def test_fp32_agrees_with_itself_and_others_are_near(tiny_checkpoint: Path) -> None:
    figures = quality.forced(tiny_checkpoint, num_codes=6)
    assert set(figures) == set(engine_side.FORMATS)
    assert figures["fp32"]["codes_agreement"] == figures["fp32"]["words_agreement"] == 1.0
    assert figures["fp32"]["codes_divergence"] == pytest.approx(0.0, abs=1e-12)
    for kind, each in figures.items():
        assert each["codes_divergence"] < 0.05, kind


def test_another_model_is_noticed(tiny_checkpoint: Path) -> None:
    model = engine_side.load(tiny_checkpoint, weight_format="fp32")
    expected = quality.run(model, (5, 6, 7), num_codes=5, follow=None)
    model.embeddings += torch.randn_like(model.embeddings)
    found = quality.run(model, (5, 6, 7), num_codes=5, follow=expected)
    assert found.ids == expected.ids
    assert compare(expected, found)["codes_divergence"] > 0.1


@pytest.mark.slow
def test_the_exam_can_be_sat_in_every_format(mini_checkpoint: Path) -> None:
    for kind in engine_side.FORMATS:
        scores = quality.exam(mini_checkpoint, kind, scenes=4, captions=4)
        assert {"answers", "drawings, default", "outside drawings"} <= set(scores)
        assert scores["answers"]["total"] > 0
