"""The demo: on tiny models here, on the shipped ones in the slow test."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_models import SETTINGS, Answer, tiny_recipe, write_models

from viscoin.models.files import ASSETS
from viscoin.reports import demo
from viscoin.runs.run import Run

# The figures that the report must hold for the shipped models (dotted), and for the fresh ones.
KEYS = [
    "classifier.accuracy",
    "ensemble.accuracy",
    "ensemble.agreement",
    "ensemble.accuracy_on_reconstructions",
    "reconstruction.l1",
    "reconstruction.mse",
    "reconstruction.perceptual",
    "reconstruction.fid",
    "gan.fid",
    "faithfulness.0,1.relevant",
    "faithfulness.0,1.random",
    "faithfulness.0,2.relevant",
    "faithfulness.0,2.random",
    "faithfulness.0,4.relevant",
    "faithfulness.0,4.random",
    "attributes.mean_auroc",
    "attributes.mean_auroc_untrained",
    "seconds.total",
    "fresh.ensemble.accuracy",
    "fresh.ensemble.agreement",
    "fresh.ensemble.accuracy_on_reconstructions",
    "fresh.reconstruction.l1",
    "fresh.reconstruction.mse",
    "fresh.reconstruction.perceptual",
    "fresh.reconstruction.fid",
]
shipped = pytest.mark.skipif(not (ASSETS / "birds" / "viscoin.safetensors").is_file(), reason="no models are shipped")
VOID = {"meta", "img", "path", "rect", "br"}  # tags without an end
TINY = demo.Size(test=30, faithfulness=10, steps=6, changes=SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def assets(cache, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("assets")
    write_models(folder / "birds")
    monkeypatch.setattr(demo, "ASSETS", folder)
    return folder


class Page(HTMLParser):
    """Tags left open, sources of pictures, targets and anchors of links, and plain text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.sources, self.links, self.ids, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        assert tag != "img" or values["alt"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def value(report: dict, key: str) -> float:
    for part in key.split("."):
        report = report[part.replace(",", ".")]
    return report


def check_report(folder: Path) -> dict:
    report = json.loads((folder / "report.json").read_text())
    for key in KEYS:
        assert isinstance(value(report, key), int | float), key
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert len(page.sources) >= 14
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert set(page.links) <= {f"#{name}" for name in page.ids}  # nothing points outside the file
    assert not re.search(r"https?://|[{}]{2}|nan\b|None", page.text)
    assert f"{100 * report['classifier']['accuracy']:.1f} %" in page.text
    for word in ("concept extractor", "explainer", "concept translator", "generator", "ensemble", "amplification"):
        assert word in page.text.lower()
    return report


@pytest.mark.usefixtures("few_resamples")
def test_demo_reports_everything(assets, tmp_path):
    path = demo.run_demo(tmp_path / "demo", TINY, seed=1)
    assert path == tmp_path / "demo" / "report.html"
    report = check_report(path.parent)
    assert "gan" not in report["fresh"]
    assert (tmp_path / "demo" / "figures" / "amplification.png").is_file()
    # Again in the same folder: the runs of the first demo make room.
    demo.run_demo(tmp_path / "demo", TINY, from_scratch=True)
    report = check_report(path.parent)
    assert value(report, "fresh.classifier.accuracy") >= 0 and value(report, "fresh.gan.fid") > 0


def test_interrupted_demo_leaves_no_report(assets, tmp_path, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(demo, "_explain", interrupted)
    answer = Answer("demo", "--quick", "--out", tmp_path / "demo")
    assert answer.code == 130
    assert not list((tmp_path / "demo").glob("report*")) and not list((tmp_path / "demo").glob("*.partial"))


def test_demo_cannot_write(assets, tmp_path):
    (tmp_path / "file").write_text("")
    Answer("demo", "--out", tmp_path / "file" / "demo").refused("--out", "file/demo")


def test_demo_clears_no_folder_in_which_another_one_trains(tmp_path):
    run = Run.create("viscoin", tiny_recipe(), tmp_path / "viscoin")
    with run.lock():
        child = os.fork()
        if not child:
            try:
                demo._prepare(tmp_path)
                os._exit(0)
            except ValueError as error:
                os._exit(3 if "in use by process" in str(error) else 4)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert run.recipe_path.is_file()
    demo._prepare(tmp_path)
    assert not run.path.exists()


def test_demo_without_shipped_models(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "ASSETS", tmp_path)
    Answer("demo", "--out", tmp_path / "demo").refused("classifier.safetensors")
    assert not (tmp_path / "demo").exists()


@pytest.mark.long
@shipped
def test_quick_demo_with_the_shipped_models(tmp_path):
    Answer("demo", "--quick", "--out", tmp_path).went_well()
    report = check_report(tmp_path)
    assert report["classifier"]["accuracy"] >= 0.95
    assert report["ensemble"]["agreement"] >= 0.95
    assert report["ensemble"]["accuracy_on_reconstructions"] >= 0.75
    relevant, random = (report["faithfulness"]["0.2"][name] for name in ("relevant", "random"))
    assert relevant >= 5 * random and relevant > 0
    assert report["attributes"]["mean_auroc"] >= report["attributes"]["mean_auroc_untrained"] + 0.05


@pytest.mark.long
@shipped
def test_example_runs(tmp_path):
    script = Path(__file__).parents[1] / "example.py"
    assert len(script.read_text().splitlines()) < 80
    environment = os.environ | {"PYTHONPATH": str(script.parent)}
    process = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "shipped ensemble" in process.stdout
    for name in ("birds.png", "amplification.png", "heatmaps.png"):
        assert (tmp_path / "runs" / "example" / name).is_file()
