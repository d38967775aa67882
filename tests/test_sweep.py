"""Sweeps: the space, a study that several processes share, what becomes of its trials, and its figures."""

import errno
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.colors import to_hex
from tiny_models import Answer, set_options, tiny_recipe, write_models

from viscoin.cli.sweep import report
from viscoin.config import Recipe, load_recipe
from viscoin.kinds import KINDS
from viscoin.models.files import FORMAT, read_file, write_file
from viscoin.plotting import study as figures
from viscoin.runs.run import Run, read_metrics
from viscoin.runs.trackers import TRACKERS, About, Known, Point
from viscoin.runs.tracking import tracked_sweep
from viscoin.sweep.results import SweepResult, TrialResult, best_of, text_table
from viscoin.sweep.running import Train, run_sweep
from viscoin.sweep.search import show
from viscoin.sweep.settings import Settings, check_metric
from viscoin.sweep.space import Parameter, Value, read_space
from viscoin.sweep.study import Study
from viscoin.training.classifier import train_classifier
from viscoin.training.failures import Failed
from viscoin.training.loop import Interrupted

ROOT = Path(__file__).parents[1]
RECIPE = tiny_recipe()
RATE = {"classifier.learning_rate": Parameter((), 1e-4, 1e-1, log=True)}
BOTH = RATE | {"classifier.batch_size": Parameter((16, 32))}


def settings(folder: Path, **changes: object) -> Settings:
    values = {"space": RATE, "metric": "validation.accuracy", "direction": "maximize", "trials": 6, "pruner": "none"}
    values |= {"storage": "journal"}  # the quicker one
    return Settings(**{"kind": "classifier", "recipe": RECIPE, "folder": folder, **values, **changes})  # type: ignore[arg-type]


def score(recipe: Recipe) -> float:
    """Best, 1, at a rate of 0.01."""
    return 1 - abs(torch.log10(torch.tensor(recipe.classifier.learning_rate)).item() + 2) / 4


def train(recipe: Recipe, run: Run, evaluations: int = 3) -> Path:
    """A training without networks, which goes on where it stopped and comes to `score`."""
    done = len(read_metrics(run.metrics_path)) if run.metrics_path.is_file() else 0
    for step in range(done + 1, evaluations + 1):
        run.save_checkpoint("last", {"step": step})
        run.log(step, {"validation.accuracy": score(recipe) * step / evaluations})
    write_file(
        run.model_path, {"w": torch.ones(1)}, {"format": FORMAT, "scores": {"validation.accuracy": score(recipe)}}
    )
    return run.model_path


def raising(error: BaseException, begin: bool = True) -> Callable[[Recipe, Run], Path]:
    """A training that fails, after a first line of metrics or before."""

    def failing(recipe: Recipe, run: Run) -> Path:
        if begin:
            run.log(1, {"train.loss": 1.0})
        raise error

    return failing


def drawn(result: SweepResult) -> list[Mapping[str, Value]]:
    return [trial.parameters for trial in result.trials]


def states(study: Study) -> list[str]:
    return [trial.state for trial in study.results()]


# --- the space


def space(tmp_path: Path, text: str, kind: str = "classifier", recipe: Recipe = RECIPE) -> dict[str, Parameter]:
    (tmp_path / "space.yaml").write_text(text)
    return read_space(tmp_path / "space.yaml", kind, recipe)


def test_values_have_the_types_of_the_recipe(tmp_path: Path) -> None:
    read = space(
        tmp_path,
        """
classifier.learning_rate: {low: 1e-4, high: 1.0e-1, log: true}
classifier.epochs: {low: 2, high: 8, step: 3}
classifier.label_smoothing: {low: 0, high: 0.3, step: 0.1}
classifier.optimizer: [adam, sgd]
classifier.class_weights: {choices: [balanced, null]}
classifier.pretrained: [true, off]
dataset.train: [32, 1e2]
""",
    )
    assert read["classifier.learning_rate"] == Parameter((), 0.0001, 0.1, log=True)
    assert read["classifier.epochs"] == Parameter((), 2, 8, step=3)
    assert isinstance(read["classifier.epochs"].low, int) and isinstance(read["classifier.label_smoothing"].low, float)
    assert read["classifier.class_weights"].choices == ("balanced", None)
    assert read["classifier.pretrained"].choices == (True, False)
    assert read["dataset.train"].choices == (32, 100)
    assert read["classifier.epochs"].grid == [2, 5, 8]
    assert read["classifier.label_smoothing"].grid == [0.0, 0.1, 0.2, 0.3]
    assert read["classifier.learning_rate"].grid is None
    assert str(read["classifier.learning_rate"]) == "0.0001 to 0.1, log"
    assert str(read["classifier.pretrained"]) == "true, false"


