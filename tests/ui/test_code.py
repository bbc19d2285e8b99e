"""The code that the page shows runs when it is pasted, and asks for what the page asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.serving import ServerInThread
from tests.ui.conftest import answer, ask, connected, draw, drawn, picture_of, png

LANGUAGES = ["curl", "Python", "JavaScript"]
PROMPT = "a blue star to the left of a yellow square"
LIMIT_S = 120


def copied(page: Page, language: str, *, stream: bool) -> str:
    """The code as the button copies it, with the dialog closed again."""
    dialog = page.get_by_role("dialog", name="Show code")
    dialog.get_by_role("button", name=language, exact=True).click()
    dialog.get_by_label("Stream").set_checked(stream)
    dialog.get_by_role("button", name="Copy code").click()
    expect(page.get_by_text("Code copied.").last).to_be_visible()
    code = page.evaluate("() => navigator.clipboard.readText()")
    page.keyboard.press("Escape")
    return code


def run(language: str, code: str, folder: Path, **environ: str) -> str:
    """What the code prints."""
    if language == "curl":
        command = ["bash", "-euo", "pipefail", "-c", code]
    elif language == "Python":
        command = [sys.executable, "-c", code]
    else:
        node = shutil.which("node")
        if node is None:
            pytest.skip("node is not installed")
        (folder / "code.mjs").write_text(code, "utf-8")
        command = [node, "code.mjs"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S,
        env=os.environ | environ,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


def pictures(folder: Path, seeds: range) -> dict[int, bytes]:
    """The pixels of the pictures that the code wrote."""
    files = {seed: folder / f"picture-{seed}.png" for seed in seeds}
    assert sorted(folder.glob("*.png")) == sorted(files.values())
    found = {}
    for seed, file in files.items():
        with Image.open(file) as image:
            assert image.text["seed"] == str(seed)
            found[seed] = image.convert("RGB").tobytes()
    return found


def on_the_page(page: Page, seeds: range) -> dict[int, bytes]:
    """The pixels of the pictures of the newest run."""
    images = page.locator(".run").first.locator(".tile img")
    return {
        seed: picture_of(images.nth(index).get_attribute("src")).convert("RGB").tobytes()
        for index, seed in enumerate(seeds)
    }


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_code_of_a_question(page: Page, tmp_path: Path, language: str, stream: bool) -> None:
    page.locator("#files").set_input_files(
        {"name": "c.png", "mimeType": "image/png", "buffer": png("red", size=480)}
    )
    ask(page, "What color is the circle?")
    assert answer(page) == "red"
    page.get_by_role("button", name="Show code of this answer").click()
    shown = page.locator("dialog pre").inner_text()
    assert not re.search(r"[A-Za-z0-9+/]{200}", shown), "images are shortened where they are read"
    said = run(language, copied(page, language, stream=stream), tmp_path)
    if language == "curl" and stream:
        assert said.count("data: ") > 2
        assert said.rstrip().endswith("data: [DONE]")
        assert '"content":"red"' in said
    elif language == "curl":
        assert '"content":"red"' in said
    else:
        assert said.strip() == "red"


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_code_of_a_drawing(drawing_page: Page, tmp_path: Path, language: str, stream: bool) -> None:
    """The very pictures that the page drew, with the settings that were changed."""
    page = drawing_page
    page.get_by_label("Guidance, as a number").fill("1.5")
    page.get_by_label("Guidance, as a number").press("Tab")
    draw(page, PROMPT, n=2, seed=21)
    drawn(page, 2)
    page.get_by_role("button", name="Show code of these pictures").click()
    code = copied(page, language, stream=stream)
    assert "1.5" in code
    said = run(language, code, tmp_path)
    if language == "curl" and stream:
        assert said.count("event: image_generation.completed") == 2
        assert said.count("event: image_generation.partial_image") >= 2
        return
    assert "picture-21.png" in said
    assert pictures(tmp_path, range(21, 23)) == on_the_page(page, range(21, 23))


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_of_variations(drawing_page: Page, tmp_path: Path, language: str) -> None:
    page = drawing_page
    draw(page, PROMPT, n=1, seed=3)
    drawn(page, 1)
    with page.expect_request("**/v1/images/edits") as request:
        page.get_by_role("button", name="Variations").click()
    seed = request.value.post_data_json["seed"]
    drawn(page, 4)
    page.get_by_role("button", name="Show code of these pictures").first.click()
    run(language, copied(page, language, stream=False), tmp_path)
    seeds = range(seed, seed + 4)
    assert pictures(tmp_path, seeds) == on_the_page(page, seeds)


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_of_what_has_not_been_sent(page: Page, tmp_path: Path, language: str) -> None:
    """Difficult characters reach the server as they are."""
    question = "hello 'single' \"double\" $HOME `x` \\n {curly} 日本語"
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Show code", exact=True).click()
    code = copied(page, language, stream=False)
    page.get_by_role("button", name="Ask", exact=True).click()
    answer(page)
    page.get_by_role("button", name="Copy", exact=True).last.click()
    expect(page.get_by_text("Copied.", exact=True)).to_be_visible()
    text = page.evaluate("() => navigator.clipboard.readText()")
    said = run(language, code, tmp_path)
    if language == "curl":
        said = json.loads(said)["choices"][0]["message"]["content"]
    assert text
    assert said.strip() == text.strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_with_a_key(
    new_page: Callable[..., Page], mini_checkpoint: Path, tmp_path: Path, language: str
) -> None:
    """The key is not in the code, and the code works with it."""
    key = "sk-correct-horse-battery-staple-2"
    with ServerInThread(model=str(mini_checkpoint), api_keys=key) as server:
        page = new_page(server.url)
        page.get_by_role("button", name="API key", exact=True).click()
        page.get_by_label("API key").get_by_role("textbox").fill(key)
        page.get_by_role("button", name="Use").click()
        connected(page)
        page.get_by_label("Your question").fill("hello")
        page.get_by_role("button", name="Show code", exact=True).click()
        code = copied(page, language, stream=False)
        assert key not in code
        assert "Hello!" in run(language, code, tmp_path, JANUS_API_KEY=key)
