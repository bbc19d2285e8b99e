"""What training computes: group norms, labels, settled codes, losses of a small batch."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from weights.recipe.fast_norm import use_fast_group_norm
from weights.recipe.geometry import WIDTH
from weights.recipe.network import answered, build, draw, losses
from weights.recipe.perception import label
from weights.recipe.photographs import plain_photograph
from weights.recipe.sequences import Writer, collate
from weights.recipe.settle_codes import look_up, pieces
from weights.recipe.training import Average, cosine, learning_rate
from weights.recipe.world import COLORS, SHAPES, make_object, make_scene, render, sample_scene

CHECKPOINT = Path(__file__).parents[2] / "weights" / "janus-mini"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def untrained(tokenizer):
    torch.manual_seed(0)
    return build(tokenizer)


def test_the_fast_group_norm_has_the_values_and_gradients_of_the_slow_one():
    torch.manual_seed(0)
    slow = nn.GroupNorm(4, 16)
    nn.init.normal_(slow.weight)
    fast = nn.GroupNorm(4, 16)
    fast.load_state_dict(slow.state_dict())
    use_fast_group_norm(nn.Sequential(fast))
    x = torch.randn(3, 16, 5, 7)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(v) for norm, v in zip((slow, fast), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1])
    weights = torch.randn_like(x)
    for out in outputs:
        (out * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(slow.weight.grad, fast.weight.grad)


def test_the_rate_rises_and_falls():
    rates = [learning_rate(step, 1000, peak=1.0, warmup=100) for step in range(1000)]
    assert rates.index(max(rates)) in (99, 100)
    assert rates[-1] < 0.02
    assert cosine(0.0) == 1.0
    assert cosine(2.0, last=0.1) == pytest.approx(0.1)


def test_an_average_is_between_the_weights_and_swaps_back():
    layer = nn.Linear(2, 2)
    average = Average(layer, decay=0.5)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.update(layer)
    average.swap(layer)
    assert (layer.weight > before).all()
    assert (layer.weight < before + 1).all()
    average.swap(layer)
    torch.testing.assert_close(layer.weight, before + 1)


def test_patches_are_labelled_with_the_object_they_show():
    scene = make_scene([make_object("star", "red", "large", x=0.25, y=0.25)], "gray")
    labels = label([scene], [plain_photograph(scene)])
    on, off = 8 * 1 + 1, 8 * 7 + 7
    assert labels.classes["shape"][0, on] == SHAPES.index("star")
    assert labels.classes["color"][0, on] == list(COLORS).index("red")
    assert labels.classes["shape"][0, off] == len(SHAPES)
    torch.testing.assert_close(labels.centre[0, on, 2:], torch.tensor([0.25, 0.25]))


def test_equal_pieces_get_equal_codes():
    images = [render(sample_scene(random.Random(seed), varied=False)) for seed in range(8)]
    table = {piece: i for i, piece in enumerate({p for image in images for p in pieces(image)})}
    codes = look_up(table, images)
    assert codes.shape == (8, 64)
    assert len(codes.unique()) == len(table) < 8 * 64


def test_an_untrained_network_learns_from_every_loss(untrained, tokenizer):
    writer = Writer(tokenizer)
    batch = collate(
        [writer.understanding(random.Random(1), held_out=True)], pad=writer.special["pad"]
    )
    found = losses(untrained, batch, nn.Linear(WIDTH, 30))
    assert found.text.item() == pytest.approx(6.8, abs=1.0)  # ln(896)
    assert found.codes.item() == 0
    assert found.perception.item() > 1
    (found.text + found.perception).backward()
    assert untrained.model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    assert untrained.model.generation_head.vision_head.weight.grad is None
    assert len(answered(batch, found.chosen_BT)) == len(batch.answers)


def test_drawing_ignores_the_caption_without_guidance_of_it(untrained, tokenizer):
    writer = Writer(tokenizer)
    prompts = [writer.drawing_ids("a red circle"), writer.drawing_ids("a blue star")]
    codes = [
        draw(untrained, prompts, guidance=g, generator=torch.Generator().manual_seed(0))
        for g in (0.0, 0.0, 5.0)
    ]
    assert codes[0].shape == (2, 64)
    torch.testing.assert_close(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
