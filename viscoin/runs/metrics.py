"""Training logs as series of numbers: our metrics.jsonl, and the older tool's logs."""

import csv
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from viscoin.errors import Refused, regular
from viscoin.files import atomic_path
from viscoin.runs.run import Run, flatten

logger = logging.getLogger(__name__)

STEP_KEYS = ("step", "iteration", "batch", "epoch")
NOT_MEASURED = (*STEP_KEYS, "time", "timestamp")
SPLITS = ("train", "validation", "test")
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Log:
    """Series by dotted name, such as "train.l1" or "validation.accuracy": steps and values, both (T,).

    Attributes:
        broken: lines that hold no JSON object.
        replaced: values that a resumed run wrote again; only the later ones count.
    """

    series: dict[str, tuple[np.ndarray, np.ndarray]]
    broken: int
    source: Path
    replaced: int = 0

    @property
    def measures(self) -> list[str]:
        """Names without their split, in order of appearance."""
        return list(dict.fromkeys(split_name(name)[1] for name in self.series))

    def only(self, names: Sequence[str]) -> "Log":
        """The same log with some measures ("l1") or series ("validation.l1") alone."""
        return replace(
            self, series={key: s for key, s in self.series.items() if {key, split_name(key)[1]} & set(names)}
        )


def selected(logs: Sequence[Log], measures: Sequence[str]) -> list[Log]:
    """The logs with some measures or series alone; with all of them where `measures` is empty.

    Raises:
        Refused: no log has one of them.
    """
    for name in measures:
        if not any(name in (*log.measures, *log.series) for log in logs):
            held = ", ".join(dict.fromkeys(held for log in logs for held in log.measures))
            raise Refused("measures", name, f"no log has it; there are {held}")
    return [log.only(measures) for log in logs] if measures else list(logs)


def read_log(path: Path) -> Log:
    """Read a log with a JSON object a line; lines that are none are counted and left out.

    Keys "train_x", "test_x" of the older tool become "train.x", "test.x", and so do nested objects. Without a step,
    lines are counted. Where the steps go back, as after a resume, the later values replace the earlier ones.

    Args:
        path: a file, or the folder of a run.

    Raises:
        ValueError: there is no such file, or no line of it holds numbers.
    """
    path = log_file(path)
    try:
        texts = _lines(path.read_text(errors="replace"))
    except OSError as error:
        raise ValueError(f"cannot read the log {path} ({error.strerror})") from error
    if not texts:
        raise Refused(None, None, f"the log {path} is empty", "wait for the training's first line, or pass `follow`")
    log = parse_log(texts, path)
    if not log.series:
        raise ValueError(f"the log {path} holds no line with numbers ({log.broken} of {len(texts)} lines are broken)")
    if log.broken:
        logger.warning("%s: %d of %d lines are broken and left out", path, log.broken, len(texts))
    if log.replaced:
        logger.info("%s: %d values were written again after a resume; the later ones count", path, log.replaced)
    return log


def log_file(path: Path) -> Path:
    """The log of a run folder; a file is its own."""
    return regular(path / METRICS if path.is_dir() else path)


def parse_log(texts: Sequence[str], source: Path) -> Log:
    """What lines of a log hold; empty series where they hold nothing."""
    lines = [_parse(text) for text in texts]
    key = _step_key([line for line in lines if line is not None])
    points: dict[str, list[tuple[float, float]]] = {}
    replaced, step = 0, 0.0
    for count, line in enumerate(lines, 1):
        if line is None:
            continue
        step = float(count) if key is None else line.get(key, step)
        for name, value in line.items():
            if name not in NOT_MEASURED:
                series = points.setdefault(_dotted(name), [])
                replaced += _cut(series, step, key)
                series.append((step, value))
    arrays = {name: (np.array([s for s, _ in p]), np.array([v for _, v in p])) for name, p in points.items()}
    return Log(arrays, lines.count(None), source, replaced)


def run_names(sources: Sequence[Path]) -> list[str]:
    """Short names of logs, all different: the run's folder or the file, with as many folders above as it takes."""
    paths = [path.resolve() for path in sources]
    parts = [path.parent.parts if path.name == METRICS else path.with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in sources]


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average (T,) without the pull to zero at the start; `weight` in [0, 1) of the past.

    Values that are not finite stay as they are and count for no average.
    """
    check_smoothing(weight)
    result, average, total = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        if not np.isfinite(value):
            result[i] = value
            continue
        average, total = weight * average + (1 - weight) * value, weight * total + 1 - weight
        result[i] = average / total
    return result


def check_smoothing(weight: float) -> None:
    """Raise Refused unless `weight` is in [0, 1)."""
    if not 0 <= weight < 1:
        raise Refused("smoothing", weight, "out of range", "choose a number from 0 to below 1")


def split_name(name: str) -> tuple[str, str]:
    """ "train.l1" -> ("train", "l1"); names without a split get ""."""
    head, _, rest = name.partition(".")
    return (head, rest) if head in SPLITS and rest else ("", name)


def write_csv(logs: Sequence[Log], path: Path) -> Path:
    """Every value in a row of its own: run, split, measure, step, value.

    Raises:
        ValueError: the place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("run", "split", "measure", "step", "value"))
            for run, log in zip(run_names([log.source for log in logs]), logs, strict=True):
                for name, (steps, values) in log.series.items():
                    table.writerows((run, *split_name(name), f"{s:.12g}", float(v)) for s, v in zip(steps, values))
    except OSError as error:
        raise ValueError(f"cannot write the table {path} ({error.strerror}); choose another path") from error
    return path


