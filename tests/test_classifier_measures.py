"""Measures of classifiers against values computed by hand, and against other libraries."""

import csv
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn
from torchmetrics.functional import classification as scores
from toy_ensemble import ToyClassifier, toy_dataset

from viscoin.plotting import classifier as figures
from viscoin.plotting.evaluation import confusion_figure
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing import classifier
from viscoin.testing.classifier import ClassifierResult
from viscoin.testing.classifier_measures import (
    ClassifierMeasures,
    calibrate,
    measure_classifier,
    most_confident_errors,
    most_confused,
    precision_recall_curve,
    roc_curve,
)
from viscoin.testing.classifier_tables import class_table, confusion_table, error_rows, markdown_report


def result_of(labels: list[int], probabilities: list[list[float]]) -> ClassifierResult:
    names = [f"class {c}" for c in range(len(probabilities[0]))]
    return ClassifierResult(names, np.array(labels), np.array(probabilities, float), np.arange(len(labels)))


def certain(labels: list[int], predicted: list[int], classes: int) -> ClassifierResult:
    """Predictions of probability 1."""
    return result_of(labels, np.eye(classes)[predicted].tolist())


def random_result(n: int = 300, classes: int = 7, seed: int = 0, skill: float = 1.5) -> ClassifierResult:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    odds = np.exp(rng.normal(size=(n, classes)) + skill * np.eye(classes)[labels])
    return result_of(labels.tolist(), (odds / odds.sum(1, keepdims=True)).tolist())


def value(measures: ClassifierMeasures, name: str) -> float:
    return measures.estimates[f"classifier.{name}"].value


# --- classes ---------------------------------------------------------------------------------------------------------


def test_each_class_by_hand():
    # confusion [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    measures = measure_classifier(certain([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], 3))
    classes = measures.by_class
    assert classes.images.tolist() == [3, 2, 1] and classes.predicted.tolist() == [2, 2, 2]
    assert classes.recall == pytest.approx([2 / 3, 1 / 2, 1])
    assert classes.precision == pytest.approx([1, 1 / 2, 1 / 2])
    assert classes.f1 == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert value(measures, "accuracy") == pytest.approx(4 / 6)
    assert value(measures, "balanced_accuracy") == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    found = measures.to_dict()
    assert found["macro"]["precision"] == pytest.approx(2 / 3)
    assert found["weighted"]["recall"] == pytest.approx(found["accuracy"])
    assert found["weighted"]["precision"] == pytest.approx((3 * 1 + 2 * 0.5 + 1 * 0.5) / 6)
    assert found["weighted"]["f1"] == pytest.approx((3 * 4 / 5 + 2 / 2 + 2 / 3) / 6)
    # of certain answers the ROC curve has one corner: (true positive rate + true negative rate) / 2
    assert classes.auroc == pytest.approx([(2 / 3 + 1) / 2, (1 / 2 + 3 / 4) / 2, (1 + 4 / 5) / 2])


def test_recall_has_the_exact_interval():
    classes = measure_classifier(certain([0] * 10 + [1], [0] * 10 + [1], 2)).by_class
    assert classes.recall_low[0] == pytest.approx(0.025 ** (1 / 10))  # Clopper and Pearson, all right
    assert classes.recall_high[0] == 1
    assert classes.recall_low[1] == pytest.approx(0.025)


def test_a_class_that_is_never_predicted_has_precision_0():
    classes = measure_classifier(certain([0, 0, 1], [0, 0, 0], 2)).by_class
    assert classes.precision.tolist() == pytest.approx([2 / 3, 0])
    assert classes.f1.tolist() == pytest.approx([4 / 5, 0])


