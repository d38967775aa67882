"""All scores together: scenes with known causes, methods that fail, images without truth, tables and the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_funnybirds
import torch
from safetensors.torch import load_file
from tiny_models import Answer, tiny_recipe, write_images, write_models
from torch import Tensor, nn

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset, to_images
from viscoin.datasets.birds import PARTS, delete_part, render
from viscoin.datasets.birds.scene import REMOVABLE
from viscoin.errors import Refused
from viscoin.plotting.attribution_scores import attribution_figures
from viscoin.testing.attribution import study
from viscoin.testing.attribution.faithfulness import hiding_curve, importance_ranks
from viscoin.testing.attribution.maps import MethodMaps, OracleMaps
from viscoin.testing.attribution.methods import named_methods
from viscoin.testing.attribution.parts import ABSENT
from viscoin.testing.attribution.scenes import SEEN, parts_of, sample
from viscoin.testing.attribution.scores import SCORES, Values, difference
from viscoin.testing.attribution.study import Extent
from viscoin.testing.attribution.tables import method_tables, scores_csv, sentences
from viscoin.testing.attribution.vision_diffmask import (
    blended,
    noise_image,
    patch_ranks,
    replacement_curves,
)

measure = study.test_attribution
SMALL = Extent(images=10, known=6, costly=3, steps=4)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def birds():
    config = DatasetConfig(name="birds", resolution=32, classes=12, validation=24, test=24)
    return [load_dataset("birds", split, config) for split in ("validation", "test")]


class Linear(nn.Module):
    """Logits that are linear in pixels, in which every class looks elsewhere."""

    def __init__(self, classes: int, side: int) -> None:
        super().__init__()
        weight = torch.randn(classes, 3 * side * side, generator=torch.Generator().manual_seed(0))
        self.layer = nn.Linear(3 * side * side, classes)
        self.layer.weight.data, self.layer.bias.data = weight / side, torch.zeros(classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.reshape(len(images), -1))


class Knowing(nn.Module):
    """Logits that name the class of every image of a dataset: by the pixels of one of its classes' images."""

    def __init__(self, images: Tensor, labels: np.ndarray) -> None:
        super().__init__()
        self.memory = nn.Linear(images[0].numel(), len(images), bias=False)
        self.memory.weight.data = images.flatten(1)
        self.labels = nn.functional.one_hot(torch.from_numpy(labels)).float()

    def forward(self, images: Tensor) -> Tensor:
        distance = torch.cdist(images.flatten(1), self.memory.weight)
        return -(distance + 100 * (1 - self.labels.T)[:, None]).amin(2).T


