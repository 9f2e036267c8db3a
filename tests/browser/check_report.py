"""The report in headless Chromium: ``make test-browser``; screenshots go to the folder in SCREENSHOTS."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from tests.small_runs import HOSTILE, make_run
from trarctl import cli

SCHEMES = ("light", "dark")
WIDTHS = (1280, 420)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    run = make_run(folder, "model.routing=hard", epochs=3)
    options = ["--ckpt", run.name, *run.folder_option, "--images", str(run.raw), "--report", str(folder / "report")]
    assert cli.run(["eval", *options]) == 0
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser, "make test-browser installs chromium"
    assert driver, "make test-browser installs chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=str)
def opened(request: pytest.FixtureRequest, page: Path, chromium: webdriver.Chrome) -> webdriver.Chrome:
    """The page at one of the widths, in one of the color schemes."""
    width, scheme = request.param
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get(page.as_uri())
    if "SCREENSHOTS" in os.environ:
        target = Path(os.environ["SCREENSHOTS"]) / f"report-{width}-{scheme}.png"
        shot = chromium.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        target.write_bytes(base64.b64decode(shot["data"]))
    return chromium


def shown(browser: webdriver.Chrome, selector: str) -> list[str]:
    """The text of all visible elements."""
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def column(browser: webdriver.Chrome, place: int) -> list[str]:
    return shown(browser, f"#finer tbody tr > :nth-child({place})")


def test_nothing_is_wrong_and_nothing_is_fetched(opened: webdriver.Chrome, page: Path) -> None:
    assert [entry["message"] for entry in opened.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in urls
    assert [url for url in urls if url != page.as_uri() and not url.startswith("data:")] == []


def test_all_pictures_are_there_and_nothing_sticks_out(opened: webdriver.Chrome) -> None:
    sizes = opened.execute_script("return [...document.images].map((one) => [one.complete, one.naturalWidth])")
    assert len(sizes) >= 20
    assert all(complete and width for complete, width in sizes)
    charts = opened.execute_script("return [...document.querySelectorAll('svg')].map((one) => one.clientHeight)")
    assert len(charts) >= 7
    assert min(charts) > 60
    assert opened.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_colors_follow_the_scheme(opened: webdriver.Chrome) -> None:
    is_dark = opened.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    paper = opened.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert (sum(map(int, paper.removeprefix("rgba(").split(",")[:3])) < 300) == is_dark


def test_tables_sort_both_ways(opened: webdriver.Chrome) -> None:
    header = opened.find_elements(By.CSS_SELECTOR, "#finer thead button")[1]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", header)
    header.click()
    largest_first = [int(text.replace(",", "")) for text in column(opened, 2)]
    header.click()
    smallest_first = [int(text.replace(",", "")) for text in column(opened, 2)]
    assert len(largest_first) == 3
    assert largest_first == sorted(largest_first, reverse=True)
    assert smallest_first == sorted(largest_first)
    opened.find_elements(By.CSS_SELECTOR, "#finer thead button")[0].click()
    assert column(opened, 1) == sorted(column(opened, 1))


def unfold(browser: webdriver.Chrome) -> None:
    browser.execute_script("for (const card of document.querySelectorAll('#gallery details')) card.open = true")


def test_cards_are_folded_on_a_phone_alone(opened: webdriver.Chrome) -> None:
    is_phone = opened.execute_script("return window.innerWidth") < 600
    assert bool(shown(opened, ".example .ids")) is not is_phone
    assert bool(shown(opened, ".example summary")) is is_phone
    opened.find_element(By.CSS_SELECTOR, ".example summary").click() if is_phone else None
    assert shown(opened, ".example .ids")[0].startswith("image ")


def test_wrong_answers_come_first(opened: webdriver.Chrome) -> None:
    marks = [mark != "wrong" for mark in shown(opened, ".example .mark")]
    assert {True, False} == set(marks)
    assert marks == sorted(marks)


def test_a_table_says_that_it_scrolls(opened: webdriver.Chrome) -> None:
    for box in opened.find_elements(By.CSS_SELECTOR, ".wide"):
        across, down = opened.execute_script(
            "const [box] = arguments;"
            "return [box.scrollWidth > box.clientWidth + 1, box.scrollHeight > box.clientHeight + 1]",
            box,
        )
        hint = opened.execute_script("return arguments[0].nextElementSibling.textContent", box)
        assert (("sideways" in hint), ("down" in hint)) == (across, down)


def test_a_curve_tells_its_values_under_the_pointer(opened: webdriver.Chrome) -> None:
    titles = opened.execute_script(
        "return [...document.querySelectorAll('#training .strip title')].map((one) => one.textContent)"
    )
    assert any(title.startswith("epoch 3, ") and ", overall: " in title for title in titles)


def test_examples_filter_by_type_and_by_answer(opened: webdriver.Chrome) -> None:
    unfold(opened)
    everything = len(shown(opened, ".example"))
    by_type, by_answer = opened.find_elements(By.CSS_SELECTOR, "#examples select")
    Select(by_type).select_by_value("color")
    texts = shown(opened, ".example .ids")
    assert 0 < len(texts) < everything
    assert all(text.endswith(", color") for text in texts)
    Select(by_answer).select_by_value("wrong")
    marks = shown(opened, ".example .mark")
    assert set(marks) <= {"wrong"}
    assert f"{len(marks)} of {everything} shown" in shown(opened, "#shown")
    for select in (by_type, by_answer):
        Select(select).select_by_value("")
    assert len(shown(opened, ".example")) == everything


def test_layers_lie_over_the_picture(opened: webdriver.Chrome) -> None:
    unfold(opened)
    example = opened.find_element(By.CSS_SELECTOR, ".example")
    overlay = example.find_element(By.CSS_SELECTOR, ".overlay")
    picture, answer, first_layer = example.find_elements(By.CSS_SELECTOR, ".layers button")[:3]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    before = overlay.get_attribute("src")
    first_layer.click()
    assert overlay.get_attribute("src") != before
    picture.click()
    assert not overlay.is_displayed()
    answer.click()
    assert overlay.is_displayed()
    assert overlay.get_attribute("src") == before
    photo = example.find_element(By.CSS_SELECTOR, ".photo")
    assert (overlay.size, overlay.location) == (photo.size, photo.location)


def test_hostile_text_stays_text(opened: webdriver.Chrome) -> None:
    assert HOSTILE in shown(opened, ".example h3")
    assert opened.execute_script("return document.querySelectorAll('img[src=x], img[onerror]').length") == 0