def test_classes_without_images_are_no_part_of_means():
    # Class 2 has no images but one prediction, class 3 has neither.
    measures = measure_classifier(certain([0, 0, 1, 1], [0, 2, 1, 1], 4))
    assert measures.missing == ["class 2", "class 3"]
    for name in ("recall", "recall_low", "precision", "f1", "auroc", "average_precision"):
        assert np.isnan(getattr(measures.by_class, name)).tolist() == [False, False, True, True], name
    found = measures.to_dict()
    assert found["macro"]["recall"] == found["balanced_accuracy"] == 0.75
    assert found["macro"]["precision"] == value(measures, "precision") == 1
    assert found["macro"]["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["weighted"]["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["classes_without_images"] == ["class 2", "class 3"]


def test_classes_agree_with_scikit_learn():
    result = random_result()
    measures = measure_classifier(result)
    expected = sklearn.metrics.precision_recall_fscore_support(result.labels, result.predicted)
    for name, column in zip(("precision", "recall", "f1", "images"), expected):
        assert getattr(measures.by_class, name) == pytest.approx(column), name
    for average in ("macro", "weighted", "micro"):
        areas = measures.to_dict()[average]
        onehot = np.eye(7)[result.labels]
        assert areas["auroc"] == pytest.approx(
            sklearn.metrics.roc_auc_score(onehot, result.probabilities, average=average), abs=1e-6
        )
        assert areas["average_precision"] == pytest.approx(
            sklearn.metrics.average_precision_score(onehot, result.probabilities, average=average), abs=1e-6
        )
    for name, average in (("precision", 0), ("f1", 2)):
        assert value(measures, name) == pytest.approx(expected[average].mean())
    assert value(measures, "balanced_accuracy") == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(result.labels, result.predicted)
    )


def test_top_5_is_measured_from_six_classes_on():
    # probabilities fall from class 0 to class 5, so that class 5 alone is none of the first five
    row = np.arange(6, 0, -1) / 21
    assert value(measure_classifier(result_of([0, 4, 5, 5], [row.tolist()] * 4)), "top5") == 0.5
    assert "classifier.top5" not in measure_classifier(random_result(classes=5)).estimates
    result = random_result()
    expected = scores.multiclass_accuracy(
        torch.tensor(result.probabilities), torch.tensor(result.labels), 7, "micro", top_k=5
    )
    assert value(measure_classifier(result), "top5") == pytest.approx(expected.item())


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_by_hand():
    # scores 0.9 +, 0.8 -, 0.7 +, 0.1 -
    values, truth = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    roc = roc_curve(values, truth)
    assert list(zip(roc.x, roc.y)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert roc.area == 0.75
    curve = precision_recall_curve(values, truth)
    assert curve.x.tolist() == [0, 0.5, 1] and curve.y[1:] == pytest.approx([1, 2 / 3])
    assert curve.area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert curve.at(np.array([0, 0.2, 0.5, 0.51, 1])) == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])
    assert roc.at(np.array([0.25, 0.75])) == pytest.approx([0.5, 1])


def test_corners_hold_the_whole_curve():
    result = random_result(500, 3)
    truth = result.labels == 1
    roc, curve = (draw(result.probabilities[:, 1], truth) for draw in (roc_curve, precision_recall_curve))
    assert len(roc.x) < len(truth) and len(curve.x) == truth.sum() + 1
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(roc.area)
    middles = (np.arange(20000) + 0.5) / 20000
    assert curve.at(middles).mean() == pytest.approx(curve.area, abs=1e-4)


def test_curves_need_what_they_compare():
    values = np.array([0.2, 0.6])
    assert roc_curve(values, np.array([True, True])) is None
    assert roc_curve(values, np.array([False, False])) is None
    assert precision_recall_curve(values, np.array([False, False])) is None
    assert precision_recall_curve(values, np.array([True, True])).area == 1


def test_pooled_decisions_of_a_perfect_classifier():
    micro = measure_classifier(certain([0, 1, 2], [0, 1, 2], 3)).to_dict()["micro"]
    assert micro == {"auroc": 1, "average_precision": 1}


# --- known predictors ------------------------------------------------------------------------------------------------


