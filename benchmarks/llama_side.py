"""llama.cpp as a side of the comparison, in an environment of its own.

Owns that environment, the files and the process; knows nothing of llama.cpp but the two scripts
that run there. The library is compiled from its source distribution by the system's compiler for
this very processor, so that it has every instruction it can use. Invariant: nothing is installed
into this project's own environment.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import sides
from benchmarks.shapes import DEFAULT_FOLDER
from benchmarks.sides import Key, SideFailed, Task, Work

ENVIRONMENT = DEFAULT_FOLDER.parent / "llama-venv"
FORMATS = ("F16", "Q8_0", "Q4_0")
HERE = Path(__file__).parent

PACKAGES = ("llama-cpp-python==0.3.36", "gguf", "numpy")
TILES = HERE / "llama_tiles.h"
CMAKE_ARGS = (
    "-DGGML_NATIVE=ON",
    "-DLLAVA_BUILD=OFF",
    f"-DCMAKE_C_FLAGS=-include{TILES}",
    f"-DCMAKE_CXX_FLAGS=-include{TILES}",
)


def python_of(environment: Path = ENVIRONMENT) -> Path:
    """Its interpreter."""
    return environment / "bin" / "python"


def is_ready(environment: Path = ENVIRONMENT) -> bool:
    """Whether llama.cpp can be run."""
    command = [str(python_of(environment)), "-c", "import llama_cpp, gguf"]
    if not python_of(environment).is_file():
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build(environment: Path = ENVIRONMENT) -> None:
    """Make the environment and compile llama.cpp: a quarter of an hour on two cores, once."""
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    # A wheel kept from before may be of other flags.
    pip = [str(python_of(environment)), "-m", "pip", "install", "--no-cache-dir"]
    subprocess.run(
        [*pip, "--no-binary", "llama-cpp-python", *PACKAGES],
        env=_plain_environment() | {"CMAKE_ARGS": " ".join(CMAKE_ARGS)},
        check=True,
    )


def files(directory: Path, folder: Path, *, environment: Path = ENVIRONMENT) -> dict[str, Path]:
    """The GGUF files of a checkpoint, by format; written once."""
    paths = {kind: folder / f"{directory.name}-{kind}.gguf" for kind in FORMATS}
    if not paths["F16"].is_file():
        script = str(HERE / "llama_files.py")
        _run([str(python_of(environment)), script, str(directory), str(paths["F16"])])
    for kind in FORMATS[1:]:
        if not paths[kind].is_file():
            part = paths[kind].with_suffix(".part")
            order = {"task": "quantize", "source": str(paths["F16"]), "target": str(part)}
            _work(order | {"kind": kind}, environment)
            part.rename(paths[kind])
    return paths


class LlamaSide:
    """One GGUF file; the model is loaded when the first task runs, in a process that then ends."""

    def __init__(
        self, path: Path, work: Work, *, kind: str, threads: int, environment: Path = ENVIRONMENT
    ) -> None:
        self._name = f"llama.cpp {kind}"
        self._environment = environment
        self._order = {
            "task": "measure",
            "path": str(path),
            "threads": threads,
            "num_steps": work.effort.num_steps,
            "num_pictures": [1, sides.NUM_TOGETHER],
            "mean_context": work.mean_context,
            "prompt_tokens": len(work.pictures[0].token_ids),
        }
        self._answer: dict | None = None

    def tasks(self) -> Mapping[Key, Task]:
        """Steps and the first code; it can neither decode codes nor see with Janus's tower."""
        return {
            (self._name, sides.STEP): lambda: self._measured()["steps"]["1"],
            (self._name, sides.FOUR_STEP): lambda: self._measured()["steps"][
                str(sides.NUM_TOGETHER)
            ],
            (self._name, sides.FIRST): lambda: [self._measured()["first_s"]],
        }

    def whole_tasks(self) -> Mapping[Key, Task]:
        """None."""
        return {}

    def close(self) -> None:
        """Nothing is left to close."""

    def _measured(self) -> dict:
        if self._answer is None:
            self._answer = _work(self._order, self._environment)
        return self._answer


def _work(order: dict, environment: Path) -> dict:
    command = [str(python_of(environment)), str(HERE / "llama_worker.py")]
    done = _run(command, input=json.dumps(order))
    answer: dict = json.loads(done.stdout)
    return answer


def _run(command: list[str], *, input: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=input,
            capture_output=True,
            text=True,
            check=True,
            env=_plain_environment(),
        )
    except subprocess.CalledProcessError as error:
        raise SideFailed(
            f"llama.cpp's process failed ({error.returncode}):\n{error.stderr[-2000:]}"
        ) from error


def _plain_environment() -> dict[str, str]:
    """This process's environment without what steers pip and Python towards this project."""
    steering = ("PIP_CONSTRAINT", "PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in steering}


def has_compiler() -> bool:
    """Whether `build` has a chance."""
    return shutil.which("g++") is not None or shutil.which("clang++") is not None
