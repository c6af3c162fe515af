"""The page in a real browser, with the real API behind it."""

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from starlette.responses import PlainTextResponse

from asap.finding import NO_EVIDENCE, Finding
from asap.labels import FLAGGED
from asap.predictor import Predictor
from asap.preprocessing.images import PreparedImage
from serve.api.callers.keys import Keyring
from serve.api.routes import create_app
from serve.errors import Overloaded
from serve.inference.service import Service
from serve.settings import ServeSettings
from tests.support.pictures import draw_jpeg
from tests.support.serving import LocalDetector, free_port
from tests.support.waiting import HANG_S

SHOTS = Path(os.environ.get("ASAP_SHOTS", "out/page"))
"""Folder of screenshots for people to look at."""
PREFIX = "s3://pictures/"
AWAIT_STILLNESS = """
let [was, frames] = [scrollY, 0];
const look = () => {
  [was, frames] = [scrollY, scrollY === was ? frames + 1 : 0];
  frames < 30 ? requestAnimationFrame(look) : arguments[0]();
};
look();
"""
"""A script that ends once nothing has scrolled for 30 frames."""
EXAMPLES = Path("serve/page").resolve()
FACE, FACE_AND_WORDS, _ = json.loads((EXAMPLES / "examples.json").read_text())


class ControlledDetector(LocalDetector):
    """A detector that can be made to refuse, to wait, or to find something else."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor)
        self.busy = False
        self.may_answer = threading.Event()
        self.changes: dict[str, Any] = {}
        """Fields of the findings that differ from the model's."""

    async def detect(self, image: PreparedImage, text: str | None) -> Finding:
        if self.busy:
            raise Overloaded
        await asyncio.to_thread(self.may_answer.wait)
        return replace(await super().detect(image, text), **self.changes)


