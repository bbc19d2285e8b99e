"""What the README shows works: its commands run, its pictures are drawn again, pixel by pixel.

Runs the shell and Python blocks as they stand, but for the port, against the real server with the
embedded checkpoint.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_core.pipeline import ImageOptions, Pipeline

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PICTURES = re.findall(r'^janus draw "(.*?)" --seed (\d+) -o (\S+)$', README, re.M)
START_LIMIT_S = 120


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server as a user starts it, on a free port."""
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--port", str(port)]
    with log.open("wb") as stderr, subprocess.Popen(command, cwd=ROOT, stderr=stderr) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url, process, log=log)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", *, log: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, log.read_text("utf-8")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"The server was not ready after {START_LIMIT_S} s: {log.read_text('utf-8')}")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.mark.clients
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_examples_run(server_url: str, tmp_path: Path) -> None:
    """In order, in one directory: the second asks about what the first drew."""
    examples = [block for block in _blocks(README, "bash") if block.startswith("curl ")]
    assert len(examples) == 2
    draw, ask = (block.replace("http://127.0.0.1:8000", server_url) for block in examples)
    subprocess.run(["bash", "-euo", "pipefail", "-c", draw], cwd=tmp_path, check=True, timeout=60)
    with Image.open(tmp_path / "circle.png") as picture:
        assert picture.format == "PNG"
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ask],
        cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert '"finish_reason":"stop"' in answer.stdout
    assert "red" in answer.stdout


@pytest.mark.clients
@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_python_examples_run(server_url: str, page: str) -> None:
    """As scripts of their own: what they print is the answer."""
    for code in _blocks((ROOT / page).read_text("utf-8"), "python"):
        script = code.replace("http://127.0.0.1:8000", server_url)
        finished = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
        )
        assert finished.returncode == 0, finished.stderr
        assert "red" in finished.stdout


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    """The embedded checkpoint, without a server."""
    loaded = Pipeline.load()
    yield loaded
    loaded.engine.close()


def test_the_readme_shows_pictures() -> None:
    assert len(PICTURES) >= 4
    for _, _, name in PICTURES:
        assert f'src="docs/images/{name}"' in README


@pytest.mark.parametrize(("prompt", "seed", "name"), PICTURES)
def test_the_pictures_are_drawn_again(
    pipeline: Pipeline, prompt: str, seed: str, name: str
) -> None:
    """Another processor may round a code to its neighbour: most pixels must agree, not all."""
    (request,) = pipeline.image_requests(prompt, ImageOptions(seed=int(seed)), request_id="again")
    pixels = [event.pixels for event in pipeline.run([request]) if hasattr(event, "pixels")][-1]
    with Image.open(ROOT / "docs" / "images" / name) as shown:
        assert shown.text["prompt"] == prompt
        assert shown.text["seed"] == seed
        difference = np.abs(np.asarray(shown).astype(int) - pixels.astype(int))
    assert (difference > 16).mean() < 0.05
