"""Faults, for real: kills at random moments, a full disk, data that vanish, workers and processes that die."""

import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import Toy
from test_loop import train as fit_toy
from tiny_models import Answer, set_options, tiny_recipe, write_images

from stylegan2_ada.together import ProcessGone
from viscoin.config import load_recipe
from viscoin.datasets import ImageDataset
from viscoin.models.files import load_model, save_model
from viscoin.runs.run import Run, read_metrics
from viscoin.training import failures
from viscoin.training.data import StepBatches
from viscoin.training.failures import Failed, recoverable
from viscoin.training.loop import Interrupted, fit
from viscoin.training.runtime import Runtime

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"}
LONG = ["classifier", "--epochs", "60", "--device", "cpu", "--precision", "32-true", "--out"]


def command(folder: Path, *arguments: object, disturb: str = "") -> subprocess.Popen:
    """`main.py train` in that folder, with a cache there; `disturb` as in disturbed.py."""
    line = [sys.executable, str(HERE / "disturbed.py"), "train", *map(str, arguments), *set_options()]
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(folder / "cache"), "DISTURB": disturb}
    return subprocess.Popen(line, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen, code: int) -> str:
    """What it said."""
    _, err = process.communicate(timeout=400)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return err


def signalled(number: int) -> str:
    """Code that sends a process this signal."""
    return f"os.kill(os.getpid(), {int(number)})"


# --- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("kind", "kills", "least"), [("viscoin", 50, 40), ("classifier", 10, 5), ("gan", 10, 5)])
def test_random_kills_change_nothing(tmp_path, kind, kills, least):
    """Weights and metrics are those of a run that nobody killed, bit for bit."""
    line = [sys.executable, str(HERE / "kill_loop.py"), kind, str(kills), str(tmp_path)]
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= least, "it ended before that; train longer"


# --- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_early_warning_saves_and_the_same_command_goes_on(tmp_path):
    line = [*LONG, "run", "--epochs", "30"]
    ended(command(tmp_path, *line[:-3], "whole", *line[-2:]), 0)
    process = command(tmp_path, *line, disturb=f"9 {signalled(signal.SIGUSR1)}")
    assert "stopped at step 10 of 120; resume with --resume --out run" in ended(process, 128 + signal.SIGUSR1)
    assert "going on from step 10 of run" in ended(command(tmp_path, *line), 0)
    assert "all 120 steps of run are done" in ended(command(tmp_path, *line), 0)
    models = [load_model(tmp_path / name).model.state_dict() for name in ("whole", "run")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_exit_code_names_the_signal(tmp_path, monkeypatch, number):
    def stopped(*arguments, **options):
        raise Interrupted("stopped at step 3 of 9", number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.training.classifier.train_classifier", stopped)
    answer = Answer("train", "classifier", *set_options())
    assert (answer.code, answer.err.splitlines()[-1]) == (128 + number, "stopped at step 3 of 9")


# --- what fails outside ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """64 MB that are a file system of their own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.long
def test_full_disk_loses_nothing_that_was_saved(tmp_path, small_disk):
    ballast = small_disk / "ballast"
    fill = f"9 fill({str(ballast)!r})"
    err = ended(command(tmp_path, *LONG, small_disk / "run", disturb=fill), 75)
    assert "No space left on device" in err and "make room" in err and f"--resume --out {small_disk / 'run'}" in err
    step = Run(small_disk / "run").last_checkpoint()["step"]
    assert step == 8
    ballast.unlink()
    assert f"going on from step {step}" in ended(command(tmp_path, *LONG, small_disk / "run"), 0)


@pytest.mark.long
def test_data_that_vanish(tmp_path):
    """The images are in memory by then; who starts again is told which folder is missing."""
    write_images(tmp_path / "photos", {"cat": 30, "dog": 30})
    line = [*LONG, "run", "--dataset", "photos"]
    move = "[os.rename(name, name + ' elsewhere') for name in ('photos', 'cache')]"
    ended(command(tmp_path, *line, disturb=f"2 {move}; {signalled(signal.SIGTERM)}"), 128 + signal.SIGTERM)
    before = (tmp_path / "run/checkpoints/last.pt").read_bytes()
    err = ended(command(tmp_path, *line), 2)
    assert "photos" in err.splitlines()[-1]
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == before
    (tmp_path / "photos elsewhere").rename(tmp_path / "photos")
    ended(command(tmp_path, *line), 0)


def noise(size: int = 8) -> ImageDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (size, 4, 4, 3), dtype=np.uint8)
    return ImageDataset("noise", "train", pixels, np.zeros(size, dtype=np.int64), ["one", "two"])


def test_worker_that_dies_ends_the_training_with_its_reason(tmp_path, monkeypatch):
    images = noise()
    batches = StepBatches(images, 4, 0, workers=2)
    run = Run.create("classifier", load_recipe("birds"), tmp_path / "run")
    original = images.batch

    def broken(indices: np.ndarray):
        if Toy.steps_done >= 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "photos/a.png")
        return original(indices)

    class Counting(Toy):
        def step(self, *arguments):
            Toy.steps_done += 1
            return super().step(*arguments)

    monkeypatch.setattr(Toy, "steps_done", 0, raising=False)
    monkeypatch.setattr(images, "batch", broken)
    with pytest.raises(Failed, match=r"Input/output error \(photos/a.png\).*`resume` `out`"):
        fit(run, Counting(), batches, 20, seed=0, evaluate_every=6, device=torch.device("cpu"), title="toy")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_is_full_when_metrics_are_written(tmp_path, monkeypatch, number):
    run = Run.create("classifier", load_recipe("birds"), tmp_path / "run")
    original = run.log

    def full(step, values):
        if step >= 8:
            raise OSError(number, os.strerror(number), str(run.metrics_path))
        original(step, values)

    monkeypatch.setattr(run, "log", full)
    with pytest.raises(Failed, match=r"metrics.jsonl\); make room, then resume with `resume` `out` .*run"):
        fit_toy(run, Toy())
    assert run.last_checkpoint()["step"] == 6


