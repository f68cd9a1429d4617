"""The page that draws in a real Chromium, where there is one: clicks and keys in, images and files out."""

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pixelspace.data.pictures import settings_in
from pixelspace.serving.drawer import page as served_page
from pixelspace.serving.offer import Offer
from tests.serving.served import serving
from tests.serving.test_drawer import files, idle, lines, pixels

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show a page with: apt-get install chromium"),
]
FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update"
DONE = re.compile("^done in")
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, drawer_port) -> Iterator[Page]:
    """The page in a fresh window, which must neither fault nor ask for anything elsewhere."""
    context = browser.new_context(accept_downloads=True)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: faults.append(one.url) if one.url.startswith("http") and at not in one.url else None)
    at = f"http://127.0.0.1:{drawer_port}/"
    page.goto(at)
    expect(page.locator("#draw")).to_be_enabled()
    yield page
    context.close()
    assert faults == []
    idle(drawer_port)


def downloaded(page: Page, link: int = 0) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.locator("figcaption a").nth(link).click()
    with open(waiting.value.path(), "rb") as file:
        return waiting.value.suggested_filename, file.read()


def test_a_click_draws_images_that_are_downloaded_with_their_settings(page, drawer_port):
    page.locator("#seed").fill(str(2**64 - 1))
    page.locator("#n").fill("2")
    page.locator("#steps").fill("6")
    page.locator("#label").select_option("1")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_have_text(DONE)
    expect(page.locator("figcaption a")).to_have_count(2)
    name, data = downloaded(page, 1)
    assert name == f"pixelspace-{2**64 - 1}-000001.png"
    settings = settings_in(data)
    assert (settings["seed"], settings["image"], settings["label"], settings["steps"]) == (2**64 - 1, 1, 1, 6)
    other = files(list(lines(drawer_port, n=2, steps=6, label=1, seed=2**64 - 1, guidance=settings["guidance"])))
    assert (pixels(data) == pixels(other[1][0])).all()
    page.locator("summary").click()
    expect(page.locator("pre")).to_have_text(re.compile(rf"^pixelspace sample classes -n 2 --seed {2**64 - 1} --size"))


def test_a_reload_shows_what_was_drawn_until_it_is_to_be_forgotten(page):
    page.locator("#n").fill("2")
    page.locator("#steps").fill("2")
    page.locator("#over").select_option("guidance")
    page.locator("#values").fill("1, 2")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_have_text(DONE)
    title, (name, data) = page.locator("h2").text_content(), downloaded(page, 3)
    page.reload()
    expect(page.locator("h2")).to_have_text(title)
    expect(page.locator("h3")).to_have_text(["guidance 1", "guidance 2"])
    expect(page.locator("figcaption a")).to_have_count(4)
    expect(page.locator("figure img")).to_have_count(4)
    assert downloaded(page, 3) == (name, data) and settings_in(data)["guidance"] == 2
    page.locator("summary").last.click()
    page.get_by_role("button", name="Use these settings").last.click()
    expect(page.locator("#guidance")).to_have_value("2")
    page.locator("#draw").click()
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("#status")).to_have_text(DONE)
    page.locator("#forget").click()
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("article")).to_have_count(0)


def test_the_image_appears_as_it_forms_and_cancel_stops_it(page, drawer_port):
    page.locator("#steps").fill("1000")
    page.locator("#n").fill("1")
    page.locator("#draw").click()
    expect(page.locator("figure.forming img")).to_have_attribute("src", re.compile("^data:image/jpeg"))
    expect(page.locator("#status")).to_have_text(re.compile(r"^step \d+ of 1000, .* left$"))
    expect(page.locator("#status")).to_have_attribute("aria-live", "off")
    expect(page.locator("#draw")).to_be_disabled()
    page.locator("#cancel").click()
    assert idle(drawer_port) < 1
    expect(page.locator("#status")).to_have_text("cancelled")
    expect(page.locator("#status")).to_have_attribute("aria-live", "polite")
    expect(page.locator("figcaption")).to_have_text("not finished")
    page.locator("#steps").fill("2")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_have_text(DONE)


