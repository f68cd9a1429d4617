"""The preference page in a real browser, where there is one: real keys in, the downloaded CSV out.

Chromium is spoken to through its DevTools pipe: JSON ended by NUL on its descriptors 3 and 4, so that no driver is
needed (https://chromedevtools.github.io/devtools-protocol).
"""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pixelspace.data.emoji import Emoji
from pixelspace.data.grid import grid_image, save_image
from pixelspace.evaluation.preference import write_preference_page
from pixelspace.evaluation.votes import Tally, read_votes, summarise

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show a page with: apt-get install chromium")

N, SECONDS = 5, 60
CAPTION = "</script><b>no tag</b> & \u2028"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe --window-size=1280,800".split()
)
CODES = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, " ": 32, "Backspace": 8, "Escape": 27, "f": 70}
ALT = 1


class Browser:
    def __init__(self, folder: Path):
        self.ours, theirs_out = os.pipe()
        theirs_in, self.out = os.pipe()
        redirect = f'exec "$0" "$@" 3</dev/fd/{theirs_in} 4>/dev/fd/{theirs_out}'
        self.process = subprocess.Popen(
            ["sh", "-c", redirect, str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self.buffer, self.count, self.session = b"", 0, None
        self.urls: list[str] = []
        [page] = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self.call("Network.enable")

    def call(self, method: str, **params: Any) -> dict:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        os.write(self.out, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self.count:
            if answer.get("method") == "Network.requestWillBeSent":
                self.urls.append(answer["params"]["request"]["url"])
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.ours], [], [], SECONDS)[0], "the browser says nothing more"
            data = os.read(self.ours, 1 << 16)
            assert data, "the browser is gone"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + SECONDS
        while not self.js(condition):
            assert time.monotonic() < end, f"{condition} did not come true"
            time.sleep(0.01)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && typeof enter === 'function'")

    def key(self, key: str, **more: Any) -> None:
        text = {"text": key} if len(key) == 1 and not more.get("modifiers") else {}
        what = {"key": key, "code": key, "windowsVirtualKeyCode": CODES[key], **text, **more}
        self.call("Input.dispatchKeyEvent", type="keyDown", **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def press(self, *keys: str) -> None:
        """As a judge does, who sees both images first."""
        for key in keys:
            self.wait("shownAt !== null")
            self.key(key)

    def choices(self) -> str:
        return self.js("answers.map((one) => one[0]).join(' ')")

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(SECONDS)
        os.close(self.ours), os.close(self.out)


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    try:
        yield browser
        browser.close()
    finally:
        browser.process.kill()
        browser.process.wait()


@pytest.fixture
def page(tmp_path) -> Path:
    emoji = Emoji().open()
    for i in range(N):
        save_image(grid_image(emoji[i].image[None], 1, gap=0), tmp_path / "left" / f"{i}.png")
        save_image(grid_image(emoji[i].image[None].flip(-1), 1, gap=0), tmp_path / "right" / f"{i}.png")
    captions = {str(i): CAPTION for i in range(N)}
    return write_preference_page(tmp_path / "left", tmp_path / "right", tmp_path / "page", prompts=captions)


def start(browser: Browser, page: Path, judge: str) -> None:
    browser.go(page.as_uri())
    browser.call("Input.insertText", text=judge)
    browser.js("byId('enter').requestSubmit()")


def test_keys_and_buttons_make_the_csv_that_read_votes_reads(browser, page, tmp_path):
    (tmp_path / "sent").mkdir()
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "sent"))
    start(browser, page, "Ann Ü")
    browser.press("ArrowLeft", "ArrowRight", "Backspace", " ", "ArrowDown")
    assert browser.choices() == "left tie tie"

    browser.call("Page.reload")
    browser.wait("typeof answers === 'object' && answers.length === 3")
    assert browser.js("judge") == "Ann Ü"

    browser.press("ArrowRight")
    browser.wait("shownAt !== null")
    browser.js("document.querySelector('[data-choice=left]').click()")
    assert browser.js("byId('done').hidden") is False
    browser.key("ArrowLeft")
    assert browser.choices() == "left tie tie right left"

    end = time.monotonic() + SECONDS
    while not (sent := list((tmp_path / "sent").glob("*.csv"))) and time.monotonic() < end:
        time.sleep(0.01)
    assert [path.name for path in sent] == [f"preference-{browser.js('study.page')}-Ann_Ü.csv"]
    votes = read_votes(sent, page.parent / "key.json")
    assert [vote.seen for vote in votes.votes] == [1, 0, 0, -1, 1]
    assert {vote.judge for vote in votes.votes} == {"Ann Ü"}
    assert summarise(votes).screen == Tally(wins=2, losses=1, ties=2)
    folder = page.parent.as_uri()
    wanted = {page.as_uri()} | {f"{folder}/images/{i:04d}-{end}.png" for i in range(1, N + 1) for end in "ab"}
    assert {url for url in browser.urls if not url.startswith("blob:")} == wanted


def test_no_answer_is_given_by_accident(browser, page):
    start(browser, page, "=Ann")
    assert browser.js("judge") is None  # a spreadsheet would run it
    browser.js("byId('judge').value = ''")
    browser.call("Input.insertText", text="Bo")
    browser.js("byId('enter').requestSubmit(), answer('left')")
    assert browser.choices() == ""  # before the images are there
    browser.wait("shownAt !== null")
    assert browser.js("[byId('caption').textContent, byId('caption').childElementCount]") == [CAPTION, 0]
    browser.key("ArrowLeft", autoRepeat=True)
    browser.key("ArrowLeft", modifiers=ALT)
    browser.js("pictures[1].parentElement.click()")
    browser.key("ArrowLeft")
    assert browser.js("byId('zoom').open") and browser.choices() == ""
    browser.key("Escape")
    browser.wait("!byId('zoom').open && document.activeElement === byId('judging')")
    browser.key(" ")
    assert browser.choices() == "tie" and not browser.js("byId('zoom').open")


@pytest.mark.parametrize("density", [1, 1.5, 2])
def test_native_size_is_a_screen_pixel_an_image_pixel_and_fitted_a_whole_number_of_them(browser, page, density):
    browser.call("Emulation.setDeviceMetricsOverride", width=1000, height=700, deviceScaleFactor=density, mobile=False)
    start(browser, page, "Bo")
    browser.wait("shownAt !== null")
    widths = "pictures.map((one) => one.getBoundingClientRect().width * devicePixelRatio / one.naturalWidth)"
    one, other = browser.js(widths)
    assert one == other and one > 2 and one == pytest.approx(round(one), abs=0.02)  # layout is in 64ths of a pixel
    browser.key("f")
    assert browser.js(widths) == pytest.approx([1, 1], abs=0.02)


def test_an_image_that_is_missing_is_said_and_not_judged(browser, page):
    (page.parent / "images" / "0001-b.png").unlink()
    start(browser, page, "Bo")
    browser.wait("!byId('missing').hidden")
    browser.key("ArrowLeft")
    assert browser.choices() == "" and "images/0001-b.png cannot be shown" in browser.js("byId('missing').textContent")