@pytest.mark.parametrize(
    ("text", *["said"]),
    [
        ("classifier.learning_rat: [1]", "did you mean 'learning_rate'?"),
        ("learning_rate: [1]", "'classifier.learning_rate'"),
        ("classifier: {learning_rate: [1]}", "write its keys with a dot"),
        ("viscoin.steps: [1, 2]", "varies keys of classifier and dataset"),
        ("dataset.name: [birds, mnist]", "but not this one"),
        ("classifier.epochs: {low: 3, high: 3}", "low = 3 must be below high = 3"),
        ("classifier.epochs: {low: 5, high: 3}", "low = 5 must be below high = 3"),
        ("classifier.epochs: {low: 1.5, high: 3}", "classifier.epochs = 1.5: input should be a valid integer"),
        ("classifier.label_smoothing: {low: 0, high: 0.5, log: true}", "needs a low above 0"),
        (
            "classifier.learning_rate: {low: -1, high: 3}",
            "classifier.learning_rate = -1: input should be greater than 0",
        ),
        ("classifier.learning_rate: {low: 1e-3, high: 1, log: maybe}", "write true or false"),
        ("classifier.learning_rate: {low: 0.1, high: 0.9, log: true, step: 0.1}", "exclude each other"),
        ("classifier.epochs: {low: 1, high: 4, step: 2}", "lead from low = 1 to high = 4"),
        ("classifier.epochs: {low: 1, high: 4, step: 0}", "above 0"),
        ("classifier.epochs: {low: 1, hihg: 4}", "did you mean 'high'?"),
        ("classifier.epochs: {low: 1}", "high is missing"),
        ("classifier.epochs: {choices: [1, 2], low: 1}", "choices have no low"),
        ("classifier.epochs: 3", "a fixed value goes into the recipe"),
        ("classifier.epochs: [1, 1]", "stands there twice"),
        ("classifier.epochs: []", "choices must be a list"),
        (
            "classifier.optimizer: [adam, 3]",
            "input should be 'adam', 'adamw', 'radam' or 'sgd'",
        ),
        ("classifier.optimizer: {low: adam, high: sgd}", "give choices, as in [adam, sgd]"),
        ("classifier.epochs: [2, 5]\nclassifier.warmup_epochs: [1, 3]", "shorten the warm-up"),
        ("classifier.epochs: [2\n", "not valid YAML"),
        ("classifier.epochs: [2, 3]\nclassifier.epochs: [4]", "stands twice"),
        ("- 1", "must hold lines"),
        ("", "must hold lines"),
    ],
)
def test_mistakes_in_a_space_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"space\.yaml") as error:
        space(tmp_path, text)
    assert said in str(error.value)


def test_a_space_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        read_space(tmp_path / "none.yaml", "classifier", RECIPE)


def test_metrics_are_those_that_the_kind_logs() -> None:
    assert check_metric("classifier", None, None, RECIPE) == ("validation.accuracy", "maximize")
    assert check_metric("viscoin", "validation.mse", None, RECIPE) == ("validation.mse", "minimize")
    assert check_metric("gan", "validation.fid", "maximize", RECIPE) == ("validation.fid", "maximize")
    alone = tiny_recipe(viscoin__without_generator=True)
    assert check_metric("viscoin", None, None, alone) == ("validation.agreement", "maximize")
    f1 = tiny_recipe(classifier__best_metric="f1")
    assert check_metric("classifier", "validation.f1", None, f1) == ("validation.f1", "maximize")
    for metric, said in (("validation.accurcy", "validation.accuracy"), ("validation.f1", "best_metric=f1")):
        with pytest.raises(ValueError, match=said):
            check_metric("classifier", metric, None, RECIPE)
    with pytest.raises(ValueError, match="maximize or minimize"):
        check_metric("gan", None, "up", RECIPE)


# --- a study


def test_trials_are_runs_of_which_the_best_keeps_its_model(tmp_path: Path) -> None:
    result = run_sweep(Study(settings(tmp_path)), train)
    best = result.best
    assert best is not None and [trial.state for trial in result.trials] == ["finished"] * 6
    assert best.value == max(trial.value or 0 for trial in result.trials)
    for trial in result.trials:
        run = Run(tmp_path / "trials" / f"{trial.number:04d}")
        assert run.recipe.classifier.learning_rate == trial.parameters["classifier.learning_rate"]
        assert trial.value == pytest.approx(score(run.recipe))
        assert trial.course == pytest.approx([score(run.recipe) * part / 3 for part in (1, 2, 3)])
        assert run.model_path.is_file() == (trial.number == best.number) == any(run.checkpoints.iterdir())
    assert load_recipe(str(tmp_path / "best.yaml")) == Run(best.folder).recipe
    head, *rows = [line.split(",") for line in (tmp_path / "trials.csv").read_text().splitlines()]
    assert head[:4] == ["trial", "state", "value", "classifier.learning_rate"]
    assert [float(row[2]) for row in rows] == [trial.value for trial in result.trials]


