"""Trainings by several processes, in parts or compiled: the same as by one; and what happens when one dies."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import Answer, set_options, tiny_recipe, write_models

from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model, save_model
from viscoin.runs.run import Run, read_metrics
from viscoin.training.loop import AGREE_EVERY

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPU cores"),
]

CLASSIFIER = ["classifier", "--epochs", "3", "--batch-size", "16", "--set", "classifier.schedule=constant"]
VISCOIN = ["viscoin", "--set", "viscoin.batch_size=8", "--set", "viscoin.bimodality=0.5"]
VISCOIN += ["--set", "viscoin.dropout=0.2", "--set", "viscoin.reconstructed=4", "--steps", "6"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_models(folder / "models")
    return folder


def start(here: Path, *arguments: object, disturb: str = "") -> subprocess.Popen:
    """`main.py train` in float32 on the CPU; `disturb` as in disturbed.py."""
    command = [sys.executable, str(ROOT / "tests/disturbed.py"), "train", *map(str, arguments), *set_options()]
    command += ["--device", "cpu", "--precision", "32-true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(here / "cache"), "DISTURB": disturb}
    environment["PYTHONPATH"] = str(ROOT)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=here, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def train(here: Path, *arguments: object) -> str:
    """What it says; only a training that starts others needs a process of its own."""
    if "--devices" not in arguments:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(here)
            patch.setenv("XDG_CACHE_HOME", str(here / "cache"))
            options = (*set_options(), "--device", "cpu", "--precision", "32-true")
            return Answer("train", *arguments, *options).went_well().err
    process = start(here, *arguments)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    return err


def models(here: Path) -> list[str]:
    return ["--classifier", str(here / "models/classifier.safetensors"), "--gan", str(here / "models/gan.safetensors")]


def curve(run: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in line.items() if key != "time"} for line in read_metrics(run / "metrics.jsonl")
    ]


def same(one: Path, other: Path) -> None:
    """Metrics agree within 0.002, and each tensor of the weights within a tenth of its length.

    Not each number of the weights: Adam steps as far for a gradient near 0, whose sign is rounding, as for others.
    Another batch changes the biases of batch normalisation by their whole length.
    """
    for left, right in zip(curve(one), curve(other), strict=True):
        assert left == pytest.approx(right, rel=2e-3, abs=2e-3)
    weights = [load_model(run / "model.safetensors").model.state_dict() for run in (one, other)]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).double().norm() <= 0.1 * value.double().norm(), name


def after(run: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until the run has logged that step."""
    limit = time.monotonic() + 200
    log = run / "metrics.jsonl"
    while not (log.is_file() and any(line["step"] >= step for line in read_metrics(log))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize("kind", [pytest.param("classifier", marks=pytest.mark.long), "viscoin"])
def test_two_processes_train_as_one_does(here, kind):
    """The batch of a step, its random draws and its statistics are those of all processes together."""
    options = CLASSIFIER if kind == "classifier" else VISCOIN + models(here)
    train(here, *options, "--out", f"{kind}-one")
    err = train(here, *options, "--devices", "2", "--out", f"{kind}-two")
    assert err.count("run folder:") == 1
    same(here / f"{kind}-one", here / f"{kind}-two")


def test_two_processes_train_masks_as_one_does(here):
    """The layer and the samples of the gates are those of the whole batch."""
    recipe = tiny_recipe()
    torch.manual_seed(0)
    f = Classifier("viscoin_vit_patch8", recipe.dataset.classes or 4, recipe.dataset.resolution)
    names = load_model(here / "models/classifier.safetensors").class_names
    path = save_model(here / "models/vit.safetensors", f, "classifier", recipe=recipe, class_names=names)
    options = ["diffmask", "--classifier", str(path), "--epochs", "2", "--batch-size", "16", "--lr", "0.001"]
    options += ["--set", "diffmask.warmup_steps=2", "--log-every-n-steps", "4"]
    train(here, *options, "--out", "masks-one")
    assert train(here, *options, "--devices", "2", "--out", "masks-two").count("run folder:") == 1
    same(here / "masks-one", here / "masks-two")


@pytest.mark.long
def test_run_goes_on_with_another_number_of_processes(here):
    options = [*CLASSIFIER, "--epochs", "20", "--out", "moved"]
    process = start(here, *options, "--devices", "2", disturb=f"5 os.kill(os.getpid(), {int(signal.SIGTERM)})")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("resume with --resume --out moved") == 1
    step = Run(here / "moved").last_checkpoint()["step"]
    assert 6 <= step <= 6 + AGREE_EVERY
    assert f"going on from step {step}" in train(here, *options)


@pytest.mark.long
def test_process_that_dies_is_reported_and_nothing_saved_is_lost(here):
    options = [*CLASSIFIER, "--epochs", "500", "--out", "dead"]
    process = start(here, *options, "--devices", "2")
    after(here / "dead", 8, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    assert "another process of this training is gone" in err and "--resume --out dead" in err
    assert Run(here / "dead").last_checkpoint()["step"] >= 4


@pytest.mark.long
def test_compiled_classifier_trains_as_the_plain_one(here):
    train(here, *CLASSIFIER, "--out", "plain")
    train(here, *CLASSIFIER, "--compile", "--out", "compiled")
    same(here / "plain", here / "compiled")


def test_accumulated_gradients_are_those_of_the_whole_batch(here):
    """Of the ensemble, which has no batch normalisation, and without bimodality, which looks at a part's images."""
    options = ["viscoin", "--set", "viscoin.batch_size=8", "--set", "viscoin.dropout=0", *models(here), "--steps", "4"]
    options += ["--set", "viscoin.generated=0", "--set", "viscoin.bimodality=0"]
    train(here, *options, "--out", "whole")
    train(here, *options, "--accumulate", "2", "--out", "parts")
    same(here / "whole", here / "parts")
    assert Run(here / "parts").recipe.viscoin.accumulate == 2


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_missing_streams_lead_nowhere(streams: str, tmp_path: Path) -> None:
    """A file that is opened must not get the number of standard error, into which libraries print."""
    code = (
        "import sys; from viscoin.processes import open_missing_streams; open_missing_streams(); "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); assert file.fileno() > 2; print('out'); "
        "print('err', file=sys.stderr); sys.stdin.read(); file.write('whole')"
    )
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {streams}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "whole"