def test_it_is_all_done_by_keys_and_every_field_has_its_name(page):
    names = page.evaluate("[...document.querySelectorAll('input, select, textarea')].map((one) => one.labels.length)")
    assert names and set(names) == {1}
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the images"
    page.locator("#steps").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text(DONE)
    expect(page.locator("figcaption a")).to_have_count(4)
    page.locator("figure button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#zoom")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#zoom")).to_be_hidden()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Enlarge image 0"


def test_what_cannot_be_meant_is_said_in_a_sentence_on_the_page(page):
    for field, given, line in (
        ("steps", "100000", "steps: must be from 1 to 1,000, found 100,000"),
        ("steps", "", "steps: input should be a valid integer; found ''"),
        ("seed", "-1", "seed: must be a number from 0 to 18,446,744,073,709,551,615, found '-1'"),
        ("n", "0", "n: must be from 1 to 16, found 0"),
        ("guidance", "-3", "guidance: must be from 0 to 100, found -3.0"),
    ):
        kept = page.locator(f"#{field}").input_value()
        page.locator(f"#{field}").fill(given)
        page.locator("#draw").click()
        expect(page.locator("#error")).to_have_text(line)
        expect(page.locator("article")).to_have_count(0)
        expect(page.locator("#draw")).to_be_enabled()
        page.locator(f"#{field}").fill(kept)


def test_prompts_are_text_and_nothing_else_and_blank_or_huge_ones_are_refused(page):
    page.locator("#model").select_option("text")
    for prompt, line in ((" ", "is blank"), ("x" * 2001, "2,001 characters"), ("x" * 70_000, "more than 65,536 bytes")):
        page.locator("#text").fill(prompt)
        page.locator("#draw").click()
        expect(page.locator("#error")).to_contain_text(line)
    page.locator("#text").fill("<img src=x onerror=alert(1)> é 😀")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_have_text(DONE)
    expect(page.locator("h2")).to_have_text("<img src=x onerror=alert(1)> é 😀, seed 0")
    expect(page.locator("#error")).to_be_hidden()
    page.locator("summary").click()
    expect(page.locator("pre")).to_contain_text("--text '<img src=x onerror=alert(1)> é 😀'")


def test_a_model_without_its_text_encoder_says_so_and_does_not_draw(page):
    page.locator("#model").select_option("lost")
    expect(page.locator("#problem")).to_have_text(
        "this model's text encoder is not at hand; the server needs --encoder"
    )
    expect(page.locator("#draw")).to_be_disabled()


def test_only_the_fields_that_a_model_has_are_shown(page):
    words = {"text", "negative"}
    for model, shown in (
        ("classes", {"label"}),
        ("text", words),
        ("pyramid", {"levels"}),
        ("clips", {*words, "levels"}),
    ):
        page.locator("#model").select_option(model)
        for field in ("label", "text", "negative", "levels"):
            assert page.locator(f"#{field}-field").is_visible() == (field in shown), (model, field)
        assert page.locator("#guidance-field").is_visible() == (model != "pyramid")


def test_images_stand_side_by_side_over_guidance_seeds_and_models(page):
    page.locator("#n").fill("1")
    page.locator("#steps").fill("2")
    page.locator("#over").select_option("guidance")
    page.locator("#values").fill("1, 2.5")
    page.locator("#draw").click()
    expect(page.locator("h3")).to_have_text(["guidance 1", "guidance 2.5"])
    expect(page.locator("#status")).to_have_text(DONE)
    page.locator("#seed").fill("9007199254740993")
    page.locator("#over").select_option("seed")
    expect(page.locator("#values")).to_have_value(re.compile("^9007199254740993, 9007199254740994, "))
    page.locator("#values").fill("9007199254740993")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_have_text(DONE)
    assert settings_in(downloaded(page)[1])["seed"] == 9007199254740993  # 2^53 + 1
    page.locator("#model").select_option("text")
    page.locator("#text").fill("a cat")
    page.locator("#steps").fill("2")
    page.locator("#over").select_option("model")
    page.locator("#draw").click()
    expect(page.locator("article").first.locator("h3")).to_have_text(["classes", "text", "pyramid", "clips"])
    expect(page.locator("#status")).to_have_text(DONE)
    expect(page.locator("article")).to_have_count(3)


