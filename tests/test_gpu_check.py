"""`make gpu-check` where there is no GPU: it says so, and every line of it can be rehearsed."""

import sys

import pytest
import torch

from benchmarks import gpu_check, gpu_options


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
    monkeypatch.setattr(gpu_check, "CONTEXTS", (20,))
    monkeypatch.setattr(gpu_options, "STEP_ROWS", (2,))
    assert _main(monkeypatch, "--rehearse") == 0
    report = capsys.readouterr().out
    assert "| graph against SDPA, torch.float32, 3 rows |" in report
    assert "| VQ decoding, 8 pictures |" in report
    assert "| kv_format fp8 against bfloat16 |" in report
    assert "| weight_format int4 | | | not here: " in report
    assert "| while the next one runs |" in report
    assert "FAILED" not in report


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that is one part in a thousand too large."""
    monkeypatch.setattr(gpu_check, "ROWS", (3,))
    monkeypatch.setattr(gpu_check, "CONTEXTS", (20,))
    right = gpu_check.EagerOps.attend

    class Wrong(gpu_check.EagerOps):
        def attend(self, q_RNH, kv_2KPH, rows):
            return right(self, q_RNH, kv_2KPH, rows) * 1.001

    check = gpu_check.Check(torch.device("cpu"), Wrong(), is_rehearsal=True)
    gpu_check.check_kernels(check)
    assert check.num_failed == 1, "in fp32; bf16 cannot tell"
