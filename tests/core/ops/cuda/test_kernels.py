"""Each Triton kernel against its twin in torch, on the GPU or in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: make test-kernels installs it.")

from janus_core.ops.cuda.decode_ops import SPLIT, Draws, Rows
from janus_core.ops.cuda.eager_ops import EagerOps
from janus_core.ops.cuda.triton_ops import CODE_BLOCK, TritonOps
from janus_core.ops.rotary import rotary_table
from janus_core.ops.sampling import gumbel_noise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
TRITON, EAGER = TritonOps(), EagerOps()


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def _rows(starts: list[int], contexts: list[int]) -> Rows:
    starts_R = torch.tensor(starts, device=DEVICE)
    contexts_R = torch.tensor(contexts, device=DEVICE)
    return Rows(
        positions_R=contexts_R - 1,
        cache_positions_R=starts_R + contexts_R - 1,
        slot_starts_R=starts_R,
        contexts_R=contexts_R,
        reach=max(contexts),
    )


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within rounding of their dtype."""
    tolerance = 2e-5 if actual.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 16), (4, 2, 12), (3, 1, 128)])
def test_attention(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
    contexts = [1, 63, 64, 65, SPLIT - 1, SPLIT, SPLIT + 1, 600]
    rows = _rows([640 * row for row in range(len(contexts))], contexts)
    q_RNH = _random(len(contexts), heads, head_dim, dtype=dtype)
    kv_2KPH = _random(2, kv_heads, 640 * len(contexts), head_dim, dtype=dtype, seed=1)
    _close(TRITON.attend(q_RNH, kv_2KPH, rows), EAGER.attend(q_RNH, kv_2KPH, rows))


def test_no_bit_of_a_row_depends_on_the_others() -> None:
    """Alone, and beside rows whose contexts need more splits."""
    contexts = [1, 40, SPLIT + 3, 2 * SPLIT + 70]
    starts = [640 * row for row in range(len(contexts))]
    q_RNH = _random(len(contexts), 2, 16)
    kv_2KPH = _random(2, 2, 640 * len(contexts), 16, seed=1)
    together = TRITON.attend(q_RNH, kv_2KPH, _rows(starts, contexts))
    for row, (start, context) in enumerate(zip(starts, contexts, strict=True)):
        alone = TRITON.attend(q_RNH[row : row + 1], kv_2KPH, _rows([start], [context]))
        assert torch.equal(alone[0], together[row])


def test_attention_sees_nothing_beyond_the_context() -> None:
    """What lies there is not a number here, and in a pool it is another sequence's."""
    contexts = [5, SPLIT + 5]
    rows = _rows([0, 640], contexts)
    kv_2KPH = _random(2, 2, 1280, 16)
    expected = TRITON.attend(_random(2, 2, 16, seed=1), kv_2KPH, rows)
    kv_2KPH[:, :, 5:640] = torch.nan
    kv_2KPH[:, :, 640 + SPLIT + 5 :] = torch.nan
    assert torch.equal(TRITON.attend(_random(2, 2, 16, seed=1), kv_2KPH, rows), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 256])
@pytest.mark.parametrize("has_delta", [False, True])
def test_norm_and_residual(dtype: torch.dtype, width: int, has_delta: bool) -> None:
    x_RD, weight_D = _random(3, width, dtype=dtype), _random(width, dtype=dtype, seed=1)
    delta_RD = _random(3, width, dtype=dtype, seed=2) if has_delta else None
    mine_RD, twin_RD = x_RD.clone(), x_RD.clone()
    out_RD = TRITON.add_rms_norm(mine_RD, delta_RD, weight_D, eps=1e-6)
    _close(out_RD, EAGER.add_rms_norm(twin_RD, delta_RD, weight_D, eps=1e-6))
    _close(mine_RD, twin_RD)
    if dtype == torch.float32 or DEVICE.type == "cuda":  # the interpreter cuts bf16 off
        assert torch.equal(mine_RD, twin_RD)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 16), (4, 2, 12)])
