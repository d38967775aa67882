"""A run is one folder: recipe.yaml, metrics.jsonl, checkpoints/, model.safetensors, figures/."""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from viscoin.config import Recipe, parse_recipe

RUNS = Path("runs")
# Lengths on which nothing else depends (no schedule): a run may be continued to another one.
EXTENDABLE = ("gan.kimg",)
MOVABLE = ("dataset.path",)  # the same files, wherever they lie


class Run:
    """Paths of one run and the two files it grows: metrics and checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_path = path / "recipe.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.model_path = path / "model.safetensors"

    @classmethod
    def create(cls, kind: str, recipe: Recipe, out: Path | None = None, resume: bool = False) -> "Run":
        """Make the folder of a new run, or open the one to go on with.

        Args:
            kind: "classifier", "gan" or "viscoin".
            out: the folder; by default `runs/<dataset>-<kind>-<time>`, or with `resume` the newest such run.

        Raises:
            ValueError: the folder holds a run already (without `resume`), or none (with it), or one of another recipe.
        """
        name = f"{Path(recipe.dataset.name).name}-{kind}"
        if resume:
            run = cls(out) if out else newest_run(kind, recipe.dataset.name)
            if run is None or not run.recipe_path.is_file():
                raise ValueError(
                    f"--resume: no {kind} run of {recipe.dataset.name!r} in {out or RUNS}; start one without"
                )
            run._check_same(kind, recipe)
            run._write_header({**run.header, "recipe": recipe.model_dump()})
            return run
        run = cls(out or RUNS / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
        if run.recipe_path.is_file():
            raise ValueError(f"--out {run.path}: this folder holds a run already; pass --resume or another folder")
        run._make()
        created = datetime.now().isoformat(timespec="seconds")
        run._write_header({"kind": kind, "created": created, "recipe": recipe.model_dump()})
        return run

    def _make(self) -> None:
        try:
            for folder in (self.checkpoints, self.figures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--out {self.path}: cannot write there ({error.strerror}); choose another folder"
            ) from error

    def _write_header(self, header: Mapping[str, Any]) -> None:
        with atomic_path(self.recipe_path) as partial:
            partial.write_text(yaml.safe_dump(dict(header), sort_keys=False))

    def annotate(self, **facts: Any) -> None:
        """Write facts about this run into recipe.yaml, beside the recipe."""
        self._write_header({**self.header, **facts})

    def _check_same(self, kind: str, recipe: Recipe) -> None:
        if self.kind != kind:
            raise ValueError(f"--resume: {self.path} is a {self.kind} run, not a {kind} run")
        saved, given = flatten(self.recipe.model_dump()), flatten(recipe.model_dump())
        relevant = [key for key in given if key.split(".")[0] in ("dataset", "seed", kind)]
        changed = [
            f"{key}: {saved.get(key)} -> {given[key]}"
            for key in relevant
            if saved.get(key) != given[key] and key not in EXTENDABLE + MOVABLE
        ]
        if changed:
            raise ValueError(
                f"--resume: {self.path} was started with another recipe ({'; '.join(changed)}); "
                "give the same options, or start a new run"
            )

    @property
    def header(self) -> dict[str, Any]:
        return yaml.safe_load(self.recipe_path.read_text())

    @property
    def kind(self) -> str:
        return self.header["kind"]

    @property
    def recipe(self) -> Recipe:
        return parse_recipe(self.header["recipe"], str(self.recipe_path))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of flat keys to metrics.jsonl."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        with self.metrics_path.open("a") as file:
            file.write(line + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Drop lines after `step`: a resumed run writes them again."""
        if self.metrics_path.is_file():
            lines = [line for line in read_metrics(self.metrics_path) if line["step"] <= step]
            with atomic_path(self.metrics_path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Write `checkpoints/<name>.pt` so that it is whole or absent."""
        with atomic_path(self.checkpoints / f"{name}.pt") as partial:
            torch.save(dict(state), partial)

    def load_checkpoint(self, name: str) -> dict[str, Any] | None:
        """The checkpoint, or None when there is none; ValueError when it is damaged."""
        path = self.checkpoints / f"{name}.pt"
        if not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} is damaged ({error}); remove it to start from the beginning"
            ) from error


def newest_run(kind: str, dataset: str, finished: bool = False) -> Run | None:
    """The run of that kind and dataset which was started last; with `finished`, only among those with a model."""
    found = []
    for path in RUNS.glob("*/recipe.yaml"):
        run = Run(path.parent)
        try:
            header = run.header
            matches = header["kind"] == kind and header["recipe"]["dataset"]["name"] == dataset
        except (KeyError, TypeError, yaml.YAMLError):
            continue
        if matches and (run.model_path.is_file() or not finished):
            found.append((header["created"], path.stat().st_mtime, run))
    return max(found, key=lambda item: item[:2])[2] if found else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a broken last line (a killed run) is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well, and vanishes when not."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
