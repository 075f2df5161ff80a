"""tools/app.py in a real Chromium: `make browser`. Not among `make test`'s, as not every machine has a browser.

A desk and a phone at once, in two languages: upload, answer, a bad file, nothing asked of the net. Leaves desk.png and phone.png
below runs/browser, to be looked at.
"""

import shutil

import gradio as gr
import pytest
from playwright.sync_api import sync_playwright

from tools.app import LARGEST, App

PATIENCE = 240_000  # ms


@pytest.fixture(scope="module")
def url(run):
    page = App((run / "best.pt",)).page()
    yield page.launch(prevent_thread_lock=True, max_file_size=LARGEST, theme=gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["monospace"]), footer_links=[], quiet=True)[1]
    page.close()


@pytest.fixture
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])  # none = Playwright's own
        yield chromium
        chromium.close()


def test_two_people_ask_at_once_and_a_bad_file_is_named(url, browser, drawn, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"x" * 100)
    asked = []
    desk, phone = (browser.new_page(viewport={"width": width, "height": height}) for width, height in ((1100, 900), (390, 844)))
    for page in (desk, phone):
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("input[type=file]", state="attached")
    assert desk.get_attribute("input[type=file]", "accept") == "image/*"
    phone.get_by_text("中文").click()
    phone.wait_for_selector("text=这是什么蘑菇")
    desk.set_input_files("input[type=file]", [drawn / "Boletus" / "boletus_0001.jpg", tmp_path / "bad.jpg"])
    phone.set_input_files("input[type=file]", [drawn / "Amanita" / "amanita_0001.jpg"])
    desk.wait_for_selector("text=bad.jpg: not a photo")
    desk.wait_for_selector("text=never eat a mushroom")
    phone.wait_for_selector("text=属于含有致命种类的属")
    assert all("%" in page.inner_text("body") for page in (desk, phone))
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390  # nothing hangs out of the phone's screen
    assert [where for where in asked if not where.startswith((url, "data:", "blob:"))] == []
    for page, name in ((desk, "desk"), (phone, "phone")):
        page.wait_for_timeout(2000)
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
