"""Faults inside a step: whose they are, who survives them, and when the engine gives up."""

import math
from collections.abc import Callable

import pytest
import torch

from janus_core.engine.engine import Engine
from janus_core.engine.events import Failed, Finished
from janus_core.engine.execution import MAX_LOST_STEPS
from janus_core.engine.faults import Fault, error_of, fault_of
from janus_core.engine.plan import StepPlan
from janus_core.engine.request import SamplingParams
from janus_core.engine.text_output import TextOutput
from janus_core.errors import EngineDeadError, StepError, TransientStepError
from tests.core.engine.support import Log, Requests, finish, run

CPU_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 40960000000 bytes. Error code 12 (Cannot allocate memory)"
)
ASSERT = "CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ValueError("out of luck"), Fault.REQUEST),
        (RuntimeError("shape '[3]' is invalid"), Fault.REQUEST),
        (AssertionError(), Fault.REQUEST),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), Fault.MEMORY),
        (MemoryError(), Fault.MEMORY),
        (RuntimeError(CPU_MEMORY), Fault.MEMORY),
        (RuntimeError("CUDA error: out of memory"), Fault.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), Fault.MEMORY),
        (caused(ValueError("x"), MemoryError()), Fault.MEMORY),
        (RuntimeError(ASSERT), Fault.DEVICE),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Fault.DEVICE),
        (RuntimeError("CUDA error: unspecified launch failure"), Fault.DEVICE),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was"), Fault.DEVICE),
        (caused(ValueError("x"), RuntimeError(ASSERT)), Fault.DEVICE),
        (RuntimeError("CUDA error: invalid argument"), Fault.REQUEST),
        # What a client wrote and somebody quotes is no word of the device.
        (KeyError("CUDA error: an illegal memory access was encountered"), Fault.REQUEST),
        (RuntimeError("no such token: illegal memory access"), Fault.REQUEST),
    ],
)
def test_what_an_exception_says(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


def test_what_may_succeed_later_and_what_may_not() -> None:
    assert isinstance(error_of(Fault.MEMORY), TransientStepError)
    for fault in (Fault.REQUEST, Fault.NUMBERS):
        assert not isinstance(error_of(fault), TransientStepError)


Break = Callable[[StepPlan], None]


def broken(engine: Engine, fault: Break) -> list[int]:
    """Call `fault` before every pass; returns how many requests each pass had, as it grows."""
    passes: list[int] = []
    compute = engine._runner.run

    def run_or_raise(plan: StepPlan) -> list:
        passes.append(len(plan.states()))
        fault(plan)
        return compute(plan)

    engine._runner.run = run_or_raise
    return passes


def whenever(request_id: str, error: Exception) -> Break:
    def fault(plan: StepPlan) -> None:
        if any(state.id == request_id for state in plan.states()):
            raise type(error)(*error.args)

    return fault


def once(error: Exception, *, at: int) -> Break:
    """Raise in pass number `at`, whoever is in it."""
    left = [at]

    def fault(_: StepPlan) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error

    return fault


def not_a_number(engine: Engine, spoilt: Callable[[StepPlan, list], list[int]]) -> None:
    """Make the hidden vectors of the rows that `spoilt(plan, sampling)` names no numbers."""
    forward = engine._runner._forward

    def forward_or_spoil(plan: StepPlan):
        batch, pictures, hidden_TD = forward(plan)
        rows = spoilt(plan, [*batch.texts, *batch.images])
        if rows:
            hidden_TD = hidden_TD.clone()
            hidden_TD[rows] = math.nan
        return batch, pictures, hidden_TD

    engine._runner._forward = forward_or_spoil


def full_batch(requests_for: Requests, num: int) -> list:
    """As many requests of all kinds, which all run at once."""
    requests = []
    for number in range(num):
        sampling = SamplingParams(seed=number, temperature=0.8)
        if number % 3 == 0:
            requests.append(requests_for.image(f"r{number}", "a star", sampling=sampling))
        else:
            prompt = f"question {number}"
            images = (number,) if number % 3 == 1 else ()
            requests.append(
                requests_for.text(
                    f"r{number}", prompt, images=images, sampling=sampling, max_tokens=12
                )
            )
    return requests


def said(log: Log) -> dict[str, tuple]:
    """All that is known of how requests ended, the failed ones' errors by class."""
    return {
        request_id: (type(outcome.end.error),)
        if isinstance(outcome.end, Failed)
        else (outcome.ids, outcome.text, outcome.end.codes, picture_of(outcome.end))
        for request_id, outcome in log.outcomes.items()
    }


def picture_of(end: Finished) -> bytes | None:
    return None if end.pixels is None else end.pixels.tobytes()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("out of luck"), StepError),
        (torch.OutOfMemoryError("CUDA out of memory."), TransientStepError),
        (RuntimeError(CPU_MEMORY), TransientStepError),
    ],
)
@pytest.mark.parametrize("culprit", ["r0", "r7", "r15"])
def test_only_the_culprit_of_a_full_batch_fails(
    requests_for: Requests, error: Exception, kind: type, culprit: str
) -> None:
    requests = full_batch(requests_for, 16)
    expected = said(run(requests_for.engine(encodes_per_step=16, prefix_cache=False), *requests))
    engine = requests_for.engine(encodes_per_step=16, prefix_cache=False)
    passes = broken(engine, whenever(culprit, error))
    log = run(engine, *requests)
    assert said(log) == expected | {culprit: (kind,)}
    assert passes[0] == 16
    # The whole, both halves at each of four levels, and the steps after it without the culprit.
    until_found = passes.index(15)
    assert until_found <= 1 + 2 * 4
    assert engine.stats().num_failed_steps == 1


