"""The pictures of the page in the README: `make screenshots` takes them, a person looks at them.

Owns what is shown: the page while it draws (slowed down to the pace of a large model), and an
answer; light and dark, wide and on a phone. Takes them from the real page over the real server.
"""

import argparse
import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.serving import ROOT, ServerInThread
from tests.ui.conftest import CHROMIUM, PHONE, WIDE, ask, connected, draw, drawn, slow_down

PROMPT = "a purple diamond above a black cross"
SEED = 1
STEP_S = 0.1


def main() -> None:
    """Write every picture into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args().out
    assert CHROMIUM is not None, "there is no chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            for shape, size in (("wide", WIDE), ("phone", PHONE)):
                # A new server each time: one knows its own pace, and this changes.
                with ServerInThread(model=str(ROOT / "weights" / "janus-mini")) as server:
                    take(browser, server, theme=theme, shape=shape, size=size, out=out)
        browser.close()


def learn(server: ServerInThread) -> None:
    """Let the server find out how slow it is, so that it tells the remaining time from the first
    picture on."""
    with server.client() as client:
        client.post("/v1/images/generations", json={"prompt": PROMPT, "n": 4}).raise_for_status()


def take(
    browser: Browser,
    server: ServerInThread,
    *,
    theme: str,
    shape: str,
    size: dict[str, int],
    out: Path,
) -> None:
    """The pictures of one theme and one width."""
    context = browser.new_context(
        viewport=size, color_scheme=theme, device_scale_factor=1, is_mobile=shape == "phone",
        has_touch=shape == "phone",
    )  # fmt: skip
    page = context.new_page()
    page.goto(f"{server.url}/#/draw")
    connected(page)
    page.locator("#draw-more").evaluate("(more) => { more.open = true; }")
    page.get_by_role("textbox", name="Seed", exact=True).fill(str(SEED))
    if shape == "phone":
        page.locator("#draw-more").evaluate("(more) => { more.open = false; }")
    with pytest.MonkeyPatch.context() as monkeypatch:
        slow_down(server, monkeypatch, step_s=STEP_S)
        learn(server)
        draw(page, PROMPT)
        page.locator(".tile .veil").nth(3).wait_for()
        half_way(page)
        save(page, out / f"page-drawing-{theme}-{shape}.png")
    drawn(page, 4)
    page.get_by_role("button", name="Ask about this image").nth(1).click()
    ask(page, "Describe the image.")
    page.get_by_role("button", name="Regenerate").wait_for()
    ask(page, "What color is the cross?")
    page.get_by_role("button", name="Regenerate").wait_for()
    page.mouse.move(2, 2)
    page.get_by_label("Your question").blur()
    save(page, out / f"page-asking-{theme}-{shape}.png")
    context.close()


def half_way(page: Page) -> None:
    """Wait until the rows in sight are a little more than half of the picture."""
    while True:
        top = page.locator(".veil").first.evaluate("(veil) => parseFloat(veil.style.top) || 0")
        if top >= 62:
            page.get_by_label("What shall be drawn?").blur()
            page.wait_for_timeout(250)
            return
        page.wait_for_timeout(30)


def save(page: Page, path: Path) -> None:
    """As small as a PNG with all its colours gets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    image.convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    main()
