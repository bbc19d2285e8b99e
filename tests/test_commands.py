"""Every command that the README and the documentation show is run as it stands, but for addresses.

A command that cannot be run here is named below with its reason, and no name may be left over.
What clients.md shows in Python and JavaScript needs packages of its own: tests/clients runs it.
"""

import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.clients.test_packages import NODE_RECIPES, PYTHON_RECIPES
from tests.clients.test_recipes import SECTIONS
from tests.serving import ROOT, ServerInThread
from tests.test_docs import PAGES

SHELLS = ("bash", "sh", "console", "shell")
LIMIT_S = 300

NOT_RUN = {
    r"git clone ": "needs the repository's address",
    r"(\.venv/bin/)?janus (pull|serve|doctor) deepseek": "downloads gigabytes",
    r'make serve ARGS="deepseek': "downloads gigabytes",
    r"make serve$": "serves until it is stopped: tests/cli/test_installed.py runs it",
    r"janus serve$": "serves until it is stopped: tests/server/test_lifecycle.py runs it",
    r"docker ": "needs a container engine",
}
"""Patterns of commands, at their beginning, and why they are not run."""

ADMIN_KEY = "sk-admin-correct-horse-battery-staple"

SLOW = (r"(\.venv/bin/)?janus bench",)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, page.read_text("utf-8"), re.M | re.S)


def commands(block: str) -> Iterator[str]:
    """The commands of a block; one goes on while a quote is open or a line ends in a backslash."""
    command = ""
    for line in block.splitlines(keepends=True):
        command += line.removeprefix("$ ")
        if not command.strip() or command.endswith("\\\n"):
            continue
        try:
            shlex.split(command, comments=True)
        except ValueError:
            continue
        yield command.strip()
        command = ""
    assert not command.strip(), f"a command without an end: {command}"


def reason(command: str) -> str | None:
    """Why a command is not run, or None."""
    found = (why for pattern, why in NOT_RUN.items() if re.match(pattern, command))
    return next(found, None)


def shown() -> Iterator[tuple[Path, str]]:
    """Every command of a shell, and where it is shown."""
    for page in PAGES:
        for block in blocks(page, *SHELLS):
            yield from ((page, command) for command in commands(block))


def cases() -> Iterator[object]:
    """The commands that are run, each a test of its own."""
    for page, command in shown():
        if reason(command) is None:
            is_slow = any(re.match(pattern, command) for pattern in SLOW)
            marks = [pytest.mark.slow] if is_slow else []
            yield pytest.param(command, id=f"{page.name}: {command[:60]}", marks=marks)


@pytest.fixture(scope="module")
def running(mini_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(
        model=str(mini_checkpoint), served_model_name="janus-mini", admin_key=ADMIN_KEY
    ) as server:
        yield server


@pytest.fixture
def server(running: ServerInThread) -> Iterator[ServerInThread]:
    """Awake again after each command: one of them lets it fall asleep."""
    yield running
    with running.client() as client:
        wake = client.post("/admin/wake", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    assert wake.status_code == 200, wake.text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The root of the repository as the examples see it, with the pictures they speak of."""
    for name in ("docs", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    circle = ROOT / "docs" / "images" / "red-circle.png"
    for name in ("circle.png", "picture.png"):
        shutil.copy(circle, tmp_path / name)
    with Image.open(circle) as picture:
        mask = picture.convert("RGBA")
    mask.putalpha(255)
    mask.paste((0, 0, 0, 0), (0, mask.height // 2, mask.width, mask.height))
    mask.save(tmp_path / "mask.png")
    return tmp_path


def as_run(text: str, server: ServerInThread) -> str:
    """The text with this server, this environment and a real picture in the place of the shown."""
    picture = base64.b64encode((ROOT / "docs/images/red-circle.png").read_bytes()).decode()
    for here, there in (
        ("http://127.0.0.1:8000", server.url),
        ("data:image/png;base64,...", f"data:image/png;base64,{picture}"),
        (".venv/bin/", f"{Path(sys.executable).parent}/"),
    ):
        text = text.replace(here, there)
    return text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", list(cases()))
def test_commands_run(command: str, server: ServerInThread, folder: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JANUS_")}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", as_run(command, server)],
        cwd=folder,
        env=environ | {"OMP_NUM_THREADS": "1", "JANUS_ADMIN_KEY": ADMIN_KEY},
        capture_output=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b'{"error"' not in done.stdout, done.stdout[:500]


PYTHON = [
    pytest.param(block, id=f"{page.name}-{index}")
    for page in PAGES
    if page.name != "clients.md"
    for index, block in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(block: str, server: ServerInThread, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", as_run(block, server)],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_reason_not_to_run_is_needed() -> None:
    """And every command of the lists is a command."""
    skipped = [command for _, command in shown() if reason(command) is not None]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in skipped), pattern
    assert len(list(cases())) >= 15


def test_other_code_is_run_by_the_tests_of_clients() -> None:
    """JavaScript is shown among the recipes only, and every recipe in a language is run there."""
    for page in PAGES:
        if page.name != "clients.md":
            assert not blocks(page, "javascript", "js", "typescript"), page.name
    for language, run in (
        ("python", {client for _, client in PYTHON_RECIPES}),
        ("javascript", set(NODE_RECIPES)),
    ):
        assert {title for title, text in SECTIONS.items() if f"```{language}" in text} == run
