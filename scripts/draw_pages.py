"""Draws the pages of the service, of the shipped birds, in a browser: docs/images/page-*.png, or into another folder.

Needs a Chromium, and playwright of the extra `dev`. tests/test_screens.py does the same at three sizes.
"""

import argparse
import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import TOKEN, start

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1200, 860
NARROW = (390, 844)  # a phone
COLOURS = 128  # of a picture; more than pages of text need
IMAGE, CONCEPT, METHOD = "birds/test/54", 23, "deeplift"


def main() -> None:
    """Draw every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="FOLDER", help="default: docs/images")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    process, address, _ = start(None, read_only=False)
    try:
        with sync_playwright() as driver:
            browser = launched(driver)
            page = entered(browser, address, TOKEN, WIDTH, HEIGHT)
            for path in draw_pages(page, address, folder):
                print(path)
            narrow = entered(browser, address, TOKEN, *NARROW, dark=True)
            print(draw_explain(narrow, address, folder, name="narrow"))
    finally:
        process.terminate()
        process.wait(30)


def launched(driver: Playwright) -> Browser:
    """The Chromium of this machine."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("Error: there is no Chromium; install one (Debian: chromium)")
    options = ["--disable-gpu", "--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    return driver.chromium.launch(executable_path=path, args=options)


def entered(browser: Browser, address: str, token: str, width: int, height: int, dark: bool = False) -> Page:
    """A page of that size, pixels, which the service knows."""
    page = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    ).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{address}/?token={token}")
    return page


def draw_pages(
    page: Page, address: str, folder: Path, image: str = IMAGE, concept: int = CONCEPT, method: str = METHOD
) -> list[Path]:
    """One picture of each, when all of it is there; that of a run only where there is one."""
    found = [draw_explain(page, address, folder, image, concept, method)]
    for name in ("concepts", f"concepts/{concept}", "predictions", "data", "fallacies", "train", "docs"):
        page.goto(f"{address}/{name}")
        page.wait_for_load_state("networkidle")
        found.append(keep(page, folder, "concept" if "/" in name else name))
    page.goto(f"{address}/runs")
    page.wait_for_load_state("networkidle")
    found.append(keep(page, folder, "runs"))
    runs = page.locator("tbody a")
    if runs.count():
        runs.first.click()
        page.locator("#charts canvas").first.wait_for()
        page.wait_for_timeout(1500)
        found.append(keep(page, folder, "run"))
    return found


def draw_explain(
    page: Page, address: str, folder: Path, image: str = IMAGE, concept: int = CONCEPT, method: str = METHOD,
    name: str = "explain",
) -> Path:  # fmt: skip
    """The whole page Explain, with a concept turned off and a map."""
    page.goto(f"{address}/?image={image}&factors={concept}:0")
    page.wait_for_load_state("networkidle")
    if name == "explain":
        page.locator("#method").select_option(method)
        page.locator("#show-map").click()
        page.locator("#map-frame .point").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    return keep(page, folder, name, full=name == "explain")


def keep(page: Page, folder: Path, name: str, full: bool = False) -> Path:
    """Write a picture of few colours."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    path = folder / f"page-{name}.png"
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    main()
