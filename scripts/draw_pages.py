"""Draws the pages of the service for the documentation: docs/images/page-*.png, of the shipped birds, in a browser.

Needs a Chromium, and playwright of the extra `dev`.
"""

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import TOKEN, start

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1200, 860
COLOURS = 128  # of a picture; more than pages of text need


def main() -> None:
    """Draw every page."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("Error: there is no Chromium; install one (Debian: chromium)")
    process, address, _ = start(None)
    try:
        with sync_playwright() as driver:
            options = ["--disable-gpu", "--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
            page = driver.chromium.launch(executable_path=browser_path, args=options).new_page(
                viewport={"width": WIDTH, "height": HEIGHT}
            )
            page.set_default_timeout(120_000)
            page.goto(f"{address}/?token={TOKEN}")
            draw_pages(page, address)
    finally:
        process.terminate()
        process.wait(30)


def draw_pages(page: Page, address: str) -> None:
    """One picture of each, when all of it is there."""
    page.goto(f"{address}/?image=birds/test/54&factors=87:0")
    page.wait_for_load_state("networkidle")
    page.locator("#method").select_option("deeplift")
    page.locator("#show-map").click()
    page.locator("#map-frame .point").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    keep(page, "explain", full=True)
    for name in ("concepts", "concepts/87", "predictions", "data", "fallacies", "train"):
        page.goto(f"{address}/{name}")
        page.wait_for_load_state("networkidle")
        keep(page, name.replace("concepts/87", "concept"))
    page.goto(f"{address}/runs")
    runs = page.locator("tbody a")
    page.wait_for_timeout(1500)
    keep(page, "runs")
    if runs.count():
        runs.first.click()
        page.locator("#charts canvas").first.wait_for()
        page.wait_for_timeout(1500)
        keep(page, "run")
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}/?image=birds/test/54&factors=87:0")
    page.wait_for_load_state("networkidle")
    keep(page, "narrow")


def keep(page: Page, name: str, full: bool = False) -> None:
    """Write a picture of few colours."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    path = IMAGES / f"page-{name}.png"
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
