"""The command line: every command runs on tiny models and writes what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from tiny_models import SETTINGS, Answer, set_options, write_images, write_models

from viscoin.models.files import load_model, read_file
from viscoin.runs.run import Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")
    return tmp_path


@pytest.fixture(scope="module")
def models(cache, tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def pictures(folder: Path) -> list[str]:
    """Names of the figures in a folder; each must open as a picture."""
    paths = sorted(folder.glob("*.png"))
    for path in paths:
        Image.open(path).verify()
    return [path.stem for path in paths]


# --- help and errors ---------------------------------------------------------------------------------------------

COMMANDS = [
    ["train", "classifier"],
    ["train", "gan"],
    ["train", "viscoin"],
    ["train", "concept2clip"],
    ["test", "classifier"],
    ["test", "gan"],
    ["test", "viscoin"],
    ["data"],
    ["import-gan"],
    ["project"],
    ["ops", "build"],
    ["ops", "check"],
    ["logs"],
    ["to-pickle"],
    ["from-pickle"],
    ["import-viscoin"],
    ["concepts"],
    ["amplify"],
    ["concept-heatmaps"],
    ["attribute"],
    ["demo"],
]


def test_help_imports_nothing_heavy_in_a_fresh_process():
    code = (
        "import sys\n"
        "from viscoin.cli import main\n"
        "sys.argv = ['viscoin', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "heavy = {'torch', 'timm', 'matplotlib', 'numpy', 'pydantic', 'PIL', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for command in {command[0] for command in COMMANDS}:
        assert command in process.stdout


def test_main_script_answers():
    process = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "concept-heatmaps" in process.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command):
    answer = Answer(*command, "--help").went_well()
    lists = ("I,J,…", "K,L,…", "INDEX,…", "CLASS/…")
    assert all("…" not in line or any(text in line for text in lists) for line in answer.out.splitlines())


def test_familiar_options_are_there():
    """Options that users of earlier versions type."""
    familiar = {
        "train classifier": ["--dataset", "--dataset-path", "--batch-size", "--epochs", "--learning-rate"],
        "train viscoin": ["--dataset", "--batch-size", "--epochs", "--learning-rate"],
        "test classifier": ["--dataset", "--dataset-path", "--batch-size", "--checkpoints"],
        "test viscoin": ["--dataset", "--batch-size", "--checkpoints"],
        "logs": ["--logs-path"],
        "to-pickle": ["--checkpoints", "--output"],
        "concepts": ["--dataset", "--viscoin-pickle-path", "--force"],
        "amplify": ["--viscoin-pickle-path", "--concept-threshold", "--concept-top-k", "--image-indices"],
        "concept-heatmaps": ["--dataset", "--viscoin-pickle-path", "--concept-indices", "--image-indices"],
    }
    for command, options in familiar.items():
        text = Answer(*command.split(), "--help").went_well().out
        assert [option for option in options if option not in text] == [], command


def test_bugs_keep_their_traceback(monkeypatch, models):
    def broken(*_args, **_options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("viscoin.inference.loading.find_model", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        Answer("test", "classifier")


def test_traceback_of_mistakes_on_request(monkeypatch):
    monkeypatch.setenv("VISCOIN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown dataset"):
        Answer("test", "classifier", "--dataset", "dogs")


def test_interruption_says_how_to_go_on(monkeypatch):
    from viscoin.training.loop import Interrupted

    def interrupted(*_args, **_options):
        raise Interrupted("stopped at step 7 of 9; resume with `resume` `out` run")

    monkeypatch.setattr("viscoin.training.classifier.train_classifier", interrupted)
    answer = Answer("train", "classifier", *set_options(), "--out", "run")
    assert answer.code == 130
    assert "stopped at step 7 of 9; resume with --resume --out run" in answer.err


# --- training ----------------------------------------------------------------------------------------------------


def test_whole_pipeline(here, monkeypatch):
    """Train all three one after the other; each finds the newest models of the earlier ones by itself."""
    settings = [
        option for key, value in SETTINGS.items() if key != "dataset.classes" for option in ("--set", f"{key}={value}")
    ]
    data = write_images(here / "data", {"a": 40, "b": 40}, size=32)
    for kind in ("classifier", "gan", "viscoin"):
        answer = Answer("train", kind, "--dataset", data, *settings, "--seed", 3).went_well()
        path = Path(answer.out.strip())
        assert path.name == "model.safetensors" and path.parent.name.startswith(f"data-{kind}-")
        run = Run(path.parent)
        assert run.recipe.seed == 3 and run.recipe.dataset.name == str(data)
        assert load_model(path).class_names == ["a", "b"]
        assert run.metrics_path.is_file()
    options = ["--viscoin-pickle-path", path.parent, "--concept-top-k", 2, "--out", "amplified"]
    assert pictures(here / "amplified") == [] and Answer("amplify", *options).went_well()
    assert pictures(here / "amplified") == ["amplification"]
    # Without --dataset a model is tested on the images that it was made for; a folder has no attributes.
    Answer("test", "viscoin", "--checkpoints", path.parent, "--out", "tested").went_well()
    assert results(here / "tested")["dataset"] == str(data)
    assert "attributes" not in results(here / "tested") and "attributes" not in pictures(here / "tested")


def test_options_reach_the_recipe(here):
    options = ["--epochs", 2, "--batch-size", 8, "--learning-rate", "1e-4", "--set", "classifier.label_smoothing=0.1"]
    Answer("train", "classifier", *set_options(), *options, "--out", "run").went_well()
    recipe = Run(here / "run").recipe.classifier
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.label_smoothing) == (2, 8, 1e-4, 0.1)


def test_generators_do_without_a_classifier_that_does_not_fit(here, models):
    """The shipped f of another resolution is no mistake of somebody who named none; a named one is."""
    write_models(here / "assets" / "birds")
    options = [*set_options(), "--set", "dataset.resolution=16"]
    Answer("train", "gan", *options, "--out", "run").went_well()
    Answer("train", "gan", *options, "--classifier", models["classifier"]).refused("--classifier", "32 px", "16 px")


def test_shipped_models_are_used_where_nothing_was_trained(here, models):
    shipped = write_models(here / "assets" / "birds")
    Answer("test", "classifier", "--out", "out").went_well()
    assert results(here / "out")["model"] == str(shipped["classifier"])


def test_epochs_of_the_ensemble_are_steps(here, models):
    parts = ["--classifier", models["classifier"], "--gan", models["gan"]]
    Answer("train", "viscoin", *set_options(), *parts, "--epochs", 2, "--out", "run").went_well()
    assert Run(here / "run").recipe.viscoin.steps == 2


def test_resume_needs_no_options(here):
    Answer("train", "classifier", *set_options(), "--out", "run").went_well()
    before = (here / "run" / "recipe.yaml").read_text()
    Answer("train", "classifier", "--resume", "--out", "run").went_well()
    assert (here / "run" / "recipe.yaml").read_text() == before


def test_folders_are_used_whole(here):
    from viscoin.training.pipeline import RunOptions, resolve_recipe

    data = write_images(here / "data", {"a": 5, "b": 5})
    recipe = resolve_recipe("classifier", RunOptions(f"{data}/", settings=["dataset.test=7"]))
    assert (recipe.dataset.name, recipe.dataset.train, recipe.dataset.test) == (str(data), None, 7)


# --- testing -----------------------------------------------------------------------------------------------------


def test_test_classifier(here, models):
    answer = Answer("test", "classifier", "--checkpoints", models["classifier"], "--out", "out").went_well()
    found = results(here / "out")
    assert 0 <= found["accuracy"] <= 1 and found["n"] == SETTINGS["dataset.test"]
    assert len(found["accuracy_by_class"]) == 4
    assert f"{found['accuracy']:.4f}" in answer.out and "out/results.json" in answer.out
    assert {"confusion", "per-class", "curves", "calibration"} <= set(pictures(here / "out"))
    assert {"per-class.csv", "confusion.csv", "measures.md"} <= {path.name for path in (here / "out").iterdir()}


def test_test_classifier_on_a_sample(here, models):
    options = ["--checkpoints", models["classifier"], "--split", "validation", "--limit", 5, "--seed", 3]
    Answer("test", "classifier", *options, "--out", "out").went_well()
    found = results(here / "out")
    assert found["split"] == "validation" and found["n"] == 5
    assert found["estimates"]["classifier.accuracy"]["seed"] == 3
    assert len(found["by_class"]) == found["classes"]
    assert "NaN" not in (here / "out" / "results.json").read_text()
    Answer("test", "classifier", *options, "--batch-size", 2, "--out", "again").went_well()
    assert results(here / "again")["accuracy"] == found["accuracy"]
    Answer("test", "classifier", "--checkpoints", models["classifier"], "--split", "train").refused("--split 'train'")


@pytest.mark.usefixtures("few_resamples")
def test_test_viscoin(here, models):
    Answer("test", "viscoin", "--checkpoints", models["viscoin"], "--out", "out").went_well()
    found = results(here / "out")
    assert set(found["faithfulness"]) == {"0.1", "0.2", "0.4"}
    assert 0 <= found["attributes"]["mean_auroc_untrained"] <= 1
    assert found["reconstruction"]["l1"] > 0 and found["dataset"] == "birds"
    assert {"accuracy", "confusion", "faithfulness", "reconstructions", "truth-attributes"} <= set(
        pictures(here / "out")
    )


def test_test_gan(here, models):
    options = ["--checkpoints", models["gan"], "--classifier", models["classifier"], "--out", "out"]
    Answer("test", "gan", *options).went_well()
    assert results(here / "out")["fid40_classifier"] > 0
    assert pictures(here / "out") == ["features", "samples"]


def test_results_go_to_a_new_folder_in_runs(here, models):
    Answer("test", "classifier", "--checkpoints", models["classifier"]).went_well()
    (folder,) = (here / "runs").iterdir()
    assert folder.name.startswith("birds-test-classifier-")


def test_without_models_the_newest_run_is_used(here):
    for seed in (1, 2):
        Answer("train", "classifier", *set_options(), "--seed", seed, "--out", f"runs/seed{seed}").went_well()
    Answer("test", "classifier", "--out", "out").went_well()
    assert results(here / "out")["model"] == "runs/seed2/model.safetensors"


# --- pickles, logs and analysis ----------------------------------------------------------------------------------


def test_to_pickle_round_trip(here, models):
    Answer("to-pickle", "--checkpoints", models["viscoin"], "--output", "viscoin.pkl").went_well()
    tensors, metadata = read_file(here / "viscoin.pkl")
    expected, header = read_file(models["viscoin"])
    assert metadata == header and set(tensors) == set(expected)
    assert all((tensors[key] == expected[key]).all() for key in expected)
    Answer("to-pickle", "--checkpoints", models["viscoin"], "--output", "viscoin.pkl").refused("viscoin.pkl", "--force")
    Answer("to-pickle", "--checkpoints", models["gan"], "--output", "viscoin.pkl", "--force").went_well()
    assert load_model(here / "viscoin.pkl").kind == "gan"
    Answer("to-pickle", "--checkpoints", models["gan"], "--output", "a.safetensors").refused("a.safetensors", "a.pkl")


def test_logs(here, models):
    Answer("train", "classifier", *set_options(), "--out", "runs/one").went_well()
    Answer("logs").went_well()
    assert pictures(here / "runs" / "one" / "figures") == ["training"]
    Answer("logs", "--logs-path", "runs/one", "--logs-path", "runs/one/metrics.jsonl", "--out", "out").went_well()
    assert pictures(here / "out") == ["training"]
    Answer("logs", "--logs-path", "runs/two").refused("runs/two")
    Answer("logs", "--dataset", "other").refused("'other'", "--logs-path")


def test_concepts(here, models):
    options = ["--viscoin-pickle-path", models["viscoin"]]
    Answer("concepts", *options, "--out", "one").went_well()
    assert len(pictures(here / "one")) == 6
    found = results(here / "one")
    assert found["concepts"] == 6
    Answer("concepts", *options, "--out", "two", "--force").went_well()
    assert results(here / "two") == found


def test_amplify(here, models):
    options = ["--viscoin-pickle-path", models["viscoin"], "--image-indices", "3,5", "--image-indices", "7"]
    for i, selection in enumerate((["--concept-top-k", 2], ["--concept-threshold", 0.2], ["--concept-indices", "0,5"])):
        Answer("amplify", *options, *selection, "--out", f"out{i}").went_well()
        assert pictures(here / f"out{i}") == ["amplification"]
    Answer("amplify", *options, "--concept-top-k", 2, "--one-by-one", "--out", "single").went_well()
    together, single = (plt.imread(here / name / "amplification.png").shape[0] for name in ("out0", "single"))
    assert single > 1.5 * together


def test_concept_heatmaps(here, models):
    options = ["concept-heatmaps", "--viscoin-pickle-path", models["viscoin"]]
    Answer(*options, "--out", "a").went_well()
    Answer(*options, "--concept-indices", "1,2", "--image-indices", "0", "--out", "b").went_well()
    assert pictures(here / "a") == pictures(here / "b") == ["concept-heatmaps"]


def test_seed_draws_the_images(here, models):
    def picture(name: str, seed: int) -> bytes:
        options = ["--viscoin-pickle-path", models["viscoin"], "--concept-top-k", 1, "--seed", seed, "--out", name]
        Answer("amplify", *options).went_well()
        return (here / name / "amplification.png").read_bytes()

    assert picture("a", 1) == picture("b", 1) != picture("c", 2)


def test_show_without_a_screen_says_so(here, models):
    options = ["--viscoin-pickle-path", models["viscoin"], "--concept-top-k", 1, "--out", "out", "--show"]
    answer = Answer("amplify", *options).went_well()
    assert "--show" in answer.err and "files" in answer.err


# --- help --------------------------------------------------------------------------------------------------------


def test_help_shows_whole_first_sentences_in_the_order_of_work(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = Answer("--help").went_well().out
    names = [
        "demo",
        "train",
        "test",
        "data",
        "attribute",
        "concepts",
        "amplify",
        "concept-heatmaps",
        "logs",
        "export",
        "ops",
    ]
    places = [text.index(f"\n  {name} ") for name in names]
    assert places == sorted(places) and "..." not in text.partition("Start:")[2] and "Others" not in text
    for group in ((), ("train",), ("test",), ("ops",)):
        lines = Answer(*group, "--help").went_well().out.splitlines()
        rows = [line for line in lines if re.match(r"  [a-z0-9-]+ {2,}\S", line)]
        assert rows and all(len(row.split(maxsplit=1)[1]) <= 55 for row in rows), rows