class Server:
    """The API on a port of its own, run in a thread."""

    def __init__(self, detector: ControlledDetector) -> None:
        settings = ServeSettings(
            decoders=1, deadline_s=HANG_S, drain_s=HANG_S, decode_timeout_s=HANG_S, max_image_bytes=2 * 2**20,
            uri_prefixes=(PREFIX,),
        )  # fmt: skip
        self.detector = detector
        self.refuses: dict[str, int] = {}
        """Refusals: the status by the beginning of the path."""
        self.app = create_app(settings, Service(settings, detector), Keyring())
        self._refuse(self.app)
        self.port = free_port()
        self._server = uvicorn.Server(uvicorn.Config(self.app, "127.0.0.1", self.port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self.url = f"http://127.0.0.1:{self.port}/"

    def _refuse(self, app: FastAPI) -> None:
        """Refuse requests in plain text, as Ray Serve's proxy does when it is full."""

        @app.middleware("http")
        async def refuse(request: Any, call_next: Callable[[Any], Any]) -> Any:
            for prefix, status in self.refuses.items():
                if request.url.path.startswith(prefix):
                    return PlainTextResponse("Request dropped due to backpressure", status, {"Retry-After": "2"})
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
    with Server(ControlledDetector(Predictor.from_folder("demo", "cpu"))) as server:
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
        WebDriverWait(self.browser, HANG_S, 0.05).until(lambda _: condition())

    def submit(self, picture: Path | None, text: str) -> None:
        if picture is not None:
            self.find("file").send_keys(str(picture))
        self.find("text").send_keys(text)
        self.find("check").click()

    def press_example(self, number: int) -> None:
        self.browser.find_elements(By.CSS_SELECTOR, "#examples button")[number].click()

    def example(self, number: int) -> None:
        self.press_example(number)
        self.wait(lambda: self.find("result").is_displayed())

    def type(self, text: str) -> None:
        """Set the text at once. The driver cannot type emoji."""
        self.run("document.getElementById('text').value = arguments[0]", text)

    def open_developers(self) -> None:
        """Open the part for developers. A click could miss it while a preview appears above it."""
        self.find("developers").find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
        self.wait(lambda: self.find("curl").is_displayed())

    def top_of(self, name: str) -> float:
        """Return the distance of an element from the top of the viewport, in pixels."""
        top: float = self.run("return arguments[0].getBoundingClientRect().top", self.find(name))
        return top

    def is_checking(self) -> bool:
        return self.find("status").text == "Checking …"

    def problem(self) -> str:
        self.wait(lambda: self.find("problem").is_displayed())
        return self.find("problem").text

    def shoot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.browser.set_script_timeout(HANG_S)
        self.browser.execute_async_script(AWAIT_STILLNESS)
        self.browser.save_screenshot(str(SHOTS / f"{name}.png"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> Iterator[Page]:
    server.detector.busy, server.detector.changes, server.refuses = False, {}, {}
    server.detector.may_answer.set()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page = Page(browser, server)
    page.open()
    browser.get_log("browser")
    yield page
    server.detector.may_answer.set()
    # A script or style that the content security policy blocks would be logged here.
    messages = [line["message"] for line in browser.get_log("browser") if "status of" not in line["message"]]
    assert messages == []


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jpg"
    path.write_bytes(draw_jpeg(1, (320, 240)))
    return path


def test_an_example_shows_verdict_box_words_and_types(page: Page) -> None:
    page.open(height=800)
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
    page.wait(lambda: abs(page.top_of("result")) < 2)  # the page scrolls there once the picture has its height
    page.shoot("example")


UNFAMILIAR = {
    "verdict": "unfamiliar", "familiarity": 0.001, "familiarity_image": 0.0005, "familiarity_text": 0.4,
    "unfamiliar_parts": ("image",), "flagged_types": [], "box_px": None, "words": [],
    "limits": "asap-demo was made from drawings. Do not use it for photographs.",
}  # fmt: skip


def test_an_unfamiliar_pair_is_shown_as_not_judged_with_the_strange_part(page: Page) -> None:
    page.server.detector.changes = UNFAMILIAR
    page.example(1)
    assert page.find("verdict").text == "unfamiliar, not judged"
    assert page.find("meaning").text.startswith("Not judged: the model has seen nothing like this picture.")
    assert page.find("limits").text == UNFAMILIAR["limits"]
    assert page.find("status").get_property("textContent") == "unfamiliar, not judged"
    shown = page.find("result").text
    assert not any(word in shown for word in ("Score", "0.", "flagged", "Flagged", "No type"))
    assert not page.find("box").is_displayed()
    assert page.browser.find_elements(By.CSS_SELECTOR, "#marked mark") == []
    colors = {page.find("verdict").value_of_css_property("background-color")}
    for verdict in FLAGGED:
        page.server.detector.changes = {"verdict": verdict}
        page.example(1)
        assert page.find("scores").is_displayed()
        colors.add(page.find("verdict").value_of_css_property("background-color"))
    assert len(colors) == 3


@pytest.mark.parametrize(
    ("parts", "strange"), [(("text",), "this text."), (("image", "text"), "this picture and text.")]
)
def test_the_page_names_what_is_strange(page: Page, parts: tuple[str, ...], strange: str) -> None:
    page.server.detector.changes = UNFAMILIAR | {"unfamiliar_parts": parts}
    page.example(1)
    assert strange in page.find("meaning").text


def test_a_verdict_without_evidence_says_so_and_has_the_limits(page: Page) -> None:
    page.server.detector.changes = {
        "verdict": "review", "flagged_types": [], "box_px": None, "words": [], "limits": "Only for drawings.",
    }  # fmt: skip
    page.example(1)
    assert page.find("unsupported").text == NO_EVIDENCE
    assert page.find("limits").text == "Only for drawings."
    page.server.detector.changes = {}
    page.example(1)
    assert page.find("unsupported").text == ""
    assert "asap-demo" in page.find("limits").text


def test_a_users_own_picture_is_checked_with_the_keyboard_alone(page: Page, picture: Path) -> None:
    page.server.detector.changes = {"verdict": "authentic", "flagged_types": [], "box_px": None}
    page.find("file").send_keys(str(picture))
    assert page.find("file").get_attribute("value").endswith("mine.jpg")
    page.find("text").send_keys("Two people meet", Keys.TAB)
    assert page.browser.switch_to.active_element == page.find("check")
    page.server.detector.may_answer.clear()
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(page.is_checking)
    page.server.detector.may_answer.set()
    page.wait(lambda: page.find("result").is_displayed())
    assert page.browser.switch_to.active_element == page.find("result")  # where a screen reader continues
    assert page.find("where").text == "No face was flagged."


def test_a_screen_reader_gets_names_roles_and_status(page: Page) -> None:
    page.open_developers()
    assert [(page.find(name).aria_role, page.find(name).accessible_name) for name in ("text", "check", "curl")] == [
        ("textbox", "Text"), ("button", "Check the pair"), ("button", "Copy as curl")
    ]  # fmt: skip
    assert page.find("file").accessible_name == "Picture"
    page.example(0)
    assert page.find("status").get_attribute("aria-live") == "polite"
    assert page.find("status").get_property("textContent").split(",")[0] == page.find("verdict").text.lower()
    assert page.find("result").accessible_name.lower() == page.find("verdict").text.lower()
    assert page.find("problem").get_attribute("role") == "alert"
    assert page.find("picture").accessible_name == "The picture that was checked"
    meters = page.browser.find_elements(By.CSS_SELECTOR, "#types meter")
    assert {meter.get_attribute("aria-hidden") for meter in meters} == {"true"}  # the numbers beside them are read


def test_a_file_that_is_not_a_picture_gets_an_error_message(page: Page, tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear editor")
    page.submit(tmp_path / "letter.jpg", "Two people meet")
    assert page.problem().startswith("Not checked: ")
    assert not page.find("result").is_displayed()
    assert page.find("check").is_enabled()
    page.shoot("bad_file")


def test_the_page_asks_for_a_missing_picture_or_text(page: Page, picture: Path) -> None:
    page.find("check").click()
    assert page.problem() == "Choose a picture first."
    page.submit(picture, "  ")
    assert page.problem() == "Type the text that goes with the picture."
    assert page.browser.switch_to.active_element == page.find("text")


@pytest.mark.parametrize(
    ("is_plain", "message"),
    [(False, "The server is busy ("), (True, "The server is busy (it answered 503). Try again in 2 s.")],
)
def test_a_full_server_is_reported_and_the_pair_can_be_sent_again(
    page: Page, picture: Path, is_plain: bool, message: str
) -> None:
    page.server.detector.busy, page.server.refuses = not is_plain, {"/v1/": 503} if is_plain else {}
    page.submit(picture, "Two people meet")
    assert page.problem().startswith(message)
    assert page.browser.switch_to.active_element == page.find("check")  # so it can be pressed again at once
    page.shoot("overload")
    page.server.detector.busy, page.server.refuses = False, {}
    page.find("check").click()
    page.wait(lambda: page.find("result").is_displayed())
    assert not page.find("problem").is_displayed()


def test_no_part_of_a_text_is_executed(page: Page, picture: Path) -> None:
    text = "<img src=x onerror=document.title='owned'> <script>document.title='owned'</script> & 👍 end"
    page.type(text)
    page.submit(picture, "")
    page.wait(lambda: page.find("result").is_displayed())
    assert page.find("marked").get_property("textContent") == text
    assert page.find("marked").find_elements(By.CSS_SELECTOR, "img, script") == []
    assert "owned" not in page.browser.title


def test_the_copied_command_sends_the_same_pair(page: Page, picture: Path) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.server.url},
    )
    page.find("file").send_keys(str(picture))
    page.find("text").send_keys("The mayor's dog")
    page.open_developers()
    page.find("curl").click()
    page.wait(lambda: page.find("copied").text)
    command = page.find("copied").text
    if command == "Copied.":
        command = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert command == (
        f"""curl '{page.server.url}v1/detect' -F 'image=@"mine.jpg"' --form-string 'text=The mayor'\\''s dog'"""
    )


def test_a_phone_shows_the_whole_page_without_scrolling_sideways(page: Page) -> None:
    page.open(360, 740)
    page.shoot("phone_before")
    page.example(1)
    page.shoot("phone")
    assert page.run("return document.documentElement.scrollWidth") <= 360
    small = [
        button.text
        for button in page.browser.find_elements(By.CSS_SELECTOR, "button")
        if button.is_displayed() and button.rect["height"] < 24
    ]
    assert small == []  # WCAG 2.2, target size (minimum)


def test_the_right_words_are_marked_in_a_text_of_several_lines(page: Page) -> None:
    text = "👍 👩‍🚀 news\n\n" + FACE_AND_WORDS["text"].replace(" looks", "\nlooks").replace(" before", "\r\nbefore")
    page.type(text)
    page.submit(EXAMPLES / FACE_AND_WORDS["image"], "")
    page.wait(lambda: page.find("result").is_displayed())
    marks = page.browser.find_elements(By.CSS_SELECTOR, "#marked mark")
    assert len(marks) > 5
    words = [f"{mark.text} {mark.get_attribute('title').split()[-1]}" for mark in marks]
    assert page.find("words").text == f"Flagged words: {', '.join(words)}"
    assert {mark.text for mark in marks} <= set(text.split())
    assert page.find("marked").get_property("textContent") == text.replace("\r\n", "\n")
    assert page.find("marked").text.count("\n") == 4
    page.shoot("lines")


def test_an_error_hides_an_older_verdict(page: Page) -> None:
    page.example(1)
    page.server.detector.busy = True
    page.submit(None, " and more")
    assert page.problem().startswith("The server is busy (")
    assert not page.find("result").is_displayed()
    page.server.detector.busy = False
    page.example(1)
    page.find("text").clear()
    page.find("check").click()
    assert page.problem() == "Type the text that goes with the picture."
    assert not page.find("result").is_displayed()


def test_the_later_of_two_pairs_is_shown(page: Page, picture: Path) -> None:
    page.server.detector.may_answer.clear()
    page.press_example(1)
    page.wait(page.is_checking)
    page.find("file").send_keys(str(picture))
    assert not page.is_checking()
    page.find("text").clear()
    page.submit(None, "Two people meet")
    page.wait(page.is_checking)
    page.server.detector.may_answer.set()
    page.wait(lambda: page.find("result").is_displayed())
    assert page.find("marked").text == "Two people meet"


def test_a_canceled_dialog_leaves_no_picture_behind(page: Page, picture: Path) -> None:
    page.find("file").send_keys(str(picture))
    page.run(  # as Chromium does when its dialog is canceled
        "const file = document.getElementById('file'); file.value = ''; file.dispatchEvent(new Event('change'))"
    )
    page.submit(None, "Two people meet")
    assert page.problem() == "Choose a picture first."
    assert page.browser.switch_to.active_element == page.find("file")


def test_the_page_asks_again_for_a_picture_that_was_changed(page: Page, picture: Path) -> None:
    page.find("file").send_keys(str(picture))
    picture.write_bytes(draw_jpeg(2, (640, 480)))
    page.submit(None, "Two people meet")
    assert page.problem() == "The picture was changed or moved since you chose it. Choose it again."


def drop(page: Page, onto: WebElement, data: dict[str, Any]) -> None:
    """Drop data onto an element, as a person does who drags it from another program."""
    area = onto.rect
    for kind in ("dragEnter", "dragOver", "drop"):
        page.browser.execute_cdp_cmd(
            "Input.dispatchDragEvent",
            {"type": kind, "x": area["x"] + 20, "y": area["y"] + 20, "data": data | {"dragOperationsMask": 1}},
        )


def test_a_text_is_dropped_into_its_field_and_a_picture_anywhere(page: Page, picture: Path) -> None:
    drop(page, page.find("text"), {"items": [{"mimeType": "text/plain", "data": "Two people meet"}]})
    page.wait(lambda: page.find("text").get_property("value") == "Two people meet")
    drop(page, page.browser.find_element(By.TAG_NAME, "h1"), {"items": [], "files": [str(picture)]})
    page.wait(lambda: page.find("file").get_attribute("value").endswith("mine.jpg"))
    assert page.find("drop").get_attribute("class") == "drop"


PASTE = """
const data = new DataTransfer();
data.items.add(new File(["cells"], "image.png", { type: "image/png" }));
for (const kind of arguments[1]) data.setData(kind, "Two people meet");
const paste = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
return arguments[0].dispatchEvent(paste); // false: the page handled it
"""


def test_a_picture_is_pasted_and_a_text_with_a_picture_is_pasted_as_text(page: Page) -> None:
    assert page.run(PASTE, page.find("text"), ["text/plain", "text/html"])
    assert page.find("file").get_attribute("value") == ""
    assert not page.run(PASTE, page.find("text"), ["text/html"])
    assert page.find("file").get_attribute("value").endswith("image.png")


def test_an_example_that_cannot_be_loaded_sets_no_picture(page: Page) -> None:
    page.browser.execute_cdp_cmd("Network.enable", {})  # otherwise the cache stays enabled
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    page.server.refuses = {"/page/face.jpg": 503}
    page.press_example(0)
    assert page.problem() == "The server is busy (it answered 503). Try again in 2 s."
    assert page.find("file").get_attribute("value") == ""
    page.server.refuses = {"/page/examples.json": 503}
    page.browser.refresh()
    page.wait(lambda: page.find("examples").text == "The examples cannot be loaded now.")
    page.browser.execute_cdp_cmd("Network.disable", {})


@pytest.mark.parametrize("kind", ["a.tiff", "a TIFF by another name.jpg", "turned.webp"])
def test_a_picture_that_browsers_show_differently_is_drawn_by_the_server(page: Page, tmp_path: Path, kind: str) -> None:
    with Image.open(EXAMPLES / FACE["image"]) as image:
        if kind == "turned.webp":
            exif = image.getexif()
            exif[0x0112] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / kind, "WEBP", lossless=True, exif=exif)
        else:
            image.save(tmp_path / kind, "TIFF")
    page.submit(tmp_path / kind, FACE["text"])
    page.wait(lambda: page.find("result").is_displayed())
    assert page.find("where").text.startswith("A face is flagged")
    assert page.find("picture").get_attribute("src").startswith("data:image/jpeg;base64,")
    page.wait(lambda: page.find("picture").get_property("naturalWidth") == image.width)
    assert not page.find("box").is_displayed()
    page.shoot(kind)


def test_the_page_asks_for_a_missing_key_in_its_field(page: Page, picture: Path) -> None:
    page.server.refuses = {"/v1/": 401}
    page.submit(picture, "Two people meet")
    assert page.problem() == "This server needs a key: enter yours under “API key”."
    assert page.browser.switch_to.active_element == page.find("key")
    assert page.find("curl").is_displayed(), "the part for developers is open"


def test_the_page_says_why_a_key_is_refused(page: Page, picture: Path) -> None:
    page.server.refuses = {"/v1/": 401}
    page.find("developers").find_element(By.CSS_SELECTOR, "summary").click()
    page.find("key").send_keys("asap_old")
    page.submit(picture, "Two people meet")
    assert page.problem() == "The key is refused: it answered 401"
    assert page.browser.switch_to.active_element == page.find("key")


def test_a_dropped_address_waits_for_the_limits_of_the_server(page: Page) -> None:
    page.server.refuses = {"/v1/": 401}
    page.browser.refresh()
    onto = page.browser.find_element(By.CSS_SELECTOR, "h1")
    drop(page, onto, {"items": [{"mimeType": "text/uri-list", "data": f"{PREFIX}a.jpg"}]})
    assert page.problem().startswith("The server has not said from which addresses it fetches pictures.")


@pytest.mark.parametrize("is_example", [False, True])
def test_a_problem_is_visible_on_a_phone(page: Page, picture: Path, is_example: bool) -> None:
    page.open(375, 667)
    page.server.refuses = {"/v1/": 503}
    if is_example:
        page.press_example(2)
    else:
        page.submit(picture, "Two people meet")
    page.problem()
    page.shoot("phone_problem")
    assert 0 <= page.top_of("problem") < 667 - page.find("problem").rect["height"]


TEXT_AND_BACKGROUND = """
const luminance = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((c) => {
    const s = c / 255;
    return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
let ground = arguments[0];
while (/^rgba\\(.*, 0\\)$/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
return [luminance(getComputedStyle(arguments[0]).color), luminance(getComputedStyle(ground).backgroundColor)];
"""
"""A script that returns the relative luminance of an element's text and of its background (WCAG 2.2)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_light_and_dark_mode(page: Page, scheme: str) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.example(1)
    _, background = page.run(TEXT_AND_BACKGROUND, page.browser.find_element(By.TAG_NAME, "body"))
    assert (background < 0.2) == (scheme == "dark")
    elements = [page.find(name) for name in ("meaning", "limits", "marked", "about", "where", "verdict")]
    for element in (*elements, *page.browser.find_elements(By.CSS_SELECTOR, "mark, #types th, #types td, button")):
        assert contrast(page, element) >= 4.5, element.text  # contrast (minimum)


def contrast(page: Page, element: WebElement) -> float:
    """Return the contrast ratio between the text of an element and its background (WCAG 2.2)."""
    dark, light = sorted(page.run(TEXT_AND_BACKGROUND, element))
    return float((light + 0.05) / (dark + 0.05))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_verdict_can_be_read_on_every_screen(page: Page, scheme: str, width: int) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.open(width)
    bare = {"verdict": "review", "flagged_types": [], "box_px": None, "words": []}
    for name, changes in (("judged", {}), ("bare", bare), ("unfamiliar", UNFAMILIAR)):
        page.server.detector.changes = changes
        page.example(1)
        page.shoot(f"{name}_{scheme}_{width}")
        assert page.run("return document.documentElement.scrollWidth") <= width
        assert contrast(page, page.find("verdict")) >= 4.5
        assert page.find("limits").is_displayed()


def test_the_page_says_what_a_picture_and_a_text_may_be_before_they_are_sent(page: Page, tmp_path: Path) -> None:
    page.wait(lambda: page.find("formats").text)
    assert page.find("formats").text.startswith("JPEG, PNG, WEBP, GIF")
    assert page.find("formats").text.endswith("; at most 2 MiB and 64 megapixels.")
    assert page.find("text-help").text == "At most 20,000 characters."
    assert page.find("prefixes").text == "The server fetches pictures from s3://pictures/."
    (tmp_path / "large.jpg").write_bytes(draw_jpeg(1) + bytes(2 * 2**20))
    page.submit(tmp_path / "large.jpg", "Two people meet")
    assert page.problem() == "The picture has 2.01 MiB, and the limit is 2 MiB. Choose a smaller one."


def test_a_chosen_picture_is_shown_before_it_is_sent(page: Page, picture: Path, tmp_path: Path) -> None:
    assert not page.find("preview").is_displayed()
    page.find("file").send_keys(str(picture))
    page.wait(lambda: page.find("preview").is_displayed())
    assert page.find("preview").get_property("naturalWidth") == 320
    page.shoot("preview")
    (tmp_path / "a.txt").write_text("no picture")
    page.find("file").send_keys(str(tmp_path / "a.txt"))
    page.wait(lambda: not page.find("preview").is_displayed())


def test_a_verdict_goes_when_the_pair_changes(page: Page, picture: Path) -> None:
    page.example(1)
    page.find("text").send_keys("!")
    assert not page.find("result").is_displayed()
    page.example(1)
    page.find("file").send_keys(str(picture))
    assert not page.find("result").is_displayed()


def test_ctrl_and_enter_check_the_pair(page: Page, picture: Path) -> None:
    page.find("file").send_keys(str(picture))
    page.find("text").send_keys("Two people meet", Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.find("result").is_displayed())
    assert page.find("marked").text == "Two people meet"


def test_each_example_and_each_type_says_what_it_is(page: Page) -> None:
    shown = [element.text for element in page.browser.find_elements(By.CSS_SELECTOR, "#examples strong")]
    assert shown == ["A manipulated face", "A manipulated face and manipulated words", "Nothing manipulated"]
    page.example(1)
    notes = [element.text for element in page.browser.find_elements(By.CSS_SELECTOR, "#types .note")]
    assert len([note for note in notes if note]) == 4
    assert page.find("legend").is_displayed()
    page.example(2)
    assert not page.find("legend").is_displayed(), "no word is marked"


@pytest.mark.parametrize("target", ["h1", "#check"])
def test_a_dropped_address_never_leaves_the_page(page: Page, target: str) -> None:
    page.wait(lambda: page.find("formats").text)
    onto = page.browser.find_element(By.CSS_SELECTOR, target)
    other = {"items": [{"mimeType": "text/uri-list", "data": "https://example.com/a.jpg"}]}
    drop(page, onto, other)
    assert page.problem().startswith("The server does not fetch pictures from this address.")
    assert page.browser.current_url == page.server.url
    drop(page, onto, {"items": [{"mimeType": "text/uri-list", "data": f"{PREFIX}a.jpg"}]})
    page.wait(lambda: page.find("address").get_property("value") == f"{PREFIX}a.jpg")
    assert page.browser.current_url == page.server.url


def test_a_link_reproduces_a_pair_whose_picture_the_server_fetches(
    page: Page, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(uri: str, *_: Any) -> bytes:
        fetched.append(uri)
        return picture.read_bytes()

    monkeypatch.setattr("serve.api.routes.fetch_remote_image", fetch)
    page.wait(lambda: page.find("remote").is_displayed())
    page.find("address").send_keys(f"{PREFIX}a b.jpg")
    page.submit(None, "Two people\nmeet & part")
    page.wait(lambda: page.find("result").is_displayed())
    assert page.find("picture").get_attribute("src").startswith("data:image/jpeg;base64,")
    page.run("navigator.clipboard.writeText = () => Promise.reject()")  # then the page shows the link
    page.find("link").click()
    page.wait(lambda: page.find("linked").text)
    link = page.find("linked").text
    assert link.startswith(f"{page.server.url}#")
    page.browser.get("about:blank")
    page.browser.get(link)
    page.wait(lambda: page.find("formats").text)
    assert page.find("text").get_property("value") == "Two people\nmeet & part"
    assert fetched == [f"{PREFIX}a b.jpg"], "a link alone sends nothing"
    page.find("check").click()
    page.wait(lambda: page.find("result").is_displayed())
    assert fetched == [f"{PREFIX}a b.jpg"] * 2


def test_the_result_is_downloaded_and_another_pair_can_be_checked(page: Page, tmp_path: Path) -> None:
    page.open(390)
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.example(1)
    assert not page.find("link").is_displayed(), "the picture is on the reader's own machine"
    page.find("save-json").click()
    page.find("save-picture").click()
    page.wait(lambda: sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".png"])
    (saved,) = tmp_path.glob("manipulated-*.json")
    fields = json.loads(saved.read_text())
    assert (fields["verdict"], fields["id"] in saved.name, "image" in fields["evidence"]) == (
        "manipulated",
        True,
        False,
    )
    with Image.open(saved.with_suffix(".png")) as drawn, Image.open(EXAMPLES / FACE_AND_WORDS["image"]) as original:
        assert drawn.size == original.size
        box = fields["evidence"]["box_px"]
        red, green, _ = drawn.convert("RGB").getpixel((round((box["x0"] + box["x1"]) / 2), round(box["y0"])))  # type: ignore[misc]
        assert red > green + 60, "the box is drawn"
    page.find("another").click()
    assert not page.find("result").is_displayed()
    assert (page.find("file").get_attribute("value"), page.find("text").get_property("value")) == ("", "")
    assert not page.find("preview").is_displayed()
    assert page.browser.switch_to.active_element == page.find("file")
    page.wait(lambda: -1 <= page.top_of("form") < 100)


def test_a_printed_result_has_no_controls(page: Page) -> None:
    page.example(1)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for name, is_shown in (("form", False), ("actions", False), ("verdict", True), ("limits", True), ("marked", True)):
        assert page.find(name).is_displayed() == is_shown
    page.shoot("print")
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
