"""Scores of maps by masks, by hidden pixels and by stability: reference numbers, and maps whose scores are known."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from viscoin.testing.attribution import faithfulness, places, robustness, segmentation
from viscoin.testing.attribution.types import min_max

TENSORS = load_file(Path(__file__).parent / "golden" / "attribution" / "evaluation.safetensors")
GOLDEN = {name: tensor.numpy() for name, tensor in TENSORS.items()}
IMAGES, TARGETS = TENSORS["images"], TENSORS["targets"]
MAPS, MASKS = GOLDEN["maps"], GOLDEN["masks"]
PIXELS = 32 * 32


class Net(nn.Module):
    """The tiny network of the reference numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv2(self.conv1(images).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Net:
    model = Net().eval()
    model.load_state_dict({name[6:]: value for name, value in TENSORS.items() if name.startswith("model.")})
    return model


def close(found: object, name: str, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, GOLDEN[name], atol=tolerance, rtol=tolerance)


def gradient(net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(net(images).gather(1, targets[:, None]).sum(), images)[0]


# --- places ------------------------------------------------------------------------------------------------------


def test_places_of_the_reference():
    kept = GOLDEN["localisation.kept"]
    for name in ("mass", "pointing", "rank"):
        found = getattr(places, name)(MAPS, MASKS)
        close(found[kept], f"localisation.{name}")
        assert np.isnan(found[~kept]).all()


def test_a_map_that_is_the_mask_has_all_places_and_one_that_is_not_has_none():
    masks = MASKS[:3]
    for score in (places.pointing, places.mass, places.rank):
        assert score(masks.astype(float), masks) == pytest.approx(1)
        assert score(1.0 - masks, masks) == pytest.approx(0)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_map_without_differences_is_at_chance(level):
    masks, flat = MASKS[:3], np.full((3, 32, 32), level)
    for score in (places.pointing, places.mass, places.rank):
        assert score(flat, masks) == pytest.approx(places.area(masks))


# --- segmentation ------------------------------------------------------------------------------------------------


def test_segmentation_of_the_reference():
    kept = GOLDEN["predicted"] == 1
    found = segmentation.segments(MAPS, kept=kept)
    counts = segmentation.count(found, MASKS)
    for name, value in segmentation.pooled(counts.rows()).items():
        close(value, f"segmentation.pooled.{name}")
    close(segmentation.iou(counts), "segmentation.image.iou")
    close(segmentation.dice(counts), "segmentation.image.dice")
    centroids = segmentation.centroid(found, MASKS)
    close(np.nanmean(centroids), "segmentation.pooled.pointing_centroid")
    close(min_max(MAPS), "maps.min_max")


def test_thresholds_and_areas_of_the_reference():
    some = MASKS.any((1, 2))
    close(segmentation.THRESHOLDS, "segmentation.thresholds")
    curve = segmentation.iou_curve(MAPS, MASKS)
    close(curve.T, "segmentation.iou_curve")
    mean = curve[some].mean(0)
    close(mean.max(), "segmentation.best_iou")
    close(segmentation.THRESHOLDS[mean.argmax()], "segmentation.best_threshold")
    for name, score in (("ap", segmentation.average_precision), ("auroc", segmentation.auroc)):
        values = score(MAPS, MASKS)
        np.testing.assert_allclose(values[some], GOLDEN[f"segmentation.{name}"][some], atol=1e-4)
        assert np.isnan(values[~some]).all()
    pooled = [array.reshape(1, -1, 32) for array in (min_max(MAPS), MASKS)]
    close(segmentation.average_precision(*pooled)[0], "segmentation.pooled.ap")


def test_a_map_that_is_the_mask_segments_it():
    masks = MASKS[:3]
    found = segmentation.segments(masks.astype(float))
    counts = segmentation.count(found, masks)
    assert set(segmentation.pooled(counts.rows()).values()) == {1.0}
    assert segmentation.iou(counts).tolist() == segmentation.dice(counts).tolist() == [1] * 3
    assert segmentation.average_precision(masks.astype(float), masks).tolist() == [1] * 3
    assert segmentation.auroc(masks.astype(float), masks).tolist() == [1] * 3
    square = np.zeros((1, 9, 9), bool)
    square[:, 2:5, 3:8] = True
    assert segmentation.centroid(square, square).tolist() == [1]
    assert segmentation.centroid(~square, square & (np.arange(9) > 5)).tolist() == [0]


def test_nothing_to_be_found_and_nothing_found_is_right():
    nothing = np.zeros((2, 4, 4), bool)
    counts = segmentation.count(nothing, nothing)
    assert segmentation.iou(counts).tolist() == [1, 1] and segmentation.pooled(counts.rows())["iou"] == 1
    assert segmentation.segments(np.ones((1, 4, 4)), kept=np.array([True])).sum() == 0


# --- deletion and insertion ----------------------------------------------------------------------------------------


def blurred(images: Tensor) -> Tensor:
    kernel = TENSORS["blur_kernel"].expand(3, 1, 5, 5)
    return nn.functional.conv2d(images, kernel, padding=2, groups=3)


@pytest.mark.parametrize("baseline", ["zero", "blur"])
def test_deletion_and_insertion_of_the_reference(net, baseline):
    hidden = blurred(IMAGES) if baseline == "blur" else torch.zeros_like(IMAGES)
    ranks = faithfulness.importance_ranks(MAPS)
    deletion = faithfulness.hiding_curve(net, IMAGES, hidden, TARGETS, ranks)
    insertion = faithfulness.hiding_curve(net, IMAGES, hidden, TARGETS, PIXELS - 1 - ranks)[:, ::-1]
    for name, curve in (("deletion", deletion), ("insertion", insertion)):
        close(curve, f"{name}.{baseline}.curve")
        close(faithfulness.area(curve), f"{name}.{baseline}.auc")


def test_the_order_by_weight_is_the_best_of_all_for_a_linear_f():
    weights = torch.tensor([0.9, 0.5, 0.3, 0.1, -0.2, -0.4, -0.8])
    image = torch.ones(1, 3, 1, 7)

    def logits(images: Tensor) -> Tensor:
        score = images[:, 0, 0] @ weights
        return torch.stack([score, -score], 1)

    orders = np.array(list(permutations(range(7))))[:, None]
    many = image.expand(len(orders), 3, 1, 7)
    curves = faithfulness.hiding_curve(
        logits, many, torch.zeros_like(many), torch.zeros(len(orders), dtype=int), orders, steps=7
    )
    areas = faithfulness.area(curves)
    by_weight = faithfulness.importance_ranks(weights.numpy().reshape(1, 1, 7))
    assert (orders[areas.argmin()] == by_weight[0]).all()
    assert (orders[areas.argmax()] == 6 - by_weight[0]).all()


def test_a_random_order_tells_nothing():
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.random((200, 3, 8, 8), np.float32))

    def logits(images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)) * 4, torch.zeros(len(images))], 1)

    ranks = faithfulness.importance_ranks(np.zeros((200, 8, 8)), seed=1)
    assert (np.sort(ranks.reshape(200, -1)) == np.arange(64)).all() and (ranks[0] != ranks[1]).any()
    targets = torch.zeros(200, dtype=int)
    most, least = (
        faithfulness.area(faithfulness.hiding_curve(logits, images, images * 0, targets, order, 8))
        for order in (ranks, 63 - ranks)
    )
    assert abs((least - most).mean()) < 0.005 < most.std()


