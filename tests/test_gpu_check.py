"""`make gpu-check` where there is no GPU: it says so, and every line of it can be rehearsed."""

import sys

import pytest
import torch

from benchmarks import gpu_check, gpu_kernels, gpu_options, gpu_steps
from benchmarks.gpu_report import Check
from janus_core.ops.cuda.eager_ops import EagerOps


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    return gpu_check.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch) == gpu_check.NO_GPU
    assert capsys.readouterr().out.startswith("No CUDA device was found")


def test_rehearsal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_check, "ROWS", (1, 3))
    monkeypatch.setattr(gpu_kernels, "ROWS", (1, 3))
    monkeypatch.setattr(gpu_steps, "CONTEXTS", (20,))
    monkeypatch.setattr(gpu_options, "STEP_ROWS", (2,))
    assert _main(monkeypatch, "--rehearse") == 0
    report = capsys.readouterr().out
    assert "| graph against SDPA, torch.float32, 3 rows |" in report
    for name in ("norm and residual", "rotation and cache write", "SiLU", "draw"):
        assert f"| {name}, torch.bfloat16 |" in report
    assert "| waits of the host within steps | 0.00e+00 |" in report
    assert "| VQ decoding, 8 pictures |" in report
    assert "| VQ decoding, 8 pictures, channels last |" in report
    assert "| 2 pictures in flight |" in report
    assert report.count("not judged: a rehearsal") == 3
    assert "| kv_format fp8 against bfloat16 |" in report
    assert "| weight_format int4 | | | not here: " in report
    assert "| while the next one runs |" in report
    assert "FAILED" not in report


class Wrong(EagerOps):
    """One operation is one part in a thousand too large, or draws the next code."""

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def __getattribute__(self, name: str):
        value = super().__getattribute__(name)
        if name != super().__getattribute__("_operation"):
            return value

        def wrong(*args, **kwargs):
            result = value(*args, **kwargs)
            if name == "draw":
                return (result[0] + 1) % args[0].shape[1], result[1]
            return result * 1.001

        return wrong


@pytest.mark.parametrize(
    ("operation", "num_failed"),
    [
        # In fp32; bf16 cannot tell.
        ("attend", 1),
        ("add_rms_norm", 1),
        ("rotate_and_store", 1),
        ("silu_multiply", 1),
        ("gelu_and_guide", 1),
        ("draw", 2),
    ],
)
def test_a_wrong_kernel_is_found(
    monkeypatch: pytest.MonkeyPatch, operation: str, num_failed: int
) -> None:
    monkeypatch.setattr(gpu_kernels, "ROWS", (3,))
    check = Check(torch.device("cpu"), Wrong(operation), is_rehearsal=True)
    gpu_kernels.check_kernels(check)
    assert check.num_failed == num_failed
    if operation == "draw":
        gpu_kernels.check_model_draw(check)
        assert check.num_failed == num_failed + 1


def test_bars_are_judged_on_the_card_they_are_for() -> None:
    check = Check(torch.device("cpu"), EagerOps(), is_rehearsal=False, card="NVIDIA H100")
    check.bar("of another card", 9.0, at_most=1.0, card="H200")
    assert check.num_failed == 0
    check.bar("of any card", 0.5, at_least=0.6)
    check.bar("too slow", 0.7, at_most=0.6, card="H100")
    check.bar("no number", float("nan"), at_least=0.6)
    check.bar("met", 0.6, at_least=0.6)
    assert check.num_failed == 3
    check.say_bars()
    verdicts = [line.split(" | ")[-1].removesuffix(" |") for line in check.lines[-5:]]
    assert verdicts == ["not judged: for H200", *["**MISSED**"] * 3, "met"]


def test_a_part_that_raises_does_not_keep_the_others_from_the_report(tmp_path) -> None:
    """And each line is written as it is said."""

    def broken() -> None:
        raise RuntimeError("no such kernel")

    path = tmp_path / "report.md"
    with path.open("w", encoding="utf-8") as file:
        check = Check(torch.device("cpu"), EagerOps(), is_rehearsal=True, output=file)
        check.part("first", broken)
        check.part("second", lambda: check.say("went on"))
        assert "first: RuntimeError: no such kernel" in path.read_text("utf-8")
        assert "went on" in path.read_text("utf-8")
    assert check.num_failed == 1
