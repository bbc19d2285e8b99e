"""A server that is slow, that goes away in the middle, that refuses: said in words, with the id of
the request, and with a way on."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.serving import ROOT, ServerInThread, wait_until
from tests.ui.conftest import answer, ask, connected, draw, drawn, slow_down

REQUEST_ID = re.compile(r"Request\s+req_[0-9a-f]{32}")
LONG = {
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture
def mortal() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A slow server that can be killed, and its address."""
    command = [sys.executable, "-m", "tests.ui.slow_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def narrow(mini_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerInThread]:
    """A slow server with room for one answer, and for one more that waits."""
    with ServerInThread(
        model=str(mini_checkpoint), served_model_name="janus-mini", max_sequences=2, max_waiting=1
    ) as server:
        slow_down(server, monkeypatch, step_s=0.02)
        yield server


def stats(server: ServerInThread):
    return server.context.dispatcher.service.stats()


def test_it_goes_away_while_it_draws(
    mortal: tuple[subprocess.Popen[str], str], new_page: Callable[..., Page]
) -> None:
    process, url = mortal
    page = new_page(url, side="draw")
    connected(page)
    draw(page, "a large red circle", n=2)
    expect(page.locator(".tile.drawing img").nth(1)).to_be_visible()
    process.kill()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("The connection broke.")
    expect(problem).to_contain_text("What had arrived is kept.")
    expect(problem).to_contain_text(REQUEST_ID)
    expect(page.locator(".tile.failed img").first).to_be_visible()
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
    expect(page.locator("#status")).to_contain_text("not reachable")
    problem.get_by_role("button", name="Try again").click()
    expect(problem).to_contain_text("The server cannot be reached.")


def test_it_goes_away_while_it_answers(
    mortal: tuple[subprocess.Popen[str], str], new_page: Callable[..., Page]
) -> None:
    process, url = mortal
    page = new_page(url)
    connected(page)
    ask(page, "What can you do?")
    expect(page.locator(".turn.assistant .text")).to_contain_text("I can")
    process.kill()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke.")
    expect(page.get_by_role("alert")).to_contain_text(REQUEST_ID)
    expect(page.locator(".turn.assistant .text")).to_contain_text("I can")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def test_a_server_that_comes_back_is_met_again(
    new_page: Callable[..., Page], mini_checkpoint: Path
) -> None:
    """On the same port, with another model's name: the page need not be loaded again."""
    with ServerInThread(model=str(mini_checkpoint), served_model_name="first") as server:
        page = new_page(server.url)
        expect(page.locator("#status")).to_contain_text("first")
        port = int(server.url.rpartition(":")[2])
    expect(page.locator("#status")).to_contain_text("not reachable")
    second = ServerInThread(model=str(mini_checkpoint), served_model_name="second", port=port)
    with second:
        expect(page.locator("#status")).to_contain_text("second")
        ask(page, "hello")
        assert answer(page).startswith("Hello!")


def test_a_question_that_waits(new_page: Callable[..., Page], narrow: ServerInThread) -> None:
    """The page says that the server is busy, and a question can be taken back while it waits."""
    page = new_page(narrow.url)
    connected(page)
    with ExitStack() as others:
        for num_running in (1, 2):
            others.enter_context(
                httpx2.stream("POST", f"{narrow.url}/v1/chat/completions", json=LONG)
            )
            wait_until(lambda n=num_running: stats(narrow).num_running == n)
        ask(page, "hello")
        expect(page.locator("#status")).to_contain_text("2 running, 1 waiting")
        expect(page.locator(".turn.assistant[aria-busy=true]")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator(".turn.assistant .note")).to_have_text("stopped")
        wait_until(lambda: stats(narrow).num_waiting == 0)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".turn.assistant .text")).to_contain_text("Hello!")


def test_a_full_server(new_page: Callable[..., Page], narrow: ServerInThread) -> None:
    """429: the page says when to come back, and coming back helps."""
    page = new_page(narrow.url)
    connected(page)
    with ExitStack() as others:
        for num_alive in (1, 2, 3):
            others.enter_context(
                httpx2.stream("POST", f"{narrow.url}/v1/chat/completions", json=LONG)
            )
            wait_until(
                lambda n=num_alive: stats(narrow).num_running + stats(narrow).num_waiting == n
            )
        ask(page, "hello")
        problem = page.get_by_role("alert")
        expect(problem).to_contain_text("The server is busy.")
        expect(problem).to_contain_text(REQUEST_ID)
        expect(problem.get_by_role("button", name=re.compile("^Try again in"))).to_be_visible()
    wait_until(narrow.is_idle)
    problem.get_by_role("button", name=re.compile("^Try again")).click()
    expect(page.locator(".turn.assistant .text")).to_contain_text("Hello!")
    expect(problem).to_have_count(0)


def test_what_cannot_be_taken(page: Page) -> None:
    """400 in the server's words; trying the same again would help nobody."""
    ask(page, "hello " * 2000)
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("This is longer than the model can read.")
    expect(problem).to_contain_text(REQUEST_ID)
    expect(problem.get_by_role("button", name="Try again")).to_have_count(0)
    request_id = problem.get_by_title("Copy the request id")
    request_id.click()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == request_id.inner_text()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edited question").fill("hello")
    page.get_by_role("button", name="Ask again").click()
    assert answer(page).startswith("Hello!")


def test_a_drawing_that_is_refused(drawing_page: Page) -> None:
    page = drawing_page
    draw(page, "a red circle " * 1000, n=2)
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text(REQUEST_ID)
    expect(page.locator(".grid")).to_be_hidden()
    draw(page, "a large red circle", n=1)
    drawn(page, 1)


def test_a_server_that_fails_within_an_answer(
    page: Page, server: ServerInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = server.context.pipeline.engine._executor._runner

    def broken(_: object) -> object:
        raise ValueError("planted by a test")

    with monkeypatch.context() as planted:
        planted.setattr(runner, "run", broken)
        ask(page, "hello")
        problem = page.get_by_role("alert")
        expect(problem).to_contain_text("The server failed.")
        expect(problem).to_contain_text(REQUEST_ID)
        expect(problem).not_to_contain_text("planted")
    problem.get_by_role("button", name="Try again").click()
    expect(page.locator(".turn.assistant .text")).to_contain_text("Hello!")


def test_a_server_that_is_shutting_down(
    new_page: Callable[..., Page], narrow: ServerInThread
) -> None:
    page = new_page(narrow.url)
    connected(page)
    with httpx2.stream("POST", f"{narrow.url}/v1/chat/completions", json=LONG):
        wait_until(lambda: stats(narrow).num_running == 1)
        narrow.begin_drain()
        wait_until(lambda: httpx2.get(f"{narrow.url}/readyz").status_code == 503)
        ask(page, "hello")
        problem = page.get_by_role("alert")
        expect(problem).to_contain_text("The server is shutting down.")
        expect(problem).to_contain_text(REQUEST_ID)
        expect(page.locator("#status")).to_contain_text("shutting down")
