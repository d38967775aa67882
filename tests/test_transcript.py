"""log.txt of run folders, what to open first, the version, and how long work will take."""

import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_models import Answer, set_options
from tqdm import tqdm

from viscoin import estimates
from viscoin.estimates import Estimate, duration
from viscoin.inference.batches import progress
from viscoin.runs import transcript
from viscoin.runs.run import Run

ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def listening() -> Iterator[tuple[Terminal, Terminal]]:
    """A process that listens to itself, on a terminal: what that shows."""
    streams = Terminal(), Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setattr(transcript, "_transcript", None)
        transcript.listen()
        yield streams


def log(folder: Path) -> list[str]:
    return (folder / "log.txt").read_text(encoding="utf-8").splitlines()


def test_all_that_is_printed_apart_from_progress_bars(tmp_path: Path) -> None:
    with listening() as (out, err):
        print("before")
        transcript.keep_in(tmp_path)
        for _ in tqdm(range(3), desc="a bar", mininterval=0):
            tqdm.write("between", file=sys.stderr)
        with tqdm(total=2, desc="another bar", leave=True) as bar:
            bar.update(2)
        print(warnings.formatwarning("take care", UserWarning, "a.py", 3), file=sys.stderr)
        print("grün \ud800", file=sys.stderr)
    head, *lines = log(tmp_path)
    assert head.startswith("--- 20") and "revision" in head
    assert [line for line in lines if line][:4] == ["before", "between", "between", "between"]
    assert any("take care" in line for line in lines) and lines[-1] == "grün \\ud800"
    assert not any("bar" in line for line in lines)
    assert "a bar" in err.getvalue() and "before" in out.getvalue()


def test_each_folder_gets_what_is_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("study", "one", "two")]
    for folder in folders:
        folder.mkdir()
    with listening():
        transcript.keep_in(folders[0])
        for folder in folders[1:]:
            with transcript.kept_in(folder):
                print(f"in {folder.name}")
        with pytest.raises(ValueError, match="a reason"), transcript.kept_in(folders[1]):
            raise ValueError("a reason")
        transcript.keep_in(folders[2])
        print("the end")
    said = [[line for line in log(folder) if not line.startswith("---")] for folder in folders]
    assert said == [["in one", "in two"], ["in one", "ValueError: a reason"], ["in two", "the end"]]


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/full")], ids=["folder", "pipe", "full"]
)
def test_log_that_cannot_be_written_is_told(
    make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "log.txt")
    with listening():
        transcript.keep_in(tmp_path)
        print("goes on")
    assert "log.txt cannot be written" in caplog.text


def test_nothing_is_kept_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "_transcript", None)
    transcript.keep_in(tmp_path)
    with transcript.kept_in(tmp_path):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_log_of_a_training_grows_by_what_resumes_it_and_by_its_crash(tmp_path: Path) -> None:
    code = "from viscoin.training.classifier import ClassifierTask as T\nT.step = lambda *a: [][0]\n"
    begin, whole = "from viscoin.cli import main\n", "main()"
    words = ["train", "classifier", "--device", "cpu", "--out", "run", *set_options()]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(text: str, *more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", text, *words, *more], cwd=tmp_path, capture_output=True, text=True,
            env={**environment, "PATH": "/usr/bin:/bin"},
        )  # fmt: skip

    assert run(begin + whole).returncode == 0
    refused = run(begin + whole, "--epochs", "3")
    crashed = run(begin + code + whole, "--allow-changes", "--epochs", "3")
    assert (refused.returncode, crashed.returncode) == (2, 1)
    text = (tmp_path / "run" / "log.txt").read_text()
    assert text.count("--- 20") == 2 and "run/model.safetensors\nopen first: " in text
    assert "resumes with a changed recipe" in text and text.endswith("IndexError: list index out of range\n")


# --- what else is told -------------------------------------------------------------------------------------------


def test_version() -> None:
    out = Answer("--version").went_well().out
    assert out.startswith("viscoin 0.") and ", revision " in out and ", torch 2." in out


def test_version_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    from viscoin.runs import revision

    real = revision.version

    def version(name: str) -> str:
        if name == "viscoin":
            raise revision.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(revision, "version", version)
    assert revision.describe_version().startswith("viscoin 0.")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.4, "5 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (12000, "3 h 20 min"), (190000, "2 days 5 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_estimate_is_measured_without_the_first_step_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(estimates.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "viscoin")
    estimate = Estimate("classifier", 500, "step", 100)
    for seconds in [300.0, *[6.0] * 5]:
        now[0] += seconds
        estimate.count()
    assert [record.getMessage() for record in caplog.records] == ["classifier: about 40 min left for 396 steps"]


def test_short_work_needs_no_estimate(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(estimates.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "viscoin")
    for seconds in (0.1, 2.0):
        estimate = Estimate("features", 8, "image")
        for _ in range(8):
            now[0] += seconds
            estimate.count()
    assert not caplog.records


def test_bars_without_a_terminal_estimate(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(estimates.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "viscoin")
    for unit, units in (("image", "images"), ("pass", "passes")):
        with progress(1000, "features", unit) as bar:
            for _ in range(5):
                now[0] += 20.0
                bar.update(10)
        assert caplog.records[-1].getMessage() == f"features: about 32 min left for 960 {units}"
    assert len(caplog.records) == 2


def test_backbone_of_train_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Answer("train", "all", "--backbone", "viscoin_resnet", "--device", "cpu", *set_options()).refused("viscoin_resnet")
    answer = Answer("train", "all", "--backbone", "resnet10t", "--device", "cpu", "--out", "run", *set_options(),
                    "--set", "classifier.pretrained=false").went_well()  # fmt: skip
    assert {Run(Path("run", kind)).recipe.classifier.backbone for kind in ("classifier", "gan", "viscoin")} == {
        "resnet10t"
    }
    assert answer.err.splitlines()[-1] == "open first: run/viscoin/figures/reconstructions-000004.png"
