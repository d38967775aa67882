"""What the states that a training kept say of the same images: one beside the other, for chosen classes."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.errors import Refused
from viscoin.inference.devices import resolve_device
from viscoin.models.files import load_model
from viscoin.runs.run import Run, kept_epochs
from viscoin.serving.analysis import MOST_IMAGES, describe_result
from viscoin.serving.api import service
from viscoin.serving.problems import Problem
from viscoin.serving.watching import Found
from viscoin.serving.work import compute
from viscoin.testing.classifier import ClassifierResult, test_classifier

FINAL = "final"
MOST_STATES = 4  # of one answer
KEPT = 16  # results, each of at most `MOST_IMAGES` images

router = APIRouter(tags=["analysis"])


def states_of(run: Run) -> dict[str, Path]:
    """The models that a classifier's training kept at the end of epochs, and its final one, by name.

    Raises:
        Problem: 409, it trains no classifier.
    """
    if run.kind != "classifier":
        raise Problem(409, f"{run.path.name} trains no classifier", "choose the run of a classifier")
    found = {str(epoch): path for epoch, path in kept_epochs(run).items()}
    return found | ({FINAL: run.model_path} if run.model_path.is_file() else {})


@router.get("/runs/{run}/states")
def states(found: Found) -> list[str]:
    """The states of a classifier that can be compared: epochs whose model was kept, and the final one."""
    return list(states_of(found))


@router.get("/runs/{run}/analysis")
async def analysis(
    request: Request, found: Found,
    states: Annotated[str, Query(max_length=100, description="epochs that were kept, or final; at most 4")] = FINAL,
    classes: Annotated[str, Query(max_length=400, description="indices; default: all")] = "",
    split: Literal["validation", "test"] = "validation",
    limit: Annotated[int, Query(ge=10, le=MOST_IMAGES, description="images, sampled at random")] = 500,
) -> dict[str, Any]:  # fmt: skip
    """Confusion, curves, measures and each image's prediction by saved states of a training, beside each other.

    `model` is a served one of the same images, by which they can be shown; null where there is none.
    """
    files, chosen = _chosen(found, states), _classes(classes)
    device = service(request).settings.device

    def run(items: Any) -> list[Any]:
        return [[_described(found, name, path, chosen, split, limit, device) for name, path in files.items()]
                for _ in items]  # fmt: skip

    kind = ("analysis", str(found.path), states, classes, split, limit)
    rows = (await compute(request, service(request).slow, kind, run, [0]))[0]
    config = found.recipe.dataset
    same = (model.id for model in service(request).models if model.config == config)
    return {
        "run": found.path.name, "dataset": Path(config.name).name, "model": next(same, None), "split": split,
        "states": rows,
    }  # fmt: skip


def _chosen(run: Run, states: str) -> dict[str, Path]:
    known, names = states_of(run), list(dict.fromkeys(states.split(",")))
    if len(names) > MOST_STATES:
        raise Problem(422, f"states: {len(names)}, and at most {MOST_STATES} are compared at once")
    for name in names:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "train it with classifier.keep_every=1"
            raise Problem(404, f"run {run.path.name} has no state {name!r}", have)
    return {name: known[name] for name in names}


def _classes(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if odd := [word for word in words if not re.fullmatch(r"[0-9]{1,6}", word)]:
        raise Problem(422, f"classes: {odd[0]!r} is no index of a class", "write them as 0,3,7")
    return tuple(sorted({int(word) for word in words}))


def _described(
    run: Run, name: str, path: Path, classes: tuple[int, ...], split: str, limit: int, device: str
) -> dict[str, Any]:
    try:
        result = _tested(path, path.stat().st_mtime_ns, split, limit, device)
    except OSError as error:
        raise Problem(404, f"state {name} of run {run.path.name} is gone ({error.strerror})") from error
    if classes and classes[-1] >= len(result.class_names):
        raise Problem(422, f"classes: {classes[-1]} is out of range", f"give 0 to {len(result.class_names) - 1}")
    dataset = Path(run.header["recipe"]["dataset"]["name"]).name
    return {"state": name, **describe_result(result, f"{dataset}/{split}", classes)}


@lru_cache(maxsize=KEPT)
def _tested(path: Path, _changed: int, split: str, limit: int, device: str) -> ClassifierResult:
    """Predictions of a model file; the same sample of images for all of them."""
    loaded = load_model(path, "classifier")
    config = DatasetConfig.model_validate(loaded.recipe["dataset"])
    try:
        images = load_dataset(config.name, split, config)
    except (Refused, ValueError) as error:
        raise Problem(404, f"the {split} images of {Path(config.name).name} are not to be had: {error}") from error
    return test_classifier(loaded.model, images, resolve_device(device), limit=limit)
