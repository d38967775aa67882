"""Ground truth: concept functions whose answers are known, among them an oracle that sees the scene itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from tiny_models import tiny_recipe, write_models
from toy_ensemble import ToyEnsemble, toy_dataset

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset, to_pixels
from viscoin.datasets.birds import (
    ATTRIBUTE_GROUPS,
    PARTS,
    attribute_names,
    delete_part,
    image_attributes,
    swap_variant,
)
from viscoin.inference.batches import TooFewImages
from viscoin.models.files import load_model
from viscoin.plotting import truth as drawing
from viscoin.plotting.style import COLUMN, PAGE, figure_bytes
from viscoin.plotting.truth import purity_figure, truth_figures
from viscoin.statistics import measures
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing import baselines
from viscoin.testing.truth import attributes, causal, localisation, result, scenes, test_truth

measure_truth = test_truth
del test_truth  # pytest would collect it

NAMES = attribute_names()
EACH = ("oracle", "crest red")
CREST = PARTS.index("crest")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for module in (attributes, causal, localisation):
            patch.setattr(module, "RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def birds():
    config = DatasetConfig(name="birds", resolution=32, validation=60, test=60)
    return [load_dataset("birds", split, config) for split in ("validation", "test")]


class Oracle:
    """Functions of images that look up what was drawn: only pixels go in, the whole truth comes out."""

    def __init__(self, patch: pytest.MonkeyPatch, *datasets: ImageDataset) -> None:
        self.scenes, self.draw = {}, scenes.render
        self.random = np.random.default_rng(0)
        patch.setattr(scenes, "render", self.render)
        for dataset in datasets:
            for index in range(len(dataset)):
                self.render(*dataset.item(index)[:2], dataset.resolution)

    def render(self, bird, scene, size):
        image, masks = self.draw(bird, scene, size)
        self.scenes.setdefault(image.tobytes(), (bird, scene, masks))
        return image, masks

    def __call__(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        pixels = to_pixels(images)
        found = [self.scenes[image.tobytes()] for image in pixels]
        crest = [
            image[masks[CREST], 0].mean() if masks[CREST].any() else 0 for image, (_, _, masks) in zip(pixels, found)
        ]
        return {
            "oracle": np.array([image_attributes(bird, scene) for bird, scene, _ in found], float),
            "crest red": np.array(crest)[:, None],
            "all parts": np.array([[masks.any((1, 2)).sum()] for _, _, masks in found], float),
            "objects": np.array([[len(scene.background)] for _, scene, _ in found], float),
            "constant": np.ones((len(images), 3)),
            "random": self.random.random((len(images), 40)),
        }


@pytest.fixture(scope="module")
def truths(birds):
    """The measured truth about each of the oracle's functions."""
    with pytest.MonkeyPatch.context() as patch:
        oracle = Oracle(patch, *birds)
        known, new = (
            result.Observed(baselines.all_activations(oracle, dataset, np.arange(60), 32), dataset.attributes)
            for dataset in birds
        )
        interventions, responses = scenes.intervene(oracle, birds[1], np.arange(0, 60, 2), batch_size=64)
    return {
        name: result.function_truth(name, known, new, NAMES, interventions, responses[name], each=name in EACH)
        for name in known.activations
    }


def row(truth: result.FunctionTruth, attribute: str) -> dict:
    names = [score.name for score in truth.attributes.scores]
    return {name: estimate.value for name, estimate in truth.by_attribute[names.index(attribute)].items()}


# --- causal tests ---------------------------------------------------------------------------------------------------


def test_the_oracle_passes_every_test(truths):
    found = {name: estimate.value for name, estimate in truths["oracle"].summary.items()}
    assert found["auroc"] == found["found"] == 1
    assert found["deletion"] == found["deletion_first"] == found["swap"] == found["background"] == 1
    assert found["deletion_other"] == found["swap_other"] == 0
    assert found["purity"] == pytest.approx(1)
    assert 1 / 8 <= found["deletion_first_chance"] < 1 / 6
    assert np.diag(np.ones(12)).astype(bool)[truths["oracle"].reaction.argmax(1)].any(0).all()


