"""The report's page in a browser: every picture is shown, and nothing is wider than the screen."""

import shutil
from pathlib import Path

import pytest

from conftest import AT_64_PX, PROJECT, QUIET
from medtransfer.report.page import build_page
from medtransfer.study.report import read_study

# Asked of the browser once the page has loaded.
PROBE = """() => {
  const images = [...document.images];
  return {
    images: images.length,
    missing: images.filter(image => !image.naturalWidth).length,
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
}"""


def test_a_browser_shows_every_picture_and_nothing_wider_than_the_screen(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    from playwright.sync_api import sync_playwright

    page = build_page([read_study(PROJECT / AT_64_PX)])
    (tmp_path / "page.html").write_text(page)
    address = (tmp_path / "page.html").as_uri()
    requested: list[str] = []
    messages: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        for width in (390, 1280):
            shown = browser.new_page(viewport={"width": width, "height": 900})
            shown.on("request", lambda request: requested.append(request.url))
            shown.on("console", lambda message: messages.append(message.text))
            shown.on("pageerror", lambda error: messages.append(str(error)))
            shown.goto(address)
            assert shown.evaluate(PROBE) == {"images": page.count("<img "), "missing": 0, "wider": 0}
        browser.close()
    assert {url for url in requested if not url.startswith("data:")} == {address}
    assert messages == []
