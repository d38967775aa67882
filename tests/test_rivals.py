"""Rivals of the concepts on maps whose answer is known, and the linear surrogates (SURF) of all of them."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import softmax
from test_pursuit import world
from torch import nn
from toy_ensemble import ToyEnsemble, toy_dataset

from viscoin.errors import Refused
from viscoin.statistics.bootstrap import Estimate
from viscoin.statistics.measures import auroc
from viscoin.testing import baselines, surrogate, table, viscoin
from viscoin.testing.rivals import FITS, Seen, fit_pursuit, fit_random, fit_sae
from viscoin.testing.sparse_autoencoder import sparse_autoencoder

# --- each rival -----------------------------------------------------------------------------------------------------


class LinearLast(nn.Module):
    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.last_layer = nn.Linear(weight.shape[1], len(weight))
        self.last_layer.weight = nn.Parameter(torch.from_numpy(weight).float())


class NoLinearLast(nn.Module):
    @property
    def last_layer(self) -> nn.Linear:
        raise Refused("classifier.backbone", "other", "its last layer is Conv2d", "a linear last layer is needed here")


@pytest.fixture(scope="module")
def seen():
    """Maps of 3x3 equal places, of 600 images of a world of 5 binary attributes; which class each is of."""
    weight, features, codes = world()
    rng = np.random.default_rng(1)
    classes = rng.integers(0, len(weight), 600)
    # an image's features point to its class, in the directions of the last layer
    features = (weight[classes] + 0.1 * rng.normal(size=(600, weight.shape[1]))).astype(np.float32)
    maps = np.repeat(features, 9, 1).reshape(600, -1, 3, 3)
    return Seen(LinearLast(weight), features, maps, 0), codes[classes] > 0


def best(activations: np.ndarray, truth: np.ndarray) -> np.ndarray:
    areas = auroc(activations, truth)
    return np.maximum(areas, 1 - areas).max(1)


def test_the_pursuit_finds_what_the_last_layer_holds_and_random_directions_do_not(seen):
    images, truth = seen
    found, control = (fit(images, 10)(images.maps) for fit in (fit_pursuit, fit_random))
    assert found.shape == control.shape == (600, 10) and found.min() >= 0
    assert best(found, truth).min() > 0.99
    assert best(control, truth).mean() < 0.9
    # both signs of each direction: an image is active in one of them
    assert (found[:, :5] * found[:, 5:] == 0).all()


def test_an_odd_number_of_concepts_leaves_out_one_sign(seen):
    even, odd = (fit_random(seen[0], k)(seen[0].maps) for k in (8, 7))
    assert odd == pytest.approx(even[:, :7], abs=1e-5)


def test_every_rival_has_k_activations_or_all_that_there_are(seen):
    images = seen[0]
    widths = {name: fit(images, 30)(images.maps[:4]).shape for name, fit in FITS.items() if name != "pursuit"}
    limited = dict.fromkeys(("nmf", "ica", "pca", "channels_k", "channels"), (4, 24))
    assert widths == limited | {"random": (4, 30), "sae": (4, 30)}


def test_the_autoencoder_finds_the_directions_that_vectors_are_made_of():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(32, 32)))[0][:12]
    amounts = rng.uniform(1, 2, (4000, 12)) * (rng.random((4000, 12)) < 0.2)
    vectors = torch.from_numpy(amounts @ directions + 3).float()
    weight, bias, decoder = sparse_autoencoder(vectors, 16, seed=0)
    assert decoder.norm(dim=1) == pytest.approx(np.ones(16), abs=1e-4)
    found = np.abs(decoder.numpy() @ directions.T).max(0)
    assert (found > 0.9).sum() >= 11  # the nearest of 16 random ones has about 0.4
    latents = (vectors @ weight + bias).relu().numpy()
    assert best(latents, amounts > 0)[found > 0.9].min() > 0.95


def test_latents_of_an_image_are_the_largest_over_places(seen):
    images = seen[0]
    rival = fit_sae(images, 8)
    maps = images.maps[:2].copy()
    maps[1, :, 2, 2] = images.maps[5, :, 0, 0]
    one, mixed, other = rival(np.stack([images.maps[1], maps[1], images.maps[5]]))
    assert mixed == pytest.approx(np.maximum(one, other), abs=1e-4)


def test_a_rival_that_cannot_be_is_left_out_with_its_reason(caplog):
    dataset = toy_dataset(np.random.default_rng(0).random((20, 4)), [0, 1] * 10)
    ensemble = ToyEnsemble()
    with caplog.at_level(logging.WARNING):
        functions = baselines.concept_functions(ensemble, dataset, np.arange(20), rivals=("pursuit", "pca"))
    assert list(functions(dataset.batch([0])[0])) == ["concepts", "pca"]
    assert "rival pursuit is left out: viscoin.n_concepts: the pursuit finds 1 directions" in caplog.text
    with pytest.raises(Refused, match="its last layer is Conv2d"):
        fit_pursuit(Seen(NoLinearLast(), np.ones((9, 4)), np.ones((9, 4, 3, 3)), 0), 4)


def test_rivals_are_chosen_by_name():
    assert baselines.choose_rivals(None) == baselines.choose_rivals(["all"]) == baselines.RIVALS
    assert baselines.choose_rivals(["none"]) == ()
    assert baselines.choose_rivals(["pca", "sae"]) == ("sae", "pca")
    with pytest.raises(Refused, match="rivals kmeans: there is no such rival; choose all, none or some of pursuit, "):
        baselines.choose_rivals(["pca", "kmeans"])


# --- surrogates -----------------------------------------------------------------------------------------------------


def test_errors_of_a_surrogate_by_hand():
    expected, logits = np.array([[0.0, np.log(3)], [2.0, 2.0]]), np.array([[5.0, 5.0], [1.0, 1.0]])
    found = surrogate.Surrogate.of(logits, expected)
    # probabilities 1/4, 3/4 against 1/2, 1/2; a constant on all logits of an image is no error
    assert found.emd == pytest.approx([0.25, 0])
    assert found.mae == pytest.approx([np.log(3) / 2, 0])
    assert list(found.agreement) == [False, True]


def test_what_is_linear_in_the_concepts_has_a_perfect_surrogate():
    rng = np.random.default_rng(0)
    known, new, weight = rng.random((200, 6)), rng.random((300, 6)), rng.normal(size=(6, 5))
    perfect = surrogate.Surrogate.of(surrogate.linear_surrogate(known, known @ weight + 7, new), new @ weight - 7)
    assert perfect.mae.max() < 1e-3 and perfect.emd.max() < 1e-3 and perfect.agreement.mean() > 0.99
    random = surrogate.Surrogate.of(
        surrogate.linear_surrogate(rng.random((200, 6)), known @ weight, rng.random((300, 6))), new @ weight
    )
    assert random.mae.mean() > 0.2 and random.emd.mean() > 10 * perfect.emd.mean()


def test_surrogates_of_an_ensemble_and_its_rivals():
    rng = np.random.default_rng(0)
    sizes = {"validation": 60, "test": 80}
    splits = [toy_dataset(rng.random((n, 4)), [0, 1] * (n // 2), split) for split, n in sizes.items()]
    # f weighs its four quadrants, g only two of them; concepts are the quadrants
    ensemble = ToyEnsemble(
        f=[[4.0, 1.0, 0.0, -2.0], [0.0, 0.0, 4.0, 1.0]], g=[[4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]]
    )
    compared = baselines.compare(ensemble, *splits, limit=70, rivals=("pca", "channels_k"))
    found = surrogate.test_surrogates(ensemble, *splits, compared)
    errors = {name: part["mae"] for name, part in found.to_dict().items() if name != "fitted_to"}
    assert list(errors) == ["theta", "concepts", "pca", "channels_k", "constant"] and found.fitted_to == 60
    assert max(errors[name] for name in ("concepts", "pca", "channels_k")) < 0.02
    assert 0.2 < errors["theta"] < errors["constant"]
    estimate = found.estimates()["theta.emd"]
    assert estimate.low < estimate.value < estimate.high and estimate.n == 70
    amounts = splits[1].pixels[compared.chosen][:, ::7, ::7, 0].reshape(70, 4) / 255
    f, g = (amounts @ weight.detach().numpy().T for weight in (ensemble.classifier.weight, ensemble.weight))
    assert estimate.value == pytest.approx(np.abs(softmax(f, 1) - softmax(g, 1)).sum(1).mean() / 2, abs=1e-4)


def test_surrogates_are_a_measure_that_needs_validation_images():
    rng = np.random.default_rng(0)
    validation, test = (toy_dataset(rng.random((30, 4)), [0, 1] * 15, split) for split in ("validation", "test"))
    found = viscoin.measure_viscoin(ToyEnsemble(), test, validation, ["surrogate"], rivals=["random"])
    assert {key.split(".")[1] for key in found.estimates()} == {"theta", "concepts", "random", "constant"}
    assert set(found.to_dict()) == {"n", "seed", "surrogate"}
    rows, header = table.rival_table(found.estimates())
    assert header == ("concepts and rivals", "SURF logits", "SURF prob.")
    assert [row[0] for row in rows] == ["theta", "concepts", "random", "constant"]
    with pytest.raises(ValueError, match="need validation images"):
        viscoin.measure_viscoin(ToyEnsemble(), test, measures=["surrogate"])
    with pytest.raises(Refused, match="a surrogate needs 10 validation images, there are 4"):
        few = toy_dataset(rng.random((4, 4)), [0, 1] * 2, "validation")
        viscoin.measure_viscoin(ToyEnsemble(), test, few, ["surrogate"], rivals=["none"])


def test_the_table_of_rivals_has_a_dash_where_nothing_was_measured():
    half = Estimate(0.5, 0.4, 0.6, 40)
    names = ("surrogate.theta.emd", "surrogate.concepts.emd", "attributes.concepts.found", "attributes.pca.found")
    rows, header = table.rival_table(dict.fromkeys(names, half))
    assert header == ("concepts and rivals", "found", "SURF prob.")
    assert rows == [("theta", "–", "0.50"), ("concepts", "0.50", "0.50"), ("pca", "0.50", "–")]
    assert table.rival_table({"ensemble.accuracy": half})[0] == []
