"""A browser, and a server with the embedded checkpoint that can be made slow.

The server runs in the test process, so that a test can see what it is doing. Every test fails if
its page asked another host for anything, or said something on the console that nobody expected.
"""

import base64
import io
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from tests.serving import ServerInThread

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

EXPECT_MS = 15_000
"""Machines of tests are busy; nothing here waits so long without a reason."""

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

# Chromium says this for every answer that is no 2xx, and for every connection that breaks.
FAILED_LOAD = re.compile(r"Failed to load resource|net::ERR_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("ui")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "there is no chromium: make test-ui installs it"
    expect.set_options(timeout=EXPECT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(mini_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(model=str(mini_checkpoint), served_model_name="janus-mini") as running:
        yield running


@pytest.fixture
def slow(server: ServerInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the engine takes as long as one of a large model."""
    slow_down(server, monkeypatch)


def slow_down(
    server: ServerInThread, monkeypatch: pytest.MonkeyPatch, *, step_s: float = 0.06
) -> None:
    # Where steps are timed, so that what the server says about the remaining time is true.
    runner = server.context.pipeline.engine._executor._runner
    run = runner.run

    def slow_run(plan: object) -> object:
        time.sleep(step_s)
        return run(plan)

    monkeypatch.setattr(runner, "run", slow_run)


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Makes pages at an address, each in a context (a profile) of its own."""
    contexts: list[BrowserContext] = []
    foreign: list[str] = []
    said: list[str] = []

    def make(url: str, *, side: str = "ask", **options: object) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "locale": "en-GB"} | options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: _note(foreign, request.url, unless=url))
        page.on("console", lambda message: _note_console(said, message))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{url}/#/{side}")
        return page

    yield make
    for context in contexts:
        context.close()
    assert not foreign, "the page asked another host"
    assert not said, "the page had something to say"


def _note(foreign: list[str], requested: str, *, unless: str) -> None:
    if not requested.startswith((f"{unless}/", "data:", "blob:")):
        foreign.append(requested)


def _note_console(said: list[str], message: ConsoleMessage) -> None:
    if message.type in ("error", "warning") and not FAILED_LOAD.search(message.text):
        said.append(message.text)


@pytest.fixture
def page(new_page: Callable[..., Page], server: ServerInThread) -> Page:
    """The page on the side that asks, connected."""
    page = new_page(server.url)
    connected(page)
    return page


@pytest.fixture
def drawing_page(new_page: Callable[..., Page], server: ServerInThread) -> Page:
    """The page on the side that draws, connected."""
    page = new_page(server.url, side="draw")
    connected(page)
    return page


def connected(page: Page) -> None:
    """Wait until the page knows its server."""
    page.locator("#status[data-state=ready], #status[data-state=busy]").wait_for()


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def answer(page: Page) -> str:
    """The last answer, once it is there."""
    page.get_by_role("button", name="Regenerate").wait_for()
    return page.locator(".turn.assistant .text").last.inner_text()


def draw(page: Page, prompt: str, *, n: int | None = None, seed: int | None = None) -> None:
    page.get_by_label("What shall be drawn?").fill(prompt)
    if n is not None:
        page.get_by_label("Pictures, as a number").fill(str(n))
        page.get_by_label("Pictures, as a number").press("Tab")
    if seed is not None:
        page.get_by_role("textbox", name="Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Draw", exact=True).click()


def drawn(page: Page, n: int) -> None:
    """Wait for the `n` pictures of the newest run."""
    page.locator(".run").first.locator(".tile.done").nth(n - 1).wait_for()


def png(color: str, *, size: int = 64) -> bytes:
    """A circle on white, as the embedded model knows them."""
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse([size * 0.2, size * 0.2, size * 0.8, size * 0.8], fill=color)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture_of(url: str) -> Image.Image:
    """The picture of a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def metric(server: ServerInThread, name: str, **labels: str) -> float:
    """The sum of a metric over the labels that are not given."""
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith(f"{name}{{") and all(each in line for each in wanted)
    )