# --- ROAD ----------------------------------------------------------------------------------------------------------


def test_road_of_the_reference(net):
    ranks = faithfulness.importance_ranks(MAPS)
    for share in (0.1, 0.5, 0.9):
        curve = faithfulness.road_curve(net, IMAGES, TARGETS, ranks, [share], noise=0)
        close(curve[:, 0], f"road.probability.{share}", 1e-3)
    for share in (0.1, 0.5):
        for row, expected in enumerate(GOLDEN[f"road.imputed.{share}"]):
            found = faithfulness.impute(GOLDEN["images"][row], ranks[row] < int(share * PIXELS), noise=0)
            np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_linear_ramp_is_imputed_exactly_inside():
    y, x = np.mgrid[:12, :12] / 12
    ramp = np.stack([x, y, 0.3 * x - y])
    gone = np.zeros((12, 12), bool)
    gone[3:9, 2:8] = True
    assert faithfulness.impute(ramp, gone, noise=0) == pytest.approx(ramp, abs=1e-6)
    noisy = faithfulness.impute(ramp, gone, noise=0.01) - ramp
    assert 0.005 < noisy[:, gone].std() < 0.015 and abs(noisy[:, ~gone]).max() < 1e-6


# --- infidelity, completeness and sensitivity ----------------------------------------------------------------------


def test_infidelity_of_the_reference(net):
    slope = gradient(net, IMAGES[:1], TARGETS[:1])
    close(slope.numpy(), "gradient", 1e-3)
    steps = TENSORS["infidelity.perturbations"][0]
    with torch.no_grad():
        changes = (net(IMAGES[:1]) - net(IMAGES[:1] - steps))[:, TARGETS[0]].numpy()[None]
    expected = (steps * slope).sum((1, 2, 3)).numpy()[None]
    plain, scaled = faithfulness.infidelity(expected, changes)
    np.testing.assert_allclose(plain, GOLDEN["infidelity"], rtol=1e-3)
    np.testing.assert_allclose(scaled, GOLDEN["infidelity.scaled"], rtol=1e-3)


