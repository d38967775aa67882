"""Run folders as the service shows them: state, curves, pictures, the end of the log. It only reads."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from viscoin.errors import Refused
from viscoin.files import without_nan
from viscoin.kinds import KINDS
from viscoin.runs.control import read_command, read_record, waiting
from viscoin.runs.run import Run, read_metrics
from viscoin.runs.status import Status, read_status
from viscoin.serving.problems import Problem

NAME = re.compile(r"[A-Za-z0-9][\w.+=-]{0,127}")
PICTURE = re.compile(r"[\w.+=-]{1,128}\.(png|svg)")
LOG_END = 65_536  # bytes
MOST_POINTS = 10_000


class RunFolder:
    """The folder of all runs.

    Args:
        root: e.g. runs/.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Names of runs, the newest first."""
        found = []
        for path in self.root.glob("*/recipe.yaml"):
            if NAME.fullmatch(path.parent.name) and not path.parent.is_symlink():
                found.append((path.stat().st_mtime, path.parent.name))
        return [name for _, name in sorted(found, reverse=True)]

    def find(self, name: str) -> Run:
        """A run by the name of its folder.

        Raises:
            Problem: 422 for what is no name, 404 where there is none.
        """
        if not NAME.fullmatch(name):
            raise Problem(422, f"{name!r} is no name of a run", "names are those of GET runs")
        path = self.root / name
        if path.is_symlink() or not (path / "recipe.yaml").is_file():
            raise Problem(404, f"there is no run {name!r}", "see GET runs")
        return Run(path)

    def newest(self) -> Run:
        """The run that was changed last.

        Raises:
            Problem: 404, there is none.
        """
        names = self.names()
        if not names:
            raise Problem(404, "there are no runs yet", "start one with `train`, or by POST jobs")
        return self.find(names[0])


def describe(run: Run) -> dict[str, Any]:
    """State of a run in a few values; "queued" runs are those of `Jobs`."""
    try:
        header = run.header
    except (Refused, OSError) as error:
        return {"run": run.path.name, "state": "damaged", "reason": str(error).replace(f"{run.path.parent}/", "")}
    status = read_status(run.path)
    step, changed = _last_line(run)
    state = status.state
    if run.model_path.is_file() and state in ("stopped", "failed") and _is_last(run):
        state = "finished"  # of a run from before there was a status.json
    return {
        "run": run.path.name, "kind": header["kind"], "dataset": Path(header["recipe"]["dataset"]["name"]).name,
        "created": header["created"], "state": state, "step": status.step or step, "steps": status.steps or None,
        "pace": status.pace, "left": status.left, "reason": status.reason,
        "changed": max(changed or 0.0, status.time) or None, "model": run.model_path.is_file(),
        "steerable": status.steerable, "penalties": status.penalties, "metrics": without_nan(status.metrics),
        "score": _score(header, status),
    }  # fmt: skip


def _score(header: Mapping[str, Any], status: Status) -> dict[str, Any] | None:
    """The newest value of what a kind is mainly measured by; None before the first one."""
    kind = KINDS.get(str(header["kind"]))
    measure = next(iter(kind.metrics), None) if kind else None
    value = without_nan(status.metrics).get(measure) if measure else None
    return None if value is None else {"measure": measure, "value": value}


def record(run: Run) -> list[dict[str, Any]]:
    """The commands that a run has obeyed or refused, and those that still wait."""
    rows = [asdict(entry) for entry in read_record(run.path)]
    known = {row["id"] for row in rows}
    for path in waiting(run.path):
        if path.stem not in known:
            try:
                rows.append({**asdict(read_command(path)), "step": None, "refused": None, "waiting": True})
            except Refused:
                continue  # the training will say what is wrong with it
    return without_nan(rows)


def _is_last(run: Run) -> bool:
    try:
        return run.model_path.stat().st_mtime_ns >= run.metrics_path.stat().st_mtime_ns
    except OSError:
        return True


def _last_line(run: Run) -> tuple[int | None, float | None]:
    """The last step that was logged, and when."""
    try:
        with run.metrics_path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().decode(errors="replace").splitlines()
        changed = run.metrics_path.stat().st_mtime
    except OSError:
        return None, None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"]), changed
        except (ValueError, KeyError, TypeError):
            continue
    return None, changed


def metrics(run: Run, since: int = 0, keys: list[str] | None = None, points: int = 1000) -> dict[str, Any]:
    """Curves by measure, `{key: {steps, values}}`, thinned by the smallest and largest value of each piece."""
    points = min(points, MOST_POINTS)
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in _lines(run):
        if line["step"] < since:
            continue
        for key, value in line.items():
            if key in ("step", "time") or (keys and key not in keys):
                continue
            steps, values = curves.setdefault(key, ([], []))
            while steps and steps[-1] >= line["step"]:  # written again after a resume
                steps.pop()
                values.pop()
            steps.append(line["step"])
            values.append(float(value))
    return {"run": run.path.name, "curves": {key: thinned(*curve, points) for key, curve in curves.items()}}


def _lines(run: Run) -> list[dict[str, Any]]:
    try:
        return read_metrics(run.metrics_path)
    except OSError:
        return []


def thinned(steps: list[int], values: list[float], points: int) -> dict[str, list[Any]]:
    """A curve of at most about `points` points in which no spike is lost: two of each piece, and the ends."""
    if len(steps) > points:
        pieces = max(1, (points - 2) // 2)
        edges = [1 + (len(steps) - 2) * piece // pieces for piece in range(pieces + 1)]
        kept = {0, len(steps) - 1}
        for first, after in pairwise(edges):
            piece = range(first, after)
            if piece:
                kept |= {min(piece, key=values.__getitem__), max(piece, key=values.__getitem__)}
        steps, values = zip(*((steps[i], values[i]) for i in sorted(kept)))  # type: ignore[assignment]
    return {"steps": list(steps), "values": without_nan(list(values))}


def summary(run: Run) -> dict[str, Any]:
    """Best and last value of every measure; best as the kind of the run says which way is better."""
    kind = KINDS.get(str(run.header["kind"]))
    directions = dict(kind.metrics) if kind else {}
    found = {}
    for key, curve in metrics(run, points=MOST_POINTS)["curves"].items():
        pairs = [(value, step) for value, step in zip(curve["values"], curve["steps"]) if value is not None]
        if not pairs:
            continue
        direction = directions.get(key, "minimize" if "loss" in key or key.startswith("train.") else "")
        row: dict[str, Any] = {"last": pairs[-1][0], "last_step": pairs[-1][1]}
        if direction:
            best = (min if direction == "minimize" else max)(pairs, key=lambda pair: pair[0])
            row |= {"best": best[0], "best_step": best[1], "direction": direction}
        found[key] = row
    return {"run": run.path.name, "measures": found}


def figures(run: Run) -> list[dict[str, Any]]:
    """Pictures of a run, each with the step that its name tells."""
    found = []
    for path in sorted(run.figures.glob("*")):
        if PICTURE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            number = re.search(r"-(\d+)(k?)\.\w+$", path.name)
            step = None if number is None else int(number[1]) * (1000 if number[2] else 1)
            title = path.name if number is None else path.name[: number.start()]
            with suppress(OSError):  # gone meanwhile
                found.append({"name": path.name, "title": title, "step": step, "changed": path.stat().st_mtime})
    return found


def figure(run: Run, name: str) -> Path:
    """A picture of a run.

    Raises:
        Problem: 422 for what is no name of one, 404.
    """
    path = run.figures / name
    if not PICTURE.fullmatch(name):
        raise Problem(422, f"{name!r} is no name of a picture", "names are those of GET figures")
    if path.is_symlink() or not path.is_file():
        raise Problem(404, f"run {run.path.name} has no picture {name!r}")
    return path


def log_end(run: Run) -> str:
    """The last 64 kB of the log."""
    try:
        with (run.path / "log.txt").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_END))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass
class Follower:
    """Where in the metrics of a run somebody has read to; ids of events are offsets in bytes."""

    run: Run
    offset: int = 0
    state: str = ""
    entries: int = 0
    pictures: dict[str, float] | None = None

    def fresh(self) -> Iterator[tuple[str, int, Any]]:
        """What is new since the last call: kind of event, offset, and values; `gone` and nothing else without a run."""
        if not self.run.path.is_dir():
            yield "gone", self.offset, {}
            return
        try:
            size = self.run.metrics_path.stat().st_size
            if size < self.offset:  # cut, as by a resume
                self.offset = 0
                yield "rewritten", 0, {}
            if size > self.offset:
                yield from self._more()
        except OSError:
            pass
        with suppress(Refused):  # a damaged record; the page that asks for it is told
            entries = read_record(self.run.path)
            for entry in entries[self.entries :]:
                yield "command", self.offset, without_nan(asdict(entry))
            self.entries = len(entries)
        yield from self._drawn()
        row = describe(self.run)
        said = json.dumps([row.get(key) for key in ("state", "step", "steps", "model", "steerable", "penalties")])
        if said != self.state:
            self.state = said
            yield "status", self.offset, row

    def _drawn(self) -> Iterator[tuple[str, int, Any]]:
        """Pictures that have come or changed; those that were there at first are no news."""
        found = {row["name"]: row for row in figures(self.run)}
        for name, row in found.items() if self.pictures is not None else ():
            if self.pictures and self.pictures.get(name) == row["changed"]:
                continue
            yield "figure", self.offset, row
        self.pictures = {name: row["changed"] for name, row in found.items()}

    def _more(self) -> Iterator[tuple[str, int, Any]]:
        with self.run.metrics_path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(1 << 20)
        for text in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            self.offset += len(text)
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield "metrics", self.offset, without_nan(line)