@pytest.mark.parametrize("at", [1, 2, 7])
@pytest.mark.parametrize(
    "error", [RuntimeError("a hiccup"), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_a_fault_that_does_not_repeat_fails_nobody(
    requests_for: Requests, error: Exception, at: int
) -> None:
    requests = full_batch(requests_for, 9)
    expected = said(run(requests_for.engine(), *requests))
    engine = requests_for.engine()
    broken(engine, once(error, at=at))
    assert said(run(engine, *requests)) == expected
    assert engine.stats().num_failed_steps == 1


def test_every_culprit_is_found(requests_for: Requests) -> None:
    requests = full_batch(requests_for, 12)
    expected = said(run(requests_for.engine(), *requests))
    engine = requests_for.engine()
    guilty = {"r1", "r2", "r6", "r11"}

    def fault(plan: StepPlan) -> None:
        if any(state.id in guilty for state in plan.states()):
            raise ValueError("out of luck")

    broken(engine, fault)
    assert said(run(engine, *requests)) == expected | dict.fromkeys(guilty, (StepError,))


def test_memory_is_freed_before_the_next_attempt(requests_for: Requests) -> None:
    """What fits once the embeddings of old images are gone is computed, and nobody fails."""
    engine = requests_for.engine(prefix_cache=False)
    old = run(engine, requests_for.text("old", images=(1,)))
    assert engine.stats().vision_cache_bytes > 0

    def fault(_: StepPlan) -> None:
        if engine.stats().vision_cache_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    broken(engine, fault)
    new = run(engine, requests_for.text("new"))
    assert isinstance(new["new"].end, Finished)
    assert engine.stats().vision_cache_bytes == 0
    engine._runner.run = type(engine._runner).run.__get__(engine._runner)
    assert run(engine, requests_for.text("old", images=(1,)))["old"].ids == old["old"].ids


def test_no_number_in_one_row_fails_that_request_after_one_more_pass(
    requests_for: Requests,
) -> None:
    requests = full_batch(requests_for, 9)
    expected = said(run(requests_for.engine(), *requests))
    engine = requests_for.engine()
    passes = broken(engine, lambda _: None)

    def spoilt(plan: StepPlan, _: list) -> list[int]:
        first, rows = 0, []
        for chunk in plan.chunks:
            if chunk.state.id == "r4" and chunk.state.num_output == 3:
                rows += range(first, first + chunk.num_tokens)
            first += chunk.num_tokens
        return rows

    not_a_number(engine, spoilt)
    log = run(engine, *requests)
    assert said(log) == expected | {"r4": (StepError,)}
    assert passes.count(1) >= 1
    assert engine.stats().num_failed_steps == 1


def test_a_request_that_spoils_all_rows_fails_alone(requests_for: Requests) -> None:
    requests = full_batch(requests_for, 9)
    expected = said(run(requests_for.engine(), *requests))
    engine = requests_for.engine()

    def spoilt(plan: StepPlan, _: list) -> list[int]:
        guilty = any(state.id == "r5" for state in plan.states())
        return list(range(sum(chunk.num_tokens for chunk in plan.chunks))) if guilty else []

    not_a_number(engine, spoilt)
    assert said(run(engine, *requests)) == expected | {"r5": (StepError,)}


def test_no_number_once_fails_nobody(requests_for: Requests) -> None:
    requests = full_batch(requests_for, 9)
    expected = said(run(requests_for.engine(), *requests))
    engine, left = requests_for.engine(), [4]

    def spoilt(plan: StepPlan, _: list) -> list[int]:
        left[0] -= 1
        return list(range(sum(chunk.num_tokens for chunk in plan.chunks))) if not left[0] else []

    not_a_number(engine, spoilt)
    assert said(run(engine, *requests)) == expected


def test_embeddings_that_are_no_numbers_are_not_remembered(requests_for: Requests) -> None:
    """The second one who asks about the image gets an answer."""
    expected = run(requests_for.engine(), requests_for.text("b", images=(3,)))
    engine, model, left = requests_for.engine(), requests_for.model, [2]
    encode = model.encode_images

    def spoilt(pixels):
        left[0] -= 1
        return encode(pixels) * (math.nan if left[0] >= 0 else 1.0)

    model.encode_images = spoilt
    try:
        first = run(engine, requests_for.text("a", images=(3,)))
        second = run(engine, requests_for.text("b", images=(3,)))
    finally:
        del model.encode_images  # the class's shows again
    assert isinstance(first["a"].end.error, StepError)
    assert second["b"].ids == expected["b"].ids


def test_an_image_that_cannot_be_encoded_concerns_its_request(requests_for: Requests) -> None:
    requests = [requests_for.text("good"), requests_for.image("picture")]
    expected = said(run(requests_for.engine(), *requests))
    model = requests_for.model
    model.encode_images = lambda _: (_ for _ in ()).throw(RuntimeError("no such image"))
    try:
        log = run(requests_for.engine(), *requests, requests_for.text("bad", images=(9,)))
    finally:
        del model.encode_images  # the class's shows again
    assert said(log) == expected | {"bad": (StepError,)}


@pytest.mark.parametrize("num_failures", [1, 2])
def test_pixels_get_a_second_attempt(requests_for: Requests, num_failures: int) -> None:
    model, left = requests_for.model, [num_failures]
    expected = said(run(requests_for.engine(), requests_for.image("i")))
    decode = model.decode_codes

    def fail(codes):
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(codes)

    model.decode_codes = fail
    try:
        log = run(requests_for.engine(), requests_for.image("i"))
    finally:
        del model.decode_codes  # the class's shows again
    assert said(log) == (expected if num_failures == 1 else {"i": (TransientStepError,)})


def test_what_is_said_of_a_word_is_its_requests_alone(
    requests_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = full_batch(requests_for, 6)
    expected = said(run(requests_for.engine(), *requests))
    engine, push = requests_for.engine(), TextOutput.push

    def push_or_raise(self, token):
        if self is engine._outputs.get("r2"):
            raise UnicodeError("no such character")
        return push(self, token)

    monkeypatch.setattr(TextOutput, "push", push_or_raise)
    assert said(run(engine, *requests)) == expected | {"r2": (StepError,)}


@pytest.mark.parametrize("where", ["step", "pixels"])
def test_a_lost_device_is_the_end(requests_for: Requests, where: str) -> None:
    engine, model = requests_for.engine(), requests_for.model
    engine.submit(requests_for.image("i"))
    lost = RuntimeError("CUDA error: device-side assert triggered")
    if where == "step":
        passes = broken(engine, lambda _: (_ for _ in ()).throw(lost))
    else:
        model.decode_codes = lambda _: (_ for _ in ()).throw(lost)
    try:
        with pytest.raises(EngineDeadError):
            finish(engine)
    finally:
        model.__dict__.pop("decode_codes", None)  # the class's shows again
    if where == "step":
        assert passes == [1], "nothing is repeated on a device that is lost"


def test_however_many_poison_requests_come_the_engine_goes_on(requests_for: Requests) -> None:
    engine = requests_for.engine()
    expected = run(engine, requests_for.text("good"))["good"].ids

    def fault(plan: StepPlan) -> None:
        if any(state.id.startswith("poison") for state in plan.states()):
            raise ValueError("out of luck")

    broken(engine, fault)
    for number in range(3 * MAX_LOST_STEPS):
        log = run(engine, requests_for.text(f"poison{number}"))
        assert type(log[f"poison{number}"].end.error) is StepError
    assert run(engine, requests_for.text("good"))["good"].ids == expected


def test_where_nothing_can_be_computed_nobody_is_blamed(requests_for: Requests) -> None:
    """A retry may find the machine in order, or another one."""
    engine = requests_for.engine()
    broken(engine, lambda _: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    log = run(engine, requests_for.text("t"), requests_for.image("i"))
    assert said(log) == dict.fromkeys("ti", (TransientStepError,))


def test_the_probe_leaves_no_trace(requests_for: Requests) -> None:
    engine = requests_for.engine()
    run(engine, requests_for.text("t"), requests_for.image("i"))
    pool, before = engine._runner._kv, [layer.clone() for layer in engine._runner._kv.layers]
    broken(engine, whenever("bad", ValueError("out of luck")))
    stats = engine.stats()
    run(engine, requests_for.text("bad"))
    for layer, old in zip(pool.layers, before, strict=True):
        changed = (layer != old).any(dim=3).any(dim=0).any(dim=0).nonzero().flatten()
        assert (changed >= stats.kv_positions).all(), "only the spare slot was written"
    assert engine.stats().num_running == 0