def test_a_perfect_predictor():
    measures = measure_classifier(certain([0, 1, 2, 0] * 5, [0, 1, 2, 0] * 5, 3))
    found = measures.to_dict()
    assert found["accuracy"] == found["balanced_accuracy"] == 1
    assert set(found["macro"].values()) == set(found["weighted"].values()) == {1}
    for name in ("expected_calibration_error", "negative_log_likelihood", "brier_score"):
        assert found["calibration"][name] == 0
    assert found["most_confused"] == []
    assert measures.estimates["classifier.accuracy"].low == pytest.approx(0.025 ** (1 / 20))
    assert math.isnan(measures.estimates["classifier.balanced_accuracy"].low)  # no spread to resample


def test_a_constant_predictor():
    # 3 of 4 images are of the class that it always names, with probability 0.6
    measures = measure_classifier(result_of([0, 0, 0, 1], [[0.6, 0.4]] * 4))
    classes = measures.by_class
    assert value(measures, "accuracy") == 0.75 and value(measures, "balanced_accuracy") == 0.5
    assert classes.auroc.tolist() == [0.5, 0.5]
    assert classes.average_precision == pytest.approx([0.75, 0.25])  # how frequent they are
    assert value(measures, "expected_calibration_error") == pytest.approx(0.15)
    assert value(measures, "negative_log_likelihood") == pytest.approx(-(3 * math.log(0.6) + math.log(0.4)) / 4)
    assert value(measures, "brier_score") == pytest.approx((3 * 2 * 0.4**2 + 2 * 0.6**2) / 4)


def test_random_guesses():
    measures = measure_classifier(random_result(4000, 4, skill=0))
    assert value(measures, "balanced_accuracy") == pytest.approx(0.25, abs=0.03)
    assert measures.by_class.macro("auroc") == pytest.approx(0.5, abs=0.02)
    assert measures.by_class.macro("average_precision") == pytest.approx(0.25, abs=0.02)
    accuracy = measures.estimates["classifier.accuracy"]
    assert accuracy.low < 0.25 < accuracy.high


# --- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_by_hand():
    # two of ten bins: three images of confidence 0.55, of which one is right, and one of 0.95, which is right
    found = calibrate(np.array([0.55, 0.55, 0.55, 0.95]), np.array([True, False, False, True]), bins=10)
    assert found.images.tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 0, 1]
    assert found.accuracy[5] == pytest.approx(1 / 3) and math.isnan(found.accuracy[4])
    assert found.error == pytest.approx((3 * (0.55 - 1 / 3) + 0.05) / 4)


def test_full_confidence_belongs_to_the_last_bin():
    found = calibrate(np.array([0.95, 1.0]), np.array([True, False]), bins=10)
    assert found.images[-1] == 2 and found.error == pytest.approx(0.975 - 0.5)


def test_calibration_agrees_with_torchmetrics():
    result = random_result(1000)
    expected = scores.multiclass_calibration_error(
        torch.tensor(result.probabilities), torch.tensor(result.labels), num_classes=7, n_bins=15, norm="l1"
    )
    assert value(measure_classifier(result), "expected_calibration_error") == pytest.approx(expected.item(), abs=1e-6)


def test_a_miscalibrated_predictor_ranks_as_well():
    """Sharper probabilities leave all but calibration as it is."""
    honest = random_result(2000, 2, skill=0)
    rng = np.random.default_rng(1)
    labels = (rng.random(2000) < honest.probabilities[:, 1]).astype(int)  # right as often as it says
    odds = honest.probabilities**4
    sharp = result_of(labels.tolist(), (odds / odds.sum(1, keepdims=True)).tolist())
    honest = result_of(labels.tolist(), honest.probabilities.tolist())
    before, after = measure_classifier(honest), measure_classifier(sharp)
    assert value(before, "expected_calibration_error") < 0.03 < 0.1 < value(after, "expected_calibration_error")
    assert value(after, "brier_score") > value(before, "brier_score")
    assert value(after, "negative_log_likelihood") > value(before, "negative_log_likelihood") + 0.1
    assert after.by_class.auroc == pytest.approx(before.by_class.auroc)
    assert value(after, "accuracy") == value(before, "accuracy")