def test_rotation_and_cache_write(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> None:
    rows = _rows([64, 0, 128], [7, 1, 64])
    heads_RE = _random(3, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    rotary_P21H = rotary_table(64, head_dim, theta=10000.0, device=DEVICE)
    before = _random(2, kv_heads, 192, head_dim, dtype=dtype, seed=1)
    mine, twin = before.clone(), before.clone()
    q_RNH = TRITON.rotate_and_store(heads_RE, rotary_P21H, rows, mine)
    _close(q_RNH, EAGER.rotate_and_store(heads_RE, rotary_P21H, rows, twin))
    _close(mine, twin)
    written = (mine != before).any(-1)
    assert written.any(0).any(0).nonzero().flatten().tolist() == [0, 70, 191]


@pytest.mark.parametrize("pool", [torch.float16, torch.float8_e4m3fn])
def test_a_pool_that_holds_less_is_saturated(pool: torch.dtype) -> None:
    """Values far beyond e4m3's 448 and fp16's 65504, and some that fit."""
    rows = _rows([0, 32], [1, 7])
    heads_RE = 100 * _random(2, 3 * 16)
    heads_RE[0, 20], heads_RE[1, 40] = 1e6, -1e6
    rotary_P21H = rotary_table(64, 16, theta=10000.0, device=DEVICE)
    mine = torch.zeros(2, 1, 64, 16, device=DEVICE).to(pool)
    twin = mine.clone()
    TRITON.rotate_and_store(heads_RE, rotary_P21H, rows, mine)
    EAGER.rotate_and_store(heads_RE, rotary_P21H, rows, twin)
    # A step of e4m3 is an eighth of a value: which way a half is rounded is the device's.
    limit = 0.13 if pool == torch.float8_e4m3fn else 1e-3
    torch.testing.assert_close(mine.float(), twin.float(), rtol=limit, atol=0.1)
    assert mine.float().abs().max() == torch.finfo(pool).max


def test_attention_over_fp8() -> None:
    contexts = [1, 65, SPLIT + 1]
    rows = _rows([640 * row for row in range(3)], contexts)
    q_RNH = _random(3, 2, 16, dtype=torch.bfloat16)
    kv_2KPH = _random(2, 2, 640 * 3, 16, seed=1).to(torch.float8_e4m3fn)
    _close(TRITON.attend(q_RNH, kv_2KPH, rows), EAGER.attend(q_RNH, kv_2KPH, rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_multiply(dtype: torch.dtype) -> None:
    gate_up_RM = _random(3, 2 * 1100, dtype=dtype)
    _close(TRITON.silu_multiply(gate_up_RM), EAGER.silu_multiply(gate_up_RM))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_and_guidance(dtype: torch.dtype) -> None:
    inner_RM = _random(6, 1100, dtype=dtype)
    guidance_I = torch.tensor([5.0, 1.0, 0.0], device=DEVICE)
    mixed_IM = TRITON.gelu_and_guide(inner_RM, guidance_I)
    # Guidance multiplies the rounding of its inputs.
    _close(mixed_IM / 10, EAGER.gelu_and_guide(inner_RM, guidance_I) / 10)


def test_guidance_of_one_vector_with_itself_is_that_vector() -> None:
    """So that an unguided picture can name its row twice."""
    inner_IM = _random(1, 70)
    twice = TRITON.gelu_and_guide(inner_IM.repeat(2, 1), torch.tensor([7.5], device=DEVICE))
    once = TRITON.gelu_and_guide(inner_IM.repeat(2, 1), torch.tensor([1.0], device=DEVICE))
    assert torch.equal(twice, once)


def _draws(seeds: list[int], places: list[int], temperatures: list[float]) -> Draws:
    rows_I = torch.arange(len(seeds), device=DEVICE)
    return Draws(
        cond_rows_I=rows_I,
        uncond_rows_I=rows_I,
        guidance_I=torch.ones(len(seeds), device=DEVICE),
        temperatures_I=torch.tensor(temperatures, device=DEVICE),
        seeds_I=torch.tensor(seeds, device=DEVICE),
        places_I=torch.tensor(places, device=DEVICE),
    )


@settings(max_examples=12, deadline=None)
@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    place=st.integers(0, 2**31),
)
def test_noise_is_the_noise_of_sampling(seeds: list[int], place: int) -> None:
    seeds_R = torch.tensor(seeds, device=DEVICE)
    mine = TRITON.noise(seeds_R, torch.full_like(seeds_R, place), num_tokens=1500)
    unsigned = [seed % 2**64 for seed in seeds]
    twin = gumbel_noise(unsigned, [place] * len(seeds), num_tokens=1500, device=DEVICE)
    torch.testing.assert_close(mine, twin, atol=5e-7, rtol=1e-6)


@pytest.mark.parametrize("num_codes", [96, CODE_BLOCK, 3 * CODE_BLOCK + 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draw(num_codes: int, dtype: torch.dtype) -> None:
    logits_IC = _random(5, num_codes, dtype=dtype)
    draws = _draws([0, 1, 2**40, -1, 7], [0, 575, 3, 4, 5], [1.0, 0.7, 0.0, 1.3, 1e-6])
    codes_I, finite_I = TRITON.draw(logits_IC, draws)
    twin_I, twin_finite_I = EAGER.draw(logits_IC, draws)
    assert codes_I.tolist() == twin_I.tolist()
    assert codes_I[2] == logits_IC[2].float().argmax()
    assert finite_I.tolist() == twin_finite_I.tolist() == [True] * 5


def test_ties_go_to_the_smallest_code() -> None:
    logits_IC = torch.zeros(1, 2 * CODE_BLOCK, device=DEVICE)
    logits_IC[0, [700, 1500]] = 3.0
    assert TRITON.draw(logits_IC, _draws([0], [0], [0.0]))[0].tolist() == [700]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_told_and_harmless(bad: float) -> None:
    """The code feeds the next step before the host has looked: it must be one."""
    logits_IC = _random(3, CODE_BLOCK + 7)
    logits_IC[0] = bad
    logits_IC[1, CODE_BLOCK + 3] = bad
    codes_I, finite_I = TRITON.draw(logits_IC, _draws([1, 2, 3], [0, 0, 0], [1.0, 1.0, 1.0]))
    assert finite_I.tolist() == [False, False, True]
    assert all(0 <= code < CODE_BLOCK + 7 for code in codes_I.tolist())