def test_colour_inside_a_part_is_grounded_there(truths):
    found = row(truths["crest red"], "crest: none")  # weaker where there is no crest
    assert found["auroc"] == found["deletion"] == found["deletion_first"] == found["background"] == 1
    assert found["deletion_other"] < 0.05 and found["swap_other"] < 0.05
    assert found["swap"] == 1
    assert found["purity"] > 0.7


def test_a_concept_of_all_parts_falls_with_any(truths):
    found = {name: estimate.value for name, estimate in truths["all parts"].summary.items()}
    assert found["deletion"] == found["deletion_other"] > 0.95  # some parts uncover others
    assert found["deletion_first"] < 0.1


def test_a_concept_of_the_background_moves_with_it_alone(truths):
    found = {name: estimate.value for name, estimate in truths["objects"].summary.items()}
    assert found["background"] == 0
    assert found["deletion"] == found["deletion_other"] == found["swap"] == found["swap_other"] == 0
    assert "purity" not in found


def test_a_constant_is_at_chance_and_never_moves(truths):
    found = {name: estimate.value for name, estimate in truths["constant"].summary.items()}
    assert found["auroc"] == 0.5 and found["found"] == 0
    assert found["deletion"] == found["deletion_first"] == found["swap"] == 0
    assert found["background"] == 1


def test_a_random_function_moves_as_often_for_other_parts(truths):
    found = {name: estimate.value for name, estimate in truths["random"].summary.items()}
    assert found["auroc"] == pytest.approx(0.5, abs=0.05)
    # two uniform numbers differ by more than a tenth of their middle 95 % in one direction
    for name in ("deletion", "deletion_other", "swap", "swap_other"):
        assert found[name] == pytest.approx((1 - 0.095) ** 2 / 2, abs=0.05)
    assert found["deletion_first"] == pytest.approx(found["deletion_first_chance"], abs=0.03)
    assert found["purity"] == pytest.approx(1 / 12, abs=0.01)


def test_intervals_hold_the_value_and_count_the_cases(truths):
    for truth in truths.values():
        for estimate in truth.summary.values():
            assert estimate.low <= estimate.value <= estimate.high
    deletions = truths["oracle"].summary["deletion"]
    assert deletions.unit == "deletions" and 30 < deletions.n <= 30 * 12
    assert truths["random"].summary["deletion"].low < truths["random"].summary["deletion"].value


def test_only_visible_parts_count(truths):
    # Nothing can be deleted where there is no crest, but a crest can be swapped in.
    found = row(truths["oracle"], "crest: none")
    assert "deletion" not in found and found["swap"] == 1


def test_interventions_change_one_thing_whatever_the_batch(birds, monkeypatch):
    oracle = Oracle(monkeypatch, *birds)
    small, large = (scenes.intervene(oracle, birds[1], np.arange(7), size)[0] for size in (1, 200))
    for name, values in vars(small).items():
        assert np.all(values == getattr(large, name))
    bird, scene, _ = birds[1].item(3)
    groups = list(ATTRIBUTE_GROUPS)
    assert (small.shown[3] == image_attributes(bird, scene)).all()
    assert (small.visible[3] == birds[1].part_masks(3).any((1, 2))).all()
    crestless = ~small.visible[:, CREST]
    assert crestless.any() and small.swap_visible[crestless, list(ATTRIBUTE_GROUPS).index("crest")].all()
    for group, column in zip(groups, small.swapped_to[3], strict=True):
        name, value = NAMES[column].split(": ")
        assert name == group and value != bird[group]
    pixels, _ = scenes._versions(birds[1], 3, 0)
    assert (pixels[0] == birds[1].pixels[3]).all()
    beak = 2 + PARTS.index("beak")
    assert (pixels[beak] == scenes.render(bird, delete_part(scene, "beak"), 32)[0]).all()
    value = NAMES[small.swapped_to[3, 0]].split(": ")[1]
    assert (pixels[2 + len(PARTS)] == scenes.render(swap_variant(bird, groups[0], value), scene, 32)[0]).all()


