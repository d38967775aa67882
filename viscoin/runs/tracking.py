"""Following a run elsewhere: TensorBoard, MLflow and Weights & Biases show what its folder holds.

A tracker mirrors the run folder and is never needed to train. What it misses (its server was gone, it joins late) it
gets later from metrics.jsonl and figures/; `tracking.json` in the folder says what each tracker has, so that a resumed
run continues there and no point comes twice.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from viscoin.errors import Refused
from viscoin.runs.revision import code_revision
from viscoin.runs.run import Run, flatten, read_metrics
from viscoin.runs.trackers import TRACKERS, About, Known, Point, State, Tracker, root_cause

logger = logging.getLogger(__name__)

FILE = "tracking.json"
LOCK = ".tracking.lock"  # of a sweep, on which several processes may work
RETRY_SECONDS = 600  # after which a tracker that failed is tried again


def parse_trackers(values: Iterable[str] | None) -> list[str]:
    """Names of a repeatable, comma-separated option; "none" among them means no tracker at all.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    names = list(dict.fromkeys(part.strip().lower() for value in values or [] for part in value.split(",")))
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise Refused("track", name, "unknown", f"choose {', '.join(TRACKERS)} or none")
    names = [] if "none" in names else names
    for name in names:
        if find_spec(name) is None:
            remedy = "install it with: pip install viscoin[tracking]"
            raise Refused("track", name, f"needs the package {name}", remedy)
    return names


def followers(folder: Path) -> list[str]:
    """Names of the trackers that follow the run or the sweep in a folder.

    Where its tracking.json is damaged, a warning says that nobody follows it any more.
    """
    path = folder / FILE
    known = _read(folder)
    if path.is_file() and (not known or any(name not in TRACKERS for name in known)):
        logger.warning("%s is damaged; name the trackers that shall follow this run by `track`", path)
    return parse_trackers(name for name in known if name in TRACKERS)


@contextmanager
def tracked(
    run: Run,
    names: Sequence[str] | None = None,
    *,
    pruned: type[BaseException] | tuple[()] = (),
    models: bool = True,
    patient: bool = False,
) -> Iterator[None]:
    """Let trackers follow the training in this block, and report how it ends.

    What fails later than their start is warned of once, tried again now and then, and never ends the training.

    Args:
        names: of the trackers; by default those that followed this run before.
        pruned: an exception of this type ends a trial that is not worth continuing.
        models: send them the finished model.
        patient: a tracker that cannot start is warned of as well.

    Raises:
        ValueError: a package is missing, a server does not answer, or nobody is logged in.
    """
    mirrors: list[_Mirror] = []
    state: State = "failed"
    try:
        for name in followers(run.path) if names is None else parse_trackers(names):
            mirror = _Mirror(run, name, models)
            if patient:
                mirror.start_if_possible()
            else:
                logger.info("%s follows: %s", name, mirror.start().hint)
            mirrors.append(mirror)
        run.listeners.extend(mirrors)
        yield
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except pruned:
        state = "pruned"
        raise
    finally:
        for mirror in mirrors:
            mirror.finish_if_possible(state)
        run.listeners[:] = [listener for listener in run.listeners if listener not in mirrors]


class _Mirror:
    """Keeps one tracker at what the run folder holds."""

    def __init__(self, run: Run, name: str, models: bool) -> None:
        self.run, self.name, self.models = run, name, models
        self.known = _known(run.path, name)
        self.behind, self.warned, self.retry_at = True, False, 0.0
        self.tracker: Tracker | None = None

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """These values are in metrics.jsonl now."""
        if time.monotonic() >= self.retry_at:
            self._try(lambda: self._update([Point(name, value, step, time.time()) for name, value in values.items()]))

    def finish_if_possible(self, state: State) -> None:
        self._try(lambda: self.finish(state))

    def finish(self, state: State) -> None:
        model = [self.run.model_path] * (state == "finished" and self.models)
        files = [self.run.recipe_path, self.run.metrics_path, *model]
        self._update(_logged(self.run)).finish(state, [path for path in files if path.is_file()])
        self.known.state = state
        _write(self.run.path, self.name, self.known)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self.tracker, self.behind, self.retry_at = None, True, time.monotonic() + RETRY_SECONDS
            if not self.warned:
                logger.warning(
                    "%s fails (%s); the training goes on, and metrics.jsonl has everything. What %s misses now it gets "
                    "when it works again, at the latest when the same command is run again",
                    self.name, root_cause(error), self.name,
                )  # fmt: skip
            self.warned = True

    def start_if_possible(self) -> None:
        self._try(lambda: self._update([]))

    def start(self) -> Tracker:
        tracker = self.tracker = TRACKERS[self.name](_about(self.run, self.name), self.known)
        self.known.state = None
        _write(self.run.path, self.name, self.known)
        return tracker

    def _update(self, points: Sequence[Point]) -> Tracker:
        """Send these points (all that are missing, if it is behind) and new figures."""
        tracker = self.tracker or self.start()
        points = _logged(self.run) if self.behind else points
        if _send(tracker, self.known, points):
            _write(self.run.path, self.name, self.known)
        self.behind = False
        for path in sorted(self.run.figures.glob("*.png")):
            if path.name not in self.known.figures:
                tracker.figure(path, *_name_and_step(path, self.run))
                self.known.figures.append(path.name)
                _write(self.run.path, self.name, self.known)
        return tracker


@dataclass
class Shown:
    """What trackers shall show of a sweep when its command ends.

    Attributes:
        step: trials that have ended.
        metrics: of all of them together.
        trials: folders of the runs that have ended, and how.
    """

    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    figures: Sequence[Path] = ()
    files: Sequence[Path] = ()
    trials: Mapping[Path, State] = field(default_factory=dict)