def test_infidelity_of_a_linear_f_and_its_gradient_is_zero():
    random = np.random.default_rng(0)
    weights, steps = random.normal(size=(4, 30)), random.normal(size=(4, 50, 30))
    changes = np.einsum("nki,ni->nk", steps, weights)
    plain, scaled = faithfulness.infidelity(changes, changes)
    assert plain == pytest.approx(0) and scaled == pytest.approx(0)
    plain, scaled = faithfulness.infidelity(3 * changes, changes)
    assert plain.min() > 1 and scaled == pytest.approx(0)
    assert faithfulness.unexplained(3 * changes, changes) == pytest.approx(0)
    assert faithfulness.unexplained(np.zeros_like(changes), changes) == pytest.approx(1)
    assert faithfulness.completeness_gap(np.array([2.0, 3.0]), np.array([2.0, 0.5])).tolist() == [0, 2.5]


def test_max_sensitivity_of_the_reference(net):
    def mapper(images: Tensor, targets: Tensor) -> np.ndarray:
        return gradient(net, images, targets).reshape(len(images), -1, 32).numpy()

    noise = TENSORS["sensitivity.perturbations"]
    found = robustness.max_sensitivity(mapper, IMAGES[:1], TARGETS[:1], noise)
    np.testing.assert_allclose(found, GOLDEN["max_sensitivity"], rtol=1e-3)


def test_the_gradient_of_a_linear_f_does_not_react_to_noise():
    noise = robustness.perturbations(IMAGES)
    assert noise.shape == (4, robustness.DRAWS, 3, 32, 32) and 0.019 < noise.abs().max() <= 0.02

    def constant(images: Tensor, targets: Tensor) -> np.ndarray:
        return np.broadcast_to(MAPS[0], (len(images), 32, 32))

    assert robustness.max_sensitivity(constant, IMAGES, TARGETS, noise).tolist() == [0] * 4
    found = robustness.max_sensitivity(lambda images, _: images.mean(1).numpy(), IMAGES, TARGETS, noise)
    assert (found > 0).all()


# --- randomisation and complexity ----------------------------------------------------------------------------------


def test_similarities_of_the_reference():
    other = GOLDEN["other_maps"]
    close(robustness.spearman(MAPS, other), "spearman")
    close(robustness.similarity(MAPS, other), "ssim")
    assert robustness.spearman(MAPS, MAPS) == pytest.approx(1)
    assert robustness.similarity(MAPS, 3 * MAPS + 1) == pytest.approx(1)
    assert robustness.spearman(MAPS, np.zeros_like(MAPS)).tolist() == [0] * 4


def test_weights_are_redrawn_from_the_last_block_down(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    names = []
    for name, changed in robustness.randomised(net, seed=3):
        names.append(name)
        redrawn = {key for key, value in changed.state_dict().items() if (value != before[key]).any()}
        assert {key.split(".")[0] for key in redrawn} == set(names)
        weight, original = changed.state_dict()[f"{name}.weight"], before[f"{name}.weight"]
        assert weight.std().item() == pytest.approx(original.std().item(), rel=0.35)
    assert names == ["fc", "conv2", "conv1"]
    assert all((value == before[name]).all() for name, value in net.state_dict().items())


def test_members_of_sequences_are_blocks():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    network = nn.Module()
    network.stem, network.act, network.blocks = nn.Linear(2, 2), nn.ReLU(), nn.Sequential(model, nn.Linear(2, 1))
    assert [name for name, _ in robustness.blocks(network)] == ["stem", "blocks.0", "blocks.1"]


def test_complexity_of_the_reference():
    positive = np.maximum(MAPS, 0)[GOLDEN["localisation.kept"]]
    close(robustness.gini(positive), "complexity.gini")
    close(robustness.entropy(positive), "complexity.entropy")


def test_one_pixel_is_simple_and_all_alike_are_not():
    single, flat = np.zeros((1, 8, 8)), np.ones((1, 8, 8))
    single[0, 3, 4] = 5
    assert robustness.gini(single) == pytest.approx(1 - 1 / 64) and robustness.entropy(single) == pytest.approx(0)
    for maps in (flat, 0 * flat):
        assert robustness.gini(maps) == pytest.approx(0) and robustness.entropy(maps) == pytest.approx(np.log(64))