def test_a_move_must_exceed_a_tenth_of_the_range(birds):
    score = attributes.AttributeScore("beak: hooked", 0, 1, 1.0, 1.0)
    n, p, g = 4, len(PARTS), len(ATTRIBUTE_GROUPS)
    shown = np.zeros((n, len(NAMES)), bool)
    shown[:3, NAMES.index("beak: hooked")] = True
    visible = np.ones((n, p), bool)
    visible[2] = False
    to = np.array([NAMES.index(f"{group}: {values[-1]}") for group, values in ATTRIBUTE_GROUPS.items()])
    interventions = scenes.Interventions(
        np.arange(n), shown, visible, np.tile(to, (n, 1)), np.tile(visible[:, :1], (1, g)), np.ones(n, bool)
    )
    beak = PARTS.index("beak")
    deleted = np.full((n, p, 1), 5.0)
    deleted[:, beak, 0] = [4.01, 3.99, 0, 0]  # range 10: the first does not fall, the third is hidden, the last none
    responses = scenes.Responses(np.full((n, 1), 5.0), deleted, np.full((n, g, 1), 5.0), np.full((n, 1), 5.0))
    found = causal.causal_tests(interventions, responses, np.array([10.0]), [score])
    assert found.deletion.cases[:, 0].tolist() == [True, True, False, False]
    assert found.deletion.hits[:, 0].tolist() == [False, True, False, False]
    assert found.deletion_first.hits[:, 0].tolist() == [True, True, False, False]
    # to "cone": it goes, unseen in the third, and nothing changes for the last
    assert found.swap.cases[:, 0].tolist() == [True, True, False, False]
    weaker = attributes.AttributeScore("beak: hooked", 0, -1, 1.0, 1.0)
    assert causal.causal_tests(interventions, responses, np.array([10.0]), [weaker]).deletion.hits[3, 0]


# --- matching -------------------------------------------------------------------------------------------------------


def test_paired_areas_are_those_of_all_pairs_and_of_drawn_images():
    random = np.random.default_rng(0)
    scores, truth = random.integers(0, 6, (80, 3)).astype(float), random.random((80, 3)) < 0.4
    areas = attributes.PairedAreas(scores, truth)
    assert areas(np.arange(80)) == pytest.approx(np.diag(measures.auroc(scores, truth)))
    drawn = random.integers(0, 80, 80)
    assert areas(drawn) == pytest.approx(np.diag(measures.auroc(scores[drawn], truth[drawn])))
    assert areas.column(1)(drawn) == pytest.approx(areas(drawn)[[1]])
    assert np.isnan(areas(np.flatnonzero(truth[:, 0]))[0])


def test_best_attribute_of_another_group():
    truth = np.array([[0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 1, 1]], bool)
    names = ["beak: thin", "beak: cone", "eye: red"]
    score = attributes.AttributeScore("beak: thin", 0, 1, 1.0, 1.0)
    activations = np.array([[0.0], [0.8], [0.9], [0.1]])  # tells beaks perfectly, and red eyes a little
    assert [part.tolist() for part in attributes.best_other([score], activations, truth, names)] == [[2], [1]] or [
        part.tolist() for part in attributes.best_other([score], -activations, truth, names)
    ] == [[2], [-1]]


def test_no_attribute_of_another_group_varies():
    truth = np.array([[0, 1, 1], [1, 0, 1], [1, 0, 1], [0, 1, 1]] * 5, bool)
    names = ["beak: thin", "beak: cone", "eye: red"]
    activations = truth[:, :1] + np.arange(20.0)[:, None] / 100
    score = attributes.AttributeScore("beak: thin", 0, 1, 1.0, 1.0)
    assert attributes.best_other([score], activations, truth, names)[0].tolist() == [-1]
    seen = result.Observed({"concepts": activations}, truth)
    found = result.function_truth("concepts", seen, seen, names, each=True)
    assert set(found.summary) == {"auroc", "found"}
    assert [list(row) for row in found.by_attribute] == [["auroc"]] * 2