def test_likelihoods_agree_with_scikit_learn():
    result = random_result()
    measures = measure_classifier(result)
    expected = sklearn.metrics.log_loss(result.labels, result.probabilities)
    assert value(measures, "negative_log_likelihood") == pytest.approx(expected)
    errors = np.square(result.probabilities - np.eye(7)[result.labels]).sum(1)
    assert value(measures, "brier_score") == pytest.approx(errors.mean())


def test_certain_errors_have_a_finite_likelihood():
    assert value(measure_classifier(certain([0, 1], [1, 1], 2)), "negative_log_likelihood") > 300


def test_small_probabilities_survive():
    """In single precision the true class would have had no probability at all."""
    model = ToyClassifier(torch.tensor([[200.0, 0, 0, 0], [0, 0, 1.0, 0]]))
    measures = measure_classifier(classifier.test_classifier(model, toy_dataset([[1.0, 0, 0, 0]], [1])))
    assert value(measures, "negative_log_likelihood") == pytest.approx(200, rel=1e-3)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_intervals_hold_their_value_and_follow_the_seed():
    result = random_result()
    estimates = measure_classifier(result).estimates
    for name in ("accuracy", "top5", "balanced_accuracy", "precision", "f1", "negative_log_likelihood", "brier_score"):
        found = estimates[f"classifier.{name}"]
        assert found.low < found.value < found.high and found.n == 300, name
    assert measure_classifier(result).estimates["classifier.f1"] == estimates["classifier.f1"]
    assert measure_classifier(result, seed=1).estimates["classifier.f1"].low != estimates["classifier.f1"].low


def test_one_image_is_measured_without_intervals():
    measures = measure_classifier(result_of([1], [[0.4, 0.6]]))
    assert value(measures, "accuracy") == value(measures, "balanced_accuracy") == 1
    assert math.isnan(value(measures, "auroc"))
    assert isinstance(measures.estimates["classifier.accuracy"], Estimate)
    assert "accuracy of f" in markdown_report(measures)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_most_confused_pairs():
    # equal counts: the larger share of its class first
    pairs = most_confused(np.array([[9, 2, 0], [0, 1, 2], [3, 0, 0]]))
    assert [tuple(pair) for pair in pairs] == [(2, 0, 3, 3), (1, 2, 2, 3), (0, 1, 2, 11)]
    assert len(most_confused(np.ones((9, 9), int), most=5)) == 5


def test_most_confident_errors():
    result = result_of([0, 0, 1, 0], [[0.4, 0.6], [0.1, 0.9], [0.0, 1.0], [0.8, 0.2]])
    assert most_confident_errors(result).tolist() == [1, 0]
    assert most_confident_errors(result, most=1).tolist() == [1]


def test_errors_are_named_by_their_place_in_the_dataset():
    dataset = toy_dataset([[1.0, 0, 0, 0]] * 6 + [[0, 0, 1.0, 0]] * 2, [0, 0, 0, 0, 0, 1, 1, 0])
    dataset.files = [f"{i}.png" for i in range(8)]
    model = ToyClassifier(torch.tensor([[4.0, 0, 0, 0], [0, 0, 5.0, 0]]))
    sample = classifier.test_classifier(model, dataset, batch_size=3, seed=0, limit=5)
    assert sample.indices.tolist() == sorted(set(sample.indices)) != list(range(5))
    assert (sample.labels == dataset.labels[sample.indices]).all()
    chosen = ClassifierResult(["left", "right"], np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([2, 5]))
    (row,) = error_rows(chosen, dataset)
    assert (row["index"], row["file"], row["true"], row["predicted"]) == (5, "5.png", "right", "left")
    assert (row["probability_of_true"], row["probability_of_predicted"]) == (0.2, 0.8)


def test_answers_that_are_not_finite_are_refused():
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 2), torch.nan)

    with pytest.raises(ValueError, match=r"no finite answer for 2 of 2 images, first for image 0; .*lower learning"):
        classifier.test_classifier(Broken(), toy_dataset([[0, 0, 0, 0.0]] * 2, [0, 1]))


