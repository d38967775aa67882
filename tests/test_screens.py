"""Pictures of all pages at three sizes, as scripts/draw_pages.py draws those of the documentation; and what axe says.

They are kept in the folder that VISCOIN_SCREENS names, to be looked at.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_pages import PAGES, TOKEN, browser, playwright, pytestmark, server  # noqa: F401  # fixtures, and when to skip
from test_slurm import script_of

draw_pages = script_of("draw_pages")
AXE = "axe-core@4.14.1"
NAMES = {"explain", "concepts", "concept", "predictions", "data", "fallacies", "train", "docs", "runs", "run"}


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe, which looks for what keeps people from using a page."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(
        [npm, "install", "--prefix", folder, "--no-audit", "--no-fund", AXE], check=True, capture_output=True
    )
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.mark.long
@pytest.mark.parametrize(("width", "height", "dark"), [(1400, 900, False), (800, 900, True), (360, 800, False)])
def test_every_page_is_drawn(browser, server, tmp_path, width, height, dark):  # noqa: F811
    folder = Path(os.environ.get("VISCOIN_SCREENS", tmp_path)) / str(width)
    folder.mkdir(parents=True, exist_ok=True)
    page = draw_pages.entered(browser, server.address.rstrip("/"), TOKEN, width, height, dark)
    found = draw_pages.draw_pages(page, server.address.rstrip("/"), folder, "birds/test/5", 1, "saliency")
    page.context.close()
    assert {path.stem.removeprefix("page-") for path in found} == NAMES
    for path in found:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] == width and pixels.shape[0] >= height, path
        _, counts = np.unique(pixels, return_counts=True)
        assert counts.max() < 0.97 * pixels.size and len(counts) > 10, f"{path} is blank"
        assert (np.median(pixels) < 128) == dark, path


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_axe_finds_nothing_serious(browser, server, axe, width, dark):  # noqa: F811
    page = draw_pages.entered(browser, server.address.rstrip("/"), TOKEN, width, 900, dark)
    found = []
    for name in PAGES:
        page.goto(f"{server.address}{name}")
        page.wait_for_load_state("networkidle") if "runs/" not in name else page.wait_for_timeout(2000)
        page.evaluate(axe)
        for one in page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]:
            if one["impact"] in ("serious", "critical"):
                found.append(f"{name}: {one['id']}: {one['nodes'][0]['html'][:200]}")
    page.context.close()
    assert found == []