@pytest.mark.filterwarnings("error")
def test_means_of_nothing_are_nan_without_a_warning():
    assert np.isnan(measures.known_mean(np.full(3, np.nan)))
    assert measures.known_mean(np.array([[1.0, np.nan], [3.0, np.nan]])) == 2
    areas = attributes.PairedAreas(np.arange(4.0)[:, None], np.array([[True], [False], [False], [False]]))
    assert areas.estimate(measures.known_mean, 0).value == 0  # of resamples without the first image there is no area


def test_too_few_images():
    with pytest.raises(TooFewImages, match="in 3 validation and 3 test images"):
        attributes.attribute_scores(*[np.zeros((3, 1)), np.zeros((3, 1), bool)] * 2, ["beak: thin"])


# --- places ---------------------------------------------------------------------------------------------------------


def masks() -> np.ndarray:
    found = np.zeros((2, 8, 8), bool)
    found[0, 2:4, 2:6] = True
    found[1, :, :1] = True
    return found


def test_a_map_equal_to_the_mask_is_right_and_a_uniform_one_at_chance():
    areas = masks().mean((1, 2))
    exact, uniform = masks().astype(float), np.ones((2, 8, 8))
    assert (localisation.pointing_game(exact, masks()) == 1).all()
    assert (localisation.inside(exact, masks()) == 1).all()
    assert (localisation.edit_iou(exact, masks()) == 1).all()
    assert localisation.pointing_game(uniform, masks()) == pytest.approx(areas)
    assert localisation.inside(uniform, masks()) == pytest.approx(areas)
    assert (localisation.pointing_game(1 - exact, masks()) == 0).all()
    peaked = 0.9 * uniform
    peaked[:, 2, 2], peaked[:, 7, 0] = [1.0, 0.0], [0.0, 1.0]
    assert (localisation.pointing_game(peaked, masks()) == 1).all()
    assert (localisation.edit_iou(1 - exact, masks()) == 0).all()


def test_random_edits_are_at_chance():
    mask = np.zeros((400, 16, 16), bool)
    mask[:, :4, :8] = True
    area = mask[0].mean()
    change = np.random.default_rng(0).random(mask.shape)
    assert localisation.edit_iou(change, mask).mean() == pytest.approx(area / (2 - area), abs=0.005)


def test_no_edit_has_no_place():
    assert np.isnan(localisation.edit_iou(np.zeros((2, 8, 8)), masks())).all()
    assert np.isnan(localisation.inside(np.zeros((2, 8, 8)), masks())).all()


def test_grown_masks():
    mask = np.zeros((32, 32), bool)
    mask[16, 16] = True
    rows, columns = np.nonzero(localisation.grown(mask))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (14, 18, 14, 18)
    assert not localisation.grown(np.zeros((32, 32), bool)).any()


def test_localise_looks_where_the_concept_is_strong_active_and_seen(birds, monkeypatch):
    dataset = birds[1]
    shown = dataset.attributes[:30]
    visible = np.stack([dataset.part_masks(i).any((1, 2)) for i in range(30)])
    nothing = np.zeros((30, 12))
    interventions = scenes.Interventions(np.arange(30), shown, visible, nothing, nothing, visible[:, 0])
    asked = []

    def heatmaps(ensemble, images, concepts, device):
        chosen = [int(np.flatnonzero((dataset.pixels == image).all((1, 2, 3)))[0]) for image in to_pixels(images)]
        asked.append(chosen)
        parts = np.stack([dataset.part_masks(i)[PARTS.index("wing")] for i in chosen])
        return type("Maps", (), {"heatmaps": parts[:, None].astype(float)})

    monkeypatch.setattr(localisation, "concept_heatmaps", heatmaps)
    monkeypatch.setattr(
        localisation, "edit_change", lambda ensemble, images, concept, device: np.ones((len(images), 32, 32))
    )
    activations = np.ones((30, 2))
    activations[:10, 1] = 0
    scores = [attributes.AttributeScore("wing: barred", k, direction, 1.0, 1.0) for k, direction in ((0, 1), (1, -1))]
    drawing = type("Drawing", (), {"draws": True})()
    found = localisation.localise(drawing, dataset, interventions, activations, scores, images=100)
    barred, wing = shown[:, NAMES.index("wing: barred")], visible[:, PARTS.index("wing")]
    expected = [np.flatnonzero(barred & wing), np.flatnonzero(~barred & wing & (np.arange(30) >= 10))]
    assert [sorted(rows) for rows in asked] == [list(rows) for rows in expected]
    for column, rows in enumerate(expected):
        assert (np.flatnonzero(~np.isnan(found.pointing[:, column])) == rows).all()
    assert found.mean("pointing").value == found.mean("mass").value == 1
    assert found.mean("edit_inside").value == pytest.approx(found.mean("area").value)
    assert found.mean("pointing", 1).n == len(expected[1])