# --- tables and figures ----------------------------------------------------------------------------------------------


def test_tables_hold_every_class():
    measures = measure_classifier(certain([0, 0, 1, 1], [0, 2, 1, 1], 3))
    rows = list(csv.DictReader(io.StringIO(class_table(measures))))
    assert [row["class"] for row in rows] == ["class 0", "class 1", "class 2"]
    assert (rows[0]["images"], rows[0]["recall"], rows[0]["precision"]) == ("2", "0.5", "1.0")
    assert rows[2]["images"] == "0" and rows[2]["recall"] == rows[2]["auroc"] == ""
    counts = list(csv.reader(io.StringIO(confusion_table(measures.result))))
    assert counts[0] == ["true class", "class 0", "class 1", "class 2"] and counts[1] == ["class 0", "1", "0", "1"]
    text = markdown_report(measures)
    assert "| accuracy of f | 0.7500 |" in text and "without images, in no mean: class 2." in text
    assert "| class 2 | 0 | – | – | – | – | – |" in text and "| class 0 | class 2 | 1 of 2 |" in text


def images_of(result: ClassifierResult) -> SimpleNamespace:
    return SimpleNamespace(pixels=np.zeros((result.n, 8, 8, 3), np.uint8), files=None)


@pytest.mark.parametrize("classes", [2, 7, 12, 60])
def test_figures_of_few_and_many_classes(classes):
    result = random_result(250, classes)
    result.labels[result.labels == classes - 1] = 0  # no images of the last class
    drawn = figures.classifier_figures(measure_classifier(result), images_of(result))
    expected = {"confusion", "per-class", "curves", "calibration", "errors", "confused-pairs"}
    assert set(drawn) == expected - ({"confused-pairs"} if classes == 2 else set())
    for figure in drawn.values():
        assert max(figure.get_size_inches()) <= 9
        figure.draw_without_rendering()


def test_a_perfect_classifier_has_no_errors_to_show():
    result = certain([0, 1, 2], [0, 1, 2], 3)
    drawn = figures.classifier_figures(measure_classifier(result), images_of(result))
    assert set(drawn) == {"confusion", "per-class", "curves", "calibration"}


def test_no_share_is_above_one():
    pairs = most_confused(certain([0, 0, 1, 2], [1, 1, 1, 2], 3).confusion)
    axes = figures.pairs_figure(pairs, ["ant", "bee", "cat"]).axes[0]
    assert axes.get_xlim()[1] > 1 and axes.get_xticks().max() == 1  # room for numbers beside the bar, no tick there


def test_matrices_of_few_classes_show_all_counts_and_of_many_numbers_at_the_axes():
    few = confusion_figure(np.array([[5, 1], [0, 7]]), ["ill", "well"]).axes[0]
    assert sorted(text.get_text() for text in few.texts) == ["0", "1", "5", "7"]
    assert [label.get_text() for label in few.get_xticklabels()] == ["ill", "well"]
    many = confusion_figure(np.eye(200, dtype=int), [f"class {i}" for i in range(200)]).axes[0]
    many.figure.draw_without_rendering()
    for labels in (many.get_xticklabels(), many.get_yticklabels()):
        shown = [label.get_text() for label in labels if 0 <= sum(label.get_position()) < 200]
        assert shown == [str(number) for number in range(0, 200, 10)]
    assert not many.texts


def test_long_names_keep_their_beginning_and_end():
    name = "fork-tailed " * 5 + "rust needlebill"
    short = figures._short(name, 107)
    assert len(short) <= figures.NAME + 3
    assert short.startswith("107 fork-tailed") and short.endswith("…\u00a0rust needlebill")
    assert figures._short("a" * 30 + "b" * 30, 5) == "5 " + "a" * 18 + "\u00a0…\u00a0" + "b" * 20
    assert figures._short("rust needlebill", 107) == "rust needlebill"
