"""The pages in a real browser: what people do on them, what a screen reader needs, and no request to anybody else."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tiny_models import tiny_recipe, write_models

from viscoin.datasets import load_dataset
from viscoin.runs.branch import saved_steps
from viscoin.runs.run import Run
from viscoin.runs.status import StatusFile
from viscoin.training.regions import read_marks

ROOT = Path(__file__).parents[1]
TOKEN = "a-token-of-the-tests"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = ("", "concepts", "concepts/1", "predictions", "runs", "runs/watched", "train", "data", "fallacies", "docs")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


class Server:
    """A service as a process of its own, which can be started again on its port."""

    def __init__(self, folder, model):
        self.folder, self.model, self.port = folder, model, 0
        self.start()

    def start(self):
        command = [
            sys.executable, str(ROOT / "main.py"), "serve", "--port", str(self.port), "--viscoin", str(self.model),
            "--runs", "runs", "--device", "cpu", "--concept-names", "names.csv",
        ]  # fmt: skip
        environment = {**os.environ, "VISCOIN_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True, env=environment)
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
                break
        self.reading = threading.Thread(target=self.process.stderr.read, daemon=True)  # so that it never blocks
        self.reading.start()
        self.wait_for_models()
        return self

    def wait_for_models(self):
        """Until then pages are told 503, which a browser writes down as an error."""
        until = time.monotonic() + 300
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.address}readyz", timeout=60):
                    return
            except urllib.error.HTTPError:
                time.sleep(0.2)
        raise TimeoutError("the models of the service are not loaded after five minutes")

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"

    def stop(self):
        self.process.terminate()
        self.reading.join(30)
        self.process.stderr.close()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    (folder / "names.csv").write_text("concept,name,validity\n1,<img src=x onerror=alert(1)>,0.9\n")
    run = Run.create("classifier", tiny_recipe(), folder / "runs" / "watched")
    for step in range(1, 30):
        run.log(step, {"train.loss": 3.0 / step})
    found = Server(folder, write_models(folder / "models")["viscoin"])
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser():
    playwright.expect.set_options(timeout=60_000)  # as a busy machine needs it; its own are 5 s
    with playwright.sync_playwright() as driver:
        options = ["--disable-dev-shm-usage", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        found = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture
def page(browser, server):
    """A page that has entered, and that must not complain nor ask anybody else."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    found, complaints = context.new_page(), []
    found.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    known = (server.address, "data:", "blob:")
    found.on("request", lambda asked: None if asked.url.startswith(known) else complaints.append(asked.url))
    found.set_default_timeout(60_000)
    found.goto(f"{server.address}?token={TOKEN}")
    found.complaints = complaints
    yield found
    context.close()
    assert complaints == []


def pixels(page, name):
    return page.locator(f"#{name}").get_attribute("src")


def drawn(page, other_than=None):
    """The picture when there is one, other than a known one."""
    until = time.monotonic() + 60
    while (found := pixels(page, "drawn")) in (None, other_than):
        assert time.monotonic() < until, "no new picture came"
        page.wait_for_timeout(50)
    return found


def test_a_slider_changes_the_pixels_and_back_are_the_same(page):
    before = drawn(page)
    slider = page.locator(".concept input").first
    slider.fill("0")
    without = drawn(page, before)
    assert "factors=" in page.url
    slider.fill("1")
    assert drawn(page, without) == before and "factors=" not in page.url
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert drawn(page, before) != before


def test_an_image_that_is_dropped_is_predicted(page, tmp_path):
    from test_serving import picture_bytes

    drawn(page)
    file = tmp_path / "photo.png"
    file.write_bytes(picture_bytes((50, 40), seed=3))
    page.locator("#file").set_input_files(file)
    playwright.expect(page.locator("#label")).to_have_text("Your image")
    assert re.search(r"image=[0-9a-f]{32}", page.url)
    assert page.locator("#f .bar-name").count() == 3 and pixels(page, "original").startswith("data:image/png")
    assert page.locator("#delete-card").is_hidden()  # whose parts nobody knows
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"none"})
    playwright.expect(page.locator("#notice")).to_contain_text("no image that is taken")
    page.complaints[:] = [said for said in page.complaints if "415" not in said]  # the browser names the answer


