"""The page to ask in headless Chromium: ``make test-serve``; screenshots go to the folder in SCREENSHOTS."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.report.test_server import HOSTILE, huge_png
from tests.serving import serving
from tests.small_runs import SmallRun, draw, make_run
from trarctl import cli

SCHEMES = ("light", "dark")
WIDTHS = (1280, 360)
SECONDS = 60
QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("page"), epochs=2)


@pytest.fixture(scope="module")
def address(run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serving") / "temporary"
    with serving(run, folder, "--ckpt", f"{run.name}@1", "--max-upload", "1") as (address, _):
        yield address


def find(browser: webdriver.Chrome, selector: str, *, at: int = 0) -> WebElement:
    def look(window: webdriver.Chrome) -> WebElement | None:
        found = window.find_elements(By.CSS_SELECTOR, selector)
        return found[at] if len(found) > at else None

    return WebDriverWait(browser, SECONDS).until(look)


def open_page(browser: webdriver.Chrome, address: str) -> None:
    browser.get(address)
    find(browser, "input[type=file]")


def choose(browser: webdriver.Chrome, picture: Path) -> None:
    find(browser, "input[type=file]").send_keys(str(picture))
    find(browser, ".image-frame img, [data-testid=image] img")


def type_question(browser: webdriver.Chrome, question: str) -> None:
    box = find(browser, "textarea, input[placeholder]")
    # As a paste does it: keys that are no characters, such as the null, cannot be typed.
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        box,
        question,
    )


def press_ask(browser: webdriver.Chrome) -> None:
    find(browser, "button.primary").click()


def shown(browser: webdriver.Chrome, selector: str) -> list[str]:
    find(browser, selector)
    return [one.text for one in browser.find_elements(By.CSS_SELECTOR, selector)]


def nothing_is_wrong(browser: webdriver.Chrome, address: str) -> None:
    said = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert said == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(address) for url in urls)
    assert [url for url in urls if not url.startswith((f"{address}/", "data:", f"blob:{address}/"))] == []


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=str)
def opened(request: pytest.FixtureRequest, address: str, chromium: webdriver.Chrome) -> webdriver.Chrome:
    """The page at one of the widths, in one of the color schemes."""
    width, scheme = request.param
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    open_page(chromium, address)
    return chromium


@pytest.fixture
def page(address: str, chromium: webdriver.Chrome) -> webdriver.Chrome:
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    open_page(chromium, address)
    return chromium


def predicted(run: SmallRun, ckpt: str, picture: Path, question: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = ["predict", "--ckpt", ckpt, *run.folder_option, "--image", str(picture), "--question", question]
    assert cli.run([*words, "--json", "-"]) == 0
    best = json.loads(capsys.readouterr().out)["predictions"][0]["answers"][0]
    return f"{best['answer']} {100 * best['probability']:.1f} %"


def test_the_page_answers_at_each_width_in_each_scheme(
    opened: webdriver.Chrome,
    address: str,
    run: SmallRun,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose(opened, run.picture)
    type_question(opened, QUESTION)
    press_ask(opened)
    assert shown(opened, ".trar h2") == [QUESTION]
    assert shown(opened, ".trar h3") == [run.name, f"{run.name}@1"]
    best = [" ".join(text.split()) for text in shown(opened, ".trar-answers li:first-child")]
    assert best == [predicted(run, ckpt, run.picture, QUESTION, capsys) for ckpt in (run.name, f"{run.name}@1")]
    assert shown(opened, ".trar figcaption") == ["read for the answer", "layer 1", "layer 2"] * 2
    sizes = opened.execute_script("return [...document.querySelectorAll('.trar img')].map((one) => one.naturalWidth)")
    assert len(sizes) == 12
    assert all(sizes)
    widths = opened.execute_script(
        "return [...document.querySelectorAll('.trar .stack')].map((bar) =>"
        " [...bar.children].reduce((sum, part) => sum + part.getBoundingClientRect().width, 0) / bar.clientWidth)"
    )
    assert widths == pytest.approx([1] * 4, abs=0.02)
    if "SCREENSHOTS" in os.environ:
        shot = opened.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        name = request.node.callspec.id.translate(str.maketrans("", "", "()', "))
        (Path(os.environ["SCREENSHOTS"]) / f"serve-{name}.png").write_bytes(base64.b64decode(shot["data"]))
    assert opened.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    tops = [one.location["y"] for one in opened.find_elements(By.CSS_SELECTOR, ".trar article")]
    is_wide = opened.execute_script("return window.innerWidth > 1000")
    assert (tops[0] == tops[1]) == is_wide  # side by side
    is_dark = opened.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert (brightness(opened, ".trar article", "background-color") < 300) == is_dark
    for selector in (".trar article", ".trar-legend", ".trar-head p"):
        difference = brightness(opened, selector, "color") - brightness(opened, ".trar article", "background-color")
        assert abs(difference) > 300, selector
    nothing_is_wrong(opened, address)


def brightness(browser: webdriver.Chrome, selector: str, which: str) -> int:
    color = find(browser, selector).value_of_css_property(which)
    return sum(map(int, color[color.index("(") + 1 :].rstrip(")").split(",")[:3]))


def test_an_example_fills_in_picture_and_question(page: webdriver.Chrome, address: str) -> None:
    row = find(page, "#trar-examples tbody tr", at=1)
    question = row.text.strip()
    row.click()
    WebDriverWait(page, SECONDS).until(
        lambda window: find(window, "textarea, input[placeholder]").get_attribute("value") == question
    )
    press_ask(page)
    assert shown(page, ".trar h2") == [question]
    nothing_is_wrong(page, address)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"I am no picture", "the picture is not an image, or is damaged"),
        ("huge.png", huge_png(), "the picture has 100,000 x 100,000 pixels, more than 178,956,970 in all"),
    ],
)
def test_files_that_cannot_be_read(
    page: webdriver.Chrome, address: str, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    choose(page, tmp_path / name)
    type_question(page, QUESTION)
    press_ask(page)
    assert shown(page, ".trar-error b")[0].startswith(message)
    nothing_is_wrong(page, address)


def test_a_file_that_is_too_large_is_not_sent(page: webdriver.Chrome, address: str, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"x" * 1_200_000)
    find(page, "input[type=file]").send_keys(str(tmp_path / "large.png"))
    WebDriverWait(page, SECONDS).until(lambda window: "size" in " ".join(shown(window, ".toast-body")).lower())
    nothing_is_wrong(page, address)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question holds no word"),
        ("?! \x01\x02", "the question holds no word"),
        ("word " * 20_000, "the question has 100,000 characters, more than 1,000"),
    ],
)
def test_questions_that_are_none(
    page: webdriver.Chrome, address: str, run: SmallRun, question: str, message: str
) -> None:
    choose(page, run.picture)
    type_question(page, question)
    press_ask(page)
    assert shown(page, ".trar-error b") == [message]
    nothing_is_wrong(page, address)


def test_a_hostile_question_stays_text(page: webdriver.Chrome, address: str, run: SmallRun) -> None:
    page.execute_script("window.alert = () => { window.wasAttacked = true }")
    choose(page, run.picture)
    attack = HOSTILE + "<img src=x onerror=alert(3)>"
    type_question(page, attack)
    press_ask(page)
    (heading,) = shown(page, ".trar h2")
    assert heading.startswith('<script>alert(1)</script> ${alert(2)} {{constructor}} "what" is it')
    assert heading.endswith("<img src=x onerror=alert(3)>")
    assert page.execute_script("return [window.wasAttacked, document.querySelectorAll('img[src=x]').length]") == [
        None,
        0,
    ]
    nothing_is_wrong(page, address)


def test_without_a_picture_it_says_so(page: webdriver.Chrome) -> None:
    type_question(page, QUESTION)
    press_ask(page)
    assert shown(page, ".trar-error b") == ["there is no picture yet"]


def test_two_people_at_once_get_their_own_answers(
    page: webdriver.Chrome, address: str, run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = []
    for shape, color, question in (("circle", "red", QUESTION), ("rectangle", "blue", "is there a circle?")):
        draw(shape, color, 5).save(tmp_path / f"{shape}.png")
        page.switch_to.new_window("window")
        open_page(page, address)
        choose(page, tmp_path / f"{shape}.png")
        type_question(page, question)
        people.append((page.current_window_handle, tmp_path / f"{shape}.png", question))
    for window, _, _ in people:
        page.switch_to.window(window)
        press_ask(page)
    for window, picture, question in people:
        page.switch_to.window(window)
        assert shown(page, ".trar h2") == [question]
        best = [" ".join(text.split()) for text in shown(page, ".trar-answers li:first-child")]
        assert best[0] == predicted(run, run.name, picture, question, capsys)
        page.close()
    page.switch_to.window(page.window_handles[0])
