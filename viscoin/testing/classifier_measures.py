"""What the predictions of a classifier are worth: overall, for each class, at every threshold, and as probabilities."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torchmetrics.functional import classification as scores

from viscoin.statistics.bootstrap import LEVEL, Estimate, bootstrap
from viscoin.testing.classifier import ClassifierResult

TOP = 5
BINS = 15  # of confidence, as published (Guo et al. 2017)


class Curve(NamedTuple):
    """Corners (M,) of a curve with x rising, and the area under it; `at` reads it between them."""

    x: np.ndarray
    y: np.ndarray
    area: float
    stepped: bool

    def at(self, places: np.ndarray) -> np.ndarray:
        """Heights at places in [0, 1]: linear between corners, or that of the corner to the right of a step."""
        if not self.stepped:
            return np.interp(places, self.x, self.y)
        return self.y[np.clip(np.searchsorted(self.x, places), 1, len(self.x) - 1)]


@dataclass(frozen=True)
class ClassMeasures:
    """Each class against the rest, (C,) each; NaN for a class without images.

    Precision is 0 for a class that is never predicted. The ends of recall's 95 % interval are exact (Clopper & Pearson
    1934).
    """

    images: np.ndarray
    predicted: np.ndarray
    recall: np.ndarray
    recall_low: np.ndarray
    recall_high: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    auroc: np.ndarray
    average_precision: np.ndarray

    def macro(self, name: str) -> float:
        """Mean of a measure over the classes that have it."""
        values = getattr(self, name)
        known = ~np.isnan(values)
        return float(values[known].mean()) if known.any() else np.nan

    def weighted(self, name: str) -> float:
        """The same with every class weighted by its images."""
        values = getattr(self, name)
        known = ~np.isnan(values)
        return float(np.average(values[known], weights=self.images[known])) if known.any() else np.nan


@dataclass(frozen=True)
class Calibration:
    """Bins of confidence of equal width, (BINS,) each: images, their mean confidence and accuracy (NaN if none)."""

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap of accuracy and confidence, weighted by images (Guo et al. 2017)."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.images) / self.images.sum())


class Confusion(NamedTuple):
    """Number of images of one class (out of `images`) that were classified as another."""

    true: int
    predicted: int
    errors: int
    images: int


@dataclass(frozen=True)
class ClassifierMeasures:
    """Everything that `test classifier` reports of a result; a class without images has None for its curves."""

    result: ClassifierResult
    by_class: ClassMeasures
    calibration: Calibration
    roc: list[Curve | None]
    precision_recall: list[Curve | None]
    roc_micro: Curve | None
    precision_recall_micro: Curve | None
    estimates: dict[str, Estimate]
    seed: int

    @property
    def missing(self) -> list[str]:
        """Names of the classes without images, which no mean counts."""
        return [name for name, n in zip(self.result.class_names, self.by_class.images) if not n]

    def to_dict(self) -> dict[str, Any]:
        names, classes = self.result.class_names, self.by_class
        measured = ("precision", "recall", "f1", "auroc", "average_precision")
        values = {key.partition(".")[2]: estimate.value for key, estimate in self.estimates.items()}
        probabilities = ("expected_calibration_error", "negative_log_likelihood", "brier_score")
        return {
            **self.result.to_dict(),
            "classes": len(names),
            "classes_without_images": self.missing,
            **{key: values[key] for key in ("top5", "balanced_accuracy") if key in values},
            "macro": {key: classes.macro(key) for key in measured},
            "weighted": {key: classes.weighted(key) for key in measured},
            "micro": {
                "auroc": self.roc_micro.area if self.roc_micro else np.nan,
                "average_precision": self.precision_recall_micro.area if self.precision_recall_micro else np.nan,
            },
            "calibration": {
                **{key: values[key] for key in probabilities},
                "bins": {key: column.tolist() for key, column in asdict(self.calibration).items()},
            },
            "accuracy_by_class": dict(zip(names, self.result.per_class_accuracy.tolist(), strict=True)),
            "by_class": class_rows(self),
            "most_confused": [
                {"true": names[pair.true], "predicted": names[pair.predicted], "count": pair.errors, "of": pair.images}
                for pair in most_confused(self.result.confusion)
            ],
            "estimates": {key: {**asdict(estimate), "seed": self.seed} for key, estimate in self.estimates.items()},
        }  # fmt: skip


def measure_classifier(result: ClassifierResult, seed: int = 0) -> ClassifierMeasures:
    """Every measure of a result, with 95 % intervals where images can be resampled at little cost.

    Classes without images are NaN and no part of any mean. Top-5 accuracy is measured from six classes on.
    """
    truth = result.labels[:, None] == np.arange(len(result.class_names))
    columns = [(result.probabilities[:, c], truth[:, c]) for c in range(truth.shape[1])]
    roc = [roc_curve(*column) for column in columns]
    precision_recall = [precision_recall_curve(*column) for column in columns]
    by_class = _class_measures(result, roc, precision_recall)
    calibration = calibrate(result.confidence, result.predicted == result.labels)
    return ClassifierMeasures(
        result, by_class, calibration, roc, precision_recall,
        roc_curve(result.probabilities.ravel(), truth.ravel()),
        precision_recall_curve(result.probabilities.ravel(), truth.ravel()),
        _estimates(result, by_class, calibration, seed), seed,
    )  # fmt: skip


def roc_curve(values: np.ndarray, truth: np.ndarray) -> Curve | None:
    """True against false positive rate at every threshold of the scores (N,); None unless truth (N,) has both kinds."""
    if truth.all() or not truth.any():
        return None
    x, y, _ = (part.double().numpy() for part in scores.binary_roc(*_tensors(values, truth)))
    area = float(np.trapezoid(y, x))
    inside = ((x[1:-1] == x[:-2]) & (x[1:-1] == x[2:])) | ((y[1:-1] == y[:-2]) & (y[1:-1] == y[2:]))
    corner = np.concatenate([[True], ~inside, [True]])
    return Curve(x[corner], y[corner], area, stepped=False)


def precision_recall_curve(values: np.ndarray, truth: np.ndarray) -> Curve | None:
    """Precision against recall at every threshold of the scores (N,); None if truth (N,) has no positive.

    The area is the average precision, sum over n of (R_n - R_(n-1)) P_n, without interpolation.
    """
    if not truth.any():
        return None
    precision, recall, _ = (
        part.double().numpy() for part in scores.binary_precision_recall_curve(*_tensors(values, truth))
    )
    # thresholds fall from here on; of those with one recall the highest has the best precision
    recall, first = np.unique(recall[::-1], return_index=True)
    precision = precision[::-1][first]
    return Curve(recall, precision, float(np.diff(recall) @ precision[1:]), stepped=True)


def calibrate(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Confidence (N,) in [0, 1] beside the share of right answers (N,), in bins that include their upper ends.

    torchmetrics' multiclass_calibration_error gives those of confidence 1 a bin of their own; here, as published, they
    belong to the last one.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, right.astype(float)))
    return Calibration(
        images, *(np.divide(total, images, out=np.full(bins, np.nan), where=images > 0) for total in sums)
    )


def most_confused(counts: np.ndarray, most: int = 20) -> list[Confusion]:
    """Pairs of classes that confusion counts (C, C) mix up most often; of equal counts the larger share first."""
    images = counts.sum(1)
    errors = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    true, predicted = np.nonzero(errors)
    count = errors[true, predicted]
    order = np.lexsort((predicted, true, -count / images[true], -count))[:most]
    return [Confusion(int(true[i]), int(predicted[i]), int(count[i]), int(images[true[i]])) for i in order]


def most_confident_errors(result: ClassifierResult, most: int = 21) -> np.ndarray:
    """Rows of the result that are wrong, the most confident first."""
    wrong = np.flatnonzero(result.predicted != result.labels)
    return wrong[np.argsort(-result.confidence[wrong], kind="stable")][:most]


def class_rows(measures: ClassifierMeasures) -> list[dict[str, Any]]:
    """One row of names and numbers for each class."""
    columns: Mapping[str, np.ndarray] = asdict(measures.by_class)
    return [
        {"index": c, "class": name, **{key: column[c].item() for key, column in columns.items()}}
        for c, name in enumerate(measures.result.class_names)
    ]


def _tensors(values: np.ndarray, truth: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(truth.astype(np.int64))


def _class_measures(
    result: ClassifierResult, roc: list[Curve | None], precision_recall: list[Curve | None]
) -> ClassMeasures:
    counts = result.confusion
    images, hits = counts.sum(1), counts.diagonal()
    predicted, labels = torch.from_numpy(result.predicted), torch.from_numpy(result.labels)

    def known(measure: Callable[..., torch.Tensor]) -> np.ndarray:
        values = measure(predicted, labels, num_classes=len(counts), average=None)
        return np.where(images > 0, values.double().numpy(), np.nan)

    low, high = np.transpose([_exact_interval(hit, n) for hit, n in zip(hits, images)])
    return ClassMeasures(
        images=images,
        predicted=counts.sum(0),
        recall=known(scores.multiclass_recall),
        recall_low=low,
        recall_high=high,
        precision=known(scores.multiclass_precision),
        f1=known(scores.multiclass_f1_score),
        auroc=np.array([curve.area if curve else np.nan for curve in roc]),
        average_precision=np.array([curve.area if curve else np.nan for curve in precision_recall]),
    )


def _exact_interval(hits: int, n: int) -> tuple[float, float]:
    if not n:
        return np.nan, np.nan
    found = stats.binomtest(int(hits), int(n)).proportion_ci(LEVEL)
    return float(found.low), float(found.high)


def _estimates(
    result: ClassifierResult, by_class: ClassMeasures, calibration: Calibration, seed: int
) -> dict[str, Estimate]:
    labels, classes = result.labels, len(result.class_names)
    own = np.take_along_axis(result.probabilities, labels[:, None], 1)[:, 0]
    answers = np.stack([labels, result.predicted], 1)

    def macro(place: int) -> Estimate:
        found = bootstrap(answers, lambda rows: _macro(rows, classes)[place], seed=seed)
        # resamples of answers that are all right carry no information on other images
        return found if found.low < found.high else Estimate(found.value, np.nan, np.nan, found.n)

    def alone(value: float) -> Estimate:
        return Estimate(value, np.nan, np.nan, result.n)

    estimates = {"accuracy": bootstrap(result.predicted == labels, seed=seed)}
    if classes > TOP:
        first = torch.from_numpy(result.probabilities).topk(TOP, dim=1).indices.numpy()
        estimates["top5"] = bootstrap((first == labels[:, None]).any(1), seed=seed)
    estimates |= {
        "balanced_accuracy": macro(0),
        "precision": macro(1),
        "f1": macro(2),
        "auroc": alone(by_class.macro("auroc")),
        "average_precision": alone(by_class.macro("average_precision")),
        "expected_calibration_error": alone(calibration.error),
        "negative_log_likelihood": bootstrap(-np.log(np.maximum(own, np.finfo(float).tiny)), seed=seed),
        "brier_score": bootstrap(np.square(result.probabilities).sum(1) - 2 * own + 1, seed=seed),
    }
    return {f"classifier.{key}": estimate for key, estimate in estimates.items()}


def _macro(answers: np.ndarray, classes: int) -> tuple[float, float, float]:
    """Recall, precision and F1 of labels and predictions (N, 2), each a mean over the classes that have images."""
    labels, predicted = answers.T
    images, called, hits = (
        np.bincount(which, minlength=classes) for which in (labels, predicted, labels[labels == predicted])
    )
    present = images > 0
    hits, images, called = hits[present], images[present], called[present]
    recall, precision = hits / images, hits / np.maximum(called, 1)
    return float(recall.mean()), float(precision.mean()), float((2 * hits / (images + called)).mean())
