"""The report page in a real browser, opened from its file, without network."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from folder_runs import run_items
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from codi_hub import RunOptions
from codi_hub.folders.plan import plan
from codi_hub.folders.report import ReportPage

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # for a CI that runs as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
)


@pytest.fixture
def page(images, task, copying, tmp_path) -> Path:
    """Return a page with seven outputs, one failed item, and a prompt that contains a script."""
    Image.new("RGB", (30, 5), "green").save(images / "wide.png")
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:-30])
    prompt = "</script><script>console.error(document.title = 'ran')</script><img src='http://example.org/x.png'>"
    items = plan([images], task, RunOptions(out=tmp_path / "out", prompt=prompt))
    page = ReportPage(tmp_path / "run.html", items, {"seed": 0})
    page.write(run_items(items, task, copying))
    return page.path


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def browser(chromium, page) -> Iterator[webdriver.Chrome]:
    """Chromium with the page open; afterwards it must have no requests and no console messages."""
    chromium.get(page.as_uri())
    yield chromium
    assert requested(chromium) <= {"file", "data"}
    assert chromium.get_log("browser") == []


def requested(browser: webdriver.Chrome) -> set[str]:
    """Return the URL schemes of all requests of the page."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert urls
    return {url.partition(":")[0] for url in urls}


def visible_part(slider: WebElement) -> float:
    """Return the share of a pair's width that shows the input, as the browser clips it."""
    pair = slider.find_element(By.XPATH, "..")
    clip = pair.find_element(By.CLASS_NAME, "before").value_of_css_property("clip-path")
    assert clip.startswith("inset(")
    return 1 - float(clip.removeprefix("inset(").split()[1].removeprefix("calc(").rstrip("%)")) / 100


@pytest.mark.slow
def test_the_slider_moves_by_keyboard_and_by_pointer(browser):
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    assert visible_part(slider) == 0.5
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert visible_part(slider) == pytest.approx(0.53)
    assert slider.get_attribute("aria-valuetext") == "53% before"
    slider.send_keys(Keys.HOME)
    assert visible_part(slider) == 0
    slider.send_keys(Keys.END)
    assert visible_part(slider) == 1
    pair = slider.find_element(By.XPATH, "..")
    quarter = round(pair.size["width"] / 4)
    ActionChains(browser).move_to_element_with_offset(pair, -quarter, 0).click().perform()
    assert visible_part(slider) == pytest.approx(0.25, abs=0.02)
    ActionChains(browser).click_and_hold().move_by_offset(2 * quarter, 0).release().perform()
    assert visible_part(slider) == pytest.approx(0.75, abs=0.02)
    others = browser.find_elements(By.CSS_SELECTOR, "input[type=range]")[1:]
    assert [visible_part(other) for other in others] == [0.5] * 6


def test_every_image_is_shown_and_no_script_in_a_prompt_runs(browser):
    sizes = browser.execute_async_script(
        "const done = arguments[0], images = [...document.images];"
        "images.forEach(image => { image.loading = 'eager'; });"
        "Promise.all(images.map(image => image.decode())).then(() => done(images.map(image => image.naturalWidth)))"
    )
    assert sorted(sizes) == [8] * 6 + [16] * 6 + [30, 60]
    assert browser.title == "double: 8 images"
    assert "<img src=" in browser.find_element(By.CLASS_NAME, "prompt").text


@pytest.mark.slow
def test_items_are_filtered_by_status_with_the_keyboard_too(browser):
    def shown() -> list[str]:
        return [h2.text for h2 in browser.find_elements(By.TAG_NAME, "h2") if h2.is_displayed()]

    everything = shown()
    assert len(everything) == 8
    browser.find_element(By.ID, "show-failed").click()
    assert shown() == ["broken.png"]
    browser.find_element(By.ID, "show-failed").send_keys(Keys.ARROW_UP)
    assert shown() == [name for name in everything if name != "broken.png"]
    browser.find_element(By.ID, "show-ok").send_keys(Keys.ARROW_UP)
    assert shown() == everything


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window(browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    found = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert found[0] == width >= found[1]
