"""The whole pipeline on a user's own folder of images: scikit-learn's handwritten digits, real scans, as PNG files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import Answer

from viscoin.config import load_recipe
from viscoin.datasets import load_dataset

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "docs/digits.yaml"


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """The folder `digits` in the current one, as the script writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [sys.executable, str(ROOT / "scripts/write_digits.py"), "digits"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "1797 images in digits\n"
    return tmp_path / "digits"


def run(*arguments: object) -> Answer:
    return Answer(*arguments).went_well()


def results(folder: str) -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def pictures(folder: str) -> set[str]:
    """Names of the figures in a folder; each must open as a picture."""
    for path in Path(folder).glob("*.png"):
        Image.open(path).verify()
    return {path.stem for path in Path(folder).glob("*.png")}


@pytest.mark.slow
def test_scans_become_a_dataset(digits):
    scan = Image.open(digits / "3/0003.png")
    assert (scan.mode, scan.size) == ("L", (8, 8))
    assert len(list(digits.glob("*/*.png"))) == 1797
    config = load_recipe(str(RECIPE)).dataset
    splits = {split: load_dataset("digits", split, config) for split in ("train", "validation", "test")}
    assert {split: len(images) for split, images in splits.items()} == {"train": 1259, "validation": 179, "test": 359}
    images, labels = splits["test"].batch([0, 358])
    assert labels.tolist() == [0, 9]
    assert images.shape == (2, 3, 32, 32)
    assert (images[:, 0] == images[:, 2]).all()  # grey stays grey
    assert images.min() == -1 and images.max() > 0.9


@pytest.mark.long
def test_pipeline_from_folder_to_figures(digits):
    recipe = ["--recipe", RECIPE, "--device", "cpu"]
    run("train", "classifier", *recipe, "--epochs", 8)
    run("test", "classifier", "--dataset", "digits", "--out", "f")
    f = results("f")
    assert f["n"] == 359
    assert f["accuracy"] > 0.9
    assert {"confusion", "per-class", "curves", "calibration"} <= pictures("f")

    run("train", "gan", *recipe, "--warm-start", 0.8, "--kimg", 0.16)
    run("test", "gan", "--dataset", "digits", "--out", "G")
    assert results("G")["fid359_classifier"] > 0
    assert "samples" in pictures("G")

    run("train", "viscoin", *recipe, "--steps", 400, "--set", "viscoin.warmup_steps=20")
    run("test", "viscoin", "--dataset", "digits/", "--out", "ensemble")
    ensemble = results("ensemble")["ensemble"]
    assert ensemble["accuracy"] > 0.7
    assert ensemble["agreement"] > 0.7
    assert {"accuracy", "faithfulness", "reconstructions"} <= pictures("ensemble")

    run("concepts", "--dataset", "digits", "--out", "concepts")
    assert results("concepts")["images"] == 359
    assert "activation-per-concept" in pictures("concepts")
    run("amplify", "--dataset", "digits", "--concept-top-k", 3, "--out", "amplify")
    assert pictures("amplify") == {"amplification"}
    run("concept-heatmaps", "--dataset", "digits", "--concept-top-k", 2, "--out", "heatmaps")
    assert pictures("heatmaps") == {"concept-heatmaps"}
