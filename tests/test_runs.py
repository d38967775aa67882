"""Run folders: made, found again, resumed or refused; their files are whole or absent."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from viscoin.cli.results import results_folder
from viscoin.config import load_recipe
from viscoin.files import atomic_path
from viscoin.runs.run import Run, flatten, new_folder, newest_run, read_metrics
from viscoin.slurm.submission import CommandLine, Limits, prepare

RECIPE = load_recipe("birds", {"dataset.train": 8})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(kind: str, name: str, created: str, recipe=RECIPE) -> Run:
    """A run in runs/<name> that says it was made at that time."""
    run = Run.create(kind, recipe, Path("runs") / name)
    run.recipe_path.write_text(run.recipe_path.read_text().replace(run.header["created"], created))
    return run


def test_new_run_is_a_folder_with_its_recipe():
    run = Run.create("gan", RECIPE)
    assert run.path.parent == Path("runs") and run.path.name.startswith("birds-gan-")
    assert (run.kind, run.recipe) == ("gan", RECIPE)
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "checkpoints", "figures", "recipe.yaml"]


def test_run_of_a_folder_dataset_is_named_after_the_folder():
    run = Run.create("classifier", load_recipe("birds", {"dataset.name": "some/where/scans"}))
    assert run.path.parent == Path("runs") and run.path.name.startswith("scans-classifier-")


def test_runs_that_start_in_the_same_second_have_folders_of_their_own():
    assert len({Run.create("gan", RECIPE).path for _ in range(5)}) == 5


def test_folder_with_another_run_is_refused_and_kept():
    run = Run.create("gan", RECIPE, Path("out"))
    before = run.recipe_path.read_bytes()
    with pytest.raises(
        ValueError, match=r"out was started with another recipe \(dataset.train: 8 -> None\); .*`allow_changes` .*`out`"
    ):
        Run.create("gan", load_recipe("birds"), Path("out"))
    assert run.recipe_path.read_bytes() == before


def test_same_command_goes_on_with_its_run():
    run = Run.create("gan", RECIPE, Path("out"))
    header = run.header
    assert Run.create("gan", RECIPE, Path("out")).header == header


def test_changes_that_are_allowed_are_noted(caplog):
    run = Run.create("gan", RECIPE, Path("out"))
    other = load_recipe("birds", {"dataset.train": 8, "gan.r1_gamma": 5})
    with caplog.at_level("WARNING"):
        Run.create("gan", other, Path("out"), allow_changes=True)
    assert f"gan.r1_gamma: {RECIPE.gan.r1_gamma} -> 5.0" in caplog.text
    assert run.recipe == other
    assert run.header["changes"][0]["changed"] == [f"gan.r1_gamma: {RECIPE.gan.r1_gamma} -> 5.0"]


def test_folder_in_use_is_refused_with_process_and_host():
    run = Run.create("gan", RECIPE, Path("out"))
    program = "import sys; from pathlib import Path; from viscoin.runs.run import Run\n"
    program += "with Run(Path('out')).lock():\n    print(flush=True)\n    sys.stdin.read()"
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place
    ) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=rf"out is in use by process {other.pid} on {socket.gethostname()} since"):
            Run.create("gan", RECIPE, Path("out"))
        other.kill()
        other.wait()
        with run.lock(), run.lock():  # a dead process has no lock, and one process may lock several times
            assert json.loads((run.path / ".owner.json").read_text())["process"] == os.getpid()
    assert not (run.path / ".owner.json").exists()


def test_folder_that_another_process_just_made_is_not_taken_over(monkeypatch):
    """Of two that begin in the same folder the second one finds the run of the first, however close they are."""
    lock = Run.lock

    @contextmanager
    def late(run):
        with monkeypatch.context() as patch, lock(run):
            patch.setattr(Run, "lock", lock)
            if not run.recipe_path.exists():
                run._write_header({"kind": "gan", "created": "before", "recipe": RECIPE.model_dump()})
            yield

    monkeypatch.setattr(Run, "lock", late)
    with pytest.raises(ValueError, match="another recipe"):
        Run.create("gan", load_recipe("birds"), Path("out"))
    assert Run(Path("out")).header["created"] == "before"
    assert Run.create("gan", RECIPE, Path("out")).goes_on


def test_run_is_locked_from_its_start_to_the_end_of_the_training():
    with Run.opened("gan", RECIPE, Path("out")) as run:
        assert refused_elsewhere(run)
    assert not refused_elsewhere(run)


def refused_elsewhere(run: Run) -> bool:
    """Whether another process cannot lock it."""
    child = os.fork()
    if not child:
        try:
            with run.lock():
                os._exit(0)
        except ValueError:
            os._exit(3)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 3)
    return code == 3


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_keeps_nobody_out(monkeypatch, caplog, number):
    """Least of all by a file that outlives a killed process."""

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Run.opened("gan", RECIPE, Path("out")) as run, run.lock():
        pass
    (warning,) = caplog.messages
    assert warning.startswith("out: the file system has no locks") and os.strerror(number) in warning
    with run.lock():
        assert not refused_elsewhere(run)


def test_folder_that_cannot_be_written_any_more(monkeypatch):
    def refuse(lock, *arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), lock.lock_file)

    Run.create("gan", RECIPE, Path("out"))
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match=r"out .*out: cannot write there \(Read-only file system\); choose another"):
        Run.create("gan", RECIPE, Path("out"))


def test_what_a_killed_process_was_writing_goes_away():
    run = Run.create("gan", RECIPE, Path("out"))
    for folder in (run.path, run.checkpoints, run.figures):
        (folder / ".last.pt.0123.partial").touch()
    Run.create("gan", RECIPE, Path("out"))
    assert not list(run.path.rglob("*.partial"))


def test_listeners_hear_what_is_logged():
    run, heard = Run.create("gan", RECIPE), []
    run.listeners.append(lambda step, values: heard.append((step, values)))
    run.log(3, {"a": 1.0})
    assert heard == [(3, {"a": 1.0})]


def test_checkpoint_before_the_last_one_is_kept_and_stands_in_for_a_damaged_one(caplog):
    run = Run.create("gan", RECIPE)
    assert run.last_checkpoint() is None
    for step in (1, 2, 3):
        run.save_checkpoint("last", {"step": step}, keep="previous")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last.pt", "previous.pt"]
    assert run.last_checkpoint() == {"step": 3}
    (run.checkpoints / "last.pt").write_bytes(b"PK torn")
    assert run.last_checkpoint() == {"step": 2}
    assert "last.pt is damaged" in caplog.text
    run.save_checkpoint("last", {"step": 4}, keep="previous")  # what is damaged takes no good one's place
    assert run.load_checkpoint("previous") == {"step": 2}
    run.save_checkpoint("last", {"step": 5}, keep="previous")
    assert run.load_checkpoint("previous") == {"step": 4}


def test_checkpoints_that_are_all_damaged():
    run = Run.create("gan", RECIPE)
    for name in ("last", "previous"):
        (run.checkpoints / f"{name}.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .*last\.pt is damaged.*`out`"):
        run.last_checkpoint()


def test_checkpoints_without_hard_links(monkeypatch):
    def refuse(*names):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    run = Run.create("gan", RECIPE)
    for step in (1, 2):
        run.save_checkpoint("last", {"step": step}, keep="previous")
    assert run.load_checkpoint("previous") == {"step": 1}


def test_folder_that_cannot_be_made(here):
    (here / "file").touch()
    with pytest.raises(ValueError, match=r"out file/run: .*choose another folder"):
        Run.create("gan", RECIPE, Path("file/run"))


def test_resume_opens_the_run():
    run = Run.create("gan", RECIPE, Path("out"))
    created = run.header["created"]
    again = Run.create("gan", RECIPE, Path("out"), resume=True)
    assert again.path == run.path and again.header["created"] == created


def test_resume_without_folder_takes_the_newest():
    made("gan", "a", "2024-05-02T10:00:00")
    made("gan", "b", "2024-05-03T10:00:00")
    made("gan", "c", "2024-05-01T10:00:00")
    assert Run.create("gan", RECIPE, resume=True).path == Path("runs/b")


def test_resume_of_nothing():
    with pytest.raises(ValueError, match=r"resume: no gan run of 'birds' in runs; start one without"):
        Run.create("gan", RECIPE, resume=True)
    with pytest.raises(ValueError, match=r"resume: .*nowhere.*; start one without"):
        Run.create("gan", RECIPE, Path("nowhere"), resume=True)


def test_resume_of_another_kind():
    Run.create("gan", RECIPE, Path("out"))
    with pytest.raises(ValueError, match=r"out: holds a gan run, not a classifier run; choose another folder"):
        Run.create("classifier", RECIPE, Path("out"), resume=True)


def test_resume_with_another_recipe_says_what_differs():
    run = Run.create("gan", RECIPE, Path("out"))
    before = run.recipe_path.read_bytes()
    other = load_recipe("birds", {"dataset.train": 9, "gan.r1_gamma": 5, "seed": 3})
    with pytest.raises(ValueError) as caught:
        Run.create("gan", other, Path("out"), resume=True)
    for text in ("dataset.train: 8 -> 9", f"gan.r1_gamma: {RECIPE.gan.r1_gamma} -> 5.0", "seed: 0 -> 3"):
        assert text in str(caught.value)
    assert run.recipe_path.read_bytes() == before


def test_resume_does_not_mind_other_sections_nor_another_length():
    run = Run.create("gan", RECIPE, Path("out"))
    longer = load_recipe("birds", {"dataset.train": 8, "classifier.epochs": 99, "gan.kimg": 999})
    assert Run.create("gan", longer, Path("out"), resume=True).recipe.gan.kimg == 999
    assert run.recipe.classifier.epochs == 99


def test_newest_run_of_kind_and_dataset():
    made("gan", "a", "2024-05-01T10:00:00")
    made("classifier", "b", "2024-05-02T10:00:00")
    made("gan", "c", "2024-05-03T10:00:00", load_recipe("birds", {"dataset.name": "scans"}))
    assert newest_run("gan", "birds").path == Path("runs/a")
    assert newest_run("gan", "scans").path == Path("runs/c")
    assert newest_run("viscoin", "birds") is None


def test_newest_finished_run_has_a_model():
    made("gan", "a", "2024-05-01T10:00:00").model_path.touch()
    made("gan", "b", "2024-05-02T10:00:00")
    assert newest_run("gan", "birds").path == Path("runs/b")
    assert newest_run("gan", "birds", finished=True).path == Path("runs/a")


@pytest.mark.parametrize("text", ["kind: gan", "just text", "a: [1,", "", "kind: gan\nrecipe: {dataset: 3}"])
def test_newest_run_passes_over_broken_recipes(text):
    made("gan", "a", "2024-05-01T10:00:00")
    Path("runs/b").mkdir()
    Path("runs/b/recipe.yaml").write_text(text)
    assert newest_run("gan", "birds").path == Path("runs/a")


def test_metrics_are_appended_as_lines():
    run = Run.create("gan", RECIPE, Path("out"))
    run.log(1, {"train.l1": 0.5})
    run.log(2, {"train.l1": 0.25, "train.l2": 1.0})
    lines = read_metrics(run.metrics_path)
    assert [(line["step"], line["train.l1"]) for line in lines] == [(1, 0.5), (2, 0.25)]
    assert all(line["time"] > 1.7e9 for line in lines)


def test_read_metrics_leaves_broken_lines_out(here):
    text = '{"step": 1, "a": 2}\n[1]\nnonsense\n\n{"a": 3}\n{"step": 2}\n{"step": 3, "a"'
    (here / "m.jsonl").write_text(text)
    assert read_metrics(here / "m.jsonl") == [{"step": 1, "a": 2}, {"step": 2}]


def test_truncate_metrics_drops_later_and_broken_lines():
    run = Run.create("gan", RECIPE, Path("out"))
    run.truncate_metrics(3)  # nothing there yet
    assert not run.metrics_path.exists()
    for step in range(1, 6):
        run.log(step, {"a": step})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "a')
    kept = read_metrics(run.metrics_path)[:3]
    run.truncate_metrics(3)
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == kept
    run.log(4, {"a": 0})
    assert [line["step"] for line in read_metrics(run.metrics_path)] == [1, 2, 3, 4]


def test_checkpoint_comes_back():
    run = Run.create("gan", RECIPE, Path("out"))
    assert run.load_checkpoint("last") is None
    run.save_checkpoint("last", {"step": 3, "best": None, "task": {"w": torch.arange(3.0)}})
    state = run.load_checkpoint("last")
    assert state["step"] == 3 and state["best"] is None
    assert torch.equal(state["task"]["w"], torch.arange(3.0))
    assert os.listdir(run.checkpoints) == ["last.pt"]


def test_damaged_checkpoint_is_named():
    run = Run.create("gan", RECIPE, Path("out"))
    run.save_checkpoint("last", {"step": 3, "task": {"w": torch.zeros(1000)}})
    path = run.checkpoints / "last.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"out/checkpoints/last\.pt is damaged .* remove it"):
        run.load_checkpoint("last")


def test_checkpoint_that_cannot_be_written_leaves_the_old_one():
    run = Run.create("gan", RECIPE, Path("out"))
    run.save_checkpoint("last", {"step": 3})
    with pytest.raises((TypeError, AttributeError)):
        run.save_checkpoint("last", {"step": 4, "cannot be pickled": lambda: None})
    assert run.load_checkpoint("last") == {"step": 3}
    assert os.listdir(run.checkpoints) == ["last.pt"]


def test_atomic_path_replaces_only_when_all_went_well(here):
    path = here / "file.txt"
    path.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new"
    assert os.listdir(here) == ["file.txt"]


def test_atomic_paths_of_two_writers_differ(here):
    with atomic_path(here / "a") as one, atomic_path(here / "a") as other:
        assert one != other
        one.touch()
        other.touch()


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}


def test_revision_is_that_of_this_code_and_of_no_repository_around_it(tmp_path, monkeypatch):
    from viscoin.runs import revision

    inside = tmp_path / "site-packages"
    inside.mkdir()
    commands = (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "a"],
    )
    for words in commands:
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    for root, known in ((tmp_path, True), (inside, False)):
        monkeypatch.setattr(revision, "ROOT", root)
        assert (revision.code_revision.__wrapped__() != "unknown") == known


def test_folders_of_one_second_are_different_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.runs.run.datetime", Noon)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder("birds-amplify"), range(24)))
    assert len(set(folders)) == 24 and all(folder.is_dir() for folder in folders)


def test_results_of_one_second_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.runs.run.datetime", Noon)
    for text in ("first", "second"):
        with results_folder("concepts", "birds", None) as results:
            results.text("a.txt", text)
    with pytest.raises(KeyError), results_folder("concepts", "birds", None):
        raise KeyError
    assert sorted(path.read_text() for path in tmp_path.glob("runs/*/*")) == ["first", "second"]
    assert len(list(tmp_path.glob("runs/*"))) == 2


def test_jobs_of_one_second_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.runs.run.datetime", Noon)
    line = CommandLine("viscoin", ("train", "gan"), (), {"out": None, "devices": None, "num_nodes": None})
    jobs = [prepare(line, Limits(), reserve=True) for _ in range(2)]
    assert jobs[0].folder != jobs[1].folder and str(jobs[1].folder) in jobs[1].job.command
    prepare(line, Limits())
    assert len(list(tmp_path.glob("runs/*"))) == 2  # nothing is made for a job that is only looked at
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="SLURM"):
        jobs[0].submit()
    assert list(tmp_path.glob("runs/*")) == [tmp_path / jobs[1].folder]


class Noon(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12)
