"""Endpoints that look at many images at once: how f and g predict, and the tests that maps should pass."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import Field

from viscoin.analysis.attribution import Settings
from viscoin.analysis.attribution_demos import study_demo
from viscoin.analysis.questions import Asked
from viscoin.attribution import METHODS
from viscoin.datasets.base import to_images
from viscoin.files import without_nan
from viscoin.inference.loading import Pictures, Subject
from viscoin.plotting.attribution_demos import demo_figures
from viscoin.plotting.classifier import calibration_figure, confusion_figure, curves_figure
from viscoin.plotting.style import figure_bytes
from viscoin.serving.api import ModelQuery, find_picture, service
from viscoin.serving.models import ServedModel, once
from viscoin.serving.pictures import Picture
from viscoin.serving.problems import Problem
from viscoin.serving.schemas import Body, ImageId, ModelId
from viscoin.serving.work import compute
from viscoin.testing.classifier import ClassifierResult, test_classifier
from viscoin.testing.classifier_measures import class_rows, measure_classifier, most_confident_errors, most_confused

MOST_IMAGES, SHOWN = 1000, 12
MOST_DRAWN = 60  # classes of a confusion matrix

router = APIRouter(tags=["analysis"])


class FallacyBody(Body):
    """A test of a method on one image."""

    image: ImageId
    model: ModelId = None
    demo: Literal["shift", "randomise"]
    method: Annotated[str, Field(max_length=40)] = "gradcam"


@router.get("/predictions")
async def predictions(
    request: Request, model: ModelQuery = None, split: Literal["validation", "test"] = "validation",
    of: Literal["f", "g"] = "f",
    limit: Annotated[int, Query(ge=10, le=MOST_IMAGES, description="images, sampled at random")] = 500,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy, confused classes, calibration, the most confident errors and the least sure images."""
    served = service(request).models.get(model)
    network = served.classifier if of == "f" else served.needed_ensemble()

    def made() -> dict[str, Any]:
        result = test_classifier(network, served.images(split), served.device, limit=limit)
        return {"model": served.id, "split": split, **describe_result(result, f"{served.dataset_name}/{split}")}

    def run(items: Any) -> list[Any]:
        return [once(served, f"predictions_{split}_{of}_{limit}", made) for _ in items]

    return (await compute(request, service(request).slow, ("predictions", served.id, split, of, limit), run, [0]))[0]


def describe_result(result: ClassifierResult, place: str, classes: Sequence[int] = ()) -> dict[str, Any]:
    """What predictions amount to: measures, figures, confused classes with their images, errors.

    Args:
        place: of the images, as in "birds/test".
        classes: the table and the pairs of these alone; all of them if it is empty.
    """
    measures, names = measure_classifier(result), result.class_names
    chosen = set(classes) or set(range(len(names)))
    figures = {"How sure": calibration_figure(measures), "ROC and precision-recall": curves_figure(measures)}
    if len(names) <= MOST_DRAWN:
        figures = {"Confusion": confusion_figure(result.confusion, names), **figures}

    def shown(rows: np.ndarray) -> list[dict[str, Any]]:
        return [_image(result, place, int(row)) for row in rows]

    confused = []
    for pair in most_confused(result.confusion):
        if pair.true in chosen or pair.predicted in chosen:
            rows = np.flatnonzero((result.labels == pair.true) & (result.predicted == pair.predicted))[:4]
            confused.append({
                "true": names[pair.true], "predicted": names[pair.predicted], "errors": pair.errors,
                "images": pair.images, "examples": shown(rows),
            })  # fmt: skip
    by_class = [row for k, row in enumerate(class_rows(measures)) if k in chosen]
    by_class.sort(key=lambda row: (row["f1"] is None or np.isnan(row["f1"]), row["f1"]))
    estimates = {
        name.partition(".")[2] or name: {"value": found.value, "low": found.low, "high": found.high}
        for name, found in measures.estimates.items()
    }
    return without_nan({
        "images": result.n, "place": place, "accuracy": result.accuracy, "estimates": estimates, "class_names": names,
        "confused": confused, "sure_and_wrong": shown(most_confident_errors(result, SHOWN)),
        "least_sure": shown(np.argsort(result.confidence, kind="stable")[:SHOWN]), "classes": by_class[:200],
        "confusion": result.confusion.tolist() if len(names) <= MOST_DRAWN else None,
        "figures": [{"title": title, "picture": _svg(figure)} for title, figure in figures.items()],
        "each": each_image(result),
    })  # fmt: skip


def each_image(result: ClassifierResult) -> list[list[float]]:
    """Of each image its index, its class, the one that it was taken for, and how probable that was called."""
    indices = np.arange(result.n) if result.indices is None else result.indices
    columns = (indices, result.labels, result.predicted, result.confidence.round(4))
    return [list(row) for row in zip(*(column.tolist() for column in columns))]


def _image(result: ClassifierResult, place: str, row: int) -> dict[str, Any]:
    index = int(row if result.indices is None else result.indices[row])
    label, predicted = int(result.labels[row]), int(result.predicted[row])
    return {
        "image": f"{place}/{index}", "true": result.class_names[label],
        "predicted": result.class_names[predicted], "p": float(result.confidence[row]),
    }  # fmt: skip


def _svg(figure: Any) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(figure_bytes(figure, 'svg')).decode()}"


@router.post("/fallacies")
async def fallacies(request: Request, body: FallacyBody) -> dict[str, Any]:
    """Does a map stay where only the input's origin moves, and does it change when the weights do?"""
    model = service(request).models.get(body.model)
    if body.method not in METHODS or "training" in METHODS[body.method].needs:
        raise Problem(422, f"there is no method {body.method!r}", "see GET methods")
    picture = find_picture(service(request), model, body.image)

    def run(items: Any) -> list[Any]:
        return [_tried(model, body.demo, body.method, item) for item in items]

    return (await compute(request, service(request).slow, ("fallacies", model.id, body.demo), run, [picture]))[0]


def _tried(model: ServedModel, demo: str, method: str, picture: Picture) -> dict[str, Any]:
    subject = Subject(model.classifier, model.path, model.device, model.class_names, model.config)
    labels = None if picture.label is None else np.array([picture.label])
    pictures = Pictures(to_images(picture.pixels[None]), [picture.id.replace("/", " ")], labels)
    methods = [method] if method == "edges" else [method, "edges"]
    found = study_demo(demo, subject, pictures, methods, Asked(), Settings())
    return {
        "demo": demo, "method": method, "summary": found.summary.splitlines(),
        "figures": [{"title": name, "picture": _svg(figure)} for name, figure in demo_figures(found).items()],
    }  # fmt: skip
