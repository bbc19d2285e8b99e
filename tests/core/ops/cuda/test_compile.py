"""Every kernel compiles for its device: an interpreter takes more than ptxas does."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: make test-kernels installs it.")

ROOT = Path(__file__).parents[4]


def _kernels() -> set[str]:
    """The kernels that are launched: those that other kernels call begin with an underscore."""
    source = (ROOT / "janus_core" / "ops" / "cuda" / "kernels.py").read_text("utf-8")
    functions = [each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef)]
    return {each.name for each in functions if not each.name.startswith("_")}


def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """With a cache of its own, so that it really does. Nothing is launched: no GPU is needed."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.ops.cuda.compile_kernels"],
        cwd=ROOT,
        env={**variables, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compiled = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.partition(", ")
        label, _, size = rest.partition(": ")
        assert int(size) > 1000
        compiled.setdefault(name, set()).add(label)
    assert compiled == {name: {"bf16", "fp32", "bf16 over fp8"} for name in _kernels()}
