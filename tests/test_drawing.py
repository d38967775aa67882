"""Dose-response and surgery on ensembles and judges whose answers are known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_ensemble import SIZE, ToyEnsemble, quadrants

from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages
from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import Encoding
from viscoin.plotting.drawing import drawing_figures
from viscoin.testing.drawing import test_drawing as measure_drawing
from viscoin.testing.drawing.readback import choose_pairs, related_concepts, rising, slopes
from viscoin.testing.drawing.surgery import possible_swaps
from viscoin.testing.truth.attributes import AttributeScore

# --- ensembles whose drawing is known: they differ in what becomes of a change that was asked for --------------------


class Drawing(ToyEnsemble):
    """Draws of a change of activations (B, 4) what `drawn` makes of it."""

    def edit(self, code: Encoding, concept_maps: Tensor, noise_mode: str = "const") -> Tensor:
        before = self.activations(code.concept_maps)
        after = before + self.drawn(self.activations(concept_maps) - before, before)
        return self.decode(after[..., None, None].expand(-1, -1, 3, 3), code.support)

    def drawn(self, change: Tensor, before: Tensor) -> Tensor:
        return change


class Exact(Drawing):
    pass


class Nothing(Drawing):
    def drawn(self, change: Tensor, before: Tensor) -> Tensor:
        return 0 * change


class RandomSign(Drawing):
    def drawn(self, change: Tensor, before: Tensor) -> Tensor:
        sign = (before.sum(1, keepdim=True) * 1000).round() % 2 * 2 - 1
        return 0.2 * sign * change


class Leaking(Drawing):
    """A quarter of a change of the first pair of quadrants goes to the second as well, and the other way round."""

    def drawn(self, change: Tensor, before: Tensor) -> Tensor:
        return change + 0.25 * change.roll(2, 1)


def random_images(n: int = 200, split: str = "test") -> ImageDataset:
    amounts = np.random.default_rng(n).uniform(0.2, 0.45, (n, 4))
    return ImageDataset("toy", split, quadrants(amounts), np.arange(n) % 2, ["left", "right"])


def activations_of(dataset: ImageDataset) -> np.ndarray:
    return ToyEnsemble().activations(ToyEnsemble().concept_maps(dataset.batch(range(len(dataset)))[0])[1]).numpy()


def measured(ensemble: ToyEnsemble, dataset: ImageDataset | None = None, judge: nn.Module | None = None, **options):
    dataset = dataset or random_images()
    indices = np.arange(len(dataset))
    return measure_drawing(ensemble, dataset, dataset, activations_of(dataset), indices, judge, **options)


# --- read-back ------------------------------------------------------------------------------------------------------


def test_what_is_drawn_as_asked_has_slope_one_and_changes_nothing_else():
    found = measured(Exact()).estimates()
    values = {key: found[f"dose_response.{key}"].value for key in ("slope", "slope_to_one", "x0", "x1", "x2")}
    assert values == pytest.approx({"slope": 1, "slope_to_one": 1, "x0": 0, "x1": 1, "x2": 2}, abs=0.03)  # 8 bits
    assert found["dose_response.off_target"].value == pytest.approx(0, abs=1e-6)
    assert found["dose_response.monotone"].value == found["dose_response.monotone_to_one"].value == 1
    assert found["dose_response.slope_control"].value == pytest.approx(0, abs=1e-6)
    assert found["dose_response.monotone_control"].value < 0.1
    assert (found["dose_response.slope"].n, found["dose_response.slope"].unit) == (200, "pairs")


def test_the_rise_is_in_units_of_the_largest_activations():
    result = measured(Exact())
    scale = np.quantile(activations_of(random_images()), 0.975, 0)
    assert set(result.read.scale.round(4)) <= set(scale.round(4))
    expected = 2 * result.read.asked / result.read.scale
    assert result.estimates()["dose_response.rise"].value == pytest.approx(expected.mean(), rel=1e-3)


def test_what_is_not_drawn_has_no_slope_and_never_rises():
    found = measured(Nothing()).estimates()
    for key in ("slope", "rise", "off_target", "monotone", "monotone_to_one"):
        assert found[f"dose_response.{key}"].value == pytest.approx(0, abs=1e-6), key
    assert found["dose_response.x0"].value == pytest.approx(1, abs=0.01)


def test_an_effect_of_random_sign_rises_in_half_of_the_pairs():
    found = measured(RandomSign()).estimates()
    for key in ("monotone", "monotone_to_one"):
        estimate = found[f"dose_response.{key}"]
        assert estimate.low < 0.5 < estimate.high, key
    assert abs(found["dose_response.slope"].value) < 0.05


def test_what_leaks_into_another_concept_is_off_target():
    result = measured(Leaking())
    # one of the three others rises by a quarter of twice the activation
    leaked = 0.25 * 2 * result.read.asked / 3 / np.quantile(activations_of(random_images()), 0.975)
    assert result.estimates()["dose_response.off_target"].value == pytest.approx(leaked.mean(), rel=0.02)
    assert result.estimates()["dose_response.slope"].value == pytest.approx(1, abs=1e-3)


def test_related_concepts_are_neither_off_target_nor_control():
    usual = ConceptDirections(4, (), 0)
    usual.correlation.copy_(torch.eye(4))
    usual.correlation[0, 2] = usual.correlation[2, 0] = 0.6
    related = related_concepts(usual, [1, 0, None, None])
    assert related.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    pairs = choose_pairs(np.ones((50, 4)), np.arange(50), np.ones(4), related, seed=0)
    assert {(k, j) for k, j in zip(pairs.concepts, pairs.others) if related[k, j]} == set()
    assert set(pairs.others[pairs.concepts == 0]) == {3} and set(pairs.concepts) == {0, 1, 2, 3}
    alone = choose_pairs(np.array([[1.0, 0.1, 1, 0]]), np.arange(1), np.ones(4), np.ones((4, 4), bool), seed=0)
    assert alone.others.tolist() == [-1] and alone.concepts[0] in (0, 2)


def test_pairs_depend_on_seed_and_image_alone():
    phi, related = np.ones((20, 4)), np.eye(4, dtype=bool)
    all_pairs = choose_pairs(phi, np.arange(20), np.ones(4), related, seed=3)
    some = choose_pairs(phi[5:9], np.arange(5, 9), np.ones(4), related, seed=3)
    assert some.concepts.tolist() == all_pairs.concepts[5:9].tolist()
    with pytest.raises(TooFewImages, match="no concept is active in 20 images"):
        choose_pairs(0 * phi, np.arange(20), np.ones(4), related, seed=3)


def test_slopes_and_rises_by_hand():
    values = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 2, 2], [1, 1, 1, 1, 1], [4, 3, 2, 1, 0]])
    assert slopes(values) == pytest.approx([2, 1, 0, -2])
    assert slopes(values, 2) == pytest.approx([2, 2, 0, -2])
    assert rising(values).tolist() == [True, False, False, False]
    assert rising(values, 2).tolist() == [True, True, False, False]


def test_numbers_and_measures_do_not_depend_on_the_batch_size():
    one, other = (measured(Leaking(), batch_size=size) for size in (7, 64))
    assert one.read.read == pytest.approx(other.read.read) and one.read.control == pytest.approx(other.read.control)


# --- the judge's eye ------------------------------------------------------------------------------------------------

NAMES = ["upper: left", "upper: right", "lower: left", "lower: right"]


class SidedImages(ImageDataset):
    """One quadrant of each pair is bright, and the attributes say which."""

    has_truth = True
    attribute_names = NAMES

    def __init__(self, n: int = 120, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        right = rng.integers(0, 2, (n, 2))
        bright = np.stack([right == 0, right == 1], 2).reshape(n, 4)
        amounts = np.where(bright, rng.uniform(0.42, 0.48, (n, 4)), rng.uniform(0.02, 0.05, (n, 4)))
        super().__init__("sided", "test", quadrants(amounts), right[:, 0], ["left", "right"])
        self._attributes = bright

    @property
    def attributes(self) -> np.ndarray:
        return self._attributes


class Eye(nn.Module):
    """Sees left where the left quadrant of a pair is bright, and right where it is not."""

    attributes, resolution = NAMES, SIZE

    def forward(self, images: Tensor) -> Tensor:
        amounts = (nn.functional.avg_pool2d(images.mean(1, keepdim=True), SIZE // 2).flatten(1) + 1) / 2
        return 100 * (amounts[:, [0, 0, 2, 2]] - 0.25) * torch.tensor([1, -1, 1, -1])


def test_attributes_come_and_go_with_concepts_that_are_drawn_exactly():
    result = measured(Exact(), SidedImages(), Eye())
    found = {key.removeprefix("dose_response.judge."): value for key, value in result.estimates().items()}
    assert found["x0"].value < 0.001 and found["x1"].value > 0.99 and found["rise"].value > 0.99
    assert found["gone"].value == found["monotone"].value == found["monotone_to_one"].value == 1
    assert found["off_target"].value == pytest.approx(0, abs=1e-6)
    assert found["rise_control"].value == pytest.approx(0, abs=1e-6)
    assert found["auroc_real"].value == found["auroc_rebuilt"].value == 1
    assert found["rise"].n == 4 * 12
    assert result.left_out == {}


def test_a_concept_of_absence_is_multiplied_where_the_attribute_is_absent():
    # "upper: right" is matched to concept 0, weaker where it is there, as the areas of both are the same
    result = measured(Exact(), SidedImages(), Eye())
    table = {row["name"]: row for row in result.to_dict()["dose_response"]["by_attribute"]}
    row = table["upper: right"]
    assert (row["concept"], row["direction"]) == (0, -1)
    columns = ~np.isnan(result.doses.logits[:, 1, 0])
    assert not SidedImages().attributes[columns, 1].any()


def test_attributes_stay_where_nothing_is_drawn():
    found = measured(Nothing(), SidedImages(), Eye()).estimates()
    assert found["dose_response.judge.rise"].value == pytest.approx(0, abs=1e-6)
    assert found["dose_response.judge.gone"].value == found["dose_response.judge.monotone"].value == 0


def test_surgery_succeeds_where_changes_are_drawn():
    result = measured(Exact(), SidedImages(), Eye())
    found = result.estimates()
    assert found["surgery.seen"].value == 1 and found["surgery.before"].value == 0
    assert found["surgery.group.upper"].value == found["surgery.group.lower"].value == 1
    assert found["surgery.off_target"].value == pytest.approx(0, abs=1e-6)
    assert found["surgery.seen"].n == 4 * 12 and found["surgery.seen"].unit == "swaps"
    assert {"dose_response", "surgery"} == set(result.to_dict())


def test_surgery_fails_where_nothing_is_drawn_or_the_judge_sees_nothing():
    found = measured(Nothing(), SidedImages(), Eye()).estimates()
    assert found["surgery.seen"].value == found["surgery.before"].value == 0

    class Blind(Eye):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 0, 1, 0]).expand(len(images), 4)  # always left

    found = measured(Exact(), SidedImages(), Blind()).estimates()
    assert found["surgery.seen"].value == found["surgery.before"].value == 0.5  # of swaps to left all, to right none


def test_swaps_are_all_ordered_pairs_of_a_group():
    scores = [AttributeScore(name, 0, 1, 0.9, 0.9) for name in ("a: x", "a: y", "a: z", "b: x", "c")]
    assert len(possible_swaps(scores)) == 6 and possible_swaps(scores[3:]) == []


def test_without_a_judge_the_read_back_alone_is_measured_and_that_is_said():
    result = measured(Exact(), SidedImages())
    assert result.doses is None and result.surgery is None
    assert result.left_out == {"judge": "there is no judge for these images; train one with `train judge`"}
    assert set(result.to_dict()) == {"dose_response"}


def test_figures_show_what_was_measured():
    both = drawing_figures(measured(Exact(), SidedImages(), Eye()).estimates())
    assert list(both) == ["dose-response", "surgery"] and len(both["dose-response"].axes) == 2
    alone = drawing_figures(measured(Exact()).estimates())
    assert list(alone) == ["dose-response"] and len(alone["dose-response"].axes) == 1
    assert drawing_figures({}) == {}
