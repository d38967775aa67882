"""From options to trained models: which recipe is meant, which run, which models it builds on, and in which order.

The one place of `training` that knows all kinds of models; training functions are found in `viscoin.kinds`.
"""

import logging
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viscoin.config import DEFAULT_DATASET, Recipe, load_recipe, override_recipe
from viscoin.datasets import (
    check_dataset_name,
    dataset_names,
    default_recipe,
    load_dataset,
    locate_dataset,
    plain_name,
    prepared_resolution,
)
from viscoin.errors import Refused
from viscoin.kinds import CHAIN, KINDS, load
from viscoin.processes import is_first_process
from viscoin.runs.control import RECORD
from viscoin.runs.replay import start_replay
from viscoin.runs.run import RUNS, Run, newest_run
from viscoin.runs.status import FILE as STATUS
from viscoin.runs.tracking import parse_trackers, tracked
from viscoin.runs.transcript import FILE, keep_in
from viscoin.signals import Stopped, held

if TYPE_CHECKING:
    from viscoin.models.files import LoadedModel
    from viscoin.training.runtime import Runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """Which data and recipe to train by, and in which run; what all trainings have in common.

    Attributes:
        dataset: name, folder or zip; None means that of the recipe or of the resumed run, else birds.
        dataset_path: see `viscoin.inference.loading.locate_dataset`.
        attribute: class attribute of celeba_hq.
        recipe: name or file; None means that of the dataset.
        settings: KEY=VALUE, for any key of the recipe.
        seed: None means that of the recipe.
        out: folder of the run; None means a new one in runs/, or with `resume` the newest of its kind.
        resume: there must be a run to resume.
        allow_changes: resume even if the recipe differs from the saved one.
        replay: run whose commands to repeat, each at its step; its recipe is the default.
        track: trackers; None means those of the resumed run.
        skip_bad_files: skip unreadable images.
    """

    dataset: str | None = None
    dataset_path: str | None = None
    attribute: str | None = None
    recipe: str | None = None
    settings: Sequence[str] | None = None
    seed: int | None = None
    out: Path | None = None
    resume: bool = False
    allow_changes: bool = False
    replay: Path | None = None
    track: Sequence[str] | None = None
    skip_bad_files: bool = False


# --- recipes -----------------------------------------------------------------------------------------------------