def test_a_map_is_laid_over_the_image(page):
    drawn(page)
    page.locator("#method").select_option("saliency")
    page.locator("#show-map").click()
    playwright.expect(page.locator("#map-said")).to_contain_text("Saliency of")
    assert page.locator("#map").evaluate("canvas => canvas.width") == 32
    assert page.locator("#map-frame .point").count() == 1


def test_names_are_text_and_no_markup(page, server):
    page.goto(f"{server.address}concepts")
    playwright.expect(page.locator("#cards")).to_contain_text("<img src=x onerror=alert(1)> (1)")
    page.goto(f"{server.address}concepts/1")
    playwright.expect(page.locator("h1")).to_have_text("<img src=x onerror=alert(1)> (1)")
    assert page.locator("img[src=x]").count() == 0


def test_a_cell_of_the_confusion_matrix_shows_its_images(page, server):
    page.goto(f"{server.address}predictions")
    cell = page.locator("#matrix button").first
    count = int(cell.inner_text())
    cell.click()
    playwright.expect(page.locator("#cell li")).to_have_count(min(count, 24))
    assert page.locator("#cell img").first.get_attribute("src").count("birds/validation/") == 1


def test_parts_are_laid_over_the_data(page, server):
    page.goto(f"{server.address}data")
    playwright.expect(page.locator("#images img").first).to_be_visible()
    before = page.locator("#images img").first.get_attribute("src")
    page.locator("#parts").check()
    playwright.expect(page.locator("#images img").first).to_have_attribute("src", f"{before}&parts=true")


def test_a_training_is_checked_before_it_starts(page, server):
    page.goto(f"{server.address}train")
    playwright.expect(page.locator("#keys details").first).to_be_visible()
    page.locator("#run").fill("from-a-page")
    page.get_by_role("button", name="Check only").click()
    playwright.expect(page.locator("#checked")).to_contain_text("would be from-a-page")
    page.locator("[data-key='classifier.epochs'] input").fill("0")
    page.locator("[data-key='classifier.epochs'] input").press("Tab")
    page.get_by_role("button", name="Check only").click()
    playwright.expect(page.locator("#checked")).to_contain_text("classifier.epochs")
    page.complaints[:] = [said for said in page.complaints if "422" not in said]  # the browser names the answer
    assert not (server.folder / "runs" / "from-a-page").exists()


def test_a_run_is_deleted_after_a_question(page, server):
    Run.create("classifier", tiny_recipe(), server.folder / "runs" / "unwanted")
    page.goto(f"{server.address}runs/unwanted")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="No").click()
    assert (server.folder / "runs" / "unwanted").is_dir()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Yes").click()
    page.wait_for_url(f"{server.address}runs")
    assert not (server.folder / "runs" / "unwanted").exists()


def test_a_run_that_vanishes_is_said_to_be_gone(page, server):
    folder = Run.create("classifier", tiny_recipe(), server.folder / "runs" / "vanishing").path
    page.goto(f"{server.address}runs/vanishing")
    page.get_by_text("The log is empty.").wait_for(state="attached")
    shutil.rmtree(folder)
    page.get_by_text("is no longer there").wait_for()
    playwright.expect(page.locator("#state")).to_have_text("gone")
    playwright.expect(page.get_by_role("button", name="Delete")).to_be_hidden()
    page.complaints.clear()  # one question may have met nothing before the page was told
    page.wait_for_timeout(6000)  # longer than between two questions


