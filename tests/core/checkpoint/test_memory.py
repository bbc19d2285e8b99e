"""Loading needs the memory of the network and little more."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.original_layout import save_original
from tests.tiny import TinyShape, save_tiny_checkpoint

# ru_maxrss of a process started by fork is that of its parent if larger; VmHWM is its own.
LOAD = """
import sys
from pathlib import Path
import torch
from janus_core.checkpoint import load_model

def read_kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

torch.set_num_threads(1)
Path("/proc/self/clear_refs").write_text("5")  # restart VmHWM
before = read_kib("VmRSS")
model = load_model(Path(sys.argv[1]), device=torch.device("cpu"), dtype=getattr(torch, sys.argv[2]))
print((read_kib("VmHWM") - before) * 1024)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 240 MB of fp32 weights in both layouts and both formats."""
    shape = TinyShape(
        width=768, num_layers=8, num_heads=12, num_kv_heads=12, head_dim=64, mlp_width=2048,
        vision_width=256, codebook_size=4096,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("large")
    transformers = save_tiny_checkpoint(root / "transformers", shape)
    return {
        "safetensors": transformers,
        "bin": save_original(transformers, root / "bin", binary=True),
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("dtype", "share"), [("float32", 1.0), ("bfloat16", 0.5)])
@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_peak_memory_is_the_network_and_a_sixth_of_the_files(
    checkpoints: dict[str, Path], file_format: str, dtype: str, share: float
) -> None:
    directory = checkpoints[file_format]
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(directory), dtype],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    peak = int(result.stdout)
    files = sum(file.stat().st_size for file in directory.iterdir())
    fixed = (
        40e6  # operators' code, tables and the allocator's reserve: does not grow with the model
    )
    assert share * files * 0.9 < peak < (share + 1 / 6) * files + fixed
