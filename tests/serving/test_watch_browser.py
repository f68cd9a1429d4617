"""The page in a real browser, served by the command itself: what is chosen is seen, by mouse and keys, as it grows."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from pixelspace.training.log import Metrics
from tests.serving.watched import COLOURS, draw_samples, make_run, stage_of, train_rows

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show a page with: apt-get install chromium"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = "<img src=x onerror=alert(1)>"
CENTRE = """async (image) => {
    await image.decode();
    const canvas = document.createElement('canvas');
    const pixels = canvas.getContext('2d');
    pixels.drawImage(image, 0, 0);
    return [...pixels.getImageData(8, 8, 1, 1).data.slice(0, 3)];
}"""


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "runs"
    for name, settings in (("slow", ()), ("fast", ("stages.0.optimizer.lr=0.25",))):
        stage = stage_of(root / name, make_run(root / name, "stages.0.images=40", *settings))
        train_rows(Metrics(stage, []), range(1, 9))
        Metrics(stage, []).write("evaluation/quick", 8, 32, best="fid", lower=True, fid=12.5)
        draw_samples(stage, 4, levels=(16, 8))
        draw_samples(stage, 16, levels=(16, 8))
    (stage / "samples" / "captions.txt").write_text(f"{HOSTILE}\n")
    make_run(root / HOSTILE.replace("/", ""))
    return root


@pytest.fixture
def server(root) -> Iterator[tuple[subprocess.Popen, str]]:
    command = [sys.executable, "-m", "pixelspace", "watch", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found, process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def page(server) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        said = list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(server[1]) else None)
        page.goto(server[1])
        expect(page.get_by_role("heading", name="Loss")).to_be_visible(timeout=30_000)
        yield page
        assert [one for one in said if not one.startswith("data:") and "ERR_CONNECTION" not in one] == []
        browser.close()


def box(page: Page, run: str):
    return page.locator("#runs > li", has=page.get_by_role("heading", name=run, exact=True)).get_by_role("checkbox")


def test_runs_are_compared_by_mouse_and_keys_and_followed_as_they_learn(page, root, server):
    expect(page.locator("#runs > li")).to_have_count(3)
    expect(page.get_by_role("heading", name=HOSTILE.replace("/", ""))).to_be_visible()  # as text
    first = page.get_by_role("checkbox", checked=True).and_(page.locator("nav input"))
    expect(first).to_have_count(1)  # the newest that has begun
    box(page, "slow").check()
    box(page, "fast").check()
    loss = page.get_by_role("img", name=re.compile("^Loss over images seen"))
    expect(loss).to_have_attribute("aria-label", re.compile("slow 0.449.*fast 0.449|fast 0.449.*slow 0.449"))
    expect(page.locator("#octiles figure")).to_have_count(2)
    expect(page.get_by_role("img", name=re.compile(r"^fid \(quick\), less is better: now"))).to_be_visible()
    differing = page.get_by_role("region", name="Settings that differ")
    expect(differing.get_by_role("rowheader")).to_have_text(["stages.0.optimizer.lr"])
    expect(box(page, HOSTILE.replace("/", ""))).to_be_disabled()  # nothing to see yet

    loss.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#losses .readout")).to_have_text(re.compile(r"^8 images: .* 0\.8187"))
    page.keyboard.press("Escape")
    expect(page.locator("#losses .readout")).to_have_text("")
    at = loss.bounding_box()
    assert at is not None
    page.mouse.move(at["x"] + at["width"] - 10, at["y"] + 50)
    expect(page.locator("#losses .readout")).to_have_text(re.compile("^32 images"))
    page.get_by_label("Smooth").select_option("some")
    expect(page.locator("#losses path.faint")).to_have_count(2)

    slide = page.get_by_role("slider")
    expect(slide).to_have_attribute("aria-valuetext", "after 16 images")
    pictures = page.locator("#sheets img")
    assert [one.evaluate(CENTRE) for one in pictures.all()] == [list(COLOURS[16])] * 2
    slide.focus()
    page.keyboard.press("ArrowLeft")
    expect(pictures).to_have_count(2)
    expect(pictures.first).to_have_attribute("alt", re.compile("after 4 images"))
    expect(pictures.last).to_have_attribute("alt", re.compile("after 4 images"))
    assert [one.evaluate(CENTRE) for one in pictures.all()] == [list(COLOURS[4])] * 2
    page.get_by_label("Level").select_option("8")
    expect(pictures.first).to_have_attribute("src", re.compile("level=8"))
    assert pictures.first.evaluate("async (one) => (await one.decode(), one.naturalWidth)") == 2 * 8 + 3 * 2
    slide.focus()
    page.keyboard.press("End")
    page.get_by_label("Level").select_option("")

    stage = root / "slow" / "00-train"
    train_rows(Metrics(stage, []), range(9, 11))
    draw_samples(stage, 32)
    expect(slide).to_have_attribute("aria-valuetext", "after 32 images", timeout=15_000)  # followed
    expect(page.locator(f"#sheets img[alt*='after {32} images']")).to_have_count(1)
    expect(page.locator("#runs > li", has_text="slow").locator(".state")).to_have_text("done")

    box(page, "slow").uncheck()
    box(page, "fast").uncheck()
    expect(page.get_by_text("Check a stage of a run")).to_be_visible()
    box(page, "fast").check()
    box(page, "slow").check()
    page.reload()
    expect(page.get_by_role("checkbox", checked=True).and_(page.locator("nav input"))).to_have_count(2, timeout=15_000)
    process, _ = server
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0 and process.stderr and process.stderr.read() == ""
    expect(page.get_by_role("alert")).to_have_text(re.compile("The server does not answer"), timeout=15_000)


def test_no_more_than_can_be_told_apart_are_shown_at_once(root, server, page):
    for i in range(5):
        train_rows(Metrics(stage_of(root / f"more{i}", make_run(root / f"more{i}")), []), [1, 2])
    expect(page.locator("#runs > li")).to_have_count(8, timeout=15_000)
    for i in range(5):
        box(page, f"more{i}").check()
    expect(page.locator("nav input:checked")).to_have_count(6)
    expect(page.locator("nav input:not(:checked):enabled")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text(re.compile("^6 stages are shown"))
    expect(page.locator("#octiles figure")).to_have_count(6)
