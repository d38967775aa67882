"""Concept statistics, amplification, heatmaps and logs, with values known by hand."""

import json

import numpy as np
import pytest
import torch
from toy_ensemble import SIZE, ToyEnsemble, toy_dataset

from stylegan2_ada.networks import Generator
from viscoin.analysis import amplification, concepts
from viscoin.attribution import heatmaps
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.ensemble import VisCoIN
from viscoin.models.explainer import Explainer
from viscoin.models.generator import AdaptedGenerator
from viscoin.runs import metrics


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of our own."""
    monkeypatch.setattr(concepts, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "concepts"


@pytest.fixture(scope="module")
def small():
    """A real ensemble with random weights: 5 concepts, 2 classes, 32 px."""
    torch.manual_seed(0)
    classifier = Classifier("viscoin_resnet10", 2, 32)
    generator = Generator(8, 0, 16, 32, 3, synthesis_kwargs={"channel_base": 256, "channel_max": 16})
    generator.mapping.w_avg.normal_()
    return VisCoIN(
        classifier,
        ConceptExtractor(classifier.feature_shapes, 5, 8),
        Explainer(5, 2),
        AdaptedGenerator.from_pretrained(generator, 5, 1, 5),
        ["a", "b"],
    ).eval()


# --- concept statistics ---------------------------------------------------------------------------------------------


def table(activations, labels, predicted, relevance=None):
    activations = np.asarray(activations, dtype=float)
    probabilities = np.eye(2)[predicted]
    relevance = activations if relevance is None else np.asarray(relevance)
    return concepts.ConceptTable(
        activations,
        probabilities,
        probabilities,
        np.asarray(labels),
        relevance,
        np.arange(len(labels)),
        np.zeros((2, activations.shape[1])),
    )


def test_entropy_is_zero_for_one_class_one_for_all_and_undefined_for_dead_concepts():
    # concept 0 in class 0 only; concept 1 alike in both; concept 2 means 1 and 3 -> shares 1/4, 3/4; concept 3 dead
    result = table([[2, 1, 0, 0], [0, 1, 2, 0], [0, 1, 3, 0]], [0, 0, 1], [0, 0, 1])
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert result.entropy[:3] == pytest.approx([0, 1, quarter])
    assert np.isnan(result.entropy[3])
    assert result.dead.tolist() == [False, False, False, True]


def test_importances_by_hand():
    relevance = [[1.0, 0.5], [0.0, 1.0], [-1.0, 1.0], [0.2, 1.0]]
    result = table(np.ones((4, 2)), [0, 0, 1, 0], [0, 0, 1, 1], relevance)
    assert result.class_concept_importance == pytest.approx(np.array([[0.5, 0.75], [-0.4, 1.0]]))
    # concept 0 speaks for class 0 only, concept 1 for both in proportion 0.75 to 1
    assert result.concept_class_importance == pytest.approx(np.array([[1, 0], [0.75 / 1.75, 1 / 1.75]]))
    assert result.concepts_per_class.tolist() == [2, 1]


def test_a_class_that_is_never_predicted_has_no_importance():
    result = table(np.ones((2, 3)), [0, 1], [0, 0])
    assert np.isnan(result.class_concept_importance[1]).all()
    assert result.concept_class_importance == pytest.approx(np.array([[1.0, 0.0]] * 3))


def test_counts_of_active_concepts():
    result = table([[3, 0, 1], [0, 0, 2]], [0, 1], [0, 1])
    assert result.active_per_image.tolist() == [2, 1]
    assert result.active_share.tolist() == [0.5, 0.0, 1.0]
    assert result.mean_activation.tolist() == [1.5, 0.0, 1.5]
    assert result.activation_by_rank[1].tolist() == [2.5, 0.5, 0.0]


def test_collected_concepts_of_the_toy_ensemble():
    amounts = np.array([[1.0, 0.8, 0.2, 0.0], [0.0, 0.0, 0.6, 0.4]])
    result = concepts.collect_concepts(ToyEnsemble(), toy_dataset(amounts, [0, 1]), batch_size=1)
    assert result.activations == pytest.approx(amounts, abs=1e-6)
    assert result.relevance == pytest.approx(np.array([[1, 0.2, 0, 0], [0, 0, 1, 0]]), abs=1e-6)
    assert result.predicted.tolist() == [0, 1]
    assert result.labels.tolist() == [0, 1]


def test_the_cache_is_used_and_force_computes_anew(monkeypatch, cache):
    model, dataset = ToyEnsemble(), toy_dataset(np.random.default_rng(0).random((6, 4)), [0, 1] * 3)
    first = concepts.collect_concepts(model, dataset)
    calls = []
    compute = concepts._compute
    monkeypatch.setattr(concepts, "_compute", lambda *args: calls.append(1) or compute(*args))
    assert (concepts.collect_concepts(model, dataset).activations == first.activations).all()
    assert not calls
    concepts.collect_concepts(model, dataset, force=True)
    assert len(calls) == 1
    assert len(list(cache.glob("*.npz"))) == 1


def test_the_cache_never_mixes_models_images_or_samples(cache):
    amounts = np.random.default_rng(0).random((6, 4))
    model, dataset = ToyEnsemble(), toy_dataset(amounts, [0, 1] * 3)
    concepts.collect_concepts(model, dataset)
    other_model = ToyEnsemble(g=[[0.0, 0, 0, 1], [1, 0, 0, 0]])
    assert concepts.collect_concepts(other_model, dataset).relevance[0, 2] == 0
    brighter = concepts.collect_concepts(model, toy_dataset(amounts * 0.5, [0, 1] * 3))  # same name, split and size
    assert brighter.activations == pytest.approx(amounts * 0.5, abs=0.01)
    assert len(concepts.collect_concepts(model, dataset, limit=4).labels) == 4
    assert concepts.collect_concepts(model, toy_dataset(amounts, [1] * 6)).labels.tolist() == [1] * 6
    assert len(list(cache.glob("*.npz"))) == 5


def test_a_damaged_cache_is_computed_again(cache):
    model, dataset = ToyEnsemble(), toy_dataset(np.random.default_rng(0).random((6, 4)), [0, 1] * 3)
    first = concepts.collect_concepts(model, dataset)
    (file,) = cache.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert (concepts.collect_concepts(model, dataset).activations == first.activations).all()


# --- amplification --------------------------------------------------------------------------------------------------

RELEVANCE = torch.tensor([[1.0, 0.2, -0.5, 0.3], [0.1, 1.0, 0.9, 0.0]])


def test_select_concepts_by_each_way():
    select = amplification.select_concepts
    assert select(RELEVANCE, threshold=0.2).tolist() == [[True, False, False, True], [False, True, True, False]]
    assert select(RELEVANCE, top_k=1).tolist() == [[True, False, False, False], [False, True, False, False]]
    assert select(RELEVANCE, top_k=4).all()
    assert select(RELEVANCE, indices=[3, 0]).tolist() == [[True, False, False, True]] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of `threshold`, `top_k`, `indices`; got none"),
        ({"threshold": 0.2, "top_k": 2}, "got `threshold` and `top_k`"),
        ({"top_k": 5}, "top_k 5: out of range; the ensemble has 4 concepts"),
        ({"top_k": 0}, "top_k 0: out of range"),
        ({"threshold": 1.0}, "threshold 1.0: out of range"),
        ({"threshold": -0.1}, "threshold -0.1: out of range"),
        ({"indices": [0, 4, -1]}, "indices '4, -1': out of range; the ensemble has 4 concepts"),
        ({"indices": []}, "indices: no concepts are given; the ensemble has 4 concepts"),
    ],
)
def test_select_concepts_names_the_wrong_option(options, message):
    with pytest.raises(ValueError, match=message):
        amplification.select_concepts(RELEVANCE, **options)


def test_amplification_of_the_toy_ensemble_by_hand():
    model, dataset = ToyEnsemble(), toy_dataset([[0.2, 0.4, 0.6, 0.0], [0.4, 0.0, 0.0, 0.2]], [1, 0])
    images, _ = dataset.batch([0, 1])
    selection = torch.tensor([[False, False, True, False], [True, False, False, False]])
    result = amplification.amplify_images(model, images, selection, factors=(0, 1, 2), batch_size=1)
    assert result.predicted.tolist() == [1, 0]
    assert result.images.shape == (2, 3, SIZE, SIZE, 3)
    assert (result.images[:, 1] == result.originals).all()  # the toy's reconstruction is exact
    assert result.images[0, :, -1, 0, 0].tolist() == [0, 153, 255]  # concept 2, lower left: 0, 0.6, 1.2 clamped
    assert (result.images[0, 2, : SIZE // 2] == result.originals[0, : SIZE // 2]).all()  # nothing else moves
    assert result.changes[1, :, 0, 0] == pytest.approx([0.4, 0, 0.4], abs=1e-3)
    logits = np.array([[0.2 * 4 + 0.4, 4 * amount] for amount in (0, 0.6, 1.0)])
    expected = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    assert result.g_probability[0] == pytest.approx(expected, abs=1e-4)
    assert result.g_original[0] == pytest.approx(expected[1], abs=1e-4)


def test_one_row_for_each_concept():
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    rows, single = amplification.one_by_one(images, torch.tensor([[True, False, True], [False, True, False]]))
    assert rows[:, 0, 0, 0].tolist() == [0, 0, 1]
    assert single.long().argmax(1).tolist() == [0, 2, 1]
    assert (single.sum(1) == 1).all()


def test_amplification_refuses_negative_multipliers_and_missing_images():
    model, images = ToyEnsemble(), torch.zeros(1, 3, SIZE, SIZE)
    selection = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="0 or more, got 1, -2"):
        amplification.amplify_images(model, images, selection, factors=(1, -2))
    with pytest.raises(ValueError, match="1 selections for 0 images"):
        amplification.amplify_images(model, images[:0], selection)


def test_relevance_of_images_is_that_of_the_class_g_predicts():
    images, _ = toy_dataset([[0.2, 0.4, 0.9, 0.0]], [1]).batch([0])
    assert amplification.image_relevance(ToyEnsemble(), images).tolist() == [[0, 0, 1, 0]]


# --- heatmaps -------------------------------------------------------------------------------------------------------


def test_heatmaps_of_the_toy_ensemble_lie_on_their_quadrants():
    images, _ = toy_dataset([[1.0, 0.8, 0.6, 0.0]], [0]).batch([0])
    result = heatmaps.concept_heatmaps(ToyEnsemble(), images, torch.tensor([[0, 1, 2, 3]]))
    half = SIZE // 2
    for concept, (y, x) in enumerate([(0, 0), (0, half), (half, 0)]):
        heat = result.heatmaps[0, concept]
        assert heat.max() == 1
        assert heat[y + 1 : y + half - 1, x + 1 : x + half - 1].min() > 0.9
        assert heat[y : y + half, x : x + half].sum() > 0.7 * heat.sum()
    assert (result.heatmaps[0, 3] == 0).all()  # not active
    assert result.activations == pytest.approx(np.array([[1.0, 0.8, 0.6, 0.0]]), abs=1e-6)
    assert result.grids[0, 1].max() == pytest.approx(0.8, abs=1e-6)


def test_the_default_concepts_are_the_most_relevant_ones():
    images, _ = toy_dataset([[1.0, 0.8, 0.6, 0.0]], [0]).batch([0])
    result = heatmaps.concept_heatmaps(ToyEnsemble(), images, top=2)
    assert result.concepts.tolist() == [[0, 1]]
    assert result.relevance == pytest.approx(np.array([[1.0, 0.2]]), abs=1e-6)


def test_two_concepts_of_a_real_ensemble_have_different_heatmaps(small):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    result = heatmaps.concept_heatmaps(small, images, torch.arange(5).expand(2, 5))
    active = result.heatmaps[:, (result.activations > 0).all(0)]
    assert active.shape[1] >= 2
    assert (active.max((2, 3)) == 1).all() and active.min() >= 0
    for one in range(active.shape[1]):
        for other in range(one):
            assert np.abs(active[:, one] - active[:, other]).mean() > 0.01


def test_heatmaps_leave_no_gradients_behind_and_work_with_one_stage(small):
    images = (torch.rand(1, 3, 32, 32) * 2 - 1).to(memory_format=torch.channels_last)  # as datasets give them
    for stage in range(3):
        assert heatmaps.concept_heatmaps(small, images, top=2, stages=(stage,)).heatmaps.shape == (1, 2, 32, 32)
    assert all(parameter.grad is None for parameter in small.parameters())
    assert images.grad is None and not images.requires_grad


def test_heatmaps_refuse_unknown_concepts_and_stages(small):
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="concept_indices 5: out of range; there are 5 concepts"):
        heatmaps.concept_heatmaps(small, images, torch.tensor([[0, 5]]))
    with pytest.raises(ValueError, match="stage 3: unknown stage"):
        heatmaps.concept_heatmaps(small, images, stages=(3,))


# --- logs -----------------------------------------------------------------------------------------------------------


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_our_metrics_and_broken_lines(tmp_path, caplog):
    lines = [{"step": 50, "time": 1.5, "train.l1": 0.4}, '{"step": 100, "tra', {"step": 100, "validation.l1": 0.3}]
    write(tmp_path / "metrics.jsonl", lines)
    log = metrics.read_log(tmp_path)
    assert log.broken == 1
    assert "1 of 3 lines are broken" in caplog.text
    assert log.measures == ["l1"]
    assert [(s.tolist(), v.tolist()) for s, v in log.series.values()] == [([50], [0.4]), ([100], [0.3])]


def test_the_older_tools_log(tmp_path):
    lines = [{"train_loss": 2.0, "test_acc": 0.5}, "INFO: " + json.dumps({"train_loss": 1.0, "test_acc": 0.7})]
    log = metrics.read_log(write(tmp_path / "viscoin_30.log", lines))
    assert log.series["train.loss"][0].tolist() == [1, 2]  # lines are counted
    assert log.series["test.acc"][1].tolist() == [0.5, 0.7]


def test_a_log_without_numbers_or_a_missing_one(tmp_path):
    with pytest.raises(ValueError, match=r"no line with numbers \(2 of 2 lines are broken\)"):
        metrics.read_log(write(tmp_path / "a.log", ["hello", "[1, 2]"]))
    with pytest.raises(ValueError, match="cannot read the log"):
        metrics.read_log(tmp_path / "b.log")


def test_smoothing_keeps_a_constant_and_weighs_the_past():
    assert metrics.smooth(np.full(5, 3.0), 0.9) == pytest.approx(np.full(5, 3.0))
    assert metrics.smooth(np.array([0.0, 1.0]), 0.5) == pytest.approx([0, 2 / 3])
    assert metrics.smooth(np.array([1.0, 5.0]), 0).tolist() == [1, 5]
    with pytest.raises(ValueError, match="smoothing 1: out of range"):
        metrics.smooth(np.ones(2), 1)
