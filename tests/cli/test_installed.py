"""The command as it was installed, from elsewhere, and `make serve` around it."""

import os
import subprocess
from pathlib import Path

from tests.serving import JANUS, ROOT


def test_the_command_finds_the_embedded_checkpoint_from_anywhere(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JANUS_")}
    done = subprocess.run(
        [JANUS, "doctor", "--device", "cpu"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    report = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert report["model"] == str(ROOT / "weights" / "janus-mini")
    assert report["next"] == "janus serve"


def test_make_serve_passes_on_variables_and_arguments(tmp_path: Path) -> None:
    """A command in the place of the installed one says what reached it."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "janus"
    command.write_text('#!/bin/sh\necho "$JANUS_HOST $JANUS_PORT $*"\n')
    command.chmod(0o755)
    (tmp_path / ".installed").touch()
    done = subprocess.run(
        ["make", "--silent", "serve", f"VENV={tmp_path}", "ARGS=--port 9000 some/model"],
        cwd=ROOT,
        env=os.environ | {"JANUS_HOST": "::1", "JANUS_PORT": "7"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "::1 7 serve --port 9000 some/model"
