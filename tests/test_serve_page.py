"""The page, in a real browser, before the real API."""

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import draw_jpeg
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from serving import LocalJudge
from starlette.responses import PlainTextResponse

from asap.finding import Finding
from asap.images import PreparedImage
from asap.predictor import Predictor
from serve.api import create_app
from serve.errors import Overloaded
from serve.keys import Keyring
from serve.service import Service
from serve.settings import ServeSettings

SHOTS = Path(os.environ.get("ASAP_SHOTS", "out/page"))
"""Screenshots, to be looked at."""


class Moody(LocalJudge):
    """Judges, unless it is told to be too busy."""

    busy = False

    async def detect(self, image: PreparedImage, text: str | None) -> Finding:
        if self.busy:
            raise Overloaded
        await asyncio.sleep(0.2)  # long enough to see that it is being judged
        return await super().detect(image, text)


class Server:
    """The API on a port of its own, in a thread."""

    def __init__(self, judge: Moody) -> None:
        settings = ServeSettings(decoders=1)
        self.judge = judge
        self.refuses_plainly = False
        self.app = create_app(settings, Service(settings, judge), Keyring())
        self._refuse(self.app)
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(self.app, "127.0.0.1", self.port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self.url = f"http://127.0.0.1:{self.port}/"

    def _refuse(self, app: FastAPI) -> None:
        """As Ray Serve's proxy does when it is full: in plain text."""

        @app.middleware("http")
        async def refuse(request: Any, call_next: Callable[[Any], Any]) -> Any:
            if self.refuses_plainly and request.method == "POST":
                return PlainTextResponse("Request dropped due to backpressure", 503, {"Retry-After": "2"})
            return await call_next(request)

    def __enter__(self) -> "Server":
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(Moody(Predictor.from_folder("demo", "cpu"))) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        missing = "the page is tested in Chromium: apt-get install chromium chromium-driver"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """The page as its user sees it."""

    def __init__(self, browser: webdriver.Chrome, server: Server) -> None:
        self.browser, self.server = browser, server

    def open(self, width: int = 1100, height: int = 900) -> None:
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.browser.get(self.server.url)
        self.wait(lambda: len(self.browser.find_elements(By.CSS_SELECTOR, "#examples button")) == 3)

    def find(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def wait(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.browser, 60, 0.05).until(lambda _: condition())

    def judge(self, picture: Path | None, text: str) -> None:
        if picture is not None:
            self.find("file").send_keys(str(picture))
        self.find("text").send_keys(text)
        self.find("judge").click()

    def example(self, number: int) -> None:
        self.browser.find_elements(By.CSS_SELECTOR, "#examples button")[number].click()
        self.wait(lambda: self.find("result").is_displayed())

    def problem(self) -> str:
        self.wait(lambda: self.find("problem").is_displayed())
        return self.find("problem").text

    def shoot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        time.sleep(0.5)  # scrolling ends
        self.browser.save_screenshot(str(SHOTS / f"{name}.png"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> Iterator[Page]:
    server.judge.busy = server.refuses_plainly = False
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page = Page(browser, server)
    page.open()
    browser.get_log("browser")
    yield page
    # A script or style that the content security policy stops would be told of here.
    ours = [line["message"] for line in browser.get_log("browser") if "status of" not in line["message"]]
    assert ours == []


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jpg"
    path.write_bytes(draw_jpeg(1, (320, 240)))
    return path


def test_an_example_shows_verdict_box_words_and_types(page: Page) -> None:
    page.example(1)
    assert page.find("verdict").text.lower() == "manipulated"
    assert "Score" in page.find("meaning").text
    inner, outer = page.find("box").rect, page.find("picture").rect
    assert outer["x"] <= inner["x"] < inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1
    assert outer["y"] <= inner["y"] < inner["y"] + inner["height"] <= outer["y"] + outer["height"] + 1
    assert inner["width"] > 20
    rows = page.browser.find_elements(By.CSS_SELECTOR, "#types tr")
    assert [row.text.split()[0:2] for row in rows] == [
        ["face", "swap"], ["face", "attribute"], ["text", "swap"], ["text", "attribute"]
    ]  # fmt: skip
    assert page.browser.find_elements(By.CSS_SELECTOR, "#marked mark")
    assert page.find("marked").text == page.find("text").get_property("value")
    assert page.find("file").get_attribute("value").endswith(".jpg")
    page.shoot("example")


def test_a_picture_of_ones_own_is_judged_with_the_keyboard_alone(page: Page, picture: Path) -> None:
    page.find("file").send_keys(str(picture))
    assert page.find("file").get_attribute("value").endswith("mine.jpg")
    page.find("text").send_keys("Two people meet", Keys.TAB, Keys.TAB)
    assert page.browser.switch_to.active_element == page.find("judge")
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: page.find("status").text == "Judging …")
    page.wait(lambda: page.find("result").is_displayed())
    assert page.browser.switch_to.active_element == page.find("result")  # where a screen reader goes on
    assert "320 × 240" in page.find("where").text or page.find("where").text == "No face was flagged."


def test_what_a_screen_reader_is_told(page: Page) -> None:
    assert [(page.find(name).aria_role, page.find(name).accessible_name) for name in ("text", "judge", "curl")] == [
        ("textbox", "Text"), ("button", "Judge the pair"), ("button", "Copy as curl")
    ]  # fmt: skip
    assert page.find("file").accessible_name == "Picture"
    page.example(0)
    assert page.find("status").get_attribute("aria-live") == "polite"
    assert page.find("status").get_property("textContent").split(",")[0] == page.find("verdict").text.lower()
    assert page.find("result").accessible_name.lower() == page.find("verdict").text.lower()
    assert page.find("problem").get_attribute("role") == "alert"
    assert page.find("picture").accessible_name == "The picture that was judged"


def test_a_file_that_is_no_picture_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear editor")
    page.judge(tmp_path / "letter.jpg", "Two people meet")
    assert page.problem().startswith("Not judged: ")
    assert not page.find("result").is_displayed()
    assert page.find("judge").is_enabled()
    page.shoot("bad_file")


def test_what_is_missing_is_asked_for(page: Page, picture: Path) -> None:
    page.find("judge").click()
    assert page.problem() == "Choose a picture first."
    page.judge(picture, "  ")
    assert page.problem() == "Type the text that goes with the picture."
    assert page.browser.switch_to.active_element == page.find("text")


@pytest.mark.parametrize(
    ("plainly", "words"),
    [(False, "The server is busy ("), (True, "The server is busy (it answered 503). Try again in 2 s.")],
)
def test_a_server_that_is_full_says_so_and_the_pair_can_be_sent_again(
    page: Page, picture: Path, plainly: bool, words: str
) -> None:
    page.server.judge.busy, page.server.refuses_plainly = not plainly, plainly
    page.judge(picture, "Two people meet")
    assert page.problem().startswith(words)
    page.shoot("overload")
    page.server.judge.busy = page.server.refuses_plainly = False
    page.find("judge").click()
    page.wait(lambda: page.find("result").is_displayed())
    assert not page.find("problem").is_displayed()


def test_nothing_of_a_text_is_executed(page: Page, picture: Path) -> None:
    text = "<img src=x onerror=document.title='owned'> <script>document.title='owned'</script> & 👍 end"
    page.run("document.getElementById('text').value = arguments[0]", text)  # the driver types no emoji
    page.judge(picture, "")
    page.wait(lambda: page.find("result").is_displayed())
    assert page.find("marked").get_property("textContent") == text
    assert page.find("marked").find_elements(By.CSS_SELECTOR, "img, script") == []
    assert "owned" not in page.browser.title


def test_the_copied_command_asks_for_the_same(page: Page, picture: Path) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.server.url},
    )
    page.find("file").send_keys(str(picture))
    page.find("text").send_keys("The mayor's dog")
    page.find("curl").click()
    page.wait(lambda: page.find("copied").text)
    told = page.find("copied").text
    if told == "Copied.":
        told = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert told == (
        f"""curl '{page.server.url}v1/detect' -F 'image=@"mine.jpg"' --form-string 'text=The mayor'\\''s dog'"""
    )


def test_a_phone_shows_all_of_it_without_scrolling_sideways(page: Page) -> None:
    page.open(360, 740)
    page.example(1)
    page.shoot("phone")
    assert page.run("return document.documentElement.scrollWidth") <= 360
    small = [
        button.text for button in page.browser.find_elements(By.CSS_SELECTOR, "button") if button.rect["height"] < 24
    ]
    assert small == []  # WCAG 2.2, target size (minimum)


INK_AND_GROUND = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => {
    const s = c / 255;
    return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
let ground = arguments[0];
while (/^rgba\\(.*, 0\\)$/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
return [light(getComputedStyle(arguments[0]).color), light(getComputedStyle(ground).backgroundColor)];
"""
"""Relative luminance of an element's letters, and of what they stand on (WCAG 2.2)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_by_day_and_by_night(page: Page, scheme: str) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.example(1)
    page.shoot(scheme)
    _, ground = page.run(INK_AND_GROUND, page.browser.find_element(By.TAG_NAME, "body"))
    assert (ground < 0.2) == (scheme == "dark")
    told = [page.find(name) for name in ("meaning", "marked", "about", "where", "verdict")]
    for element in (*told, *page.browser.find_elements(By.CSS_SELECTOR, "mark, #types th, #types td, button")):
        ink, ground = page.run(INK_AND_GROUND, element)
        contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert contrast >= 4.5, element.text  # contrast (minimum)