# --- all together ---------------------------------------------------------------------------------------------------


class WithTruth(ImageDataset):
    """Attributes without scenes: is the first quadrant bright, is the last one dark?"""

    has_truth = True
    attribute_names = ("first: bright", "last: dark")

    @property
    def attributes(self):
        corners = self.pixels[:, [0, -1], [0, -1], 0] > 127
        return np.stack([corners[:, 0], ~corners[:, 1]], 1)


def test_attributes_alone_are_enough():
    random, splits = np.random.default_rng(0), []
    for split in ("validation", "test"):
        plain = toy_dataset(random.random((80, 4)), [0, 1] * 40, split)
        splits.append(WithTruth("toy", split, plain.pixels, plain.labels, plain.class_names))
    found = measure_truth(ToyEnsemble(), *splits, batch_size=32, seed=1, limit=70)
    assert (found.n, found.intervened, found.examples) == (70, 0, [])
    assert [(s.concept, s.direction, s.auroc) for s in found.concepts.attributes.scores] == [(0, 1, 1.0), (3, -1, 1.0)]
    assert set(found.concepts.summary) == {"auroc", "found", "auroc_other"}
    assert found.estimates()["concepts.found"].value == 1
    assert list(truth_figures(found)) == ["truth-attributes"]
    # one quadrant a channel: raw channels know as much, and mixtures of them less
    assert found.functions["channels"].summary["auroc"].value == 1
    numbers = json.loads(json.dumps(found.to_dict()))
    assert numbers["share_above_0.9"] == 1 and numbers["functions"]["pca"]["k"] == 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The truth about an untrained ensemble."""
    recipe = tiny_recipe()
    ensemble = load_model(write_models(tmp_path_factory.mktemp("models"), recipe)["viscoin"], "viscoin").model
    ensemble.train()
    splits = [load_dataset("birds", split, recipe.dataset) for split in ("validation", "test")]
    found = measure_truth(ensemble, *splits, limit=24, scenes=4)
    assert ensemble.explainer.training
    return found


def test_everything_of_a_tiny_ensemble(tiny):
    names = ["concepts", "random", "sae", "nmf", "ica", "pca", "channels_k", "channels", "untrained"]
    assert [name for name in tiny.functions if name != "pursuit"] == names
    assert (tiny.n, tiny.intervened) == (24, 4)
    places = set(localisation.Localisation.__annotations__)
    assert places <= set(tiny.concepts.summary) and not places & set(tiny.functions["pca"].summary)
    assert {"deletion", "swap", "swap_other", "background", "purity"} <= set(tiny.functions["nmf"].summary)
    assert json.loads(json.dumps(tiny.to_dict()))
    assert tiny.examples
    for example in tiny.examples:
        assert example.images.shape == (3, 32, 32, 3) and example.heatmap.shape == example.mask.shape == (32, 32)
        assert example.score.direction == 1 and example.titles[0] == example.score.name
        assert example.mask.any() and (example.images[0] != example.images[1]).any()


def words(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_figures_name_what_they_show(tiny):
    figures = truth_figures(tiny)
    assert list(figures) == ["truth-attributes", "truth-tests", "truth-places", "truth-purity", "truth-scenes"]
    names = [score.name for score in tiny.concepts.attributes.scores]
    for name in ("truth-attributes", "truth-purity"):
        assert all(attribute in words(figures[name]) for attribute in names)
    for title in ("concepts", "untrained Ψ", "PCA of f", "6 channels of f", "all 192 channels"):
        assert title in words(figures["truth-tests"]) and title in words(figures["truth-attributes"])
    assert f"{tiny.concepts.summary['deletion'].value:.2f}" in words(figures["truth-tests"])
    assert f"{tiny.concepts.summary['area'].value:.2f}" in words(figures["truth-places"])
    assert all(example.titles[2] in words(figures["truth-scenes"]) for example in tiny.examples)
    for name, figure in figures.items():
        assert figure.get_figwidth() <= (PAGE if name in ("truth-tests", "truth-scenes") else COLUMN)
        assert figure_bytes(figure)


def test_of_many_attributes_the_best_and_the_worst_are_drawn(tiny):
    areas = np.linspace(0.5, 1.0, 200)
    scores = [attributes.AttributeScore(f"group {i}: x", 0, 1, area, area) for i, area in enumerate(areas)]
    concepts = replace(
        tiny.concepts,
        attributes=attributes.AttributeResult(scores, []),
        by_attribute=[{"auroc": Estimate(area, area, area, 60)} for area in areas],
    )
    figure = drawing.attributes_figure(result.TruthResult({"concepts": concepts}, [], 60, 0, 0))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"group {i}: x" for i in (*range(199, 169, -1), *range(29, -1, -1))]
    assert "the best and the worst 30 of 200 attributes" in words(figure)


def test_figures_of_concepts_that_never_move(tiny, truths):
    still = result.TruthResult(
        {"concepts": replace(truths["constant"], by_attribute=tiny.concepts.by_attribute)}, [], 60, 30, 0
    )
    purity = purity_figure(truths["constant"])
    assert np.isnan(truths["constant"].reaction).all() and figure_bytes(purity)
    assert figure_bytes(drawing.tests_figure(still))


def test_baselines_by_hand():
    # The last map of the toy classifier: channel k is its quadrant's brightness there and zero elsewhere.
    dataset = toy_dataset(np.random.default_rng(0).random((50, 4)) * [1, 0.5, 1, 1], [0, 1] * 25)
    functions = baselines.concept_functions(ToyEnsemble(), dataset, np.arange(50), batch_size=20)
    found = baselines.all_activations(functions, dataset, np.arange(50), 30)
    amounts = (dataset.pixels[:, ::7, ::7, 0] / 255).reshape(50, 4)
    assert found["concepts"] == pytest.approx(amounts, abs=1e-5)
    assert found["channels"] == pytest.approx(amounts / 4, abs=1e-5)
    assert (found["channels_k"] == found["channels"]).all()
    assert found["pca"].mean(0) == pytest.approx([0] * 4, abs=1e-5)
    assert np.cov(found["pca"].T) == pytest.approx(np.diag(found["pca"].var(0, ddof=1)), abs=1e-6)
    assert found["nmf"].shape == (50, 4) and (found["nmf"] >= 0).all()
    # factors of one-hot vectors are the channels themselves, in some order
    assert measures.auroc(found["nmf"], amounts > 0.25).max(1) == pytest.approx([1] * 4, abs=0.02)


def test_nmf_and_pca_have_at_most_as_many_factors_as_there_are_channels():
    dataset = toy_dataset(np.random.default_rng(0).random((3, 4)), [0, 1, 0])
    ensemble = ToyEnsemble()
    ensemble.n_concepts = 9
    found = baselines.concept_functions(ensemble, dataset, np.arange(3))(dataset.batch([0])[0])
    assert {name: part.shape[1] for name, part in found.items()}["nmf"] == 4
    assert found["pca"].shape[1] == 3 and found["channels_k"].shape[1] == 4
