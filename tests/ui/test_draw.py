"""The side that draws: pictures that fill in row by row, and what can be done with them."""

import re

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import Page, expect

from tests.serving import ServerInThread, wait_until
from tests.ui.conftest import answer, ask, draw, drawn, metric, picture_of

GENERATE = "**/v1/images/generations"
EDIT = "**/v1/images/edits"
STAR = "a blue star to the left of a yellow square"
CIRCLE = "a large red circle on a white background"


def shown(page: Page, index: int = 0) -> str:
    """The data URL of a picture of the newest run."""
    image = page.locator(".run").first.locator(".tile img").nth(index)
    return image.get_attribute("src") or ""


# Writes down every state that the first picture of the page shows.
WATCH = """() => {
  window.seen = [];
  const look = () => {
    const tile = document.querySelector(".tile");
    const [bar, veil, image] = [".progress", ".veil", "img"].map((s) => tile?.querySelector(s));
    if (!veil || bar.hidden) return;
    window.seen.push({
      percent: Number(bar.getAttribute("aria-valuenow")),
      top: parseFloat(veil.style.top) || 0,
      note: tile.querySelector(".tile-note").textContent,
      url: image.hidden ? null : image.src,
    });
  };
  const options = { subtree: true, attributes: true, childList: true, characterData: true };
  new MutationObserver(look).observe(document.getElementById("runs"), options);
}"""


@pytest.mark.usefixtures("slow")
def test_pictures_fill_in_row_by_row(drawing_page: Page) -> None:
    page = drawing_page
    page.evaluate(WATCH)
    with page.expect_request(GENERATE) as request:
        draw(page, STAR, n=2, seed=7)
    body = request.value.post_data_json
    assert body == {
        "model": "janus-mini",
        "prompt": STAR,
        "n": 2,
        "seed": 7,
        "stream": True,
        "partial_images": 7,
        "progress": True,
    }, "every row of eight but the last is a preview, and nothing is sent that was not chosen"
    drawn(page, 2)
    seen = page.evaluate("() => window.seen")
    percents = [state["percent"] for state in seen]
    tops = [state["top"] for state in seen]
    assert percents == sorted(percents)
    assert tops == sorted(tops)
    assert len(set(percents)) >= 7, "an event for every row"
    assert len(set(tops)) >= 4, "a preview may be dropped, not most of them"
    assert {100 * row / 8 for row in range(8)} >= set(tops), "the veil ends where rows do"
    notes = {state["note"] for state in seen if state["percent"]}
    assert all(re.fullmatch(r"\d+ %( · [\d.]+ m?s left)?", note) for note in notes), notes
    assert any("left" in note for note in notes)
    half = picture_of(next(state["url"] for state in seen if 0 < state["top"] < 80))
    whole = picture_of(shown(page))
    assert half.size == whole.size == (64, 64)
    assert half.getpixel((32, 60)) == (127, 127, 127), "what is not drawn is grey"
    assert whole.getpixel((32, 60)) != (127, 127, 127)
    difference = ImageChops.difference(half.crop((0, 0, 64, 4)), whole.crop((0, 0, 64, 4)))
    assert max(ImageStat.Stat(difference).mean) < 30, "but for what the decoder mixes in"
    expect(page.locator(".run .note").first).to_contain_text("2 pictures")
    expect(page.locator(".run .note").first).to_contain_text("codes/s")
    expect(page.get_by_text("seed 8", exact=True)).to_be_visible()


def test_the_defaults_are_the_servers(drawing_page: Page) -> None:
    """janus-mini's, not Janus-Pro's; what is moved is sent, and reset brings it back."""
    page = drawing_page
    for name, value in (("Guidance", "1.1"), ("Temperature", "0.5"), ("Top-p", "0.9")):
        expect(page.locator("#draw-panel").get_by_label(name, exact=True)).to_have_value(value)
    expect(page.get_by_role("button", name="Reset guidance")).to_be_hidden()
    guidance = page.get_by_label("Guidance", exact=True)
    guidance.press("ArrowRight")
    page.locator("#draw-panel").get_by_label("Temperature, as a number").fill("0.8")
    page.get_by_label("Avoid").fill("green")
    with page.expect_request(GENERATE) as request:
        draw(page, STAR, n=1)
    body = request.value.post_data_json
    assert (body["guidance_scale"], body["temperature"]) == (1.2, 0.8)
    assert body["negative_prompt"] == "green"
    assert "top_p" not in body
    assert isinstance(body["seed"], int)
    drawn(page, 1)
    page.get_by_role("button", name="Reset guidance").click()
    expect(guidance).to_have_value("1.1")
    page.locator("#draw-panel").get_by_label("Temperature, as a number").fill("99")
    page.locator("#draw-panel").get_by_label("Temperature, as a number").press("Tab")
    expect(page.locator("#draw-panel").get_by_label("Temperature", exact=True)).to_have_value("2")


