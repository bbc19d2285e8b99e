"""The C++ kernels of every instruction set against plain torch."""

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from janus_core.engine.settings import SLOT_UNIT
from janus_core.models.inputs import Span
from janus_core.ops import native
from janus_core.ops.attention.native import NativeAttention
from janus_core.ops.attention.sdpa import SdpaAttention
from janus_core.ops.linear import HalfLinear, Int8Linear, NativeLinear, convert_linears

CPU = torch.device("cpu")
PATHS = native.paths()
SHAPES = [(1, 1), (33, 5), (64, 64), (70, 44), (96, 257), (513, 600)]
ROWS = [1, 2, 3, 4, 7, 12, 13, 17, 33]

pytestmark = pytest.mark.skipif(not PATHS, reason=f"no kernels: {native.problem()}")
each_path = pytest.mark.parametrize("path", PATHS)


def _kernels(path: str) -> native.Native:
    kernels = native.load(path)
    assert kernels is not None
    return kernels


def _linear(n: int, k: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(n + k)
    return nn.Linear(k, n, bias=bias).requires_grad_(False)


def test_a_processor_without_vectors_is_served_too() -> None:
    assert PATHS[-1] == "scalar"
    assert native.load("avx9000") is None


@each_path
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_products_equal_their_twin_and_rows_do_not_mix(
    path: str, n: int, k: int, format: str
) -> None:
    linear = _linear(n, k, bias=n % 2 == 0)
    twin = HalfLinear(linear) if format == "fp16" else Int8Linear(linear)
    layer = NativeLinear(linear, format=format, native=_kernels(path))
    x = torch.randn(600 if path != "scalar" else 100, k)
    together = layer(x)
    expected = twin(x)
    torch.testing.assert_close(
        together, expected, rtol=1e-6, atol=2e-6 * float(expected.abs().max())
    )
    for num_rows in ROWS:
        assert torch.equal(layer(x[-num_rows:]), together[-num_rows:]), f"{num_rows} rows"
    assert layer(x[:0]).shape == (0, n)
    assert layer(x[:6].view(2, 3, k)).shape == (2, 3, n)


@each_path
@pytest.mark.parametrize(("n", "k", "rows"), [(40, 63, 3), (64, 2049, 1), (33, 1000, 40)])
def test_int8_sums_are_exact(path: str, n: int, k: int, rows: int) -> None:
    """Integers whose scale is 1 stay integers, up to the largest sums there can be."""
    weight = torch.randint(-127, 128, (n, k)).float()
    x = torch.randint(-127, 128, (rows, k)).float()
    weight[:, 0] = x[:, 0] = 127
    # The highest sum an fp32 can hold without rounding.
    limit = 2**24 // 127**2
    weight[0, : min(k, limit)] = x[0, : min(k, limit)] = 127
    weight[0, limit:] = 0
    linear = nn.Linear(k, n, bias=False)
    linear.weight.data = weight
    out = NativeLinear(linear, format="int8", native=_kernels(path))(x)
    assert torch.equal(out.long(), x.long() @ weight.long().T)
    assert torch.equal(out, Int8Linear(linear)(x))


@each_path
@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_what_is_not_finite_shows(path: str, format: str) -> None:
    layer = NativeLinear(_linear(8, 40), format=format, native=_kernels(path))
    for fault in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 17, 39):
            x = torch.randn(3, 40)
            x[1, place] = fault
            is_finite = layer(x).isfinite().all(-1)
            assert is_finite.tolist() == [True, False, True]


@each_path
def test_zeros_stay_zeros(path: str) -> None:
    layer = NativeLinear(_linear(8, 40, bias=False), format="int8", native=_kernels(path))
    assert not layer(torch.zeros(2, 40)).any()


@st.composite
def _spans(draw: st.DrawFn) -> tuple[Span, ...]:
    spans: list[Span] = []
    first = start = 0
    for _ in range(draw(st.integers(1, 5))):
        context = draw(st.sampled_from([1, 2, 9, 31, 33, 64, 130, 700]))
        num_tokens = draw(st.sampled_from(sorted({1, min(3, context), min(6, context)})))
        spans.append(Span(first, num_tokens, start, context))
        first += num_tokens
        start += -(-context // SLOT_UNIT) * SLOT_UNIT
    return tuple(spans)


@each_path
@settings(max_examples=25, deadline=None)
@given(
    spans=_spans(),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1), (3, 3)]),
    head_dim=st.sampled_from([6, 10, 64, 80, 128]),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_attention_equals_sdpa_and_rows_do_not_mix(
    path: str,
    spans: tuple[Span, ...],
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    num_heads, num_kv_heads = heads
    generator = torch.Generator().manual_seed(len(spans))
    num_tokens, end = spans[-1].first + spans[-1].num_tokens, spans[-1].slot_start + 704
    # Rows that are not contiguous, as in the backbone: keys and values lie beside the queries.
    wide = torch.randn(num_tokens, num_heads + 3, head_dim, generator=generator)
    kv = torch.randn(2, num_kv_heads, end, head_dim, generator=generator).to(dtype)
    backend, sdpa = NativeAttention(_kernels(path)), SdpaAttention()

    out = backend.attend(wide[:, :num_heads], kv, backend.arrange(spans, device=CPU))

    layout = sdpa.arrange(spans, device=CPU)
    order = torch.arange(num_tokens) if layout.order_T is None else layout.order_T
    expected = torch.empty_like(out)
    expected[order] = sdpa.attend(wide[:, :num_heads][order], kv.float(), layout)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-5)
    for span in spans:
        for offset in range(span.num_tokens):
            row = span.first + offset
            alone = Span(0, 1, span.slot_start, span.context - span.num_tokens + offset + 1)
            got = backend.attend(
                wide[row : row + 1, :num_heads], kv, backend.arrange([alone], device=CPU)
            )
            assert torch.equal(got[0], out[row])


