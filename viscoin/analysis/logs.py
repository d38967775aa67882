"""Training logs as series of numbers: our metrics.jsonl, and the older tool's logs."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

STEP_KEYS = ("step", "iteration", "batch", "epoch")
NOT_MEASURED = (*STEP_KEYS, "time", "timestamp")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Log:
    """Series by dotted name, such as "train.l1" or "validation.accuracy": steps and values, both (T,)."""

    series: dict[str, tuple[np.ndarray, np.ndarray]]
    broken: int
    source: Path

    @property
    def measures(self) -> list[str]:
        """Names without their split, in order of appearance."""
        return list(dict.fromkeys(split_name(name)[1] for name in self.series))


def read_log(path: Path) -> Log:
    """Read a log with a JSON object a line; lines that are none are counted and left out.

    Keys "train_x", "test_x" of the older tool become "train.x", "test.x". Without a step, lines are counted.

    Raises:
        ValueError: there is no such file, or no line of it holds numbers.
    """
    path = path / "metrics.jsonl" if path.is_dir() else path
    try:
        texts = [text for text in path.read_text(errors="replace").splitlines() if text.strip()]
    except OSError as error:
        raise ValueError(f"cannot read the log {path} ({error.strerror})") from error
    points: dict[str, list[tuple[float, float]]] = {}
    broken = 0
    for count, text in enumerate(texts, 1):
        line = _parse(text)
        if line is None:
            broken += 1
            continue
        step = next((float(line[key]) for key in STEP_KEYS if _is_number(line.get(key))), float(count))
        for key, value in line.items():
            if _is_number(value) and key not in NOT_MEASURED:
                points.setdefault(_dotted(key), []).append((step, float(value)))
    if not points:
        raise ValueError(f"the log {path} holds no line with numbers ({broken} of {len(texts)} lines are broken)")
    if broken:
        logger.warning("%s: %d of %d lines are broken and left out", path, broken, len(texts))
    series = {key: (np.array([s for s, _ in p]), np.array([v for _, v in p])) for key, p in points.items()}
    return Log(series, broken, path)


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average (T,) without the pull to zero at the start; `weight` in [0, 1) of the past."""
    if not 0 <= weight < 1:
        raise ValueError(f"smoothing {weight} is out of range; choose a number from 0 to below 1")
    result, average, total = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        average, total = weight * average + (1 - weight) * value, weight * total + 1 - weight
        result[i] = average / total
    return result


def split_name(name: str) -> tuple[str, str]:
    """ "train.l1" -> ("train", "l1"); names without a split get ""."""
    head, _, rest = name.partition(".")
    return (head, rest) if head in SPLITS and rest else ("", name)


def _parse(text: str) -> Mapping[str, Any] | None:
    # The older tool's logger may put a time or level before the object.
    try:
        line = json.loads(text[text.index("{") :])
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _dotted(key: str) -> str:
    head, _, rest = key.partition("_")
    return f"{head}.{rest}" if head in SPLITS and rest and "." not in key else key


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
