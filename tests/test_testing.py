"""Every measure against values computed by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from toy_ensemble import ToyClassifier, ToyEnsemble, toy_dataset

from viscoin.inference import batches
from viscoin.statistics import measures
from viscoin.testing import classifier, ensemble, faithfulness, truth

LEFT, RIGHT = [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]


def no_distance(a, b, maps_a, maps_b):
    return (a - b).flatten(1).abs().amax(1)


def measure(model, dataset, **options):
    return ensemble.test_ensemble(model, dataset, perceptual=(no_distance, "largest difference"), **options)


# --- accuracy -------------------------------------------------------------------------------------------------------


def test_accuracy_counts_equal_entries_and_refuses_shapes_that_broadcast():
    assert measures.accuracy(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])) == 0.75
    with pytest.raises(ValueError, match=r"\(4, 1\) and labels \(4,\)"):
        measures.accuracy(np.zeros((4, 1), int), np.zeros(4, int))
    with pytest.raises(ValueError, match="N >= 1"):
        measures.accuracy(np.zeros(0, int), np.zeros(0, int))


def test_classifier_result_with_a_short_last_batch():
    # 5 images in batches of 2: a mean of batch means would give (1 + 1 + 0) / 3 instead of 4 / 5.
    dataset = toy_dataset([LEFT, RIGHT, LEFT, LEFT, LEFT], [0, 1, 0, 0, 1])
    model = ToyClassifier(torch.tensor([[4.0, 0, 0, 0], [0, 0, 4.0, 0]])).train()
    result = classifier.test_classifier(model, dataset, batch_size=2)
    assert result.accuracy == 0.8
    assert result.n == 5
    assert result.confusion.tolist() == [[3, 0], [1, 1]]
    assert result.per_class_accuracy.tolist() == [1.0, 0.5]
    assert result.probabilities[0, 0] == pytest.approx(1 / (1 + math.exp(-4)), abs=1e-6)
    assert model.training  # as before


def test_a_class_without_images_has_no_accuracy():
    result = classifier.ClassifierResult(["a", "b"], np.array([0]), np.array([[0.9, 0.1]]))
    assert result.per_class_accuracy[0] == 1.0
    assert math.isnan(result.per_class_accuracy[1])


def test_a_classifier_of_other_classes_is_refused():
    model = ToyClassifier(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"knows 3 classes, dataset 'toy' has 2 \(left, right"):
        classifier.test_classifier(model, toy_dataset([LEFT], [0]))


def test_a_sample_of_a_sorted_dataset_reaches_all_of_it():
    chosen = batches.choose_images(1000, 50, seed=0)
    assert len(set(chosen)) == 50
    assert chosen.min() < 100 and chosen.max() > 900
    assert (batches.choose_images(1000, 50, seed=0) == chosen).all()
    assert (batches.choose_images(1000, 50, seed=1) != chosen).any()
    assert (batches.choose_images(7, None, seed=0) == np.arange(7)).all()
    with pytest.raises(ValueError, match="limit is 0"):
        batches.choose_images(7, 0, seed=0)


# --- the ensemble ---------------------------------------------------------------------------------------------------


def test_ensemble_accuracy_agreement_and_reconstruction():
    # f calls the last image right, g calls it left, the label is right; the offset in one colour of three adds 0.4 / 3.
    g = [[4.0, 1.0, 4.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
    dataset = toy_dataset([[0.5, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0]], [0, 0, 1])
    result = measure(ToyEnsemble(g=g, offset=0.4), dataset, batch_size=2).to_dict()
    assert result["classifier"]["accuracy"] == 1.0
    assert result["ensemble"]["accuracy"] == pytest.approx(2 / 3)
    assert result["ensemble"]["agreement"] == pytest.approx(2 / 3)
    assert result["ensemble"]["accuracy_on_reconstructions"] == pytest.approx(2 / 3)
    assert result["classifier"]["accuracy_on_reconstructions"] == 1.0
    assert result["reconstruction"]["l1"] == pytest.approx(0.4 / 3, rel=1e-3)
    assert result["reconstruction"]["mse"] == pytest.approx(0.16 / 3, rel=1e-3)
    assert result["reconstruction"]["perceptual"] == pytest.approx(0.4, rel=1e-3)
    assert result["reconstruction"]["perceptual_name"] == "largest difference"
    # every mean feature moves by a quarter of 0.4 / 6 (amounts are half of the mean over colours), covariances stay
    assert result["reconstruction"]["fid"] == pytest.approx(4 * (0.4 / 6 / 4) ** 2, rel=1e-3)


def test_reconstruction_is_exact_when_the_generator_is():
    dataset = toy_dataset(np.random.default_rng(0).random((9, 4)), [0] * 9)
    result = measure(ToyEnsemble(), dataset, batch_size=4).to_dict()["reconstruction"]
    assert result["l1"] == pytest.approx(0, abs=1e-6)
    assert result["fid"] == pytest.approx(0, abs=1e-6)


def softmax(*logits: float) -> np.ndarray:
    values = np.exp(logits)
    return values / values.sum()


def test_faithfulness_of_the_toy_ensemble_by_hand():
    # Amounts 1, 0.8, 0.2, 0: contributions to class 0 are 4, 0.8, 0, 0, so r = 1, 0.2, 0, 0.
    amounts = [1.0, 0.8, 0.2, 0.0]
    result = measure(ToyEnsemble(), toy_dataset([amounts] * 3, [0] * 3), batch_size=2)
    before = softmax(4.8, 0.8)[0]
    both, first = softmax(0, 0.8)[0], softmax(0.8, 0.8)[0]
    found = {item.threshold: item for item in result.faithfulness}
    assert found[0.1].removed.tolist() == [2, 2, 2]
    assert found[0.4].removed.tolist() == [1, 1, 1]
    assert found[0.1].relevant == pytest.approx([before - both] * 3, abs=1e-5)
    assert found[0.4].relevant == pytest.approx([before - first] * 3, abs=1e-5)
    report = result.to_dict()["faithfulness"]
    assert list(report) == ["0.1", "0.2", "0.4"]
    assert report["0.1"]["relevant"] == pytest.approx(before - both, abs=1e-5)


@torch.no_grad()
def test_only_concepts_above_the_threshold_are_removed():
    model, concept_maps = ToyEnsemble(), torch.ones(1, 4, 3, 3)
    generated = faithfulness.Generated(torch.tensor([[1.0, 0.0]]), concept_maps, concept_maps.flatten(1))
    relevance, classes = torch.tensor([[1.0, 0.25, -1.0, 0.5]]), torch.tensor([0])
    results = faithfulness.probability_falls(
        model, generated, relevance, classes, np.array([0]), seed=0, thresholds=(0.0, 0.25, 0.5, 1.0)
    )
    assert [int(item.removed[0]) for item in results] == [3, 2, 1, 0]


def test_the_control_removes_as_many_random_concepts():
    # Removing one concept at random from four gives one of exactly four falls, each in about a quarter of the images.
    amounts, n = [1.0, 0.8, 0.6, 0.2], 400
    result = measure(ToyEnsemble(), toy_dataset([amounts] * n, [0] * n))
    control = next(item for item in result.faithfulness if item.threshold == 0.4)
    logits = np.array([4.8, 2.4])
    lost = np.array([[4.0, 0], [0.8, 0], [0, 2.4], [0, 0]])
    expected = [softmax(*logits)[0] - softmax(*(logits - part))[0] for part in lost]
    nearest = np.abs(control.random[:, None] - np.array(expected)).argmin(1)
    assert control.random == pytest.approx(np.array(expected)[nearest], abs=1e-4)
    assert np.bincount(nearest, minlength=4) / n == pytest.approx([0.25] * 4, abs=0.07)


def test_results_do_not_depend_on_the_batch_size():
    dataset = toy_dataset(np.random.default_rng(1).random((23, 4)), [0, 1] * 11 + [0])
    a, b = (measure(ToyEnsemble(), dataset, batch_size=size, seed=5) for size in (1, 23))
    for left, right in zip(a.faithfulness, b.faithfulness, strict=True):
        assert left.relevant == pytest.approx(right.relevant, abs=1e-5)
        assert left.random == pytest.approx(right.random, abs=1e-5)
    assert a.to_dict()["reconstruction"]["mse"] == pytest.approx(b.to_dict()["reconstruction"]["mse"])


def test_a_constant_ensemble_is_at_chance_and_falls_nowhere():
    # g without weights calls everything class 0 and depends on no concept.
    dataset = toy_dataset(np.random.default_rng(2).random((20, 4)), [0, 1] * 10)
    result = measure(ToyEnsemble(g=[[0.0] * 4, [0.0] * 4]), dataset).to_dict()
    assert result["ensemble"]["accuracy"] == 0.5
    assert all(item["relevant"] == item["random"] == item["removed"] == 0 for item in result["faithfulness"].values())


def test_a_generator_that_ignores_concepts_cannot_be_faithful():
    class Blind(ToyEnsemble):
        def decode(self, concept_maps, support, noise_mode="const"):
            return super().decode(support.unflatten(1, (4, 3, 3)), support)

    result = measure(Blind(), toy_dataset([[1.0, 0.8, 0.2, 0.0]] * 3, [0] * 3))
    assert all(abs(item.relevant).max() < 1e-6 and item.removed.min() > 0 for item in result.faithfulness)


def test_faithfulness_of_a_sample_covers_the_whole_dataset():
    amounts = np.random.default_rng(3).random((60, 4))
    result = measure(ToyEnsemble(), toy_dataset(amounts, [0] * 60), faithfulness_limit=10, batch_size=7)
    assert result.n == 60
    assert {len(item.relevant) for item in result.faithfulness} == {10}


def test_one_value_per_batch_is_no_distance():
    with pytest.raises(ValueError, match="one value per image"):
        ensemble.test_ensemble(
            ToyEnsemble(), toy_dataset([LEFT] * 3, [0] * 3), perceptual=(lambda a, b, c, d: (a - b).mean(), "mean")
        )


def test_random_ranks_depend_on_seed_and_index_alone():
    ranks = batches.random_ranks(1, 2, 10)
    assert sorted(ranks) == list(range(10))
    assert (ranks == batches.random_ranks(1, 2, 10)).all()
    assert (ranks != batches.random_ranks(1, 3, 10)).any()


# --- ground truth ---------------------------------------------------------------------------------------------------


def test_auroc_by_hand_and_against_scikit_learn():
    # positives 3, 1; negatives 2, 1: pairs won 3>2, 3>1, tie 1=1, lost 1<2 -> 2.5 of 4
    scores, truths = np.array([[3.0], [1.0], [2.0], [1.0]]), np.array([[True], [True], [False], [False]])
    assert measures.auroc(scores, truths).item() == 0.625
    rng = np.random.default_rng(0)
    scores, truths = rng.integers(0, 5, (50, 3)).astype(float), rng.random((50, 2)) < 0.3
    expected = [[roc_auc_score(t, s) for s in scores.T] for t in truths.T]
    assert measures.auroc(scores, truths) == pytest.approx(np.array(expected))


def test_auroc_of_a_constant_truth_is_undefined():
    assert np.isnan(measures.auroc(np.zeros((3, 2)), np.ones((3, 1), bool))).all()


def test_attribute_scores_choose_on_validation_and_measure_on_test():
    attribute = np.array([True, False] * 50)
    noise = np.random.default_rng(0).random(100)
    # On validation concept 1 is the perfect opposite; on test it errs in a tenth of the positives,
    # concept 0 is perfect.
    validation = np.stack([noise, -attribute.astype(float)], 1)
    flipped = attribute.copy()
    flipped[:10:2] = False
    test = np.stack([attribute.astype(float), -flipped.astype(float)], 1)
    both = np.stack([attribute, np.arange(100) < 4], 1)
    result = truth.attribute_scores(validation, both, test, both, ["crest", "rare"])
    (score,) = result.scores
    assert (score.name, score.concept, score.direction) == ("crest", 1, -1)
    assert score.auroc_validation == 1.0
    assert score.auroc == pytest.approx(0.95)  # 45 of 50 positives rank above, 5 tie with all negatives
    assert result.left_out == ["rare"]
    assert result.to_dict()["mean_auroc"] == pytest.approx(0.95)


def test_random_concepts_are_near_chance_on_test():
    rng = np.random.default_rng(0)
    attributes = rng.random((2, 400, 5)) < 0.5
    activations = rng.random((2, 400, 64))
    result = truth.attribute_scores(
        activations[0], attributes[0], activations[1], attributes[1], [str(i) for i in range(5)]
    )
    assert 0.45 < result.mean_auroc < 0.55  # chosen on the test images they would reach 0.57


def test_no_frequent_attribute():
    zeros = np.zeros((10, 1), bool)
    with pytest.raises(ValueError, match="no attribute has at least 5%"):
        truth.attribute_scores(np.zeros((10, 2)), zeros, np.zeros((10, 2)), zeros, ["never"])


class WithTruth(type(toy_dataset([LEFT], [0]))):
    """Attribute 0: the first quadrant is bright; attribute 1: the last one is dark."""

    has_truth = True
    attribute_names = ("first bright", "last dark")

    @property
    def attributes(self):
        corners = self.pixels[:, [0, -1], [0, -1], 0] > 127
        return np.stack([corners[:, 0], ~corners[:, 1]], 1)


def test_attributes_of_the_toy_ensemble_are_found_with_their_direction():
    rng = np.random.default_rng(0)
    splits = []
    for split in ("validation", "test"):
        plain = toy_dataset(rng.random((80, 4)), [0, 1] * 40, split)
        splits.append(WithTruth("toy", split, plain.pixels, plain.labels, plain.class_names))
    result = truth.test_attributes(ToyEnsemble(), *splits, batch_size=32)
    assert [(s.concept, s.direction, s.auroc) for s in result.scores] == [(0, 1, 1.0), (3, -1, 1.0)]


def test_untrained_copy_has_other_weights_and_leaves_the_original_alone():
    model = ToyEnsemble()
    model.concept_extractor = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(2, 2, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = truth.untrained(model, 1), truth.untrained(model, 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(first.state_dict()[key], second.state_dict()[key])
        assert torch.equal(first.state_dict()[key], value) is not key.startswith("concept_extractor")