def test_of_a_pyramid_every_level_is_shown_and_settings_are_used_again(page):
    page.locator("#model").select_option("pyramid")
    page.locator("#levels").check()
    page.locator("#n").fill("1")
    page.locator("#steps").fill("3")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_have_text(DONE)
    expect(page.locator("figcaption a")).to_have_text(["download", "level 2"])
    assert pixels(downloaded(page, 1)[1]).shape == (16, 16, 3)
    page.locator("#model").select_option("classes")
    page.locator("summary").click()
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#model")).to_have_value("pyramid")
    expect(page.locator("#steps")).to_have_value("3")


def test_levels_stand_in_their_order_whichever_comes_first(page):
    found = page.evaluate("""async () => {
        const { figureOf, made, place } = await import("/draw.js");
        const figure = figureOf(made("div", {}, made("div", { className: "images" })), 3);
        place(figure, 1, "blob:b", 8), place(figure, 0, "blob:a", 16);
        return [...figure.querySelectorAll("img")].map((one) => [one.alt, one.getAttribute("src"), one.width]);
    }""")
    assert found == [["image 3", "blob:a", 192], ["image 3, level 2", "blob:b", 192]]


def test_two_users_at_once_both_get_their_images(browser, drawer_port):
    windows = [browser.new_context().new_page() for _ in range(2)]
    for seed, window in enumerate(windows):
        window.goto(f"http://127.0.0.1:{drawer_port}/")
        window.locator("#steps").fill("60")
        window.locator("#n").fill("1")
        window.locator("#seed").fill(str(seed))
    for window in windows:
        window.locator("#draw").click()
    expect(windows[1].locator("#status")).to_have_text("waiting: 1 drawing is before this one")
    for window in windows:
        expect(window.locator("#status")).to_have_text(DONE)
    images = [downloaded(window)[1] for window in windows]
    assert [settings_in(image)["seed"] for image in images] == [0, 1]
    for window in windows:
        window.context.close()


def test_a_window_that_is_closed_in_the_middle_stops_its_drawing(browser, drawer_port, capfd):
    window = browser.new_context().new_page()
    window.goto(f"http://127.0.0.1:{drawer_port}/")
    window.locator("#steps").fill("1000")
    window.locator("#draw").click()
    expect(window.locator("figure.forming").first).to_be_visible()
    window.context.close()
    assert idle(drawer_port) < 2
    assert capfd.readouterr() == ("", "")


def test_a_server_that_is_gone_is_said(browser, offer):
    window = browser.new_context().new_page()
    with serving(served_page(Offer({"classes": offer.models["classes"].model}), 60)) as port:
        window.goto(f"http://127.0.0.1:{port}/")
        expect(window.locator("#draw")).to_be_enabled()
        expect(window.locator("#model-field")).to_be_hidden()
    window.locator("#draw").click()
    expect(window.locator("#error")).to_have_text("The server cannot be reached; is it still running?")
    window.context.close()


def test_a_public_page_opens_by_its_link_alone(browser, offer):
    token = "a-token-of-a-length"
    with serving(served_page(Offer({"classes": offer.models["classes"].model}), 60, token)) as port:
        window = browser.new_context().new_page()
        answer = window.goto(f"http://127.0.0.1:{port}/")
        assert answer is not None and answer.status == 401
        window.goto(f"http://127.0.0.1:{port}/?token={token}")
        assert window.url == f"http://127.0.0.1:{port}/"
        window.locator("#steps").fill("2")
        window.locator("#draw").click()
        expect(window.locator("#status")).to_have_text(DONE)
        window.context.close()
