"""A sequence's result does not depend on what is beside it in the batch."""

from pathlib import Path

import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.models.janus import JanusModel
from janus_core.ops.linear import can_pack
from tests.core.models.driving import Driver, Line

PROMPTS = [list(range(5 + i, 5 + i + 6 + 3 * i)) for i in range(16)]


@pytest.fixture(scope="module")
def model(mini_checkpoint: Path) -> JanusModel:
    return load_model(mini_checkpoint, device=torch.device("cpu"), dtype=torch.float32)


def _decode(model: JanusModel, chosen: list[int], slots: list[int]) -> dict[int, torch.Tensor]:
    """Hidden vectors of 8 decode steps of the chosen prompts, each prefilled alone."""
    driver = Driver(model)
    lines = [Line(128 * slot) for slot in slots]
    for line, index in zip(lines, chosen, strict=True):
        driver.run([(line, PROMPTS[index])])
    steps = [
        driver.run([(line, [7 + index + step]) for line, index in zip(lines, chosen, strict=True)])
        for step in range(8)
    ]
    return {index: torch.cat([step[row] for step in steps]) for row, index in enumerate(chosen)}


@pytest.mark.skipif(
    not can_pack(device=torch.device("cpu"), dtype=torch.float32),
    reason="this torch has no oneDNN operators: rows agree only up to rounding",
)
def test_decoding_alone_and_beside_15_others_is_equal_bit_by_bit(model: JanusModel) -> None:
    together = _decode(model, list(range(16)), list(range(16)))
    for index in (0, 3, 15):
        alone = _decode(model, [index], [2])[index]
        assert torch.equal(alone, together[index])


def test_the_order_of_slots_and_rows_changes_nothing(model: JanusModel) -> None:
    """Equal contexts at equal, unequal and descending distances take different paths."""
    prompt = 4
    chosen = [prompt] * 5
    expected = _decode(model, [prompt], [0])[prompt]
    for slots in ([0, 1, 2, 3, 4], [0, 1, 3, 4, 9], [9, 5, 4, 2, 0], [3, 0, 8, 1, 6]):
        driver = Driver(model)
        lines = [Line(128 * slot) for slot in slots]
        driver.run([(line, PROMPTS[index]) for line, index in zip(lines, chosen, strict=True)])
        for step in range(8):
            hidden = driver.run([(line, [7 + prompt + step]) for line in lines])
            for row in hidden:
                torch.testing.assert_close(row[0], expected[step], atol=1e-5, rtol=1e-4)


def test_chunks_and_mixtures_change_nothing(model: JanusModel) -> None:
    """One sequence in chunks, while others decode and prefill in the same passes."""
    tokens = list(range(40, 80))
    (expected,) = Driver(model).run([(Line(0), tokens)])
    for cuts in ([1, 39], [7, 8, 25], [39, 1], [10, 10, 10, 10]):
        driver = Driver(model)
        line, decoding, prefilling = Line(256), Line(512), Line(1024)
        driver.run([(decoding, [1, 2, 3])])
        parts, first = [], 0
        for size in cuts:
            chunk = tokens[first : first + size]
            first += size
            parts.append(driver.run([(prefilling, [9] * 10), (line, chunk), (decoding, [4])])[1])
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=1e-4)


def test_a_copied_prefix_is_as_good_as_a_computed_one(model: JanusModel) -> None:
    tokens = list(range(40, 70))
    (expected,) = Driver(model).run([(Line(0), tokens)])
    driver = Driver(model)
    driver.run([(Line(0), tokens[:20])])
    driver.kv.copy(0, 300, 20)
    driver.kv.clear(0, 20)
    copied = Line(300, num_computed=20)
    (rest,) = driver.run([(copied, tokens[20:])])
    torch.testing.assert_close(rest, expected[20:], atol=1e-5, rtol=1e-4)


def test_copies_stay_within_the_pool_and_apart(model: JanusModel) -> None:
    kv = Driver(model, num_positions=64).kv
    with pytest.raises(AssertionError, match="overlap"):
        kv.copy(0, 10, 20)
    with pytest.raises(AssertionError, match="beyond"):
        kv.copy(0, 50, 20)
