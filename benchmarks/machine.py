"""What a report has to say about where it was made.

Owns that list; measures nothing. Ratios differ between instruction sets (a processor with bf16
products helps the bf16 side, one without VNNI makes int8 dearer), so the flags that matter are part
of every report, and so are the variables by which libraries are told to use fewer.
"""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip

VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME",
    "GOMP_CPU_AFFINITY", "LD_PRELOAD", "MALLOC_ARENA_MAX",
)  # fmt: skip
"""And every variable that begins with JANUS_."""

AVX2_ONLY = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Variables by which every library that is compared here leaves out what is newer than AVX2; they
are read when torch is loaded."""

PACKAGES = ("janus-serve", "torch", "transformers", "numpy")


def describe() -> dict[str, object]:
    """Processor, instruction sets, memory, versions, variables and the load at this moment."""
    names, flags = _cpuinfo()
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    variables |= {name: value for name, value in os.environ.items() if name.startswith("JANUS_")}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "environment": variables,
    }


def is_avx2_only() -> bool:
    """Whether this process was started with `AVX2_ONLY`."""
    return all(os.environ.get(name) == value for name, value in AVX2_ONLY.items())


def _cpuinfo() -> tuple[list[str], set[str]]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = [(name.strip(), value.strip()) for name, _, value in (x.partition(":") for x in lines)]
    names = [value for name, value in pairs if name == "model name"]
    flags = next((value for name, value in pairs if name in ("flags", "Features")), "")
    return names, set(flags.split())