def no_room(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")


def test_disk_that_is_full_when_a_model_is_written(tmp_path, monkeypatch):
    """While it trains, and after its last step."""
    model, run = torch.nn.Linear(2, 2), Run.create("classifier", load_recipe("birds"), tmp_path / "run")
    model.architecture = {}
    monkeypatch.setattr("viscoin.models.files.atomic_path", no_room)

    def snapshot(step: int) -> None:
        save_model(run.model_path, model, "classifier", recipe=run.recipe, class_names=["a"])

    said = r"No space left on device \(model.safetensors\); make room, then resume with `resume` `out` .*run:"
    with pytest.raises(Failed, match=said):
        fit_toy(run, Toy(), on_evaluate=snapshot)
    with pytest.raises(Failed, match=said):
        recoverable(lambda recipe, run: snapshot(0))(run.recipe, run)
    with pytest.raises(ValueError, match="another mistake"):
        recoverable(lambda recipe, run: (_ for _ in ()).throw(ValueError("another mistake")))(run.recipe, run)


def test_training_functions_tell_of_what_fails_around_their_steps(tmp_path, monkeypatch):
    recipe = tiny_recipe()
    for kind in ("classifier", "gan"):
        module = importlib.import_module(f"viscoin.training.{kind}")
        monkeypatch.setattr(module, "launch", no_room)
        with pytest.raises(Failed, match="make room"):
            getattr(module, f"train_{kind}")(recipe, Run.create(kind, recipe, tmp_path / kind), Runtime("cpu"))


def test_process_that_is_gone_while_others_evaluate_is_no_bug(monkeypatch, tmp_path):
    monkeypatch.setattr(failures, "world_size", lambda: 2)
    task = Toy()
    task.evaluate = lambda step: (_ for _ in ()).throw(ProcessGone("another process has ended"))
    run = Run.create("classifier", load_recipe("birds"), tmp_path / "run")
    with pytest.raises(Failed, match="another process of this training is gone"):
        fit_toy(run, task)


def test_broken_checkpoint_costs_the_steps_since_the_one_before(tmp_path, caplog):
    """The run ends with the weights and metrics that it would have had."""
    runs = [Run.create("classifier", load_recipe("birds"), tmp_path / name) for name in ("whole", "torn")]
    whole, torn = Toy(), Toy()
    fit_toy(runs[0], whole)
    with pytest.raises(MemoryError):
        fit_toy(runs[1], Toy(lambda step: (_ for _ in ()).throw(MemoryError()) if step == 14 else None))
    last = runs[1].checkpoints / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    fit_toy(runs[1], torn)
    assert "last.pt is damaged" in caplog.text
    assert torch.equal(whole.weight, torn.weight)
    lines = [
        [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(run.metrics_path)] for run in runs
    ]
    assert lines[0] == lines[1]


def test_checkpoint_of_other_shapes_says_so(tmp_path):
    run = Run.create("classifier", load_recipe("birds"), tmp_path / "run")
    fit_toy(run, Toy(), steps=4)
    state = run.last_checkpoint()
    state["task"] = {}
    run.save_checkpoint("last", state)
    with pytest.raises(ValueError, match=r"checkpoint of .*run does not fit this recipe or version .*`out`"):
        fit_toy(run, Toy())