# --- logs that grow


@dataclass(frozen=True)
class Growth:
    """What has come to some logs since the last look.

    Attributes:
        logs: all that each of them holds by now.
        fresh: index of the log and text of each new line.
        rewritten: indices of logs that lost lines, as by a resume.
    """

    logs: list[Log]
    fresh: list[tuple[int, str]]
    rewritten: list[int]


def follow(paths: Sequence[Path], pause: float = 1.0, sleep: Callable[[float], None] | None = None) -> Iterator[Growth]:
    """Look at logs every `pause` seconds, until all runs have ended; a file that belongs to no run never does.

    Lines that are still being written, and files that are not there yet, are waited for.
    """
    files = [log_file(path) for path in paths]
    seen: list[list[str]] = [[] for _ in files]
    while True:
        ended = all(map(_has_ended, files))  # before reading, so that nothing written meanwhile is missed
        fresh, rewritten = [], []
        for i, file in enumerate(files):
            texts = _whole_lines(file)
            same = next((n for n, pair in enumerate(zip(seen[i], texts)) if pair[0] != pair[1]), None)
            kept = min(len(seen[i]), len(texts)) if same is None else same
            rewritten += [i] if kept < len(seen[i]) else []
            fresh += [(i, text) for text in texts[kept:]]
            seen[i] = texts
        yield Growth([parse_log(texts, file) for texts, file in zip(seen, files)], fresh, rewritten)
        if ended:
            return
        (sleep or time.sleep)(pause)


def followed_lines(
    paths: Sequence[Path], measures: Sequence[str] = (), pause: float = 1.0
) -> Iterator[tuple[list[str], Growth]]:
    """`follow` with texts: each look's new lines for people, after the name of the run where there are several.

    Args:
        measures: those to show; all of them where it is empty.
    """
    names = run_names([log_file(path) for path in paths])
    heads = [f"{name}  " if len(names) > 1 else "" for name in names]
    for growth in follow(paths, pause):
        texts = [f"{names[i]}: went back to an earlier step, as after a resume" for i in growth.rewritten]
        described = [(i, describe_line(text, measures)) for i, text in growth.fresh]
        yield texts + [heads[i] + line for i, line in described if line], growth


def describe_line(text: str, measures: Sequence[str] = ()) -> str:
    """A line of a log for people: "step 50  train: total 2.605, l1 0.2951". Empty if it holds none of `measures`."""
    line = _parse(text)
    if line is None:
        return f"broken line: {text[:60]!r}"
    parts: dict[str, list[str]] = {}
    for key, value in line.items():
        split, measure = split_name(_dotted(key))
        if key not in NOT_MEASURED and (not measures or measure in measures or _dotted(key) in measures):
            parts.setdefault(split, []).append(f"{measure} {value:.4g}")
    step = [f"{key} {line[key]:g}" for key in STEP_KEYS if key in line and parts]
    return "  ".join(step + [(f"{split}: " if split else "") + ", ".join(found) for split, found in parts.items()])


def _has_ended(file: Path) -> bool:
    """Whether the run has written its model after its last line."""
    model = Run(file.parent).model_path
    try:
        return file.name == METRICS and model.stat().st_mtime_ns >= file.stat().st_mtime_ns
    except OSError:
        return False


def _whole_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return []
    return _lines(text[: text.rfind("\n") + 1])


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


# --- lines


def _parse(text: str) -> dict[str, float] | None:
    """Numbers of a line by dotted name; None for a line without an object."""
    # The older tool's logger may put a time or level before the object.
    try:
        line = json.loads(text[text.index("{") :])
        return {key: float(value) for key, value in flatten(line).items() if _is_number(value)}
    except (ValueError, OverflowError, RecursionError):
        return None


def _step_key(lines: Sequence[Mapping[str, float]]) -> str | None:
    """The key that says how far a training was; None where there is none, or where it starts again in every epoch."""
    key = next((key for key in STEP_KEYS if any(key in line for line in lines)), None)
    if key is None or key == "epoch":
        return key
    for before, after in pairwise(line for line in lines if key in line):
        next_epoch = key == "batch" or before.get("epoch", 0) < after.get("epoch", 0)
        if after[key] < before[key] and next_epoch:
            return None
    return key


def _cut(series: list[tuple[float, float]], step: float, key: str | None) -> int:
    """Remove what a run wrote before it was resumed at `step`; says how much. Epochs may have several lines."""
    before = len(series)
    if before and (series[-1][0] > step or (series[-1][0] == step and key == "step")):
        while series and series[-1][0] >= step:
            series.pop()
    return before - len(series)


def _dotted(key: str) -> str:
    head, _, rest = key.partition("_")
    return f"{head}.{rest}" if head in SPLITS and rest and "." not in key else key


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