@pytest.mark.long
def test_the_page_goes_on_after_the_service_was_started_again(page, server):
    page.goto(f"{server.address}runs/watched")
    playwright.expect(page.locator("#charts canvas").first).to_be_visible()
    server.stop()
    server.start()
    with (server.folder / "runs" / "watched" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train.loss": 0.001234}\n')
    label = page.locator("#charts [role=img]").first
    playwright.expect(label).to_have_attribute("aria-label", re.compile("0.00123"), timeout=120_000)
    page.complaints[:] = [said for said in page.complaints if "ERR_" not in said]  # while nobody was there


@pytest.mark.parametrize("width", [*(pytest.param(width, marks=pytest.mark.long) for width in (1400, 800)), 360])
def test_every_page_fits_and_says_nothing_wrong(page, server, width):
    page.set_viewport_size({"width": width, "height": 900})
    for name in PAGES:
        page.goto(f"{server.address}{name}")
        page.wait_for_load_state("networkidle") if "runs/" not in name else page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.locator("h1").count() == 1 and page.locator("h1").inner_text().strip(), name
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button, a, input, select')].filter(one => one.offsetParent !== null && !("
            "one.innerText || one.ariaLabel || (one.labels && one.labels.length) || one.title ||"
            " one.querySelector('img[alt]:not([alt=\"\"])'))).map(one => one.outerHTML)"
        )
        assert unnamed == [], name


def birds(split):
    return load_dataset("birds", split, tiny_recipe().dataset)


@pytest.fixture
def penalised(server):
    """A run that looks as if it trained, with two penalties in force."""
    run = Run.create("classifier", tiny_recipe(), server.folder / "runs" / "penalised")
    measures = {"corner.accuracy": 0.9, "corner.accuracy_swapped": 0.2, "corner.cam_share": 0.25}
    measures |= {"pair.confused": 0.3, "pair.confused_back": 0.1, "pair.recall": 0.5}
    for step in (10, 20):
        values = {f"validation.penalties.{key}": value * step / 20 for key, value in measures.items()}
        run.log(step, {"train.loss": 1.0 / step, **values})
    corner = {"penalty": "attention", "name": "corner", "region": "0,0,0.25,0.25", "weight": 1.0}
    pair = {"penalty": "confusion", "name": "pair", "label": "gull", "predicted": "tern", "weight": 2.0}
    facts = {"active": [corner, pair], "kinds": ["swap", "attention", "confusion"], "regions": ["background", "crest"]}
    status, owner = StatusFile(run), run.path / ".owner.json"
    owner.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
    status.status.metrics = values
    status.write("running", step=20, steps=50, steerable={}, penalties=facts)
    yield run
    shutil.rmtree(run.path)


def test_penalties_are_shown_judged_added_and_removed(page, server, penalised):
    def sent():
        found = [path for path in sorted((penalised.path / "inbox").glob("*.json"))]
        return [json.loads(path.read_text())["values"] for path in found]

    page.goto(f"{server.address}runs/penalised")
    panel = page.locator("#penalties")
    playwright.expect(panel).to_contain_text("box 0, 0, 0.25, 0.25")
    playwright.expect(panel).to_contain_text("with the region of another class0.2")  # beside the share of the map
    playwright.expect(panel).to_contain_text("class gull called tern")
    playwright.expect(panel).to_contain_text("share called the other class0.3the other way round0.1")
    playwright.expect(page.locator("#charts [role=img][aria-label^='penalty corner']")).to_be_visible()
    playwright.expect(page.locator("#charts [role=img][aria-label^='penalty pair: behaviour:']")).to_be_visible()
    page.get_by_role("textbox", name="weight of corner").fill("10")
    panel.get_by_role("button", name="Change weight of corner").click()
    playwright.expect(page.locator("#record")).to_contain_text("change")
    panel.get_by_text("Add a penalty").click()
    page.get_by_label("Where").select_option("crest")
    assert page.locator("#penalty-box").is_hidden()
    page.get_by_label("Where").select_option("")
    page.get_by_label("right, %").fill("40")
    panel.get_by_role("button", name="Add", exact=True).click()
    playwright.expect(page.locator("#record")).to_contain_text("share")
    panel.get_by_role("button", name="Remove corner").click()
    playwright.expect(page.locator("#record")).to_contain_text("remove")
    assert sent() == [
        {"do": "change", "name": "corner", "weight": "10"},
        {"do": "add", "penalty": "swap", "share": "0.5", "region": "0,0,0.4,0.25"}, {"do": "remove", "name": "corner"},
    ]  # fmt: skip
    page.get_by_label("What").select_option("confusion")
    assert page.get_by_label("Where").is_hidden() and page.locator("#penalty-box").is_hidden()
    page.get_by_label("Class, by name or number").fill("2")
    page.get_by_role("textbox", name="Must not be called").fill("2")
    panel.get_by_role("button", name="Add", exact=True).click()
    playwright.expect(page.locator("#notice")).to_contain_text("label and predicted are both '2'")
    page.get_by_role("textbox", name="Must not be called").fill("3")
    panel.get_by_role("button", name="Add", exact=True).click()
    playwright.expect(page.locator("#record")).to_contain_text("predicted = 3")
    assert sent()[-1] == {"do": "add", "penalty": "confusion", "weight": "1", "label": "2", "predicted": "3"}
    page.get_by_label("What").select_option("swap")
    page.get_by_label("right, %").fill("0")
    panel.get_by_role("button", name="Add", exact=True).click()
    playwright.expect(page.locator("#notice")).to_contain_text("no box within the image")
    page.complaints[:] = [said for said in page.complaints if "422" not in said]  # the browser names the answer
    page.set_viewport_size({"width": 360, "height": 900})
    page.wait_for_function("document.documentElement.scrollWidth <= 360")  # curves follow the width when they are told
    page.goto(f"{server.address}fallacies")
    row = page.locator("#moved-rows tr")
    playwright.expect(row).to_contain_text(re.compile("penalised.*corner.*0.125 → 0.25.*0.45 → 0.9.*0.1 → 0.2"))


