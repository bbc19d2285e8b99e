"""Sampling against a slow twin in plain Python, and as a distribution."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from janus_core.engine.request import SamplingParams
from janus_core.ops.sampling import (
    SamplingRow,
    _bits_array,
    _bits_tensor,
    gumbel_noise,
    sample,
)

CPU = torch.device("cpu")
MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def twin_mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def twin_noise(seed: int, position: int, token: int) -> float:
    key = twin_mix((twin_mix(seed) + (position + 1) * GAMMA) & MASK)
    bits = twin_mix((key + (token + 1) * GAMMA) & MASK)
    u = min(((bits >> 32) + 0.5) / 2**32, 1 - 2**-24)
    return -math.log(-math.log1p(-u))


def twin_sample(logits: list[float], row: SamplingRow) -> int:
    """One row, one rule after the other, over a list of floats."""
    p = row.params
    values = list(logits)
    for token, bias in p.logit_bias:
        values[token] += bias
    for token in row.banned_ids:
        values[token] = -math.inf
    for token in {*row.prompt_ids, *row.output_ids}:
        v = values[token]
        values[token] = v / p.repetition_penalty if v > 0 else v * p.repetition_penalty
    for token, count in Counter(row.output_ids).items():
        values[token] -= p.presence_penalty + p.frequency_penalty * count
    if p.temperature == 0:
        return max(range(len(values)), key=lambda i: values[i])
    values = [v / p.temperature for v in values]
    order = sorted(range(len(values)), key=lambda i: -values[i])
    allowed = order[: p.top_k] if p.top_k else order
    weights = {i: math.exp(values[i] - values[order[0]]) for i in allowed}
    total = sum(weights.values())
    kept, mass = [], 0.0
    for i in allowed:
        if mass / total >= p.top_p and kept:
            break
        mass += weights[i]
        if weights[i] >= p.min_p * weights[order[0]]:
            kept.append(i)
    return max(kept, key=lambda i: values[i] + twin_noise(p.seed, row.position, i))


def random_row(rng: random.Random, size: int) -> SamplingRow:
    params = SamplingParams(
        seed=rng.randrange(2**63),
        temperature=rng.choice([0.0, 0.3, 1.0, 2.5]),
        top_k=rng.choice([0, 1, 3, size, size + 5]),
        top_p=rng.choice([1.0, 0.9, 0.4, 1e-6]),
        min_p=rng.choice([0.0, 0.2]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.7]),
        frequency_penalty=rng.choice([0.0, -0.4]),
        logit_bias=((rng.randrange(size), rng.uniform(-3, 3)),) if rng.random() < 0.3 else (),
    )
    return SamplingRow(
        params,
        position=rng.randrange(1000),
        prompt_ids=[rng.randrange(size) for _ in range(3)],
        output_ids=[rng.randrange(size) for _ in range(6)],
        banned_ids=[rng.randrange(size)] if rng.random() < 0.3 else [],
    )


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, 2**63 - 1])
def test_noise_equals_the_slow_twin(seed: int) -> None:
    noise = gumbel_noise([seed, 5], [3, 0], num_tokens=200, device=CPU)
    assert noise.dtype == torch.float32
    for row, (row_seed, position) in zip(noise.tolist(), [(seed, 3), (5, 0)], strict=True):
        expected = [twin_noise(row_seed, position, token) for token in range(200)]
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_arrays_and_tensors_hold_the_same_noise() -> None:
    """What a CPU computes with NumPy and a GPU with torch."""
    keys = np.random.default_rng(0).integers(0, 2**64, size=3, dtype=np.uint64)
    with np.errstate(over="ignore"):
        array = _bits_array(keys, 500)
    tensor = _bits_tensor(torch.from_numpy(keys.view(np.int64)), 500)
    assert np.array_equal(array, tensor.numpy())
    assert len(np.unique(array)) == array.size


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(list(range(64)), [0] * 64, num_tokens=4096, device=CPU).double()
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_noise_differs_between_seeds_and_positions() -> None:
    noise = gumbel_noise([1, 2, 1], [0, 0, 1], num_tokens=1000, device=CPU)
    correlation = torch.corrcoef(noise)
    assert (correlation - torch.eye(3)).abs().max() < 0.15


@pytest.mark.parametrize("case", range(20))
def test_rows_equal_the_slow_twin_whatever_their_batch_mates(case: int) -> None:
    rng = random.Random(case)
    size, num_rows = rng.choice([5, 40]), rng.choice([1, 4, 9])
    logits = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(case)) * 3
    rows = [random_row(rng, size) for _ in range(num_rows)]
    expected = [twin_sample(values, row) for values, row in zip(logits.tolist(), rows, strict=True)]
    assert sample(logits.clone(), rows).tolist() == expected
    alone = [sample(logits[i : i + 1].clone(), [rows[i]]).item() for i in range(num_rows)]
    assert alone == expected


def test_samples_follow_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    temperature, num_draws = 0.8, 20000
    rows = [
        SamplingRow(SamplingParams(seed=seed, temperature=temperature), position=seed % 7)
        for seed in range(num_draws)
    ]
    counts = torch.bincount(sample(logits.repeat(num_draws, 1), rows), minlength=5)
    expected = (logits / temperature).softmax(-1) * num_draws
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.5  # 99.9 % quantile for 4 degrees of freedom


def test_top_p_keeps_the_token_that_crosses_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    params = [SamplingParams(seed=seed, top_p=0.6) for seed in range(300)]
    tokens = sample(logits.repeat(300, 1), [SamplingRow(p, position=0) for p in params])
    assert set(tokens.tolist()) == {0, 1}


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.999]])
    row = SamplingRow(SamplingParams(seed=1, temperature=1e-30), position=0)
    assert sample(logits, [row]).tolist() == [1]
