"""Signals that ask to stop: held back, answered, and real ones in every phase of every long command."""

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from tiny_models import set_options, write_models

from viscoin.models.files import load_model
from viscoin.runs.run import Run
from viscoin.signals import Stopped, handled, held, holding, stop_on_signals

HERE = Path(__file__).parent
INT, TERM, HUP = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """Tests that run under nohup would hand on to their commands that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# --- when they are answered --------------------------------------------------------------------------------------


def test_signals_are_held_back_until_the_outermost_block_ends() -> None:
    seen: list[str] = []
    with pytest.raises(Stopped) as caught, stop_on_signals(), held():
        with held():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            seen.append("inner")
        seen.append("outer")
    assert seen == ["inner", "outer"] and caught.value.signal == TERM
    assert not holding()


def test_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stop_on_signals(), handled(lambda number, frame: None):
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_neither_hold_nor_answer() -> None:
    seen: list[bool] = []

    def work() -> None:
        with held(), handled(lambda number, frame: None):
            seen.append(holding())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_signal_during_an_import_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_made.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Stopped), stop_on_signals():
        import_module("half_made")
        threading.Event().wait(30)
    assert sys.modules.pop("half_made").whole  # type: ignore[attr-defined]


def test_signal_that_a_destructor_swallows_comes_again() -> None:
    class Last:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), stop_on_signals():
        Last()
        threading.Event().wait(30)


def test_forked_children_end_without_a_word() -> None:
    with stop_on_signals():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + TERM


# --- real ones ---------------------------------------------------------------------------------------------------

SHORT = ["--epochs", "2", "--device", "cpu", "--out", "run"]
TEST = ["--device", "cpu", "--limit", "8", "--out", "out"]
STEP = "call viscoin.training.classifier:ClassifierTask.step"
SAVING, LINKING = "call torch:save", "call os:link"
# Signals, where they come, and the command: every start-up phase, every long command.
CASES = {
    "start": ([INT], "import viscoin.cli", ["train", "classifier", *SHORT]),
    "import": ([INT], "import torch", ["train", "classifier", *SHORT]),
    "import-twice": ([INT, INT], "import timm", ["train", "classifier", *SHORT]),
    "data": ([TERM], "call viscoin.datasets.birds.dataset:BirdsDataset.__init__", ["train", "classifier", *SHORT]),
    "models": ([HUP], "call viscoin.training.classifier:build_classifier", ["train", "classifier", *SHORT]),
    "step": ([HUP], STEP, ["train", "classifier", *SHORT]),
    "step-twice": ([INT, INT], STEP, ["train", "classifier", *SHORT]),
    "save-twice": ([INT, INT], SAVING, ["train", "classifier", *SHORT]),
    "save-thrice": ([INT, INT, INT], LINKING, ["train", "classifier", *SHORT]),
    "evaluate": ([TERM], "call viscoin.training.classifier:confusion", ["train", "classifier", *SHORT]),
    "model": ([INT, INT], "call viscoin.models.files:save", ["train", "classifier", *SHORT]),
    "gan": ([TERM], "call viscoin.training.gan:_save_grid", ["train", "gan", "--device", "cpu", "--out", "run"]),
    "ensemble": ([HUP], "call viscoin.training.viscoin_task:ViscoinTask.evaluate",
                 ["train", "viscoin", "--device", "cpu", "--out", "run",
                  "--classifier", "models/classifier.safetensors", "--gan", "models/gan.safetensors"]),
    "all": ([TERM], STEP, ["train", "all", "--device", "cpu", "--out", "run"]),
    "sweep": ([INT], STEP, ["sweep", "classifier", "--space", "space.yaml", "--trials", "2", "--device", "cpu",
                            "--out", "run"]),
    "test": ([INT], "call viscoin.testing.classifier:own_batches", ["test", "classifier", *TEST,
             "--checkpoints", "models/classifier.safetensors"]),
    "test-ensemble": ([HUP], "call viscoin.inference.batches:choose_images", ["test", "viscoin", *TEST,
                      "--checkpoints", "models/viscoin.safetensors"]),
    "concepts": ([TERM], "call viscoin.analysis.gallery:view_concepts",
                 ["concepts", *TEST, "--checkpoints", "models/viscoin.safetensors"]),
    "amplify": ([INT], "call viscoin.analysis.amplification:amplify_images",
                ["amplify", "--device", "cpu", "--out", "out", "--concept-top-k", "2",
                 "--checkpoints", "models/viscoin.safetensors"]),
    "demo": ([INT], "call viscoin.reports.demo:_load_data", ["demo", "--quick", "--device", "cpu", "--out", "out"]),
    "closed": ([0], STEP, ["train", "classifier", *SHORT, "--epochs", "100"]),  # no signal
    "follow": ([HUP], "call viscoin.runs.metrics:follow", ["logs", "--follow", "--logs-path", "log.jsonl"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("signals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_models(folder / "models")
    (folder / "space.yaml").write_text("classifier.learning_rate: [0.001, 0.01]\n")
    (folder / "log.jsonl").write_text('{"step": 1, "train.l1": 2.0}\n')
    yield folder


def started(place: Path, here: Path, case: str, **options: object) -> "subprocess.Popen[str]":
    numbers, where, words = CASES[case]
    for path in place.iterdir():
        if path.name != "cache":
            (here / path.name).symlink_to(path)
    words = words + (set_options() if words[0] in ("train", "sweep") else [])
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(place / "cache"),
        "PYTHONPATH": f"{HERE.parent}:{HERE}", "SIGNALLED": f"{','.join(map(str, numbers))} {where}",
    }  # fmt: skip
    line = [sys.executable, str(HERE / "signalled.py"), *words]
    return subprocess.Popen(line, cwd=here, env=environment, text=True, **options)  # type: ignore[call-overload]


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case != "closed"])
def test_exit_code_says_which_signal_and_nothing_is_half_done(place: Path, tmp_path: Path, case: str) -> None:
    process = started(place, tmp_path, case, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 128 + CASES[case][0][0], out + err
    assert "Traceback" not in out + err and "Error" not in err, err
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob(".owner.json"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    if checkpoint.is_file():
        assert Run(tmp_path / "run").last_checkpoint()["step"] > 0  # type: ignore[index]
        assert "resume with --resume --out run" in err
    elif CASES[case][2][:2] == ["train", "classifier"]:
        assert not (tmp_path / "run").exists() or case == "step-twice"


@pytest.mark.long
@pytest.mark.parametrize("hangs_up", [True, False])
def test_closed_terminal(place: Path, tmp_path: Path, hangs_up: bool) -> None:
    """It ends what belongs to it, which saves before; what does not, trains on, though all that it prints fails."""
    leader, terminal = pty.openpty()
    streams: dict[str, object] = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    begin = (lambda: os.login_tty(terminal)) if hangs_up else os.setsid
    process = started(place, tmp_path, "closed", preexec_fn=begin, **streams)
    os.close(terminal)
    shown = b""
    while b"step 4: accuracy" not in shown:
        shown += os.read(leader, 1000)
    os.close(leader)
    assert process.wait(timeout=400) == (128 + HUP if hangs_up else 0)
    last = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    if hangs_up:
        step = Run(tmp_path / "run").last_checkpoint()["step"]  # type: ignore[index]
        assert last == f"stopped at step {step} of 400; resume with --resume --out run"
    else:
        assert last.startswith("open first: ")


@pytest.mark.long
def test_run_that_was_stopped_while_it_saved_ends_as_one_that_was_not(place: Path, tmp_path: Path) -> None:
    from tiny_models import Answer

    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
    started(place, tmp_path / "stopped", "save-twice", stderr=subprocess.DEVNULL).wait(timeout=400)
    models = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        for name in ("stopped", "whole"):
            patch.chdir(tmp_path / name)
            Answer("train", "classifier", *SHORT, *set_options()).went_well()
            models.append(load_model(Path("run")).model.state_dict())
    assert all(value.equal(models[1][key]) for key, value in models[0].items())
