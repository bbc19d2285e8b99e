"""Steps that the device runs ahead of the host: pictures whose next code needs no decision.

Owns the rule which steps may run ahead, and the way of their codes to the host; `execution.py`
decides when. The host launches step `k + 1` before it reads the codes of step `k`, which it then
reports while the device works:

    device   | step 0 | step 1 | step 2 | ...         a code feeds the next step on the device
    host       plan 0   read 0   read 1               launches one step more than it has read

Text does not run ahead: whether an answer goes on is known only once its word was read.

Invariant: a step that was launched computes what a plan made for it would have asked for, or its
result is dropped: it writes beyond what is computed of its sequences, where nothing reads.

Shape suffix: I pictures.
"""

from collections import deque
from collections.abc import Callable

import torch

from janus_core.engine.batch import Batch
from janus_core.engine.events import SampledToken
from janus_core.engine.graphs import MAX_AHEAD, Picture
from janus_core.engine.plan import Sample, StepPlan
from janus_core.engine.request import ImageRequest
from janus_core.engine.sequence import RequestState
from janus_core.ops.sampling import needs_history

Step = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Launches the next step; codes int64 and finiteness, `[I]` each, valid until the next call."""


class Flight:
    """Steps of the same pictures, of which each is launched once and read once, in order.

    `num_codes` is how many codes a picture has.
    """

    def __init__(self, states: list[RequestState], step: Step, *, num_codes: int) -> None:
        self._states = states
        self._step = step
        self._num_codes = num_codes
        self._num_launched = 0
        self._pending: deque[CodeCopy] = deque()

    @property
    def num_pending(self) -> int:
        """Steps launched and not read."""
        return len(self._pending)

    @property
    def may_launch(self) -> bool:
        """Whether every picture draws one more code after those that are pending."""
        return self._num_launched < MAX_AHEAD and all(map(self._goes_on, self._states))

    def launch(self) -> None:
        """Start the next step; returns at once."""
        codes_I, finite_I = self._step()
        self._pending.append(CodeCopy(codes_I, finite_I))
        self._num_launched += 1

    def read(self) -> list[Sample]:
        """Wait for the oldest pending step. Requests that have ended meanwhile are left out."""
        codes, finite = self._pending.popleft().wait()
        return [
            Sample(state, SampledToken(code), is_finite)
            for state, code, is_finite in zip(self._states, codes, finite, strict=True)
            if state.is_running
        ]

    def _goes_on(self, state: RequestState) -> bool:
        place = state.num_output + self.num_pending
        request = state.request
        assert isinstance(request, ImageRequest)
        # A code that the request forces is not drawn, and the host knows it.
        is_forced = request.forced_codes[place : place + 1] not in ((), (None,))
        return place < self._num_codes and not is_forced


class CodeCopy:
    """Codes and finiteness on their way to the host."""

    def __init__(self, codes_I: torch.Tensor, finite_I: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if codes_I.device.type != "cuda":
            self._codes_I, self._finite_I = codes_I.clone(), finite_I.clone()
            return
        # Ordered behind the step and before the next one, which overwrites what is copied.
        self._codes_I, self._finite_I = _pinned(codes_I), _pinned(finite_I)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> tuple[list[int], list[bool]]:
        """Both, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._codes_I.tolist(), self._finite_I.tolist()


def _pinned(values: torch.Tensor) -> torch.Tensor:
    """A copy in memory of the host that the device writes by itself."""
    target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return target.copy_(values, non_blocking=True)


def can_run_ahead(plan: StepPlan) -> bool:
    """Whether a plan draws codes of plain pictures and does nothing else."""
    return (
        bool(plan.sampling)
        and not plan.copies
        and not plan.encodes
        and plan.num_decoding == len(plan.sampling)
        and not plan.num_prefill_tokens
        and all(map(is_plain, plan.sampling))
    )


def is_plain(state: RequestState) -> bool:
    """Whether nothing but guidance, temperature and noise decides a picture's codes."""
    request, params = state.request, state.request.sampling
    has_filter = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
    is_edited = needs_history(params) or bool(params.logit_bias)
    return isinstance(request, ImageRequest) and not (
        has_filter or is_edited or request.code_logprobs
    )


def pictures_of(batch: Batch) -> list[Picture]:
    """What the graphs need to know of every picture, in the batch's order.

    `batch` is on the CPU: nothing here waits for a device.
    """
    pairs = zip(batch.cond_rows_I.tolist(), batch.uncond_rows_I.tolist(), strict=True)
    rows = [*pairs, *((row, row) for row in batch.solo_rows_J.tolist())]
    return [
        Picture(
            cond_row=cond_row,
            uncond_row=uncond_row,
            guidance=guidance_of(state),
            temperature=state.request.sampling.temperature,
            seed=state.request.sampling.seed,
            place=state.num_output,
        )
        for (cond_row, uncond_row), state in zip(rows, batch.images, strict=True)
    ]


def guidance_of(state: RequestState) -> float:
    """The scale of a picture's guidance."""
    request = state.request
    assert isinstance(request, ImageRequest), "only pictures are guided"
    return request.guidance