def test_all_models_are_kept_on_demand(tmp_path: Path) -> None:
    run_sweep(Study(settings(tmp_path, trials=3, keep_models=True)), train)
    assert len(list(tmp_path.glob("trials/*/model.safetensors"))) == 3


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, sampler: str) -> None:
    whole = run_sweep(Study(settings(tmp_path / "a", trials=13, sampler=sampler)), train)
    for trials in (4, 11, 13):
        parts = run_sweep(Study(settings(tmp_path / "b", trials=trials, sampler=sampler)), train)
        assert len(parts.trials) == trials
    assert drawn(parts) == drawn(whole)
    assert len({str(parameters) for parameters in drawn(whole)}) == 13
    again = Study(settings(tmp_path / "b", trials=13, sampler=sampler))
    assert again.next_trial() is None


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    grid = {"classifier.batch_size": Parameter((16, 32)), "classifier.epochs": Parameter((), 1, 5, step=2)}
    result = run_sweep(Study(settings(tmp_path, space=grid, sampler="grid", trials=4)), train)
    assert len(result.trials) == 4
    result = run_sweep(Study(settings(tmp_path, space=grid, sampler="grid", trials=50)), train)
    assert len(result.trials) == 6
    assert {tuple(values.values()) for values in drawn(result)} == {(b, e) for b in (16, 32) for e in (1, 3, 5)}


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_workers_share_the_trials(tmp_path: Path, storage: str) -> None:
    one, two = (Study(settings(tmp_path, trials=5, storage=storage)) for _ in range(2))
    trials = [study.next_trial() for study in (one, two, two, one, one)]
    assert [trial.number for trial in trials if trial is not None] == [0, 1, 2, 3, 4]
    assert len({trial.params["classifier.learning_rate"] for trial in trials if trial is not None}) == 5
    assert one.next_trial() is None and two.next_trial() is None
    one.end(0, 0.5)
    two.end(1, 0.75)
    assert states(one) == states(two) == ["finished", "finished", "running", "running", "running"]


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_other_settings_are_refused_with_what_differs(tmp_path: Path, storage: str) -> None:
    run_sweep(Study(settings(tmp_path, trials=1, storage=storage)), train)
    other: dict[str, tuple[dict[str, object], str]] = {
        "space": ({"space": BOTH}, "space.classifier.batch_size: none -> 16, 32"),
        "range": ({"space": {"classifier.learning_rate": Parameter((), 1e-4, 1.0, log=True)}}, "-> 0.0001 to 1, log"),
        "metric": ({"metric": "validation.loss"}, "metric: validation.accuracy -> validation.loss"),
        "direction": ({"direction": "minimize"}, "direction: maximize -> minimize"),
        "dataset": ({"recipe": tiny_recipe(dataset__train=32)}, "dataset.train: 64 -> 32"),
        "recipe": ({"recipe": tiny_recipe(classifier__epochs=9)}, "classifier.epochs: 1 -> 9"),
        "seed": ({"recipe": tiny_recipe(seed=3)}, "seed: 0 -> 3"),
        "sampler": ({"sampler": "random"}, "sampler: tpe -> random"),
        "model": ({"models": {"--gan": "g.safetensors"}}, "--gan: none -> g.safetensors"),
    }
    for changes, said in other.values():
        with pytest.raises(ValueError, match="another `folder` for a new study") as error:
            Study(settings(tmp_path, storage=storage, **changes))
        assert said in str(error.value)
    unimportant = {"recipe": tiny_recipe(viscoin__steps=9, dataset__path="/elsewhere"), "pruner": "median"}
    assert Study(settings(tmp_path, storage=storage, **unimportant)).next_trial() is not None


