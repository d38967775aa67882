"""Exit codes: 2 what the user can mend, 75 something outside, 128 + the number of a signal; and no traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_loop import Toy, at
from test_loop import train as fit_toy
from tiny_models import Answer, set_options

from viscoin.config import load_recipe
from viscoin.errors import Refused
from viscoin.runs.run import Run
from viscoin.signals import Stopped
from viscoin.slurm import queue
from viscoin.sweep.results import TrialResult
from viscoin.sweep.running import _progress
from viscoin.training.failures import Failed

ROOT = Path(__file__).parents[1]


def full(message: str) -> Refused:
    error = Refused("out", "there", message)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "there/file")
    return error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2, "Error: runs/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 75, "Error: a.png: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), 75, "Error: Input/output error"),
        (OSError("no such thing"), 2, "Error: no such thing"),
        (full("cannot write there (No space left on device)"), 75, "Error: --out there: cannot write there"),
        (MemoryError(), 2, "Error: out of memory (the system gives no more); choose another --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), 2, "Error: out of memory (CUDA out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "Error: out of memory (DefaultCPU"),
        (Failed("a node is gone"), 75, "Error: a node is gone"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (Stopped("stopped", 1), 129, "stopped"),
        (Stopped("", 15), 143, "Interrupted."),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("viscoin.inference.loading.load_subject", fails)
    answer = Answer("test", "classifier", "--device", "cpu")
    assert answer.code == code, answer.err
    assert answer.err.startswith(said) and len(answer.err.splitlines()) <= 1


def test_reader_that_has_seen_enough_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": 1, "train.l1": 2.0}\n')
    code = "import sys; from viscoin.cli import main; sys.stdout.close; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "logs", "--logs-path", "a.jsonl", "--out", "."], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=100) == 141 and said == ""


# --- a run folder that goes away ---------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("deleted", [False, True])
def test_run_folder_that_goes_away(tmp_path: Path, replaced: bool, deleted: bool) -> None:
    """Nothing is written into another run that takes its place; the moved one resumes where it was saved."""
    recipe = load_recipe("birds")
    run = Run.create("classifier", recipe, tmp_path / "run")

    def move() -> None:
        run.path.rename(tmp_path / "moved")
        if deleted:
            for path in sorted((tmp_path / "moved").rglob("*"))[::-1]:
                path.rmdir() if path.is_dir() else path.unlink()
        if replaced:
            Run.create("classifier", recipe, tmp_path / "run")

    said = r"run was moved, renamed or deleted while it trained; move it back.*`resume` `out` .*run: only the steps"
    with pytest.raises(Failed, match=said):
        fit_toy(run, Toy(at(8, move)))
    if replaced:
        assert not list(run.checkpoints.iterdir()) and not run.metrics_path.exists() and run.recipe_path.is_file()
    else:
        assert not run.path.exists()
    if not deleted:
        assert Run(tmp_path / "moved").last_checkpoint()["step"] == 6  # type: ignore[index]
        fit_toy(Run(tmp_path / "moved"), Toy())


def test_run_folder_that_goes_away_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trains(recipe: object, run: Run, *others: object) -> Path:
        run.path.rename("moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "precious").touch()
        raise ValueError("a mistake")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.training.classifier.train_classifier", trains)
    Answer("train", "classifier", "--out", "run", *set_options()).refused("a mistake")
    assert Path("run/precious").is_file() and Path("moved/recipe.yaml").is_file()


@pytest.mark.parametrize("begun", [False, True])
def test_stopped_before_or_after_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    def trains(recipe: object, run: Run, *others: object) -> Path:
        if begun:
            run.log(3, {"train.loss": 1.0})
        raise Stopped(number=15)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.training.classifier.train_classifier", trains)
    answer = Answer("train", "classifier", "--out", "run", *set_options())
    assert answer.code == 143 and Path("run").exists() == begun
    last = (
        "stopped; resume with --resume --out run; only" if begun else "stopped before the first step; nothing is kept"
    )
    assert answer.err.splitlines()[-1].startswith(last)


# --- jobs and sweeps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 15])
def test_signal_that_ends_following_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def follow(*arguments: object) -> None:
        raise Stopped(number=number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.slurm.submission.Submission.submit", lambda self: "7")
    monkeypatch.setattr("viscoin.slurm.following.follow_job", follow)
    answer = Answer("submit", "--follow", "--", "train", "gan", "--out", "run")
    assert answer.code == 128 + number
    assert answer.err.splitlines()[-1] == "stopped following; job 7 continues"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("", None),
        ("\n", None),
        ("nonsense", None),
        ("JobState= ExitCode=1:0", None),
        ("JobState=FAILED ExitCode=x:y", 1),
        ("JobState=FAILED ExitCode=", 1),
        ("JobState=FAILED ExitCode=0:9", 137),
        ("JobState=NODE_FAIL ExitCode=0:0", 75),
        ("JobState=PREEMPTED", 75),
        ("JobState=COMPLETED ExitCode=0:0", 0),
    ],
)
def test_odd_answers_of_the_queue(monkeypatch: pytest.MonkeyPatch, said: str, code: int | None) -> None:
    monkeypatch.setattr(queue, "_call", lambda *words: said)
    watch = queue.Watch("7")
    watch.state = queue.job_state("7")
    assert (watch.state is None) == (code is None)
    assert watch.exit_code == (code or 0)


def test_progress_of_a_sweep_says_how_long_the_rest_takes() -> None:
    trials = [
        TrialResult(0, "finished", 0.5, {}, (), 100.0, Path("0")),
        TrialResult(1, "failed", None, {}, (), 20.0, Path("1")),
        TrialResult(2, "running", None, {}, (), None, Path("2")),
    ]
    settings = SimpleNamespace(metric="m", direction="maximize", trials=10)
    study: Any = SimpleNamespace(results=lambda: trials, settings=settings)
    assert _progress(study, 1, 20.0).endswith("2 of 10 trials done, about 4 min left")
    settings.trials = 2
    assert _progress(study, 1, 20.0).endswith("2 of 2 trials done")
