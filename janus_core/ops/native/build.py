"""Compiles the kernels when the package is installed: a build hook of hatchling.

Owns the compiler's command line; never imported by the product. Invariant: an installation never
fails for want of a compiler, and never leaves a library of other sources behind. Without a
compiler, or where it cannot compile these sources, the package runs on plain torch and `janus
doctor` says so.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("api.cpp", "scalar.cpp", "avx2.cpp", "avx512.cpp")
LIBRARY = "_kernels.so"
# Contraction is off because quantised values are promised bit by bit, as torch computes them.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-Wall"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-uninitialized"),
)


class CompileKernels(BuildHookInterface[Any]):
    """Runs before a wheel is packed, also for an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile into the source tree, and take the library along into the wheel."""
        folder = Path(self.root) / "janus_core" / "ops" / "native"
        problem = compile_kernels(folder)
        if problem:
            self.app.display_warning(f"The C++ kernels were not built: {problem}")
            return
        build_data["artifacts"].append(f"/janus_core/ops/native/{LIBRARY}")
        build_data["pure_python"] = False
        # Bound to the platform, but not to a Python: it is loaded through ctypes.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


def compile_kernels(folder: Path) -> str | None:
    """Compile the sources in `folder` to `LIBRARY` beside them; returns what went wrong, and then
    there is no library."""
    # In two steps: a library that is in use must not change under its readers.
    target, fresh = folder / LIBRARY, folder / f"{LIBRARY}.{os.getpid()}"
    problem = _compile(folder, fresh)
    if problem:
        fresh.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    else:
        fresh.replace(target)
    return problem


def _compile(folder: Path, target: Path) -> str | None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return "there is no C++ compiler (g++)."
    if not sys.platform.startswith("linux"):
        return f"they are written for Linux, and this is {sys.platform}."
    # CXX may be several words, such as `ccache g++`.
    command = [*shlex.split(compiler), *FLAGS, *SOURCES, "-o", str(target)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{compiler}: {error.strerror}."
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return f"{compiler}: {next((line for line in lines if 'error' in line), lines[-1])}"
    return None