def test_storages_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "study.db").write_text("no database at all")
    with pytest.raises(ValueError, match=r"study\.db cannot be read or written"):
        Study(settings(tmp_path / "a", storage=None))
    with pytest.raises(ValueError, match="leave it out"):
        Study(settings(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"ends in \.db or \.journal"):
        Study(settings(tmp_path / "b", storage="study.txt"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write there"):
        Study(settings(tmp_path / "file" / "x"))


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_trials_of_a_lost_study_are_not_trained_over(tmp_path: Path, storage: str) -> None:
    given = settings(tmp_path, storage=storage, trials=2)
    run_sweep(Study(given), train)
    (path,) = (path for path in tmp_path.glob("study.*") if path.is_file())
    before = (tmp_path / "trials.csv").read_bytes()
    for lose in (Path.unlink, lambda path: path.write_bytes(b"")):
        lose(path)
        with pytest.raises(ValueError, match=r"study\.\w+ is gone or does not know of it; restore the study"):
            Study(given)
    assert (tmp_path / "trials.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DELETE FROM trial_params", "trial 0 lacks classifier.learning_rate"),
        ("DELETE FROM trial_values", "trial 0 lacks its value"),
        ("DELETE FROM trials WHERE number = 1", "does not know of it"),
        ("DROP TABLE trials", "does not know of it"),
    ],
)
def test_study_that_lost_rows_is_refused(tmp_path: Path, statement: str, reason: str) -> None:
    given = settings(tmp_path, storage="sqlite", trials=2)
    run_sweep(Study(given), train)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute(statement)
    with pytest.raises(ValueError, match=reason):
        run_sweep(Study(given), train)


def test_damage_amid_a_study_is_no_failure_that_passes(tmp_path: Path) -> None:
    given = settings(tmp_path, storage="sqlite", trials=2)
    run_sweep(Study(given), train)
    content = (tmp_path / "study.db").read_bytes()
    for start in range(4096, len(content) - 4096, 4096):
        (tmp_path / "study.db").write_bytes(content[:start] + b"\xa5" * 4096 + content[start + 4096 :])
        try:
            run_sweep(Study(given), train)
        except ValueError as error:
            assert "study" in str(error), start


def test_one_storage_may_hold_several_studies(tmp_path: Path) -> None:
    file = str(tmp_path / "all.db")
    for name, metric in (("a", "validation.accuracy"), ("b", "validation.loss")):
        Study(settings(tmp_path / name, storage=file, metric=metric)).next_trial()
    assert Study(settings(tmp_path / "a", storage=file)).results()[0].number == 0


def test_lock_of_a_journal_in_a_relative_folder_can_go_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna follows the link that a killed process left behind; one that leads nowhere is waited for for ever."""
    monkeypatch.chdir(tmp_path)
    study = Study(settings(Path("sweep")))
    backend = study.storage._backend  # type: ignore[attr-defined]
    backend._lock.acquire()
    try:
        (link,) = Path("sweep").glob("*journal*.lock")
        assert link.is_symlink() and link.exists()
    finally:
        backend._lock.release()


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ValueError, match="its file system has no locks"):
        Study(settings(tmp_path))


# --- trials that do not end well


def test_hopeless_trials_are_pruned_and_their_runs_stay_readable(tmp_path: Path) -> None:
    result = run_sweep(Study(settings(tmp_path, trials=12, pruner="median", sampler="random")), train)
    pruned = [trial for trial in result.trials if trial.state == "pruned"]
    assert pruned and all(trial.number >= 5 and 1 <= len(trial.course) < 4 for trial in pruned)
    assert result.best is not None and all((trial.value or 0) < (result.best.value or 0) for trial in pruned)
    run = Run(pruned[0].folder)
    assert len(read_metrics(run.metrics_path)) == len(pruned[0].course) and run.recipe
    assert not run.model_path.exists() and not any(run.checkpoints.iterdir())


def test_pruning_ends_a_real_training_after_its_first_evaluation(tmp_path: Path) -> None:
    study = Study(settings(tmp_path, trials=6, pruner="median", recipe=tiny_recipe(classifier__epochs=4)))
    for _ in range(5):
        trial = study.next_trial()
        assert trial is not None
        trial.report(1.1, 1)
        study.end(trial.number, 1.1)
    recipe_and_run: list[Run] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def really(recipe: Recipe, run: Run) -> Path:
        recipe_and_run.append(run)
        return train_classifier(recipe, run)

    last = run_sweep(study, really).trials[-1]
    assert (last.state, len(last.course)) == ("pruned", 1)
    assert [line["step"] for line in read_metrics(recipe_and_run[0].metrics_path) if "validation.accuracy" in line] == [
        4
    ]
    assert before == {number: signal.getsignal(number) for number in before}  # the loop has put back what it took


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Interrupted("stopped", signal.SIGTERM), Interrupted),
        (KeyboardInterrupt(), Interrupted),
        (OSError(28, "full"), Failed),
    ],
)
def test_a_trial_that_was_stopped_goes_on_later(tmp_path: Path, error: BaseException, kind: type) -> None:
    with pytest.raises(kind, match="the same command resumes it") as stop:
        run_sweep(Study(settings(tmp_path, trials=2)), raising(error))
    if isinstance(error, Interrupted):
        assert getattr(stop.value, "signal", None) == signal.SIGTERM
    study = Study(settings(tmp_path, trials=2))
    (waiting,) = study.results()
    assert waiting.state == "waiting"
    result = run_sweep(study, train)
    assert [trial.state for trial in result.trials] == ["finished", "finished"]
    assert result.trials[0].parameters == waiting.parameters
    lines = read_metrics(result.trials[0].folder / "metrics.jsonl")
    assert "train.loss" in lines[0] and len(lines) == 3  # the run goes on where it was
    assert sorted(path.name for path in (tmp_path / "trials").iterdir() if path.is_dir()) == ["0001", "0002"]


def test_trials_of_dead_processes_go_on_and_those_of_living_ones_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead, alive = Study(settings(tmp_path, trials=3)), Study(settings(tmp_path, trials=3))
    mine, its = alive.next_trial(), dead.next_trial()
    assert mine is not None and its is not None
    Run.create("classifier", RECIPE, dead.folder(its.number)).log(1, {"train.loss": 1.0})
    dead._held[its.number].release()  # as the system does for a process that was killed
    with caplog.at_level(logging.WARNING, "viscoin"):
        next_one = Study(settings(tmp_path, trials=3)).next_trial()
    assert next_one is not None and next_one.params == its.params
    assert f"trial {its.number}: its process {os.getpid()}" in caplog.text and "is gone" in caplog.text
    assert not alive.folder(its.number).exists() and alive.folder(next_one.number).is_dir()
    assert states(alive) == ["running", "running"]


def test_a_trial_that_kills_its_process_each_time_is_given_up(tmp_path: Path) -> None:
    parameters = set()
    for attempt in range(3):
        study = Study(settings(tmp_path, trials=1))
        trial = study.next_trial()
        assert trial is not None, attempt
        parameters.add(trial.params["classifier.learning_rate"])
        study._held[trial.number].release()
    study = Study(settings(tmp_path, trials=1))
    assert study.next_trial() is None and len(parameters) == 1
    (given_up,) = study.results()
    assert given_up.state == "failed" and "came no further" in given_up.reason


def test_progress_between_deaths_is_no_reason_to_give_up(tmp_path: Path) -> None:
    for step in range(1, 6):
        study = Study(settings(tmp_path, trials=1))
        trial = study.next_trial()
        assert trial is not None
        Run.create("classifier", RECIPE, study.folder(trial.number)).log(step, {"train.loss": 1.0})
        study._held[trial.number].release()
    assert states(study) == ["running"]


def test_a_mistake_in_the_options_leaves_no_study_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        run_sweep(Study(settings(tmp_path)), raising(ValueError("no such folder"), begin=False))
    assert run_sweep(Study(settings(tmp_path, space=BOTH, trials=1)), train).best is not None


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_mistake_that_another_worker_finds_ends_this_one_with_a_word(tmp_path: Path, storage: str) -> None:
    one, two = (Study(settings(tmp_path, storage=storage)) for _ in range(2))
    with pytest.raises(ValueError, match="no such folder"):
        run_sweep(one, raising(ValueError("no such folder"), begin=False))
    with pytest.raises(ValueError, match="another worker did not begin"):
        run_sweep(two, train)


def test_no_study_is_removed_that_another_worker_trains_in(tmp_path: Path) -> None:
    one, two = (Study(settings(tmp_path, trials=2)) for _ in range(2))
    assert two.next_trial() is not None
    run_sweep(one, raising(ValueError("no such folder"), begin=False))
    assert states(two) == ["running", "failed"]


@pytest.mark.parametrize("moment", ["tell", "add_trial"])
def test_trial_is_not_lost_when_its_process_dies_while_it_queues_it_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    study = Study(settings(tmp_path, trials=1))
    first = study.next_trial()
    assert first is not None
    monkeypatch.setattr(study.study, moment, raising_now)
    with pytest.raises(KeyboardInterrupt):
        study.queue_again(0, "stopped")
    study._held[0].release()
    last = Study(settings(tmp_path, trials=1))
    second = last.next_trial()
    assert second is not None and second.params == first.params
    assert states(last) == ["running"] and len(last.study.get_trials()) == 2


def test_failures_are_noted_and_three_in_a_row_end_the_sweep(tmp_path: Path) -> None:
    def sometimes(recipe: Recipe, run: Run) -> Path:
        if run.path.name in ("0001", "0002"):
            return raising(ValueError(f"loss = nan in {run.path.name}"))(recipe, run)
        return train(recipe, run)

    result = run_sweep(Study(settings(tmp_path, trials=4)), sometimes)
    assert [trial.state for trial in result.trials] == ["finished", "failed", "failed", "finished"]
    assert (
        result.trials[1].reason == "loss = nan in 0001"
        and "loss = nan in 0001" in (tmp_path / "trials.csv").read_text()
    )
    with pytest.raises(ValueError, match="3 trials in a row failed, the last one so: nan"):
        run_sweep(Study(settings(tmp_path, trials=9)), raising(ValueError("nan")))
    assert len(Study(settings(tmp_path)).results()) == 7


def test_a_bug_is_no_trial_to_train_again(tmp_path: Path) -> None:
    study = Study(settings(tmp_path))
    with pytest.raises(KeyError):
        run_sweep(study, raising(KeyError("bug")))
    assert states(study) == ["failed"]


def test_no_trial_starts_when_the_time_is_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("viscoin.sweep.running.time", SimpleNamespace(monotonic=lambda: now))

    def slow(recipe: Recipe, run: Run) -> Path:
        nonlocal now
        now += 30
        return train(recipe, run)

    with caplog.at_level(logging.INFO, "viscoin"):
        result = run_sweep(Study(settings(tmp_path, trials=50, timeout=50)), slow)
    assert (
        len(result.trials) == 2 and "the time limit of 50 s is over; the same command resumes the study" in caplog.text
    )


def test_an_interrupt_between_trainings_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(settings(tmp_path, trials=1))
    with monkeypatch.context() as patch:
        patch.setattr("viscoin.sweep.study.write_results", raising_now)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(study, train)
    assert run_sweep(Study(settings(tmp_path, trials=1)), train).best is not None
    assert (tmp_path / "best.yaml").is_file()


def raising_now(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_told_from_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(settings(tmp_path))
    monkeypatch.setattr("viscoin.sweep.study.write_results", no_space)
    with pytest.raises(Failed, match=r"No space left on device.*the same command resumes it"):
        run_sweep(study, train)


def no_space(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


# --- figures and the table


def made_up() -> SweepResult:
    """Five trials: finished 0.5, failed, pruned 0.2, finished 0.8 (the best), finished 0.7."""
    rows = [
        ("finished", 0.5, 1e-3, (0.3, 0.5)), ("failed", None, 5e-2, ()), ("pruned", 0.2, 1e-4, (0.2,)),
        ("finished", 0.8, 1e-2, (0.4, 0.8)), ("finished", 0.7, 2e-2, (0.5, 0.7)),
    ]  # fmt: skip
    trials = [
        TrialResult(
            number, state, value, {"classifier.learning_rate": rate, "classifier.batch_size": (16, 32)[number % 2]},
            course, 1.0, Path("x"),
      )
        for number, (state, value, rate, course) in enumerate(rows)
    ]  # fmt: skip
    importances = {"classifier.batch_size": 0.9, "classifier.learning_rate": 0.1}
    return SweepResult(settings(Path("x"), space=BOTH), trials, importances)


def points(axes: object, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in axes.lines if line.get_label() == label]  # type: ignore[attr-defined]
    return [(float(x), float(y)) for x, y in zip(*line.get_data())]


def test_history_shows_the_best_so_far() -> None:
    (axes,) = figures.history_figure(made_up()).axes
    assert points(axes, "best so far") == [(0, 0.5), (3, 0.8), (4, 0.8), (4, 0.8)]
    assert points(axes, "pruned") == [(2, 0.2)] and points(axes, "best") == [(3, 0.8)]
    assert points(axes, "failed") == [(1, 0)]


def test_parameters_are_shown_by_importance_with_their_names() -> None:
    sizes, rates = figures.parameters_figure(made_up()).axes
    assert sizes.get_xlabel() == "batch size" and rates.get_xlabel() == "learning rate"
    assert [tick.get_text() for tick in sizes.get_xticklabels()] == ["16", "32"]
    assert [round(x) for x, _ in points(sizes, "finished")] == [0, 1, 0]
    assert rates.get_xscale() == "log" and points(rates, "best") == [(0.01, 0.8)]


def test_courses_end_where_trials_were_pruned() -> None:
    (axes,) = figures.courses_figure(made_up()).axes
    assert points(axes, "best (trial 3)") == [(1, 0.4), (2, 0.8)] and points(axes, "pruned") == [(1, 0.2)]
    assert to_hex(axes.lines[-1].get_color()) == "#d55e00"  # the best on top


def test_figures_are_those_that_there_is_something_for() -> None:
    result = made_up()
    assert set(figures.study_figures(result)) == {"history", "parameters", "courses", "importances"}
    assert figures.study_figures(SweepResult(result.settings, result.trials[1:2], {})) == {}
    (axes,) = figures.importances_figure(result).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["batch size", "learning rate"]


def test_values_between_two_steps_of_floating_point_are_drawn() -> None:
    space = {"classifier.label_smoothing": Parameter((), 0.0, 0.2, step=0.05)}
    values = [0.0, 0.05, 0.1, 0.05 + 0.1, 0.2]
    trials = [
        TrialResult(i, "finished", 0.5, {"classifier.label_smoothing": value}, (), 1.0, Path("x"))
        for i, value in enumerate(values)
    ]
    assert values[3] != 0.15
    axes = figures.parameters_figure(SweepResult(settings(Path("x"), space=space), trials, {})).axes[0]
    assert [round(x) for x, _ in points(axes, "finished")] == [0, 1, 2, 3, 4]


def test_courses_without_a_finite_value_make_no_figure() -> None:
    result = made_up()
    for state, value in (("failed", None), ("pruned", float("inf"))):
        trial = TrialResult(0, state, value, result.trials[0].parameters, (float("nan"), float("inf")), 1.0, Path("x"))
        assert figures.study_figures(SweepResult(result.settings, [trial], {})) == {}


def test_importances_name_the_parameter_that_matters(tmp_path: Path) -> None:
    importances = run_sweep(Study(settings(tmp_path, space=BOTH, trials=12)), train).importances
    assert sum(importances.values()) == pytest.approx(1)
    assert importances["classifier.learning_rate"] > 0.8


def test_the_table_begins_with_the_best() -> None:
    lines = text_table(made_up())
    assert lines[0].split() == ["trial", "state", "validation.accuracy", "learning_rate", "batch_size"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["3", "finished"], ["4", "finished"], ["0", "finished"], ["2", "pruned"], ["1", "failed"],
    ]  # fmt: skip
    least = best_of(made_up().trials, "minimize")
    assert least is not None and least.number == 0


# --- trackers


class Recorder:
    """A tracker that notes what it is sent, and cannot be reached while it is `down`."""

    log: list[tuple[str, ...]]
    down = False

    def __init__(self, about: About, known: Known) -> None:
        self.about, self.hint = about, "nowhere"
        self.note("start", about.parent or "-", about.tags.get("trial", "-"), *about.varied)
        known.id = about.name

    def note(self, *facts: str) -> None:
        if self.down:
            raise ValueError("gone")
        self.log.append((self.about.name, *facts))

    def points(self, points: Sequence[Point]) -> None:
        self.note("points", *(f"{point.name}={point.value:.3g} at {point.step}" for point in points))

    def figure(self, path: Path, name: str, step: int) -> None:
        self.note("figure", name, str(step))

    def finish(self, state: str, files: Sequence[Path]) -> None:
        self.note("finish", state, *(path.name for path in files))

    def close(self) -> None:
        self.note("close")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """In the place of TensorBoard."""
    monkeypatch.setitem(TRACKERS, "tensorboard", Recorder)
    Recorder.log, Recorder.down = [], False
    return Recorder


def ends(recorder: type[Recorder]) -> dict[str, str]:
    return {name: facts[0] for name, event, *facts in recorder.log if event == "finish"}


def follow(folder: Path, train: Train, **changes: object) -> SweepResult:
    """A sweep as the command does it, with a tracker."""
    study = Study(settings(folder, **changes))
    with tracked_sweep(folder, "birds", study.settings.identity(), ["tensorboard"]) as shown:
        result = run_sweep(study, train, ["tensorboard"])
        show(result, shown, report(result))
    return result


def test_trials_are_runs_of_a_tracker_that_belong_to_the_sweep(tmp_path: Path, recorder: type[Recorder]) -> None:
    (tmp_path / "s").mkdir()
    result = follow(tmp_path / "s", train, trials=2)
    assert [name for name, event, *_ in recorder.log if event == "start"] == ["s", "s/0", "s/1", "s"]
    assert ("s/1", "start", "s", "1", "classifier.learning_rate") in recorder.log
    value = f"value={result.trials[1].value:.3g} at 3"
    assert recorder.log.index(("s/1", "points", value)) < recorder.log.index(
        ("s/1", "finish", "finished", "recipe.yaml", "metrics.jsonl")
    )
    assert recorder.log[1] == ("s", "close")
    best = max(trial.value or 0 for trial in result.trials)
    assert ("s", "points", f"best={best:.3g} at 2") in recorder.log and ("s", "figure", "history", "2") in recorder.log
    assert recorder.log[-1] == ("s", "finish", "finished", "best.yaml", "trials.csv", "model.safetensors")


def test_pruned_and_failed_trials_are_closed_as_such_with_all_their_points(
    tmp_path: Path, recorder: type[Recorder]
) -> None:
    def sometimes(recipe: Recipe, run: Run) -> Path:
        return raising(ValueError("nan"))(recipe, run) if run.path.name == "0001" else train(recipe, run)

    result = follow(tmp_path, sometimes, trials=12, pruner="median", sampler="random")
    told = {name.partition("/")[2]: end for name, end in ends(recorder).items() if "/" in name}
    assert told == {str(trial.number): trial.state for trial in result.trials}
    pruned = next(trial for trial in result.trials if trial.state == "pruned")
    sent = [facts for name, event, *facts in recorder.log if event == "points" and name.endswith(f"/{pruned.number}")]
    assert len(sent) == len(pruned.course) and "finished" in told.values()


def test_tracked_run_of_a_trial_goes_on_under_its_new_number(tmp_path: Path, recorder: type[Recorder]) -> None:
    with pytest.raises(Interrupted):
        follow(tmp_path, raising(Interrupted("stopped", signal.SIGTERM)), trials=1)
    assert set(ends(recorder).values()) == {"interrupted"}
    follow(tmp_path, train, trials=1)
    name = tmp_path.name
    assert ends(recorder) == {f"{name}/0": "interrupted", f"{name}/1": "finished", name: "finished"}
    sent = [fact for name, event, *facts in recorder.log if event == "points" for fact in facts if "/" in name]
    assert len(sent) == len(set(sent))


def test_tracker_that_is_away_costs_no_trial_and_gets_all_later(
    tmp_path: Path, recorder: type[Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    def away(recipe: Recipe, run: Run) -> Path:
        recorder.down = True
        return train(recipe, run)

    result = follow(tmp_path, away, trials=3)
    assert [trial.state for trial in result.trials] == ["finished"] * 3 and ends(recorder) == {}
    assert "tensorboard fails (gone)" in caplog.text
    with pytest.raises(ValueError, match="gone"):
        follow(tmp_path, train, trials=4)
    recorder.down = False
    follow(tmp_path, train, trials=3)  # nothing is left to train
    name = tmp_path.name
    assert ends(recorder) == {f"{name}/{number}": "finished" for number in range(3)} | {name: "finished"}


def test_given_up_trial_is_closed(tmp_path: Path, recorder: type[Recorder]) -> None:
    for _ in range(3):
        study = Study(settings(tmp_path, trials=1))
        trial = study.next_trial()
        assert trial is not None
        Run.create("classifier", RECIPE, study.folder(trial.number)).annotate(
            sweep={"study": tmp_path.name, "trial": trial.number, "varied": []}
        )
        study._held[trial.number].release()
    follow(tmp_path, train, trials=1)
    assert ends(recorder) == {f"{tmp_path.name}/2": "failed", tmp_path.name: "finished"}


# --- the command


SPACE = "classifier.learning_rate: {low: 1e-4, high: 1e-1, log: true}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def test_mistakes_on_the_command_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("sweep", "classifier", "--space", "space.yaml", *set_options())
    Answer("sweep", "ensemble", "--space", "space.yaml").refused("choose classifier, gan or viscoin")
    Answer(*given, "--devices", 2).refused("one device", "start the same command several times")
    Answer(*given, "--trials", 0).refused("--trials 0")
    Answer(*given, "--timeout", 0).refused("--timeout 0")
    Answer(*given, "--metric", "validation.mse").refused("does not log it", "validation.")
    Answer(*given, "--sampler", "best").refused("tpe, random or grid")
    Answer(*given, "--sampler", "grid").refused("range without steps")
    Answer(*given, "--pruner", "best").refused("median, hyperband or none")
    Answer(*given, "--set", "classifier.learning_rate=1").refused("--space space.yaml varies this key")
    Answer(*given, "--gan", "g.safetensors").refused("--gan g.safetensors", "does not need it")
    Answer(*given, "--dataset", "brids").refused("brids")
    assert not (here / "runs").exists()
    monkeypatch.setitem(sys.modules, "optuna", None)
    Answer(*given).refused("pip install viscoin[sweep]")


def test_the_command_sweeps_and_goes_on(here: Path) -> None:
    given = ("sweep", "classifier", "--space", "space.yaml", *set_options())
    first = Answer(*given, "--trials", 1).went_well()
    assert "best model:  runs/birds-classifier-sweep/trials/0000/model.safetensors" in first.out
    second = Answer(*given, "--trials", 2).went_well()
    assert "2 of 2 trials done" in second.err and "best recipe: runs/birds-classifier-sweep/best.yaml" in second.out
    Answer(*given, "--trials", 2, "--seed", 5).refused("seed: 0 -> 5")
    assert "2 of 2" not in Answer(*given, "--trials", 2).went_well().err  # nothing is left to do
    names = {path.name for path in Path("runs/birds-classifier-sweep").iterdir()}
    assert {"study.db", "trials.csv", "best.yaml", "history.png", "parameters.png"} <= names
    shutil.rmtree("runs/birds-classifier-sweep/trials")
    assert "best model:  gone, " in Answer(*given, "--trials", 2).went_well().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gan", "viscoin"])
def test_every_kind_logs_the_metrics_that_are_offered(here: Path, kind: str) -> None:
    models = write_models(here)
    options = {"gan": ("--classifier",), "viscoin": ("--classifier", "--gan")}[kind]
    given = [word for option in options for word in (option, models[option.removeprefix("--")])]
    (here / "space.yaml").write_text(f"{kind}.learning_rate: [0.001, 0.002]\n")
    answer = Answer("sweep", kind, "--space", "space.yaml", "--sampler", "grid", *given, *set_options(), "--out", "s")
    assert "2 of 20 trials done" in answer.went_well().err
    (model,) = Path("s").glob("trials/*/model.safetensors")
    assert read_file(model)[1]["scores"].keys() == KINDS[kind].metrics.keys()


def test_without_a_generator_none_is_asked_for(here: Path) -> None:
    f = write_models(here)["classifier"]
    (here / "space.yaml").write_text("viscoin.learning_rate: [0.001]\n")
    alone = ("--set", "viscoin.without_generator=true", "--set", "viscoin.steps=2")
    given = ("sweep", "viscoin", "--space", "space.yaml", "--sampler", "grid", "--classifier", f, *set_options())
    Answer(*given, *alone, "--gan", "g.safetensors").refused("--gan g.safetensors", "does not need it")
    Answer(*given, *alone, "--metric", "validation.l1").refused("--metric validation.l1", "does not log it")
    assert not (here / "runs").exists()
    assert "1 of 20 trials done" in Answer(*given, *alone, "--out", "s").went_well().err
    (model,) = Path("s").glob("trials/*/model.safetensors")
    assert read_file(model)[1]["architecture"]["generator"] is None


def test_classifiers_log_the_metrics_that_are_offered(tmp_path: Path) -> None:
    scores: set[str] = set()
    for measure in ("accuracy", "balanced_accuracy", "f1"):
        recipe = tiny_recipe(classifier__best_metric=measure)
        path = train_classifier(recipe, Run.create("classifier", recipe, tmp_path / measure))
        scores |= read_file(path)[1]["scores"].keys()
    assert scores == KINDS["classifier"].metrics.keys()


@contextmanager
def worker(folder: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    words = ["sweep", "classifier", "--space", "space.yaml", *set_options(), "--out", "s", "--device", "cpu", *options]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *map(str, words)], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
  )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.long
def test_two_processes_one_of_which_is_killed(here: Path) -> None:
    long = ("--set", "classifier.epochs=6", "--trials", 5, "--pruner", "none")
    with worker(here, *long) as one, worker(here, *long) as two:
        runs = here / "s" / "trials"
        wait_for(lambda: all((runs / name / "metrics.jsonl").is_file() for name in ("0000", "0001")))
        two.kill()
        two.wait()
        _, err = one.communicate(timeout=400)
    assert one.returncode == 0, err
    trials = [line.split(",") for line in (here / "s" / "trials.csv").read_text().splitlines()[1:]]
    assert [trial[1] for trial in trials] == ["finished"] * 5
    assert len({trial[3] for trial in trials}) == 5  # none twice
    assert "is gone" in err or "5 of 5" in err  # the second one may have been between two trials


@pytest.mark.long
def test_interrupted_by_the_keyboard(here: Path) -> None:
    long = ("--set", "classifier.epochs=5000", "--trials", 1)  # it never ends by itself
    runs = here / "s" / "trials"
    with worker(here, *long) as process:
        wait_for((runs / "0000" / "metrics.jsonl").is_file)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=400)
    assert process.returncode == 130, err
    assert "trial 0 waits in s, the same command resumes it" in err.splitlines()[-1]
    before = (runs / "0000" / "metrics.jsonl").read_text()
    assert len(before.splitlines()) > 0 and (runs / "0000" / "checkpoints" / "last.pt").is_file()
    metrics = runs / "0001" / "metrics.jsonl"
    with worker(here, *long):
        wait_for(lambda: metrics.is_file() and len(metrics.read_text()) > len(before))
    assert metrics.read_text().startswith(before)
    steps = [line["step"] for line in read_metrics(metrics)]
    assert steps == sorted(steps)
