"""The side that asks: images from anywhere, answers that stream, and everything after them."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.serving import ServerInThread, wait_until
from tests.ui.conftest import answer, ask, metric, png

CHAT = "**/v1/chat/completions"

# Hands files to the page as a browser does for a drop or a paste.
HAND_OVER = """([kind, files]) => {
  const transfer = new DataTransfer();
  for (const { name, type, data } of files) {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  const target = document.getElementById("question");
  if (kind === "paste") {
    target.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
    return;
  }
  for (const name of ["dragenter", "dragover", "drop"]) {
    const event = new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true });
    target.dispatchEvent(event);
  }
}"""


def hand_over(page: Page, kind: str, *files: tuple[str, str, bytes]) -> None:
    given = [
        {"name": name, "type": type, "data": base64.b64encode(data).decode()}
        for name, type, data in files
    ]
    page.evaluate(HAND_OVER, [kind, given])


def pick(page: Page, *files: tuple[str, bytes]) -> None:
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Attach images").click()
    chosen.value.set_files(
        [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    )


def sent(page: Page, question: str) -> dict:
    """The body of the request that a question makes."""
    with page.expect_request(CHAT) as request:
        ask(page, question)
    return request.value.post_data_json


def test_without_an_image(page: Page) -> None:
    ask(page, "hello")
    assert answer(page).startswith("Hello!")
    expect(page.locator(".turn.assistant .note")).to_contain_text("tokens/s")
    expect(page.locator(".turn.assistant .note")).to_contain_text("first after")


@pytest.mark.parametrize("way", ["pick", "drop", "paste"])
def test_an_image_from_anywhere(page: Page, way: str) -> None:
    if way == "pick":
        pick(page, ("circle.png", png("red")))
    else:
        hand_over(page, way, ("circle.png", "image/png", png("red")))
    expect(page.get_by_role("img", name="circle.png")).to_be_visible()
    body = sent(page, "What color is the circle?")
    assert answer(page) == "red"
    (part, text) = body["messages"][0]["content"]
    given = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    assert given == png("red"), "an image of a known type is sent as it is"
    assert text == {"type": "text", "text": "What color is the circle?"}


def test_several_images_and_one_that_is_taken_back(page: Page) -> None:
    pick(page, ("a.png", png("red")), ("b.png", png("blue")), ("c.png", png("green")))
    page.get_by_role("button", name="Remove c.png").click()
    body = sent(page, "What color is the circle?")
    answer(page)
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]


def test_an_image_of_another_type_is_made_into_one(page: Page) -> None:
    """Chromium reads AVIF and the server does not take it; and text is no image at all."""

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png("red"))).save(buffer, "AVIF", quality=95)
    hand_over(page, "drop", ("circle.avif", "image/avif", buffer.getvalue()))
    body = sent(page, "What color is the circle?")
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;")
    assert answer(page) == "red"
    hand_over(page, "drop", ("broken.png", "image/png", b"not a picture"))
    expect(page.get_by_text("broken.png is not an image this browser can read.")).to_be_visible()
    hand_over(page, "drop", ("notes.txt", "text/plain", b"words"))
    expect(page.get_by_text("There is no image in that.")).to_be_visible()


def test_an_image_without_words_is_described(page: Page) -> None:
    pick(page, ("circle.png", png("red")))
    page.get_by_role("button", name="Ask", exact=True).click()
    assert "red circle" in answer(page)


@pytest.mark.usefixtures("slow")
def test_the_answer_streams(page: Page) -> None:
    ask(page, "What can you do?")
    text = page.locator(".turn.assistant .text")
    expect(text).to_contain_text("I can describe")
    grown = text.inner_text()
    expect(page.locator(".turn.assistant[aria-busy=true]")).to_be_visible()
    whole = answer(page)
    assert whole.startswith(grown)
    assert len(whole) > len(grown)
    expect(page.locator(".turn.assistant[aria-busy=true]")).to_have_count(0)
    expect(page.get_by_role("status").filter(has_text="circles, squares")).to_have_count(1)


def test_a_conversation_has_turns(page: Page) -> None:
    pick(page, ("circle.png", png("red")))
    ask(page, "What color is the circle?")
    assert answer(page) == "red"
    body = sent(page, "What shape is in the picture?")
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == "red"
    expect(page.locator(".turn.assistant")).to_have_count(2)
    assert "circle" in answer(page)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    assert len(sent(page, "hello")["messages"]) == 1


def test_regenerate(page: Page) -> None:
    """With temperature, another seed; without, the page says that nothing will change."""
    ask(page, "hello")
    first = answer(page)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_text("At temperature 0 the answer is always the same")).to_be_visible()
    assert answer(page) == first
    page.get_by_role("button", name="Settings of answers").click()
    panel = page.get_by_role("group", name="Settings of answers")
    panel.get_by_label("Temperature, as a number").fill("1")
    seeds = set()
    for _ in range(2):
        with page.expect_request(CHAT) as request:
            page.get_by_role("button", name="Regenerate").click()
        body = request.value.post_data_json
        assert body["temperature"] == 1
        assert len(body["messages"]) == 1
        seeds.add(body["seed"])
        answer(page)
    assert len(seeds) == 2
    expect(page.locator(".turn.assistant")).to_have_count(1)


def test_edit(page: Page) -> None:
    """What came after the edited question goes, its image stays."""
    pick(page, ("circle.png", png("blue")))
    ask(page, "What color is the circle?")
    assert answer(page) == "blue"
    ask(page, "hello")
    answer(page)
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edited question").fill("What shape is in the picture?")
    with page.expect_request(CHAT) as request:
        page.get_by_label("Edited question").press("Control+Enter")
    assert "circle" in answer(page)
    expect(page.locator(".turn")).to_have_count(2)
    (message,) = request.value.post_data_json["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]


def test_an_edit_can_be_given_up(page: Page) -> None:
    ask(page, "hello")
    answer(page)
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edited question").fill("something else")
    page.get_by_label("Edited question").press("Escape")
    expect(page.locator(".turn.user .text")).to_have_text("hello")
    expect(page.locator(".turn.assistant")).to_have_count(1)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_is_a_cancel(page: Page, server: ServerInThread, way: str) -> None:
    """The server stops working, and what had arrived stays."""
    before = metric(server, "janus:requests_cancelled_total", task="chat")
    ask(page, "What can you do?")
    expect(page.locator(".turn.assistant .text")).to_contain_text("I can")
    if way == "button":
        page.get_by_role("button", name="Stop", exact=True).click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".turn.assistant .note")).to_have_text("stopped")
    wait_until(server.is_idle, timeout_s=2)
    assert metric(server, "janus:requests_cancelled_total", task="chat") == before + 1
    kept = page.locator(".turn.assistant .text").inner_text()
    assert kept.startswith("I can")
    assert "diamonds" not in kept
    ask(page, "hello")
    assert answer(page)


def test_copy(page: Page) -> None:
    ask(page, "hello")
    shown = answer(page)
    page.get_by_role("button", name="Copy", exact=True).last.click()
    expect(page.get_by_text("Copied.", exact=True)).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == shown


def test_a_limit_of_images_is_said_before_the_server_says_it(
    page: Page, server: ServerInThread
) -> None:
    limit = server.settings.max_images_per_request
    pick(page, *[(f"{index}.png", png("red")) for index in range(limit + 1)])
    expect(page.get_by_text(f"At most {limit} images")).to_be_visible()
    expect(page.locator("#tray li")).to_have_count(limit)


def test_settings_are_sent_if_they_were_changed(page: Page) -> None:
    body = sent(page, "hello")
    assert body.keys() == {"model", "messages", "stream", "stream_options"}
    answer(page)
    page.get_by_role("button", name="Settings of answers").click()
    panel = page.get_by_role("group", name="Settings of answers")
    expect(panel.get_by_label("Temperature", exact=True)).to_have_value("0")
    expect(panel.get_by_label("Longest answer", exact=True)).to_have_value("1024")
    panel.get_by_label("Top-p", exact=True).press("ArrowLeft")
    panel.get_by_label("Longest answer, as a number").fill("16")
    panel.get_by_label("System prompt").fill("Be brief.")
    panel.get_by_label("Seed", exact=True).fill("5")
    body = sent(page, "What can you do?")
    assert (body["top_p"], body["max_tokens"], body["seed"]) == (0.95, 16, 5)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    answer(page)
    expect(page.locator(".turn.assistant .note").last).to_contain_text("cut off by the limit")
    panel.get_by_role("button", name="Reset all").click()
    assert "max_tokens" not in sent(page, "hello")


HOSTILE = (
    "<img src=x onerror=\"document.title='pwned'\"> **bold** `code` <script>alert(1)</script>\n\n"
    "[here](javascript:alert(1)) and [there](https://example.com/a)\n\n```\n<b>x</b>\n```\n- one"
)


def test_no_text_becomes_markup(page: Page) -> None:
    """A server, or a model, that answers with markup gets it shown as the text it is."""

    def reply(route: Route) -> None:
        chunk = {"choices": [{"index": 0, "delta": {"content": HOSTILE}, "finish_reason": "stop"}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route(CHAT, reply)
    ask(page, "<b>bold</b>")
    shown = answer(page)
    text = page.locator(".turn.assistant .text")
    assert "<img src=x onerror" in shown
    assert "<script>alert(1)</script>" in shown
    assert "[here](javascript:alert(1))" in shown
    expect(text.locator("img, script, b")).to_have_count(0)
    expect(text.locator("strong")).to_have_text("bold")
    expect(text.locator("pre code")).to_have_text("<b>x</b>")
    expect(text.locator("ul li")).to_have_text("one")
    (link,) = text.locator("a").all()
    assert link.get_attribute("href") == "https://example.com/a"
    assert "noopener" in link.get_attribute("rel")
    expect(page.locator(".turn.user .text")).to_have_text("<b>bold</b>")
    assert page.title() == "Janus Serve"


def test_the_source_makes_no_markup() -> None:
    ui = Path(__file__).parents[2] / "server" / "ui"
    for file in ui.glob("*.js"):
        source = file.read_text("utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in source, file.name
