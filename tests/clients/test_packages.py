"""Client packages, each in an environment of its own, against one server: `make test-clients`.

Owns which check and which recipe runs where; what is checked stands in `packages/` and, for the
recipes, in docs/clients.md. The environments are made by make, from `requirements/`.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.test_recipes import SECTIONS
from tests.server.picture_host import PictureHost, reply
from tests.serving import ServerInThread

pytestmark = pytest.mark.packages

ROOT = Path(__file__).parents[2]
PACKAGES = Path(__file__).parent / "packages"
ENVIRONMENTS = ROOT / "build" / "clients"
PICTURE = ROOT / "docs" / "images" / "red-circle.png"
LIMIT_S = 900

PYTHON_RECIPES = [
    (None, "openai for Python"),
    ("older", "openai for Python"),
    ("current", "LangChain"),
    ("older", "LlamaIndex"),
    ("current", "sdwebuiapi and other AUTOMATIC1111 clients"),
]
"""The environment, and the recipe that runs in it."""

NODE_RECIPES = ["openai for Node", "Vercel AI SDK"]

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture(scope="module")
def environment(mini_checkpoint: Path) -> Iterator[dict[str, str]]:
    """Variables that tell a check where the server is and what to show it."""
    with (
        PictureHost("127.0.0.1") as host,
        ServerInThread(
            model=str(mini_checkpoint),
            media_urls="http",
            allowed_media_networks="127.0.0.1/32",
        ) as server,
    ):
        host.answers["/circle.png"] = reply(PICTURE.read_bytes())
        yield os.environ | {
            "JANUS_TEST_URL": server.url,
            "JANUS_TEST_PICTURE": str(PICTURE),
            "JANUS_TEST_PICTURE_ADDRESS": f"http://127.0.0.1:{host.port}/circle.png",
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def recipe(client: str, language: str, environment: dict[str, str]) -> str:
    """The code of a recipe as it stands, but for the address and the picture."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[client], re.M | re.S)
    url = environment["JANUS_TEST_URL"]
    picture = base64.b64encode(PICTURE.read_bytes()).decode()
    for shown, meant in (
        ("http://127.0.0.1:8000", url),
        ("port=8000", f"port={url.rpartition(':')[2]}"),
        ("data:image/png;base64,...", f"data:image/png;base64,{picture}"),
    ):
        code = code.replace(shown, meant)
    assert ":8000" not in code
    return code


def python_of(name: str | None) -> str | Path:
    return sys.executable if name is None else ENVIRONMENTS / name / "bin" / "python"


def run(*command: str | Path, cwd: Path, environment: dict[str, str]) -> None:
    """Run a check; its output is the message if it fails."""
    finished = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("name", "check"),
    [
        # openai 3 and what builds on it; the first is the environment of these tests themselves.
        (None, "check_openai"),
        ("current", "check_langchain"),
        ("current", "check_webuiapi"),
        ("current", "check_demo"),
        # openai 2 and what still asks for it.
        ("older", "check_openai"),
        ("older", "check_llamaindex"),
        ("older", "check_litellm"),
    ],
)
def test_python(name: str | None, check: str, environment: dict[str, str]):
    options = ("-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull)
    selection = ("-o", "python_files=check_*.py", "-o", "python_functions=check_*")
    run(
        *(
            python_of(name),
            "-m",
            "pytest",
            *options,
            *selection,
            f"--rootdir={PACKAGES}",
            f"{check}.py",
        ),
        cwd=PACKAGES,
        environment=environment,
    )


@pytest.mark.parametrize(("name", "client"), PYTHON_RECIPES)
def test_python_recipe(name: str | None, client: str, environment: dict[str, str], tmp_path: Path):
    script = tmp_path / "recipe.py"
    script.write_text(recipe(client, "python", environment), "utf-8")
    run(python_of(name), script, cwd=tmp_path, environment=environment)


@needs_npm
@pytest.mark.parametrize("check", ["check_openai", "check_ai_sdk"])
def test_node(check: str, environment: dict[str, str]):
    # Packages are looked up beside the importing file, whatever the directory.
    script = shutil.copy(PACKAGES / f"{check}.mjs", ENVIRONMENTS / "node")
    run("node", "--test", script, cwd=ENVIRONMENTS / "node", environment=environment)


@needs_npm
@pytest.mark.parametrize("client", NODE_RECIPES)
def test_node_recipe(client: str, environment: dict[str, str]):
    script = ENVIRONMENTS / "node" / "recipe.mjs"
    script.write_text(recipe(client, "javascript", environment), "utf-8")
    run("node", script, cwd=ENVIRONMENTS / "node", environment=environment)