def resolve_recipe(
    kind: str, options: RunOptions, keys: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe that the options mean.

    It starts from the resumed run's own recipe, else from `options.recipe`, else from that of the dataset (birds).

    Args:
        keys: values by dotted key, which win over `options.settings`; None is not given.
        defaults: values by dotted key, which lose against them.

    Raises:
        ValueError: unknown recipe, dataset, key or value, or no run to resume.
    """
    overrides = _of_dataset(options)
    overrides |= dict(defaults or {}) | dict(_parse_setting(text) for text in options.settings or [])
    given = {
        **(keys or {}),
        "seed": options.seed,
        "dataset.attribute": options.attribute,
        "dataset.skip_bad_files": options.skip_bad_files or None,
    }
    overrides |= {key: value for key, value in given.items() if value is not None}
    if options.resume:
        run = _run_to_resume(kind, options, overrides.get("dataset.name", DEFAULT_DATASET))
        if options.recipe is None:
            return override_recipe(run.recipe, overrides)
    elif options.replay is not None and options.recipe is None:
        return override_recipe(_run_to_replay(options.replay).recipe, overrides)
    name = options.recipe or default_recipe(overrides.get("dataset.name", DEFAULT_DATASET))
    resolved = load_recipe(name, overrides)
    check_dataset_name(resolved.dataset.name)
    if options.attribute is not None and resolved.dataset.name != "celeba_hq":
        raise Refused(
            "attribute", options.attribute,
            f"it chooses the classes of celeba_hq, not of dataset {resolved.dataset.name!r}", "omit it",
        )  # fmt: skip
    return resolved


def resolve_gan_recipe(
    options: RunOptions, keys: Mapping[str, Any], preset: str | None, transfer: Path | None, runtime: "Runtime"
) -> Recipe:
    """The recipe of a generator: a preset and a start from other weights lose against everything that is given.

    Args:
        preset: a name that `viscoin.presets` knows.
        transfer: published .pkl, run folder or model to start from.

    Raises:
        ValueError: as `resolve_recipe`, or an unknown preset.
    """
    defaults: dict[str, Any] = {}
    if preset is not None:
        from viscoin.presets import gan_preset

        # What a preset holds may depend on the resolution, which the other options decide.
        resolution = resolve_recipe("gan", options).dataset.resolution
        defaults = {f"gan.{key}": value for key, value in gan_preset(preset, resolution, runtime.processes).items()}
    if transfer is not None:  # the average need not ramp up, and ada reacts faster
        defaults |= {"gan.transfer": str(transfer), "gan.ema_rampup": None, "gan.ada_kimg": 100.0}
    return resolve_recipe("gan", options, keys, defaults)


def resolve_for_models(
    kind: str, options: RunOptions, keys: Mapping[str, Any], models: Mapping[str, Path | None]
) -> Recipe:
    """The recipe that the options mean; images of a folder or zip are prepared for an ensemble as those of its f were.

    Args:
        models: files by kind; what that of f says loses against `options.settings`.

    Raises:
        ValueError: as `resolve_recipe`, or no such model.
    """
    dataset, classifier = locate_dataset(options.dataset, options.dataset_path)[0], models.get("classifier")
    if kind != "viscoin" or classifier is None or options.resume or dataset is None or dataset in dataset_names():
        return resolve_recipe(kind, options, keys)
    from viscoin.inference.loading import OF_THE_MODEL
    from viscoin.models.files import find_model, read_model

    own = read_model(find_model("classifier", classifier, dataset), "classifier")[1]["recipe"]["dataset"]
    images = {f"dataset.{key}": own[key] for key in OF_THE_MODEL if key in own and key != "seed"}
    return resolve_recipe(kind, options, keys, images)


def _of_dataset(options: RunOptions) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    own = load_recipe(options.recipe).dataset.name if options.recipe and options.dataset_path else None
    dataset, path = locate_dataset(options.dataset, options.dataset_path, own)
    if path is not None or options.dataset_path is not None:
        keys["dataset.path"] = path
    if dataset is not None:
        check_dataset_name(dataset)
        keys["dataset.name"] = dataset = plain_name(dataset)
        if options.recipe is None and not options.resume and (side := prepared_resolution(dataset)):
            keys["dataset.resolution"] = side
    return keys


def _run_to_resume(kind: str, options: RunOptions, dataset: str) -> Run:
    run = Run(options.out) if options.out else newest_run(kind, dataset)
    if run is None or not run.recipe_path.is_file():
        place = options.out or f"{RUNS}/ for dataset {dataset!r}"
        raise Refused("resume", None, f"there is no {kind} run in {place}", "start one without `resume`")
    if run.kind != kind:
        raise Refused("resume", None, f"{run.path} is a {run.kind} run, not a {kind} run", "choose another `out`")
    return run


def _run_to_replay(path: Path) -> Run:
    run = Run(path)
    if not run.recipe_path.is_file():
        raise Refused("replay", path, "there is no such run")
    return run


def _parse_setting(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise Refused("settings", text, "expected KEY=VALUE, as in viscoin.steps=500")
    return key.strip(), value.strip()


# --- runs --------------------------------------------------------------------------------------------------------


@contextmanager
def training_run(kind: str, recipe: Recipe, options: RunOptions) -> Iterator[Run]:
    """The run to train in, locked; a new folder vanishes again when the training fails before its first step.

    Processes that a launcher started beside the first one learn later which run it is.
    """
    out = options.out
    if not is_first_process():
        yield Run(out or RUNS)
        return
    trackers = parse_trackers(options.track) if options.track else None
    existed = out is not None and out.exists()
    run = None
    with ExitStack() as stack:
        try:
            with held():  # a signal leaves no folder behind in which nothing has begun
                run = stack.enter_context(Run.opened(kind, recipe, out, options.resume, options.allow_changes))
            if options.replay is not None:
                start_replay(run, options.replay)
            keep_in(run.path)
            logger.info("run folder: %s", run.path)
            with tracked(run, trackers):
                yield run
        except BaseException as error:
            if run is not None:
                _give_up(run, existed, error)
            raise


def _give_up(run: Run, existed: bool, error: BaseException) -> None:
    """Remove a run that did not begin; raise Stopped, with how to resume, where a signal ended it without a word."""
    kept = _is_begun(run)
    if not kept and not run.is_gone():
        _drop(run, existed)
    if isinstance(error, KeyboardInterrupt) and not str(error):
        how = f"resume with `resume` `out` {run.path}; only the steps since its last save are lost"
        text = f"stopped; {how}" if kept else "stopped before the first step; nothing is kept"
        raise Stopped(text, getattr(error, "signal", signal.SIGINT)) from error


def _is_begun(run: Run) -> bool:
    """Whether there is anything of a run to keep."""
    return run.goes_on or run.metrics_path.exists() or any(run.checkpoints.glob("*"))


def _drop(run: Run, existed: bool) -> None:
    """Remove a run that did not begin, and its folder unless that was there before."""
    if existed:
        for path in (run.recipe_path, run.path / FILE, run.path / STATUS, run.path / RECORD):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(run.path, ignore_errors=True)


def train(
    kind: str, recipe: Recipe, options: RunOptions, models: Mapping[str, Path | None], runtime: "Runtime"
) -> Path:
    """Train one model in a run of its own.

    Args:
        models: by kind, the files of the models that it builds on; None means the newest or shipped one.

    Returns:
        The path of the trained model.

    Raises:
        ValueError: options, recipe, models or data that do not fit.
    """
    built_on = load_needed(kind, models, recipe)
    with training_run(kind, recipe, options) as run:
        return train_in(run, kind, recipe, built_on, runtime)


def train_in(run: Run, kind: str, recipe: Recipe, built_on: "Sequence[LoadedModel | None]", runtime: "Runtime") -> Path:
    """Train one model in that run, on the models that `load_needed` gives."""
    function = load(KINDS[kind].train or "")
    # the images of an ensemble may have fewer classes than f
    names = {"class_names": built_on[0].class_names} if kind == "viscoin" and built_on[0] is not None else {}
    path: Path = function(recipe, run, *(loaded and loaded.model for loaded in built_on), runtime, **names)
    return path


def train_all(options: RunOptions, runtime: "Runtime", keys: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Train the classifier, the generator and the ensemble by one recipe, each on the ones before.

    Without a generator where the recipe says so.
    With `options.out`, the runs are folders in it. With `options.resume` alone, the newest run of each kind is resumed
    if it is not older than those that it builds on.

    Args:
        keys: values of the recipe by dotted key, as of `resolve_recipe`.

    Yields:
        The path of each model.
    """
    recipe = resolve_recipe("viscoin", replace(options, out=None, resume=False), keys)
    alone = recipe.viscoin.without_generator
    if not alone:
        load("viscoin.training.gan:check_gan")(recipe, runtime)
    paths: dict[str, Path | None] = {}
    started = ""
    for kind in CHAIN:
        if kind == "gan" and alone:
            continue
        newest = newest_run(kind, recipe.dataset.name) if options.resume and options.out is None else None
        resumed = newest is not None and newest.header["created"] >= started  # not one that belongs to an earlier f
        out = newest.path if newest and resumed else options.out and options.out / kind
        path = train(kind, recipe, replace(options, out=out, resume=resumed), paths, runtime)
        started = Run(path.parent).header["created"]
        paths[kind] = path
        yield path


# --- models ------------------------------------------------------------------------------------------------------


def load_needed(kind: str, models: Mapping[str, Path | None], recipe: Recipe) -> "list[LoadedModel | None]":
    """The models that a training builds on, in the order of `Kind.needs`; checked against the recipe and the data.

    Args:
        models: by kind, a file or run folder; None, or none, means the newest or shipped one of the dataset.

    Raises:
        ValueError: a needed model does not exist, or does not fit.
    """
    from viscoin.inference import loading
    from viscoin.inference.classes import images_of_classes
    from viscoin.models.files import find_model, load_model

    dataset = recipe.dataset
    found: list[LoadedModel | None] = []
    for needed in KINDS[kind].needs:
        path = models.get(needed)
        if needed == "classifier":
            f = loading.optional_classifier(path, dataset, needed=needed not in KINDS[kind].optional)
            if f is not None and kind == "viscoin":
                class_map = recipe.viscoin.class_map
                images_of_classes(dataset.name, "validation", dataset, f.class_names, f.path, class_map)
                load("viscoin.training.viscoin:choose_classes")(recipe.viscoin.classes, f.class_names)
            elif f is not None and needed not in KINDS[kind].optional:
                loading.check_classes(f, load_dataset(dataset.name, "validation", dataset), "classifier")
            found.append(f)
        elif needed == "gan" and not _draws(kind, recipe):
            if path is not None:
                raise Refused("gan", path, "this training has viscoin.without_generator", "leave one of them out")
            found.append(None)
        elif needed == "gan":
            loaded = load_model(find_model("gan", path, dataset.name), "gan")
            loading.check_resolution(loaded, dataset.resolution, "gan")
            found.append(loaded)
        else:
            found.append(loading.load_ensemble(path, dataset))
    return found


def find_needed(kind: str, models: Mapping[str, Path | None], recipe: Recipe) -> dict[str, Path | None]:
    """Files of all models that trainings of a kind build on, so that each of several trainings takes the same.

    Raises:
        Refused: a model that is not needed.
        ValueError: a needed model does not exist.
    """
    from viscoin.models.files import find_model

    needs = [name for name in KINDS[kind].needs if name != "gan" or _draws(kind, recipe)]
    for name, path in models.items():
        if path is not None and name not in needs:
            raise Refused(name, path, f"the training of a {kind} by this recipe does not need it", "omit it")
    return {name: find_model(name, models.get(name), recipe.dataset.name) for name in needs}


def _draws(kind: str, recipe: Recipe) -> bool:
    return kind != "viscoin" or not recipe.viscoin.without_generator
