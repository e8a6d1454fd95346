"""The page in a real browser: drop, paint, generate, slide, download; and that it asks no other host."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Running, serving
from corpus import photograph
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # for a CI that runs as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--window-size=1280,1100",
)
WAIT = 90
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
    ),
]  # fmt: skip


class Browser:
    """A window on a server's page."""

    def __init__(self, running: Running, downloads: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for flag in FLAGS:
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.running, self.downloads = running, downloads

    def open(self) -> None:
        self.driver.get(self.running.url)
        self.until(lambda: self.value("#version input"))

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT).until(lambda _: condition())

    def all(self, css: str) -> list[WebElement]:
        return [one for one in self.driver.find_elements(By.CSS_SELECTOR, css) if one.is_displayed()]

    def one(self, css: str) -> WebElement:
        return self.until(lambda: next(iter(self.all(css)), None))

    def value(self, css: str) -> str:
        return "".join(one.get_attribute("value") or "" for one in self.all(css))

    def choose(self, name: str, option: str) -> None:
        """Choose an option of a drop-down list."""
        self.one(f"#{name} input").click()
        self.until(lambda: [one for one in self.all("[role=option]") if one.text == option])[0].click()
        self.until(lambda: self.value(f"#{name} input") == option)

    def drop(self, css: str, *files: Path) -> None:
        """Give files to a field, as the browser does when they are dropped."""
        self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, f"{css} input[type=file]"))
        field = self.driver.find_elements(By.CSS_SELECTOR, f"{css} input[type=file]")[0]
        field.send_keys("\n".join(map(str, files)))

    def fill(self, css: str, text: str) -> None:
        field = self.one(css)
        field.clear()
        field.send_keys(text)

    @property
    def status(self) -> str:
        return " ".join(one.text for one in self.all("#status"))

    def generate(self, status: str) -> None:
        """Press the button; wait for a status."""
        self.one("#run").click()
        self.until(lambda: status in self.status)

    def download(self) -> Image.Image:
        """Press the button; return the file that comes."""
        self.one("#download").click()
        file = self.until(lambda: next(iter(self.downloads.glob("*.png")), None))
        time.sleep(0.3)  # it is complete once it has its name; the browser still forgets it
        image = Image.open(file)
        image.load()
        file.unlink()
        return image

    def check_log(self) -> None:
        """Check that nothing was asked elsewhere, and that nothing failed."""
        asked = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [one["params"] for one in asked if one["method"] == "Network.requestWillBeSent"]
        urls = {one["request"]["url"] for one in asked}
        assert urls
        own = (self.running.url, "data:", "blob:")
        assert [url for url in urls if not url.startswith(own)] == []
        assert [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("home"), page=True, max_pixels=300_000, max_body="1MB") as started:
        yield started


@pytest.fixture(scope="module")
def browser(shown: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    window = Browser(shown, tmp_path_factory.mktemp("downloads"))
    try:
        yield window
    finally:
        window.driver.quit()


def photo(folder: Path, name: str, width: int, height: int) -> Path:
    photograph(width, height).save(folder / name)
    return folder / name


def test_images_are_dropped_generated_compared_and_saved(browser: Browser, shown: Running, tmp_path: Path) -> None:
    browser.open()
    browser.choose("task", "superres")
    browser.until(lambda: browser.value("#version input") == "superres:latest")
    files = [photo(tmp_path, f"{name}.png", 40, 32) for name in "ab"]
    browser.drop("#images", *files)
    browser.until(lambda: len(browser.all("#images img")) >= 2)
    browser.one("#more button").click()
    browser.fill("#seed textarea, #seed input", "7")
    browser.generate("2 of 2 images")
    browser.until(lambda: len(browser.all("#slider img")) == 2)
    assert len(browser.all("#made img")) == 2
    first = browser.all("#slider img")[0].get_attribute("src")
    browser.all("#made button")[1].click()
    browser.until(lambda: browser.all("#slider img")[0].get_attribute("src") != first)
    browser.all("#made button")[0].click()
    browser.until(lambda: browser.all("#slider img")[0].get_attribute("src") == first)
    answer = shown.post("/v1/images/edits", data={"model": "superres", "seed": "7"},
                        files={"image": ("a.png", files[0].read_bytes())})  # fmt: skip
    assert browser.download().size == (160, 128)
    assert answer.json()["size"] == "160x128"
    handle = browser.one("#slider .inner, #slider .outer, #slider [role=slider]")
    before = handle.location["x"]
    ActionChains(browser.driver).drag_and_drop_by_offset(handle, 60, 0).perform()
    browser.until(lambda: browser.one("#slider .inner, #slider .outer, #slider [role=slider]").location["x"] > before)
    browser.check_log()


def test_a_mask_is_painted(browser: Browser, tmp_path: Path) -> None:
    browser.open()
    browser.choose("task", "inpaint")
    source = photo(tmp_path, "a.png", 96, 64)
    browser.drop("#editor", source)
    canvas = browser.one("#editor canvas")
    time.sleep(2)  # the editor has loaded the image
    ActionChains(browser.driver).move_to_element(canvas).click_and_hold().move_by_offset(20, 5).release().perform()
    browser.generate("1 of 1 images")
    made, original = np.asarray(browser.download().convert("RGB"), int), np.asarray(Image.open(source), int)
    changed = np.abs(made - original).max(axis=2) > 0
    assert made.shape == original.shape
    assert changed[24:40, 40:60].any()  # where it was painted
    assert not changed[:4].any()
    assert not changed[-4:].any()
    browser.check_log()


def test_refusals_are_shown(browser: Browser, tmp_path: Path) -> None:
    browser.open()
    browser.choose("task", "deblur")
    browser.until(lambda: browser.value("#version input") == "deblur:latest")
    browser.generate("image: at least one is needed")
    browser.choose("task", "edit")
    browser.until(lambda: browser.value("#version input") == "edit:latest")
    browser.drop("#images", photo(tmp_path, "a.png", 32, 32))
    browser.until(lambda: browser.all("#images img"))
    browser.generate("prompt: task edit needs one")
    browser.fill("#prompt textarea", "make it night")
    browser.one("#more button").click()
    browser.fill("#options textarea, #options input", '{"mask": "/etc/passwd"}')
    browser.generate("no option 'mask'")
    assert "no option 'mask'" in browser.status
    assert not browser.downloads.exists() or not [*browser.downloads.glob("*.png")]


def test_a_token_opens_the_page(tmp_path: Path) -> None:
    with serving(tmp_path / "home", page=True, token="secret word") as started:
        window = Browser(started, tmp_path)
        try:
            window.driver.get(started.url)
            assert started.get("/config").status_code == 401
            window.fill("input[name=token]", "wrong")
            window.one("button").click()
            window.until(lambda: "not the token" in window.driver.page_source)
            window.fill("input[name=token]", "secret word")
            window.one("button").click()
            window.until(lambda: window.value("#version input"))
            (cookie,) = [one for one in window.driver.get_cookies() if one["name"] == "codi_page"]
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
            assert "secret" not in cookie["value"]
            cookies = {"codi_page": cookie["value"]}
            assert started.get("/config", cookies=cookies).status_code == 200
            assert started.get("/v1/models", cookies=cookies).status_code == 401
        finally:
            window.driver.quit()