def test_reuse_a_seed(drawing_page: Page) -> None:
    """The same words with the seed of the third picture draw it again."""
    page = drawing_page
    draw(page, STAR, n=3)
    drawn(page, 3)
    third = shown(page, 2)
    page.get_by_role("button", name="Reuse seed").nth(2).click()
    seed = page.get_by_role("textbox", name="Seed", exact=True).input_value()
    assert page.get_by_text(f"seed {seed}", exact=True).count() == 1
    page.get_by_label("Pictures, as a number").fill("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    drawn(page, 1)
    again, before = picture_of(shown(page)), picture_of(third)
    assert again.text["seed"] == before.text["seed"] == seed
    assert again.tobytes() == before.tobytes()
    page.get_by_role("button", name="Clear the seed").click()
    expect(page.get_by_role("textbox", name="Seed", exact=True)).to_have_value("")


def test_variations_begin_alike(drawing_page: Page) -> None:
    page = drawing_page
    draw(page, CIRCLE, n=1, seed=1)
    drawn(page, 1)
    source = picture_of(shown(page))
    with page.expect_request(EDIT) as request:
        page.get_by_role("button", name="Variations").click()
    drawn(page, 4)
    body = request.value.post_data_json
    assert (body["prompt"], body["strength"], body["n"]) == (CIRCLE, 0.75, 4)
    assert body["images"][0]["image_url"].startswith("data:image/png;base64,")
    expect(page.locator(".run")).to_have_count(2)
    variations = [picture_of(shown(page, index)) for index in range(4)]
    for each in variations:
        top = each.crop((0, 0, 64, 8)).convert("L").getextrema()
        assert top[0] > 200, "the upper quarter is kept: white"
        assert each.size == source.size


def test_draw_again_with_other_seeds(drawing_page: Page) -> None:
    page = drawing_page
    draw(page, CIRCLE, n=1, seed=1)
    drawn(page, 1)
    with page.expect_request(GENERATE) as request:
        page.get_by_role("button", name="Draw again with other seeds").click()
    assert request.value.post_data_json["seed"] != 1
    drawn(page, 1)
    page.get_by_role("button", name="Remove from view").first.click()
    expect(page.locator(".run")).to_have_count(1)


def test_ask_about_this_image(drawing_page: Page) -> None:
    """It is carried over as it is, without a file being chosen."""
    page = drawing_page
    draw(page, CIRCLE, n=1, seed=1)
    drawn(page, 1)
    url = shown(page)
    page.get_by_role("button", name="Ask about this image").click()
    expect(page.get_by_role("tab", name="Ask")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#tray img")).to_have_attribute("src", url)
    expect(page.get_by_label("Your question")).to_be_focused()
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, "What color is the circle?")
    assert answer(page) == "red"
    part = request.value.post_data_json["messages"][0]["content"][0]
    assert part["image_url"]["url"] == url


def test_full_screen(drawing_page: Page) -> None:
    page = drawing_page
    draw(page, STAR, n=2, seed=3)
    drawn(page, 2)
    page.get_by_role("button", name=f"Full screen: {STAR}, seed 3").click()
    dialog = page.get_by_role("dialog", name="Picture")
    expect(dialog).to_contain_text("seed 3")
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("seed 4")
    dialog.get_by_role("button", name="Next picture").click()
    expect(dialog).to_contain_text("seed 3")
    box = dialog.get_by_role("img").bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) > 500
    caption = dialog.locator(".viewer-caption").bounding_box()
    assert caption is not None
    assert box["y"] + box["height"] <= caption["y"], "nothing lies over the picture"
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Full screen", exact=True).first.click()
    dialog.get_by_role("button", name="Reuse seed").click()
    expect(page.get_by_role("textbox", name="Seed", exact=True)).to_have_value("3")


def test_download(drawing_page: Page) -> None:
    """A PNG with everything about how it was drawn inside."""
    page = drawing_page
    draw(page, STAR, n=1, seed=3)
    drawn(page, 1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == f"{STAR.replace(' ', '-')}-3.png"
    with Image.open(download.value.path()) as picture:
        assert picture.format == "PNG"
        assert (picture.text["prompt"], picture.text["seed"]) == (STAR, "3")


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_is_a_cancel(drawing_page: Page, server: ServerInThread, way: str) -> None:
    """The server stops drawing, and half-drawn pictures stay."""
    page = drawing_page
    before = metric(server, "janus:requests_cancelled_total", task="image")
    draw(page, STAR, n=3)
    expect(page.locator(".tile.drawing img").first).to_be_visible()
    if way == "button":
        page.get_by_role("button", name="Stop", exact=True).click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".tile.failed")).to_have_count(3)
    wait_until(server.is_idle, timeout_s=2)
    assert metric(server, "janus:requests_cancelled_total", task="image") == before + 3
    expect(page.locator(".tile-note").first).to_have_text("stopped")
    expect(page.locator(".tile img").first).to_be_visible()
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()


def test_an_idea_is_one_click(drawing_page: Page) -> None:
    page = drawing_page
    page.get_by_role("button", name="a small green triangle on gray").click()
    drawn(page, 4)
    expect(page.get_by_label("What shall be drawn?")).to_have_value(
        "a small green triangle on gray"
    )


def test_nothing_to_draw(drawing_page: Page) -> None:
    page = drawing_page
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_text("Describe a picture first.")).to_be_visible()
    expect(page.locator(".run")).to_have_count(0)
