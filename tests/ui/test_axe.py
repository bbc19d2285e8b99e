"""Accessibility as axe-core judges it: nothing serious or critical, in either theme, wherever a
person can get."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.serving import ROOT, ServerInThread
from tests.ui.conftest import PHONE, WIDE, answer, ask, connected, draw, drawn

AXE = ROOT / "build" / "ui" / "node_modules" / "axe-core" / "axe.min.js"
GRAVE = {"serious", "critical"}

pytestmark = pytest.mark.skipif(not AXE.exists(), reason="axe-core is not there: make test-ui")


def fresh(page: Page) -> None:
    """The page as it comes."""


def asked(page: Page) -> None:
    """An answer, with the settings open."""
    page.get_by_role("button", name="Settings of answers").click()
    ask(page, "hello")
    answer(page)


def refused(page: Page) -> None:
    """An error."""
    ask(page, "hello " * 2000)
    page.get_by_role("alert").wait_for()


def pictures(page: Page) -> None:
    """Drawings, and a toast."""
    page.get_by_role("tab", name="Draw").click()
    page.locator("#draw-more").evaluate("(more) => { more.open = true; }")
    draw(page, "a large red circle", n=2)
    drawn(page, 2)
    page.get_by_role("button", name="Reuse seed").first.click()


def viewer(page: Page) -> None:
    """A picture in full."""
    pictures(page)
    page.get_by_role("button", name="Full screen", exact=True).first.click()


def code(page: Page) -> None:
    """The code of a request."""
    page.get_by_role("button", name="Show code").first.click()


def past(page: Page) -> None:
    """The history, with something in it."""
    asked(page)
    page.get_by_role("button", name="History").click()
    page.locator(".past").wait_for()


def key(page: Page) -> None:
    """The field for the API key."""
    page.get_by_role("button", name="API key", exact=True).click()


def status(page: Page) -> None:
    """What runs here."""
    page.locator("#status").click()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "state", [fresh, asked, refused, pictures, viewer, code, past, key, status]
)
def test_nothing_serious(
    browser: Browser, server: ServerInThread, state: Callable[[Page], None], theme: str
) -> None:
    size = PHONE if state in (fresh, pictures) and theme == "dark" else WIDE
    # axe makes elements from strings, which the page's own policy forbids.
    context = browser.new_context(
        viewport=size, color_scheme=theme, bypass_csp=True, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(server.url)
    connected(page)
    state(page)
    page.evaluate(Path(AXE).read_text("utf-8"))
    report = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    context.close()
    assert report["passes"], "axe looked at nothing"
    grave = [
        (violation["id"], violation["help"], [node["html"] for node in violation["nodes"]])
        for violation in report["violations"]
        if violation["impact"] in GRAVE
    ]
    assert not grave
