"""Consistency of concepts against values computed by hand."""

import numpy as np
import pytest
import torch
from toy_ensemble import ToyEnsemble, toy_dataset

from viscoin.inference.batches import TooFewImages
from viscoin.testing import consistency


def amounts(n: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 0.9, (n, 4)).round(2)


def measure(model, values, **options):
    dataset = toy_dataset(values, [0] * len(values))
    phi = dataset.pixels[:, [0, 0, -1, -1], [0, -1, 0, -1], 0] / 255.0
    return consistency.test_consistency(model, dataset, phi, np.arange(len(values)), **options)


class Partly(ToyEnsemble):
    """Draws concept 3 only where concept 0 is above `least`; remembers the values that it was given."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least, self.seen = least, []

    def decode(self, concept_maps, support, noise_mode="const"):
        phi = concept_maps.amax((2, 3))
        self.seen.append(phi.clone())
        original = support.unflatten(1, (4, 3, 3)).amax((2, 3))[:, 3]
        phi[:, 3] = torch.where(phi[:, 0] > self.least, phi[:, 3], original * 0 + 0.3)
        return super().decode(phi[..., None, None].expand(-1, -1, 3, 3), support)


class Noise(ToyEnsemble):
    """Draws anything."""

    def decode(self, concept_maps, support, noise_mode="const"):
        return torch.rand(len(concept_maps), 3, 8, 8) * 2 - 1


def test_concepts_that_are_drawn_are_told_apart_always():
    result = measure(ToyEnsemble(), amounts())
    assert result.accuracy.tolist() == [[1.0, 1.0]] * 4
    assert result.to_dict()["2"] == {"mean": 1.0, "sd": 0.0, "n": 4}
    assert (result.dead, result.rare, result.untested) == (0, 0, 0)
    assert [(item.images, item.test) for item in result.concepts] == [(60, 30)] * 4


def test_a_concept_that_changes_nothing_is_at_chance():
    result = measure(Partly(least=2), amounts())
    assert [item.accuracy for item in result.concepts] == [(1.0, 1.0)] * 3 + [(0.5, 0.5)]
    assert result.to_dict()["3"]["mean"] == pytest.approx(3.5 / 4)
    assert result.to_dict()["3"]["sd"] == pytest.approx(np.std([1, 1, 1, 0.5]))


def test_a_concept_that_changes_some_images_is_right_on_these_and_at_chance_on_the_others():
    values, seed = amounts(), 3
    result = measure(Partly(least=0.505), values, seed=seed)
    order = np.argsort(-values[:, 3], kind="stable")
    _, test = consistency._halves(60, seed, 3)
    expected = np.where(values[order][test, 0] > 0.505, 1, 0.5).mean()
    assert 0.6 < expected < 0.9
    assert result.concepts[3].accuracy == pytest.approx([expected] * 2)


def test_random_images_are_at_chance():
    torch.manual_seed(0)
    result = measure(Noise(), amounts(200))
    assert result.accuracy.mean() == pytest.approx(0.5, abs=0.07)  # 4 x 2 x 100 answers: sd 0.018


def test_phi_is_set_to_multiples_of_its_largest_value_and_to_zero_in_the_most_activating_images():
    values, model = amounts(50), Partly(least=0)
    result = measure(model, values, images=20, batch_size=100, concepts=1, factors=(2, 3))
    (item,) = result.concepts
    k, others = item.concept, [i for i in range(4) if i != item.concept]
    strongest = np.argsort(-values[:, k], kind="stable")[:20]
    assert (item.images, item.test) == (20, 10)
    for phi, target in zip(model.seen, (2 * values[:, k].max(), 3 * values[:, k].max(), 0), strict=True):
        assert phi[:, k].numpy() == pytest.approx([target] * 20, abs=0.02)
        assert phi[:, others].numpy() == pytest.approx(values[strongest][:, others], abs=0.01)


def test_both_versions_of_an_image_are_in_the_same_half():
    for n in (20, 21, 100):
        train, test = consistency._halves(n, 0, 5)
        assert sorted([*train, *test]) == list(range(n))
        assert len(test) - len(train) in (0, 1)
    assert (consistency._halves(100, 0, 5)[0] != consistency._halves(100, 0, 6)[0]).any()


def test_versions_that_do_not_differ_are_at_chance_however_many_features_there_are():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 30))
    assert consistency.separability(features, features, np.arange(20), np.arange(20, 40)) == 0.5
    shifted = features + np.eye(30)[0] * 20
    assert consistency.separability(shifted, features, np.arange(20), np.arange(20, 40)) == 1.0


def test_dead_and_rare_concepts_are_left_out_and_counted():
    values = amounts(60)
    values[:, 1:3] = 0
    values[consistency.FEWEST_IMAGES - 1 :, 3] = 0
    values[consistency.FEWEST_IMAGES :, 0] = 0
    result = measure(ToyEnsemble(), values)
    assert (result.dead, result.rare, result.untested) == (2, 1, 0)
    assert [(item.concept, item.images) for item in result.concepts] == [(0, 20)]


def test_a_sample_of_concepts_follows_the_seed():
    results = [measure(ToyEnsemble(), amounts(30), concepts=2, factors=(2,), seed=seed) for seed in (0, 0, 1, 2)]
    chosen = [[item.concept for item in result.concepts] for result in results]
    assert chosen[0] == chosen[1]
    assert len({tuple(part) for part in chosen}) > 1
    assert all(len(part) == 2 and part == sorted(part) for part in chosen)
    assert results[0].untested == 2
    assert measure(ToyEnsemble(), amounts(30), concepts=64, factors=(2,)).untested == 0


def test_the_batch_size_does_not_matter():
    one, all_at_once = (measure(Partly(least=0.5), amounts(), batch_size=size, factors=(2,)) for size in (7, 60))
    assert one.concepts == all_at_once.concepts


def test_intervals_are_over_concepts():
    found = measure(Partly(least=2), amounts()).estimates()
    assert list(found) == ["2", "3"]
    assert (found["2"].value, found["2"].n, found["2"].unit) == (0.875, 4, "concepts")
    assert 0.5 <= found["2"].low < 0.875 < found["2"].high == 1.0


def test_too_few_images_name_the_measure_and_the_numbers():
    with pytest.raises(TooFewImages, match=r"consistency needs 20 images .* of the 12 images at most 12 do"):
        measure(ToyEnsemble(), amounts(12))
    with pytest.raises(ValueError, match="at least 20 images of a concept, not 5"):
        measure(ToyEnsemble(), amounts(), images=5)