@contextmanager
def tracked_sweep(
    folder: Path, dataset: str, parameters: Mapping[str, Any], names: Sequence[str], models: bool = False
) -> Iterator[Shown]:
    """Let trackers show a sweep: a run of its own, to which those of its trials belong.

    What the block puts into the yielded `Shown` they get at its end, and all that they miss of the trials. Several
    processes may work on the sweep.

    Args:
        dataset: its name.
        parameters: settings of the sweep, by name.
        names: of the trackers.
        models: send them the models of all finished trials.

    Raises:
        ValueError: a package is missing, a server does not answer, or nobody is logged in.
    """
    name = folder.absolute().name
    tags = {"kind": "sweep", "dataset": dataset, **_origin(folder)}
    about = About(name, folder, {key.lstrip("-"): value for key, value in parameters.items()}, tags, sweep=name)
    for tracker_name in names:
        with _of_sweep(about, tracker_name) as (tracker, _):
            tracker.close()
        logger.info("%s follows: %s", tracker_name, tracker.hint)
    shown = Shown()
    state: State = "failed"
    try:
        yield shown
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        for tracker_name in names:
            try:
                _show(about, tracker_name, shown, state, models)
            except Exception as error:
                logger.warning(
                    "%s fails (%s); what it misses of the sweep it gets when the same command is run again",
                    tracker_name, root_cause(error),
                )  # fmt: skip


def _show(about: About, name: str, shown: Shown, state: State, models: bool) -> None:
    """Send what a tracker misses of the trials, and how the sweep ended."""
    for folder, end in shown.trials.items():
        with FileLock(about.folder / LOCK):
            if _read(folder).get(name, {}).get("state") != end:
                _Mirror(Run(folder), name, models).finish(end)
    with _of_sweep(about, name) as (tracker, known):
        _send(tracker, known, [Point(key, value, shown.step, time.time()) for key, value in shown.metrics.items()])
        for path in shown.figures:
            tracker.figure(path, path.stem, shown.step)
        tracker.finish(state, [path for path in shown.files if path.is_file()])


@contextmanager
def _of_sweep(about: About, name: str) -> Iterator[tuple[Tracker, Known]]:
    """The sweep at a tracker, at which no other of its processes is meanwhile."""
    with FileLock(about.folder / LOCK):
        known = _known(about.folder, name)
        tracker = TRACKERS[name](about, known)
        _write(about.folder, name, known)
        yield tracker, known
        _write(about.folder, name, known)


def _send(tracker: Tracker, known: Known, points: Sequence[Point]) -> bool:
    """Send those that are new; whether there are any."""
    new = [point for point in points if point.step > known.steps.get(point.name, -1)]
    if new:
        tracker.points(new)
        known.steps |= {point.name: point.step for point in new}
    return bool(new)


def _read(folder: Path) -> dict[str, Any]:
    """What tracking.json says: of each tracker, what it has; nothing where it is damaged."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: facts for name, facts in found.items() if isinstance(facts, dict)} if isinstance(found, dict) else {}


def _known(folder: Path, name: str) -> Known:
    """What a tracker has of the run in a folder; one whose entry is damaged gets all once more, as another run."""
    try:
        return TypeAdapter(Known).validate_python(_read(folder).get(name, {}))
    except ValidationError:
        logger.warning("%s is damaged; %s begins another run there, with all that is known", folder / FILE, name)
        return Known()


def _write(folder: Path, name: str, known: Known) -> None:
    """Without fsync, which takes long for something that is written with every line of metrics."""
    path = folder / FILE
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_read(folder) | {name: asdict(known)}))
    partial.replace(path)


def _about(run: Run, tracker: str) -> About:
    header = run.header
    kind, recipe, facts = header["kind"], run.recipe.model_dump(), header.get("sweep")
    tags = {"kind": kind, "dataset": Path(recipe["dataset"]["name"]).name, **_origin(run.path)}
    parameters = flatten({key: recipe[key] for key in ("dataset", kind, "seed")})
    if facts is None:
        return About(run.path.absolute().name, run.path, parameters, tags)
    study, trial = facts["study"], str(facts["trial"])
    parent = _known(run.path.absolute().parents[1], tracker).id
    tags |= {"study": study, "trial": trial}
    return About(f"{study}/{trial}", run.path, parameters, tags, study, parent, facts["varied"])


def _origin(folder: Path) -> dict[str, str]:
    """Tags: where the run is, and by which code."""
    tags = {"folder": str(folder.absolute()), "revision": code_revision()}
    with suppress(PackageNotFoundError):
        tags["version"] = version("viscoin")
    return tags


def _logged(run: Run) -> list[Point]:
    """All of metrics.jsonl, and what a finished trial came to."""
    lines = read_metrics(run.metrics_path) if run.metrics_path.is_file() else []
    value = run.header.get("sweep", {}).get("value")
    if value is not None and lines:
        lines.append({"value": value, "step": lines[-1]["step"], "time": lines[-1].get("time", 0.0)})
    return [
        Point(name, value, line["step"], line.get("time", 0.0))
        for line in lines
        for name, value in line.items()
        if name not in ("step", "time")
    ]


def _name_and_step(path: Path, run: Run) -> tuple[str, int]:
    """`reconstructions-000250.png` shows reconstructions at step 250, `samples-000012k.png` samples after 12 kimg."""
    match = re.fullmatch(r"(.+)-(\d+)(k?)", path.stem)
    if match is None:
        return path.stem, 0
    number = int(match[2])
    return match[1], number * 1000 // run.recipe.gan.batch_size if match[3] else number