def drag(page, *shares):
    """Draw over the image that is marked, from place to place in shares of its side."""
    box = page.locator("#marker-canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shares]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_regions_are_marked_downloaded_and_sent_to_a_training(page, server, penalised, tmp_path):
    page.goto(f"{server.address}data")
    playwright.expect(page.locator("#images img").first).to_be_visible()
    assert page.locator("[data-mark]").count() == 0 and page.locator("#marks").is_hidden()  # of test images
    page.get_by_label("Split").select_option("train")
    page.locator("[data-mark='birds/train/5']").click()
    playwright.expect(page.locator("#marker-about")).to_contain_text("training image 5")
    drag(page, (0.26, 0.01), (0.49, 0.24))  # out to the borders of pixels
    drag(page, (0.9, 0.9), (0.8, 0.7))
    page.locator("#marker-undo").click()
    for side, value in (("left", 50), ("top", 25), ("right", 100), ("bottom", 50)):
        page.locator(f"#mark-{side}").fill(str(value))
    page.get_by_role("button", name="Add box").press("Enter")  # without a mouse
    playwright.expect(page.locator("#marker-list li")).to_have_text(
        [re.compile("Box 25, 0, 50, 25 %"), re.compile("Box 50, 25, 100, 50 %")]
    )
    page.locator("#mark-left").fill("100")
    page.get_by_role("button", name="Add box").click()
    playwright.expect(page.locator("#marker-said")).to_contain_text("no box within the image")
    page.locator("#marker-on").click()
    playwright.expect(page.locator("#marker-about")).to_contain_text("training image 6")
    page.get_by_text("Brush", exact=True).click()
    page.locator("#brush").fill("4")
    drag(page, (0.5, 0.25), (0.5, 0.75))
    page.get_by_text("Erase", exact=True).click()
    drag(page, (0.5, 0.75), (0.5, 0.6))
    page.keyboard.press("Control+z")
    drag(page, (0.5, 0.75), (0.5, 0.6))
    page.get_by_role("button", name="Done").click()
    playwright.expect(page.locator("#marks-about")).to_have_text("2 training images")
    assert page.locator(".marked canvas:visible").count() == 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "marks.json")
    found = read_marks(json.loads((tmp_path / "marks.json").read_text()), birds("train"))["train"]
    assert found[5].boxes == ((0.25, 0, 0.5, 0.25), (0.5, 0.25, 1, 0.5)) and not found[5].counts
    painted = found[6].draw(32)
    assert painted[9:16, 15:17].all() and not painted[18:].any() and not painted[:, :13].any()
    page.reload()
    playwright.expect(page.locator("#marks-about")).to_have_text("2 training images")  # they are kept
    page.get_by_label("Training", exact=True).select_option("penalised")
    page.get_by_label("share of a batch").fill("0.25")
    page.get_by_role("button", name="Add penalty").click()
    playwright.expect(page.locator("#marks-sent")).to_contain_text("penalised")
    values = [json.loads(path.read_text())["values"] for path in (penalised.path / "inbox").glob("*.json")]
    assert values == [{"do": "add", "penalty": "swap", "share": "0.25", "region": values[0]["region"]}]
    assert read_marks(json.loads((penalised.path / values[0]["region"]).read_text()), birds("train"))["train"] == found
    page.get_by_role("button", name="Forget all").click()
    page.get_by_role("button", name="Yes").click()
    playwright.expect(page.locator("#marks")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_image_is_marked_on_a_phone(browser, server, scheme):
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{server.address}data?token={TOKEN}")
    page.get_by_label("Split").select_option("validation")
    page.locator("[data-mark='birds/validation/0']").tap()
    playwright.expect(page.locator("#marker")).to_be_visible()
    drag(page, (0.1, 0.1), (0.4, 0.4))
    playwright.expect(page.locator("#marker-list li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(
        "document.getElementById('marker').scrollWidth <= document.getElementById('marker').clientWidth"
    )
    for name in ("#marker-undo", "#marker-close", "#mark-bottom"):
        page.locator(name).scroll_into_view_if_needed()
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, name
    page.locator("#marker-close").click()
    playwright.expect(page.locator("#marks-need")).to_be_visible()  # none of the training images is marked
    context.close()


@pytest.mark.long
def test_a_training_is_paused_continued_and_finished_from_its_page(page, server):
    sizes = "--set dataset.resolution=32 --set dataset.classes=4 --set dataset.train=64 --set dataset.validation=24"
    command = [
        sys.executable, str(ROOT / "main.py"), "train", "classifier", "--dataset", "birds", *sizes.split(), "--set",
        "dataset.test=24", "--epochs", "500", "--batch-size", "16", "--device", "cpu", "--out", "runs/steered",
    ]  # fmt: skip
    training = subprocess.Popen(command, cwd=server.folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not (server.folder / "runs" / "steered" / "status.json").exists():
            assert time.monotonic() < until
            page.wait_for_timeout(200)
        page.goto(f"{server.address}runs/steered")
        state = page.locator("#state")
        playwright.expect(state).to_have_text("running")
        playwright.expect(page.locator("#charts canvas").first).to_be_visible()
        page.get_by_role("button", name="Pause", exact=True).click()
        playwright.expect(state).to_have_text("paused")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(state).to_have_text("running")
        page.get_by_role("button", name="Finish now").click()
        page.get_by_role("button", name="Yes").click()
        playwright.expect(state).to_have_text("finished", timeout=120_000)
        playwright.expect(page.locator("#record")).to_contain_text("finish")
        assert training.wait(60) == 0
        assert (server.folder / "runs" / "steered" / "model.safetensors").is_file()
        kept = list(saved_steps(Run(server.folder / "runs" / "steered")))  # the last ones, which came after the page
        playwright.expect(page.locator("#branch-step option")).to_have_text([f"{step:,}" for step in kept[::-1]])
        page.get_by_label("Name, optional").fill("branched")
        page.get_by_label("Set there, optional").fill("learning_rate=0.0001")
        page.get_by_role("button", name="Branch").click()
        page.wait_for_url(f"{server.address}runs")
        page.get_by_role("link", name="branched").click()
        playwright.expect(page.locator("#about")).to_contain_text("branched from steered at step")
        playwright.expect(state).to_have_text("running", timeout=180_000)
        playwright.expect(page.locator("#record")).to_contain_text("learning_rate = 0.0001")
        page.get_by_role("button", name="Finish now").click()
        page.get_by_role("button", name="Yes").click()
        playwright.expect(state).to_have_text("finished", timeout=180_000)
        page.goto(f"{server.address}predictions")
        page.locator("#run-0").select_option("steered")
        page.locator("#run-1").select_option("branched")
        for i in (0, 1):
            playwright.expect(page.locator(f"#state-{i}")).to_have_value("final")
        page.get_by_role("button", name="Compare").click()
        playwright.expect(page.locator("#sides-about")).to_contain_text("24 validation images")
        playwright.expect(page.locator("#sides-images h3")).to_have_count(4)
    finally:
        training.kill()
