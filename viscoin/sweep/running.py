"""Train the trials of a study, one after the other; several processes may do so at once."""

import gc
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from viscoin.config import Recipe
from viscoin.errors import Refused
from viscoin.estimates import duration
from viscoin.models.files import read_file
from viscoin.runs.run import Run, read_metrics
from viscoin.runs.tracking import tracked
from viscoin.runs.transcript import kept_in
from viscoin.sweep.results import ENDED, SweepResult, best_of
from viscoin.sweep.space import recipe_of, show
from viscoin.sweep.study import Study, first_line
from viscoin.training.failures import Failed
from viscoin.training.loop import Interrupted

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

FAILURES = 3  # failed trials in a row that end the sweep

Train = Callable[[Recipe, Run], Path]


def run_sweep(study: Study, train: Train, trackers: Sequence[str] = ()) -> SweepResult:
    """Train one trial after the other until the study has the number asked for, or the time is up.

    Args:
        train: trains the run by the recipe and returns the file of the model.
        trackers: that follow the trials.

    Raises:
        Interrupted, Failed: a signal came, or something outside failed; the trial is queued once more.
        ValueError: the first training of the study did not begin, or several failed one after the other.
    """
    timeout = study.settings.timeout
    end = time.monotonic() + timeout if timeout is not None else None
    while end is None or time.monotonic() < end:
        trial = study.next_trial()
        if trial is None:
            return study.result()
        began = time.monotonic()
        _run_trial(study, trial, train, trackers)
        logger.info("%s", _progress(study, trial.number, time.monotonic() - began))
    logger.info("the time limit of %g s is over; the same command resumes the study", timeout)
    return study.result()


def _run_trial(study: Study, trial: "optuna.Trial", train: Train, trackers: Sequence[str]) -> None:
    number, settings = trial.number, study.settings
    facts = {"study": settings.folder.absolute().name, "trial": number, "varied": list(settings.space)}
    try:
        recipe = recipe_of(settings.recipe, trial.params)
        run = Run.create(settings.kind, recipe, study.folder(number))
        run.annotate(sweep=facts)
        logger.info("trial %d: %s", number, ", ".join(f"{key} {show(value)}" for key, value in trial.params.items()))
        pruned, models = study.optuna.TrialPruned, settings.keep_models
        with kept_in(run.path), tracked(run, trackers, pruned=pruned, models=models, patient=True):
            run.listeners.append(_reporter(study, trial, run))  # the last one: it may end the training
            value = _score(run.model_path if run.model_path.is_file() else train(recipe, run), settings.metric)
            run.annotate(sweep=facts | {"value": value})
    except study.optuna.TrialPruned:
        study.end(number, None, pruned=True)
    except (KeyboardInterrupt, Failed, OSError, study.optuna.exceptions.StorageInternalError) as error:
        study.queue_again(number, first_line(error))
        text = f"trial {number} waits in {settings.folder}, the same command resumes it"
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"stopped; {text}", getattr(error, "signal", signal.SIGINT)) from error
        raise Failed(f"{first_line(error)}; {text}") from error
    except (ValueError, torch.OutOfMemoryError) as error:
        _fail(study, number, error)
    except BaseException as error:
        study.end(number, None, f"{type(error).__name__}: {first_line(error)}")
        raise
    else:
        study.end(number, value)
    finally:
        if torch.cuda.is_available():
            gc.collect()  # cycles would keep the memory of the trial's networks


def _score(model: Path, metric: str) -> float:
    """The metric of a finished model, which is not always the last one that was logged."""
    scores = read_file(model)[1].get("scores")
    value = scores.get(metric) if isinstance(scores, dict) else None
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{metric} of {model} is {value}")
    return float(value)


def _fail(study: Study, number: int, error: Exception) -> None:
    """A training failed: by the trial's parameters, so that others may do well, unless none of them does."""
    begun = (study.folder(number) / "metrics.jsonl").is_file()
    if isinstance(error, ValueError) and not begun and study.forget():
        raise error  # a mistake in the options; nothing is left that other options would contradict
    study.end(number, None, first_line(error))
    ended = [trial for trial in study.results() if trial.state in ENDED][-FAILURES:]
    if len(ended) == FAILURES and all(trial.state == "failed" for trial in ended):
        raise Refused(
            None, None, f"{FAILURES} trials in a row failed, the last one so: {first_line(error)}",
            "change `space` or the recipe, and take another `folder`",
        ) from error  # fmt: skip
    logger.warning("trial %d failed: %s", number, first_line(error))


def _reporter(study: Study, trial: "optuna.Trial", run: Run) -> Callable[[int, Mapping[str, float]], None]:
    """Reports each value of the metric to the study, counted in evaluations: steps depend on the batch size."""
    metric, reported = study.settings.metric, 0

    def report(step: int, values: Mapping[str, float]) -> None:
        nonlocal reported
        if metric not in values:
            return
        course = [line[metric] for line in read_metrics(run.metrics_path) if metric in line]
        for number, value in enumerate(course[reported:], reported + 1):
            trial.report(value, number)
        reported = len(course)
        if trial.should_prune():
            raise study.optuna.TrialPruned

    return report


def _progress(study: Study, number: int, seconds: float) -> str:
    """How a trial went, and how far the study is."""
    trials, settings = study.results(), study.settings
    (trial,) = [trial for trial in trials if trial.number == number]
    text = f"trial {number}: {trial.state}"
    if trial.state == "pruned":
        text += f" after {len(trial.course)} evaluation{'s' * (len(trial.course) != 1)}"
    if trial.value is not None:
        text += f", {settings.metric} {trial.value:.4g}"
    if (best := best_of(trials, settings.direction)) is not None:
        text += f" (best {best.value:.4g}, trial {best.number})"
    done = sum(trial.state in ENDED for trial in trials)
    text += f", {timedelta(seconds=round(seconds))}; {done} of {settings.trials} trials done"
    took = [trial.seconds for trial in trials if trial.state in ENDED and trial.seconds is not None]
    rest = settings.trials - done
    if not took or rest < 1:
        return text
    workers = 1 + sum(trial.state == "running" for trial in trials)
    return f"{text}, about {duration(rest * sum(took) / len(took) / workers)} left"