@each_path
def test_fp16_weights_and_pool_round_as_torch_does(path: str) -> None:
    """Every kind of number: subnormal, halfway between two, saturated."""
    values = torch.tensor([1e-8, 3e-8, 6e-8, -5e-6, 6.1e-5, 0.1, 1.0004883, 2049.0, 65504.0, 7e4])
    linear = nn.Linear(1, len(values), bias=False)
    linear.weight.data = values[:, None]
    layer = NativeLinear(linear, format="fp16", native=_kernels(path))
    expected = values.clamp(max=65504.0).half().float()
    assert torch.equal(layer(torch.ones(1, 1))[0], expected)


def _guarded(values: torch.Tensor) -> torch.Tensor:
    """A copy whose last byte is the last one that may be read."""
    num_bytes, page = values.numel() * values.element_size(), mmap.PAGESIZE
    room = -(-num_bytes // page) * page
    memory = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + room), page, 0) == 0
    at_end = torch.frombuffer(
        memory, dtype=values.dtype, count=values.numel(), offset=room - num_bytes
    )
    return at_end.copy_(values.flatten()).view(values.shape)


@each_path
@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_products_read_no_byte_too_many(path: str, format: str) -> None:
    """A read beyond the arrays ends the process."""
    kernels = _kernels(path)
    for n, k in ((33, 5), (40, 100)):
        linear = _linear(n, k)
        weight = kernels.pack(linear.weight, linear.bias, format=format)
        packed, scale_N, bias_N = map(_guarded, weight._tensors)
        guarded = native.PackedWeight(packed, scale_N, bias_N, n=n, k=k, code=weight.struct.format)
        for rows in (1, 5, 40):
            x = torch.randn(rows, k)
            assert torch.equal(kernels.linear(guarded, _guarded(x)), kernels.linear(weight, x))


@each_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_attention_reads_no_byte_too_many(path: str, dtype: torch.dtype) -> None:
    backend = NativeAttention(_kernels(path))
    for head_dim in (6, 10, 64):
        kv = torch.randn(2, 2, 9, head_dim).to(dtype)
        q = torch.randn(6, 2, head_dim)
        layout = backend.arrange([Span(0, 6, 0, 9)], device=CPU)
        out = backend.attend(_guarded(q), _guarded(kv), layout)
        assert torch.equal(out, backend.attend(q, kv, layout))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_no_bit_depends_on_the_number_of_threads(num_threads: int) -> None:
    x, before = torch.randn(20, 100), torch.get_num_threads()
    kv, q = torch.randn(2, 2, 32, 10).half(), torch.randn(7, 4, 10)
    backend = NativeAttention(_kernels(PATHS[0]))
    layout = backend.arrange([Span(0, 7, 0, 30)], device=CPU)
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            for format in ("fp16", "int8"):
                layer = NativeLinear(_linear(200, 100), format=format, native=_kernels(PATHS[0]))
                results.append(layer(x))
            results.append(backend.attend(q, kv, layout))
    finally:
        torch.set_num_threads(before)
    for one, several in zip(results[:3], results[3:], strict=True):
        assert torch.equal(one, several)


def test_engines_of_one_process_compute_side_by_side() -> None:
    """Nothing is kept between calls: threads with other weights and other instruction sets do not
    meet."""
    x = torch.randn(5, 100)
    layers = [
        NativeLinear(_linear(200 + index, 100), format=format, native=_kernels(path))
        for index, path in enumerate(PATHS)
        for format in ("fp16", "int8")
    ]
    expected = [layer(x) for layer in layers]

    def compute(index: int) -> bool:
        return all(torch.equal(layers[index](x), expected[index]) for _ in range(50))

    with ThreadPoolExecutor(len(layers)) as pool:
        assert all(pool.map(compute, range(len(layers))))


def test_without_the_library_formats_are_plain_torch() -> None:
    module = nn.Sequential(_linear(4, 6), nn.Sequential(_linear(6, 4)))
    convert_linears(module, format="int8", native=None)
    assert [type(module[0]), type(module[1][0])] == [Int8Linear, Int8Linear]
