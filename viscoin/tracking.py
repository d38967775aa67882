"""Following a run elsewhere: TensorBoard, MLflow and Weights & Biases show what its folder holds.

A tracker mirrors the run folder and is never needed to train. What it misses (its server was gone, it joins late) it
gets later from metrics.jsonl and figures/; `tracking.json` in the folder says what each tracker has, so that a resumed
run goes on there and no point comes twice.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from viscoin.models.files import code_revision
from viscoin.runs import Run, flatten, read_metrics
from viscoin.trackers import TRACKERS, About, Known, Point, State, Tracker, root_cause

logger = logging.getLogger(__name__)

FILE = "tracking.json"
RETRY_SECONDS = 600  # after which a tracker that failed is tried again


def parse_trackers(values: Iterable[str] | None) -> list[str]:
    """Names of a repeatable, comma-separated option; "none" among them stands for no tracker at all.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    names = list(dict.fromkeys(part.strip().lower() for value in values or [] for part in value.split(",")))
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise ValueError(f"--track {name!r} is unknown; choose {', '.join(TRACKERS)} or none")
    names = [] if "none" in names else names
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"--track {name} needs the package {name}; install it with: pip install viscoin[tracking]")
    return names


@contextmanager
def tracked(run: Run, names: Sequence[str] | None = None) -> Iterator[None]:
    """Let trackers follow the training in this block, and tell them how it ends.

    What fails later than their start is warned of once, tried again now and then, and never ends the training.

    Args:
        names: of the trackers; by default those that followed this run before.

    Raises:
        ValueError: a package is missing, a server does not answer, or nobody is logged in.
    """
    mirrors: list[_Mirror] = []
    state: State = "failed"
    try:
        for name in parse_trackers(_followers(run) if names is None else names):
            mirrors.append(_Mirror(run, name))
        run.listeners.extend(mirrors)
        yield
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        for mirror in mirrors:
            mirror.finish(state)
        run.listeners[:] = [listener for listener in run.listeners if listener not in mirrors]


class _Mirror:
    """Keeps one tracker at what the run folder holds."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.known = Known(**_followers(run).get(name, {}))
        self.behind, self.warned, self.retry_at = True, False, 0.0
        self.tracker: Tracker | None = self._start()
        logger.info("%s follows: %s", name, self.tracker.hint)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """These values stand in metrics.jsonl now."""
        if time.monotonic() >= self.retry_at:
            self._try(lambda: self._update([Point(name, value, step, time.time()) for name, value in values.items()]))

    def finish(self, state: State) -> None:
        files = [self.run.recipe_path, self.run.metrics_path, *[self.run.model_path] * (state == "finished")]
        self._try(lambda: self._update([]).finish(state, [path for path in files if path.is_file()]))

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

    def _start(self) -> Tracker:
        tracker = TRACKERS[self.name](_about(self.run), self.known)
        self._write()
        return tracker

    def _update(self, points: Sequence[Point]) -> Tracker:
        """Send these points (all that are missing, if it is behind) and new figures."""
        tracker = self.tracker = self.tracker or self._start()
        points = _logged(self.run) if self.behind else points
        new = [point for point in points if point.step > self.known.steps.get(point.name, -1)]
        if new:
            tracker.points(new)
            self.known.steps |= {point.name: point.step for point in new}
            self._write()
        self.behind = False
        for path in sorted(self.run.figures.glob("*.png")):
            if path.name not in self.known.figures:
                tracker.figure(path, *_name_and_step(path, self.run))
                self.known.figures.append(path.name)
                self._write()
        return tracker

    def _write(self) -> None:
        """Without fsync, which takes long for something that is written with every line of metrics."""
        path = self.run.path / FILE
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(_followers(self.run) | {self.name: asdict(self.known)}))
        partial.replace(path)


def _followers(run: Run) -> dict[str, Any]:
    """What tracking.json says: of each tracker, what it has of the run."""
    try:
        return json.loads((run.path / FILE).read_text())
    except (OSError, ValueError):
        return {}


def _about(run: Run) -> About:
    header = run.header
    kind, recipe = header["kind"], header["recipe"]
    tags = {"kind": kind, "dataset": Path(recipe["dataset"]["name"]).name, "revision": code_revision()}
    with suppress(PackageNotFoundError):
        tags["version"] = version("viscoin")
    parameters = flatten({key: recipe[key] for key in ("dataset", kind, "seed")})
    return About(run.path, parameters, tags | {"folder": str(run.path.absolute())})


def _logged(run: Run) -> list[Point]:
    """All that stands in metrics.jsonl."""
    lines = read_metrics(run.metrics_path) if run.metrics_path.is_file() else []
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
