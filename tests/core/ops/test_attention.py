"""Attention over slots against a slow twin, and the grouping of spans."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_core.engine.settings import SLOT_UNIT
from janus_core.engine.slots import round_up
from janus_core.models.inputs import Span
from janus_core.ops.attention import sdpa
from janus_core.ops.attention.sdpa import SdpaAttention

CPU = torch.device("cpu")
SDPA = SdpaAttention()
SLOT = 32


def _twin(q_TNH: torch.Tensor, kv_2KPH: torch.Tensor, spans: tuple[Span, ...]) -> torch.Tensor:
    """One token and one head at a time, in fp64."""
    out = torch.zeros_like(q_TNH, dtype=torch.float64)
    _, num_heads, head_dim = q_TNH.shape
    group = num_heads // kv_2KPH.shape[1]
    for span in spans:
        for offset in range(span.num_tokens):
            seen = span.context - span.num_tokens + offset + 1
            places = slice(span.slot_start, span.slot_start + seen)
            for head in range(num_heads):
                keys, values = kv_2KPH[:, head // group, places].double().unbind(0)
                scores = keys @ q_TNH[span.first + offset, head].double() / head_dim**0.5
                out[span.first + offset, head] = scores.softmax(0) @ values
    return out


@st.composite
def _spans(draw: st.DrawFn) -> tuple[Span, ...]:
    slots = draw(st.permutations(range(8)))
    spans: list[Span] = []
    first = 0
    for slot in slots[: draw(st.integers(1, 8))]:
        context = draw(st.sampled_from([1, 2, 9, 9, 30]))
        num_tokens = draw(st.sampled_from(sorted({1, min(3, context), context})))
        spans.append(Span(first, num_tokens, slot * SLOT, context))
        first += num_tokens
    return tuple(spans)


@settings(max_examples=60, deadline=None)
@given(spans=_spans(), num_kv_heads=st.sampled_from([1, 2, 4]))
def test_equals_the_slow_twin(spans: tuple[Span, ...], num_kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(len(spans))
    num_tokens = sum(span.num_tokens for span in spans)
    q_TNH = torch.randn(num_tokens, 4, 10, generator=generator)
    kv_2KPH = torch.randn(2, num_kv_heads, 8 * SLOT, 10, generator=generator)

    layout = SDPA.arrange(spans, device=CPU)
    order = torch.arange(num_tokens) if layout.order_T is None else layout.order_T
    out_TNH = torch.empty_like(q_TNH)
    out_TNH[order] = SDPA.attend(q_TNH[order], kv_2KPH, layout)

    assert sorted(order.tolist()) == list(range(num_tokens))
    torch.testing.assert_close(out_TNH.double(), _twin(q_TNH, kv_2KPH, spans), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("spans", "num_calls"),
    [
        ([(0, 1, 0, 9), (1, 1, 64, 9)], 1),  # the pair of a guided image
        ([(0, 1, 0, 9), (1, 1, 64, 10)], 1),  # decoding, near each other
        ([(0, 1, 0, 9), (1, 1, 64, 33)], 2),
        ([(0, 5, 0, 9), (5, 5, 64, 10)], 2),
        ([(i, 1, 32 * i, 9) for i in range(8)], 1),  # four images of one prompt
        ([(0, 1, 0, 9), (1, 1, 32, 9), (2, 1, 96, 9), (3, 1, 160, 9)], 2),
        ([(0, 5, 0, 5), (5, 5, 64, 5)], 1),  # their prefill
    ],
)
def test_equal_contexts_share_a_call(
    spans: list[tuple[int, int, int, int]], num_calls: int
) -> None:
    layout = SDPA.arrange([Span(*span) for span in spans], device=CPU)
    assert len(layout.groups) == num_calls
    assert layout.order_T is None


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_no_bit_of_a_decoded_row_depends_on_the_others(head_dim: int) -> None:
    """Alone, and in one call with rows of other contexts that read as far ahead, or further."""
    generator = torch.Generator().manual_seed(head_dim)
    contexts = [1, 7, 16, 31, 32, 33, 40, 63, 64, 65, 96, 100, 200, 511, 512, 513, 600, 601]
    q_TNH = torch.randn(len(contexts), 4, head_dim, generator=generator)
    kv_2KPH = torch.randn(2, 4, len(contexts) * 640, head_dim, generator=generator)
    spans = [Span(i, 1, i * 640, context) for i, context in enumerate(contexts)]

    layout = SDPA.arrange(spans, device=CPU)
    order = torch.arange(len(spans)) if layout.order_T is None else layout.order_T
    together = torch.empty_like(q_TNH)
    together[order] = SDPA.attend(q_TNH[order], kv_2KPH, layout)

    assert len(layout.groups) < len(spans)
    for i, span in enumerate(spans):
        alone = SDPA.arrange([Span(0, 1, span.slot_start, span.context)], device=CPU)
        assert torch.equal(SDPA.attend(q_TNH[i : i + 1], kv_2KPH, alone)[0], together[i])


def test_reading_ahead_stays_in_the_slot() -> None:
    """Room is whole units of the engine's slots; attention must not read beyond them."""
    for context in range(1, 4 * SLOT_UNIT):
        spans = [Span(0, 1, 0, context), Span(1, 1, round_up(context), context)]
        (group,) = SDPA.arrange(spans, device=CPU).groups
        assert context <= group.num_read <= round_up(context)


def test_tables_of_a_layout_are_uploaded_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host would wait for the device, it takes the way that all tables take."""
    uploaded = []

    def upload_list(values, device):
        uploaded.append(list(values))
        return torch.tensor(values, device=device)

    monkeypatch.setattr(sdpa, "upload_list", upload_list)
    spans = (Span(0, 1, 64, 20), Span(1, 1, 0, 9), Span(2, 2, 128, 7))
    SdpaAttention().arrange(spans, device=torch.device("cpu"))
    assert uploaded == [[9, 20], [1, 0, 2, 3]], "contexts of a group, and the order of all rows"