def slope(classifier: nn.Module, images: Tensor, targets: Tensor, indices) -> np.ndarray:
    """Input x gradient."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        score = classifier(images).gather(1, targets[:, None]).sum()
        return (torch.autograd.grad(score, images)[0] * images).sum(1).detach().numpy()


def gradient_size(classifier: nn.Module, images: Tensor, targets: Tensor, indices) -> np.ndarray:
    return np.abs(np.stack(np.gradient(images.mean(1).numpy(), axis=(1, 2)))).sum(0)


METHODS = {"slope": slope, "edges": gradient_size}


# --- scenes ------------------------------------------------------------------------------------------------------


def test_scenes_are_those_without_every_set_of_parts(birds):
    dataset, f = birds[1], Linear(12, 32)
    found = sample(f, dataset, np.array([3, 7, 8]))
    truth, names = found.parts.truth, found.parts.names
    assert names == REMOVABLE and truth.logits.shape == (3, 64, 12)
    bird, scene, _ = dataset.item(7)
    changed = delete_part(delete_part(scene, "beak"), "tail")
    number = sum(1 << REMOVABLE.index(part) for part in ("beak", "tail"))
    expected = f(to_images(render(bird, changed, 32)[0][None])).detach().numpy()[0]
    assert truth.logits[1, number] == pytest.approx(expected, abs=1e-4)
    assert truth.logits[:, 0] == pytest.approx(f(found.images).detach().numpy(), abs=1e-4)
    masks = dataset.part_masks(7)
    assert (found.parts.of_part(np.array([0, 5, 0]))[1] == masks[PARTS.index("legs")]).all()
    assert (found.object_masks[1] == masks.any(0)).all()
    assert truth.visible.any(0).all()


def test_every_background_object_is_deleted_by_itself(birds):
    dataset = birds[1]
    found = sample(Linear(12, 32), dataset, np.arange(6))
    counts = [len(dataset.item(index)[1].background) for index in range(6)]
    given = ~np.isnan(found.parts.truth.without_object).all(2)
    assert given.sum(1).tolist() == counts and max(counts) > 1
    owners = np.array(found.parts.owners)
    assert (owners == np.arange(len(owners))).all() and len(owners) == 6 + max(counts)
    for index in range(6):
        bird, scene, _ = dataset.item(index)
        before = render(bird, scene, 32)[0].astype(int)
        for number in range(counts[index]):
            others = tuple(blob for i, blob in enumerate(scene.background) if i != number)
            changed = np.abs(render(bird, replace(scene, background=others), 32)[0] - before).max(2)
            assert (found.parts.masks[index, 6 + number] == (changed > SEEN)).all()
    assert (found.parts.truth.visible[:, 6:] == found.parts.masks[:, 6:].any((2, 3))).all()
    assert 0 < found.parts.truth.visible[:, 6:].sum() < given.sum()  # some lie behind the bird


def test_variants_of_birds_are_all_groups_of_a_part_together(birds):
    names, table = parts_of(birds[1])
    assert table.shape == (12, 6)
    crest = names.index("crest")
    lacks = ["crestless" in name or "none" in name for name in birds[1].class_names]
    assert ((table[:, crest] == ABSENT).sum()) >= sum(lacks)
    beak = table[:, names.index("beak")]
    assert beak.max() > 2  # three shapes in two colours


def test_the_oracle_paints_what_goes_with_each_part(birds):
    found = sample(Linear(12, 32), birds[1], np.arange(4))
    maps = OracleMaps(found).of(np.arange(4), np.full(4, 5))
    truth = found.parts.truth
    centred = truth.logits - truth.logits.mean(2, keepdims=True)
    drops = centred[:, 0, 5] - centred[:, 1 << REMOVABLE.index("wing"), 5]
    wing = found.parts.of_part(np.full(4, REMOVABLE.index("wing")))
    sums = (maps * wing).sum((1, 2))
    assert sums[wing.any((1, 2))] == pytest.approx(drops[wing.any((1, 2))], abs=1e-3)


# --- the study ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(birds):
    known, test = birds
    f = Knowing(test.batch(np.arange(24))[0], test.labels)
    return measure(f, test, known, {**METHODS, "broken": broken, "raising": raising}, extent=SMALL)


def broken(classifier, images, targets, indices) -> np.ndarray:
    return np.full((len(images), 32, 32), np.nan)


def raising(classifier, images, targets, indices) -> np.ndarray:
    raise KeyError("no such layer")


def test_methods_that_fail_are_named_and_the_others_go_on(found):
    assert set(found.rows) == {"slope", "edges", "oracle"}
    assert found.failed["raising"] == "KeyError: 'no such layer'"
    assert "10 of 10 maps have values that are no finite numbers" in found.failed["broken"]


def test_every_score_has_an_interval_and_a_number_of_images(found):
    slope = found.rows["slope"]
    left = {"completeness": "maps of these methods need not add up to anything"}
    assert {key: reason for key, reason in slope.left_out.items() if key in left} == left
    undefined = {key for key, reason in slope.left_out.items() if reason == "undefined for every image"}
    assert set(slope.estimates) | undefined | {"completeness.gap"} == set(SCORES)
    for key, estimate in slope.estimates.items():
        assert 1 <= estimate.n <= 10 and estimate.low <= estimate.value + 1e-9 <= estimate.high + 2e-9, key
    assert found.classifier["accuracy"].value == 1
    assert slope.chance["object.mass"] == pytest.approx(found.rows["edges"].chance["object.mass"])


def test_the_oracle_is_right_about_single_deletions(found):
    oracle = found.rows["oracle"]
    assert oracle.estimates["parts.sd"].value > 0.95 and oracle.beats_edges("parts.sd") is True
    assert found.rows["slope"].estimates["parts.sd"].value == 0.5  # f is flat at what it remembers: maps of zeros
    assert "stability" in oracle.left_out


def test_edges_do_not_react_to_the_model(found):
    edges = found.rows["edges"].estimates
    assert edges["randomisation.spearman"].value == pytest.approx(1)
    assert edges["randomisation.ssim"].value == pytest.approx(1)
    assert found.rows["slope"].estimates["randomisation.spearman"].value < 0.9
    assert found.rows["slope"].beats_edges("randomisation.spearman") is True


def test_who_does_not_beat_edges_is_said(found):
    rows, header = method_tables(found)["truth"]
    assert header[0] == "method" and [row[0] for row in rows] == ["slope", "oracle", "edges"]
    text = "\n".join(sentences(found))
    assert "better than edges in every score of these tables: no method" in text
    assert "slope does not beat edges in" in text and "raising has no row: KeyError" in text
    assert any("*" in cell for cell in rows[0]) and not any("*" in cell for cell in rows[2])
    header = method_tables(found)["parts"][1]
    assert header[:3] == ("method", "CSDC ↑", "CSDC (p) ↑") and len(header) > 10
    lines = scores_csv(found).splitlines()
    assert lines[0].startswith("method,score,title,better,value,low,high,n") and len(lines) > 100


def test_results_are_plain_numbers(found):
    numbers = json.loads(json.dumps(found.to_dict()))
    assert numbers["n"] == 10 and numbers["n_known"] == 6
    assert numbers["methods"]["slope"]["estimates"]["parts.com"]["n"] == 10


def test_figures_show_methods_and_controls(found):
    figures = attribution_figures(found)
    assert set(figures) == {"attribution-scores", "attribution-curves"}
    labels = [label.get_text() for label in figures["attribution-scores"].axes[0].get_yticklabels()]
    assert labels == ["slope", "oracle", "edges"]


@pytest.mark.slow
def test_parts_without_a_right_prediction_are_refused_or_left_out(birds):
    known, test = birds
    f = Knowing(test.batch(np.arange(24))[0], (test.labels + 1) % 12)
    found = measure(f, test, known, METHODS, extent=SMALL)
    assert found.rows["slope"].left_out["parts"] == "no image is predicted right, and CSDC needs one"
    assert "object.mass" in found.rows["slope"].estimates
    with pytest.raises(Refused, match=r"scores parts: no image is predicted right"):
        measure(f, test, known, METHODS, ["parts"], SMALL)
    with pytest.raises(Refused, match=r"scores colour: unknown scores; choose some of: parts, places"):
        measure(f, test, known, METHODS, ["colour"], SMALL)


def test_images_without_masks_have_faithfulness_alone(tmp_path):
    folder = write_images(tmp_path / "pets", {"cat": 20, "dog": 20}, size=16)
    config = DatasetConfig(name=str(folder), resolution=16)
    known, test = (load_dataset(str(folder), split, config) for split in ("validation", "test"))
    found = measure(Linear(2, 16), test, known, METHODS, extent=SMALL)
    row = found.rows["slope"]
    assert "oracle" not in found.rows and {"deletion.grey", "gap.blur", "road.gap"} <= set(row.estimates)
    assert row.left_out["places"] == "these images have no masks"
    assert not any(key.startswith(("parts", "object", "segments")) for key in row.estimates)
    assert found.notes == ["pets has no masks: nothing is measured of places, segments and parts"]
    assert row.estimates["infidelity.unexplained"].value < 1


@pytest.mark.slow
def test_funnybirds_choose_thresholds_on_other_test_images(tmp_path, monkeypatch):
    monkeypatch.setattr(test_funnybirds, "CHANGED", range(100))
    root = test_funnybirds.write_tree(tmp_path / "FunnyBirds")
    config = DatasetConfig(name="funnybirds", path=str(root), resolution=32)
    known, test = (load_dataset("funnybirds", split, config) for split in ("validation", "test"))
    f = Linear(2, 32)
    found = measure(f, test, known, METHODS, ["parts", "places"], replace(SMALL, known=3))
    assert found.n + found.n_known == len(test) and found.n_known >= 1
    assert "thresholds are chosen on" in found.notes[0]
    assert {"parts.pc", "object.mass", "published.pc"} <= set(found.rows["slope"].estimates)
    masks, owners = test.piece_masks(0)
    whole = test.part_masks(0)
    for part in range(len(test.part_names)):
        assert (masks[np.array(owners) == part].any(0) == whole[part]).all()
    assert len(owners) > len(test.part_names)


def test_maps_are_asked_for_once(birds):
    calls = []

    def counting(classifier, images, targets, indices) -> np.ndarray:
        calls.append(list(zip(indices, targets.tolist())))
        return np.zeros((len(images), 32, 32))

    images = sample(Linear(12, 32), birds[1], np.array([4, 5, 6]))
    maps = MethodMaps(counting, Linear(12, 32), images, batch_size=2)
    rows = np.arange(3)
    maps.of(rows, np.array([1, 1, 2]))
    maps.of(rows, np.array([1, 3, 2]))
    assert calls == [[(4, 1), (5, 1)], [(6, 2)], [(5, 3)]]


def test_differences_are_taken_on_the_same_images():
    better = np.arange(50.0)
    found = difference(Values(better + 0.1), Values(better))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    some = np.where(better < 10, np.nan, better)
    assert difference(Values(some), Values(better)).n == 40
    assert Values(np.full(5, np.nan)).estimate() is None


def test_unknown_methods_are_refused_and_controls_are_always_there():
    with pytest.raises(Refused, match=r"methods gradcamm: unknown method; choose some of: cam, gradcam"):
        named_methods(["gradcamm"])
    assert list(named_methods(["gradcam"])) == ["gradcam", "random", "centre", "edges"]
    assert "rise" not in named_methods() and "saliency" in named_methods()


# --- Vision DiffMask's comparison ----------------------------------------------------------------------------------


GOLDEN = load_file(Path(__file__).parent / "golden" / "attribution" / "evaluation.safetensors")


def test_curves_of_the_reference():
    from test_attribution_scores import Net

    net = Net().eval()
    net.load_state_dict({name[6:]: value for name, value in GOLDEN.items() if name.startswith("model.")})
    ranks = importance_ranks(GOLDEN["maps"].numpy())
    hidden = GOLDEN["diffmask_curves.noise"].expand_as(GOLDEN["images"])
    for order, places in (("most", ranks), ("least", ranks[0].size - 1 - ranks)):
        curve = hiding_curve(net, GOLDEN["images"], hidden, GOLDEN["targets"], places, 4)
        for name, values in (("probability", curve), ("minus_log_probability", -np.log(curve))):
            expected = GOLDEN[f"diffmask_curves.{name}.{order}_first"].numpy()
            np.testing.assert_allclose(values, expected, atol=1e-3, rtol=1e-3)


def test_whole_patches_go_by_patches():
    maps = np.zeros((1, 8, 8))
    maps[0, :4, 4:], maps[0, 4:, :4] = 3, 1
    ranks = patch_ranks(maps, 4)[0]
    assert (np.sort(ranks.ravel()) == np.arange(64)).all()
    assert ranks[:4, 4:].max() == 15 and ranks[4:, :4].min() == 16 and ranks[4:, :4].max() == 31


def test_a_map_of_what_f_sees_falls_first_and_last():
    f = Linear(3, 28)
    images = torch.rand((5, 3, 28, 28), generator=torch.Generator().manual_seed(1))
    predicted = f(images).argmax(1)
    noise = noise_image((28, 28))
    assert noise.shape == (1, 3, 28, 28) and -1 <= noise.min() < -0.99 < 0.99 < noise.max() <= 1
    right = ((images - noise) * f.layer.weight.view(3, 3, 28, 28)[predicted]).sum(1).detach().numpy()
    curves = replacement_curves(f, images, predicted, right, noise)
    found = curves.estimates()
    assert curves.probability["most"].shape == (5, 29)
    assert found["probability.most"].value < found["probability.least"].value
    assert found["minus_log.most"].value > found["minus_log.least"].value


def test_blending_everything_changes_nothing():
    f = Linear(3, 8)
    images, labels = torch.rand(4, 3, 8, 8), np.zeros(4, int)

    def blend(images: Tensor, kept: Tensor) -> Tensor:
        return f(images * kept.mean(1)[:, None, None, None])

    whole = blended(f, blend, images, labels, torch.ones(4, 9))
    assert whole["kl"].rows == pytest.approx(0, abs=1e-6) and whole["masked"].rows.tolist() == [0] * 4
    half = blended(f, blend, images, labels, torch.full((4, 9), 0.25))
    assert half["kl"].rows.min() > 0 and half["masked"].rows.tolist() == [0.75] * 4


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), tiny_recipe())["classifier"]


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_files(classifier, tmp_path):
    out = tmp_path / "out"
    answer = Answer(
        "test", "attribution", "--checkpoints", classifier, "--methods", "gradcam", "--scores",
        "places,hiding,complexity", "--limit", 6, "--fast", "--device", "cpu", "--out", out,
    ).went_well()  # fmt: skip
    assert "gradcam" in answer.out and "pointing ↑" in answer.out and "accuracy of f" in answer.out
    numbers = json.loads((out / "results.json").read_text())
    assert numbers["methods"]["gradcam"]["estimates"]["object.mass"]["n"] == 6
    assert {path.name for path in out.iterdir()} == {
        "results.json", "scores.csv", "truth.md", "faithfulness.md", "attribution-scores.png", "attribution-curves.png",
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_compares_as_vision_diffmask(classifier, tmp_path):
    answer = Answer(
        "test", "attribution", "--checkpoints", classifier, "--methods", "gradcam", "--protocol", "vision-diffmask",
        "--device", "cpu", "--out", tmp_path / "out",
    ).went_well()  # fmt: skip
    assert "-log p most" in answer.out and "p least, patches" in answer.out
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(numbers["methods"]["gradcam"]["pixels"]["curves"]["most"]) == 29


def test_the_command_refuses_what_there_is_not(classifier):
    common = ("test", "attribution", "--checkpoints", classifier, "--device", "cpu")
    Answer(*common, "--methods", "gradcamm").refused("--methods gradcamm: unknown method")
    Answer(*common, "--protocol", "vision").refused("--protocol vision: unknown protocol")
    Answer(*common, "--scores", "colour").refused("--scores colour: unknown scores")
    Answer(*common, "--baseline", "white").refused("--baseline white: unknown baseline")
    Answer(*common, "--methods", "rollout,chefer").refused("--methods rollout: does not hold for viscoin_resnet10")
    fixed = (*common, "--protocol", "vision-diffmask")
    Answer(*fixed, "--limit", 3).refused("--limit: does not go with --protocol vision-diffmask")
