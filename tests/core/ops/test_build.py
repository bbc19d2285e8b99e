"""Building the package: what a wheel holds with a compiler, without one, and with a broken one.

The compiler is a script that writes what it is told to; the real one made the library that
`test_native.py` tests.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIBRARY = "janus_core/ops/native/_kernels.so"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree in which a library of older sources has been left."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    ignored = shutil.ignore_patterns("__pycache__", "_kernels.so*")
    for name in ("janus_core", "server"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    (tree / LIBRARY).write_bytes(b"of older sources")
    return tree


def _compiler(tree: Path, script: str) -> str:
    path = tree.parent / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def _build(tree: Path, compiler: str | None) -> tuple[str, dict[str, bytes], str]:
    """The name of the wheel, what it holds, and what was said."""
    environ = os.environ | {"CXX": compiler or "", "PATH": "/nowhere" if not compiler else "/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tree.parent)],
        cwd=tree,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (wheel,) = tree.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return wheel.name, {name: archive.read(name) for name in archive.namelist()}, done.stderr


def test_a_wheel_takes_the_library_along_for_every_python(tree: Path) -> None:
    # The arguments end in `-o FILE`.
    compiler = _compiler(tree, 'shift $(($# - 1)); printf fresh > "$1"')
    name, files, _ = _build(tree, f"{compiler} as several words")
    assert files[LIBRARY] == b"fresh"
    assert "-py3-none-linux_" in name
    folder = Path(LIBRARY).parent.as_posix()
    assert {f"{folder}/__init__.py", "server/__init__.py"} <= files.keys()
    assert {"server/ui/index.html", "server/ui/main.js", "server/ui/style.css"} <= files.keys()
    assert not [name for name in files if name.startswith("tests/")]


@pytest.mark.parametrize("script", [None, "echo no such instruction >&2; exit 1", "missing"])
def test_without_a_compiler_a_wheel_is_plain(tree: Path, script: str | None) -> None:
    compiler = "/no/such/compiler" if script == "missing" else script and _compiler(tree, script)
    name, files, said = _build(tree, compiler)
    assert name.endswith("-py3-none-any.whl")
    assert LIBRARY not in files
    assert not (tree / LIBRARY).exists(), "the sources of that library were others"
    assert "The C++ kernels were not built" in said
    assert "no such instruction" in said or "compiler" in said
