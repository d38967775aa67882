"""Random changes of training images: known answers, the range they stay in, and what they depend on."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_models import tiny_recipe
from torch import Tensor
from torch.nn import functional as F

from viscoin.config import ClassifierConfig, load_recipe
from viscoin.datasets import ImageDataset
from viscoin.models.classifier import Classifier
from viscoin.runs.run import Run, read_metrics
from viscoin.training import classifier as classifier_module
from viscoin.training import transforms as module
from viscoin.training.classifier import ClassifierTask, train_classifier
from viscoin.training.data import StepBatches
from viscoin.training.runtime import Runtime, make_fabric
from viscoin.training.transforms import OPERATIONS, Transforms, mix, rand_augment, rotate, warp

SIZE = 16
EVERYTHING = Transforms(rotation=30, rand_augment=2, rand_augment_magnitude=15, blur=1, noise=0.1, mixup=0.4)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def some_image(size: int = SIZE) -> Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def photographs(n: int = 10) -> ImageDataset:
    pixels = generator().integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    return ImageDataset("photographs", "train", pixels, np.arange(n) % 3, ["a", "b", "c"])


def batches(transforms: Transforms | None = EVERYTHING, batch_size: int = 6, **changes) -> StepBatches:
    settings = {"seed": 1, "horizontal_flip": True, "padding": 2, **changes}
    return StepBatches(photographs(), batch_size, transforms=transforms, **settings)


def equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- what a batch depends on -------------------------------------------------------------------------------------


def test_batches_depend_on_the_step_alone():
    walked = batches()
    in_order = [walked(step) for step in range(6)]
    for step in (5, 0, 3, 3):
        assert equal(batches()(step), in_order[step])
    assert not equal(in_order[0], batches(seed=2)(0))


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_workers(workers):
    alone, together = batches(), batches(workers=workers)
    for step in (0, 1, 2, 3, 9, 10, 4):  # with jumps, as a run that goes on elsewhere
        assert equal(together(step), alone(step))


def test_workers_prepare_the_next_batches_and_forget_the_others():
    together = batches(workers=2)
    for step, ahead in ((0, [0, 1, 2]), (1, [1, 2, 3]), (7, [7, 8, 9])):
        together(step)
        assert list(together._ahead) == ahead


def test_errors_of_workers_arrive():
    together = batches(workers=2)
    together.dataset = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match="NoneType"):
        together(0)


def test_an_image_does_not_depend_on_the_batch_around_it():
    changes = Transforms(rotation=30, rand_augment=2, blur=1, noise=0.1)
    large, small = batches(changes, 6), batches(changes, 2)
    assert torch.equal(large(1)[0], torch.cat([small(step)[0] for step in (3, 4, 5)]))
    ranks = [batches(changes, 6, rank=rank, world_size=2)(1)[0] for rank in range(2)]
    assert torch.equal(large(1)[0], torch.stack(ranks, 1).flatten(0, 1))


def test_global_random_state_is_neither_read_nor_changed():
    before = batches()(2)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    assert equal(batches()(2), before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]  # type: ignore[index]


def test_without_transforms_batches_are_as_they_always_were():
    """Flips and crops of a position by the first three draws of its block of Philox(seed)."""
    dataset, images = photographs(), batches(None)(2)[0]
    second_epoch = np.random.Generator(np.random.Philox(np.random.SeedSequence([1, 1]))).permutation(10)
    for image, position in zip(images, range(12, 18)):
        flip, y, x = np.random.Generator(np.random.Philox(key=1, counter=position)).random(3)
        expected = dataset[int(second_epoch[position - 10])][0]
        expected = expected.flip(2) if flip < 0.5 else expected
        expected = F.pad(expected[None], [2] * 4, mode="reflect")[0]
        assert torch.equal(image, expected[:, int(y * 5) :, int(x * 5) :][:, :SIZE, :SIZE])


def test_transforms_follow_flips_and_crops():
    turned, plain = batches(Transforms(rotation=1e-4))(0), batches(None)(0)
    assert torch.allclose(turned[0], plain[0], atol=1e-3) and torch.equal(turned[1], plain[1])


# --- images stay images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transforms",
    [
        Transforms(rotation=180),
        Transforms(noise=5),
        Transforms(blur=5),
        Transforms(rand_augment=8, rand_augment_magnitude=30),
        Transforms(rotation=180, rand_augment=8, rand_augment_magnitude=30, blur=5, noise=5),
    ],
)
def test_the_strongest_changes_stay_in_range(transforms):
    for seed in range(20):
        image = transforms(some_image(), generator(seed))
        assert image.shape == (3, SIZE, SIZE) and image.dtype == torch.float32
        assert torch.isfinite(image).all() and image.abs().max() <= 1


def test_the_image_given_is_left_alone():
    image = some_image()
    before = image.clone()
    for seed in range(10):
        EVERYTHING(image, generator(seed))
    assert torch.equal(image, before)


@pytest.mark.parametrize("transforms", [Transforms(rotation=180), Transforms(blur=5)])
def test_one_colour_stays_one_colour(transforms):
    colour = torch.tensor([-0.5, 0.25, 1.0]).view(3, 1, 1).expand(3, SIZE, SIZE)
    for seed in range(10):
        torch.testing.assert_close(transforms(colour, generator(seed)), colour, atol=1e-5, rtol=0)


# --- rotation, blur, noise ---------------------------------------------------------------------------------------


def test_rotation_is_counter_clockwise_about_the_centre():
    image = some_image()
    for turns in range(4):
        torch.testing.assert_close(rotate(image, 90 * turns), torch.rot90(image, turns, (1, 2)), atol=1e-4, rtol=0)


def test_what_comes_from_outside_is_reflected():
    image = some_image()
    shifted = warp(image, [[1, 0, 2 * 3 / SIZE], [0, 1, 0]])  # three pixels from the right
    expected = torch.cat([image[..., 3:], image[..., -3:].flip(2)], 2)
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=0)


def test_angles_are_even_within_their_range(monkeypatch):
    angles = []
    monkeypatch.setattr(module, "rotate", lambda image, degrees: angles.append(degrees) or image)
    for seed in range(400):
        Transforms(rotation=20)(some_image(), generator(seed))
    assert -20 <= min(angles) < -19 and 19 < max(angles) <= 20 and abs(np.mean(angles)) < 2


def test_blur_spreads_a_point_by_its_deviation(monkeypatch):
    point = torch.zeros(3, 33, 33)
    point[:, 16, 16] = 1

    class Least:
        def random(self) -> float:
            return 0.0  # the largest sigma

    blurred = Transforms(blur=2)(point, Least())[0]  # type: ignore[arg-type]
    distance = torch.arange(33.0) - 16
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-4)
    assert float((blurred.sum(0) * distance**2).sum()) == pytest.approx(2**2, rel=0.05)
    spreads = {round(float(Transforms(blur=2)(point, generator(seed))[0].max()), 4) for seed in range(10)}
    assert len(spreads) == 10  # each image's own


def test_noise_has_its_deviation():
    grey = torch.zeros(3, 64, 64)
    noisy = Transforms(noise=0.1)(grey, generator())
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.03) and abs(float(noisy.mean())) < 0.005
    assert float(noisy[0].flatten() @ noisy[1].flatten()) / 64**2 < 0.001  # channels apart


# --- RandAugment -------------------------------------------------------------------------------------------------

UNIT = (some_image() + 1) / 2


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize")])
def test_operations_without_strength_change_nothing(name):
    tolerance = 1 / 255 if name == "posterize" else 1e-5
    torch.testing.assert_close(OPERATIONS[name](UNIT, 0.0), UNIT, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.3, 1.0])
def test_operations_keep_the_range(name, strength):
    image = OPERATIONS[name](UNIT, strength)
    assert image.shape == UNIT.shape and image.min() >= -1e-6 and image.max() <= 1 + 1e-6
    assert name == "identity" or not torch.equal(image, UNIT)


@pytest.mark.parametrize("name", ["shear x", "shear y", "translate x", "translate y", "rotate"])
def test_geometry_adds_no_colour(name):
    colour = torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1).expand(3, SIZE, SIZE)
    for strength in (-1.0, 1.0):
        torch.testing.assert_close(OPERATIONS[name](colour, strength), colour, atol=1e-5, rtol=0)


def test_operations_on_known_values():
    grey = torch.full((3, SIZE, SIZE), 0.4)
    value = {name: float(operation(grey, 0.5)[0, 8, 8]) for name, operation in OPERATIONS.items()}
    assert value["brightness"] == pytest.approx(0.4 * 1.45)
    assert float(OPERATIONS["brightness"](grey, -0.5)[0, 8, 8]) == pytest.approx(0.4 * 0.55)
    assert value["solarize"] == pytest.approx(0.4)  # below the threshold of 0.5
    assert float(OPERATIONS["solarize"](grey, 0.8)[0, 8, 8]) == pytest.approx(0.6)  # above that of 0.2
    assert value["posterize"] == pytest.approx(25 / 64)  # six bits
    assert [value[name] for name in ("colour", "contrast", "sharpness")] == pytest.approx([0.4] * 3, abs=1e-3)
    red = torch.tensor([0.8, 0.2, 0.2]).view(3, 1, 1).expand(3, SIZE, SIZE)
    grey_of_red = 0.299 * 0.8 + 0.701 * 0.2
    assert float(OPERATIONS["colour"](red, -1.0)[0, 8, 8]) == pytest.approx(0.1 * 0.8 + 0.9 * grey_of_red, abs=1e-3)
    ramp = torch.linspace(0.25, 0.75, SIZE).expand(3, SIZE, SIZE)
    stretched = OPERATIONS["autocontrast"](ramp, 0.5)
    assert (float(stretched.min()), float(stretched.max())) == pytest.approx((0, 1), abs=1e-5)
    moved = OPERATIONS["translate x"](ramp, 331 / 150 / 4)  # a quarter of the width
    torch.testing.assert_close(moved[..., : SIZE * 3 // 4], ramp[..., SIZE // 4 :], atol=1e-5, rtol=0)


def test_rand_augment_draws_all_operations_evenly_and_both_signs(monkeypatch):
    drawn: Counter[tuple[str, float]] = Counter()

    def note(name: str):
        return lambda image, m: drawn.update([(name, m)]) or image

    monkeypatch.setattr(module, "OPERATIONS", {name: note(name) for name in OPERATIONS})
    image = some_image()
    torch.testing.assert_close(rand_augment(image, 2800, 0.3, generator()), image)
    assert len(drawn) == 2 * len(OPERATIONS) and {m for _, m in drawn} == {-0.3, 0.3}
    assert all(60 < count < 140 for count in drawn.values())  # 100 each on average


def test_magnitude_counts_to_thirty(monkeypatch):
    strengths = []
    monkeypatch.setattr(module, "OPERATIONS", {"note": lambda image, m: strengths.append(abs(m)) or image})
    Transforms(rand_augment=3, rand_augment_magnitude=15)(some_image(), generator())
    assert strengths == [0.5] * 3


# --- mixup -------------------------------------------------------------------------------------------------------


def test_mix_blends_neighbours_and_their_labels():
    images = torch.tensor([0.0, 1.0, -1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    mixed, targets = mix(images, torch.tensor([2, 0, 1]), torch.tensor([1.0, 0.75, 0.4]), 3)
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor([0.0, 0.75 - 0.25, -0.4]))
    torch.testing.assert_close(targets, torch.tensor([[0.0, 0, 1], [0.75, 0.25, 0], [0, 0.4, 0.6]]))


def test_mixup_weighs_by_a_beta_distribution():
    plain, mixed = batches(None, 10), batches(Transforms(mixup=0.2), 10)
    weights = []
    for step in range(30):
        images, labels = plain(step)
        blended, targets = mixed(step)
        torch.testing.assert_close(targets.sum(1), torch.ones(10))
        assert targets.shape == (10, 3) and blended.abs().max() <= 1
        other = images.roll(-1, 0)
        weight = ((blended - other).flatten(1) * (images - other).flatten(1)).sum(1)
        weight = weight / (images - other).flatten(1).square().sum(1)
        apart = labels != labels.roll(-1)
        torch.testing.assert_close(
            targets[apart].gather(1, labels[apart, None])[:, 0], weight[apart], atol=1e-4, rtol=0
        )
        weights += weight.tolist()
    assert np.mean(weights) == pytest.approx(0.5, abs=0.06)
    assert np.var(weights) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.15)  # of Beta(0.2, 0.2)


def test_loss_of_mixed_labels_is_the_mixture_of_the_losses():
    dataset = photographs()
    config = ClassifierConfig(pretrained=False)
    torch.manual_seed(0)
    model = Classifier("viscoin_resnet10", 3, SIZE)
    task = ClassifierTask(model, config, make_fabric(Runtime("cpu", "32-true")), dataset, steps=9, per_epoch=9)
    images, labels = dataset.batch(range(6))
    weights = torch.tensor([1.0, 0.9, 0.7, 0.5, 0.3, 0.0])
    mixed, targets = mix(images, labels, weights, 3)
    model.train()
    with torch.no_grad():
        logits = model(mixed)
    losses = (F.cross_entropy(logits, each, reduction="none") for each in (labels, labels.roll(-1)))
    expected = weights * next(losses) + (1 - weights) * next(losses)
    results = task.step(mixed, targets, 0)
    assert float(results["loss"]) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(results["accuracy"]) == pytest.approx(float((logits.argmax(1) == targets.argmax(1)).float().mean()))


def test_the_classifier_trains_with_the_transforms_of_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = {}
    fit = classifier_module.fit

    def note(run, task, batches, *arguments, **options):
        seen["batches"] = batches
        return fit(run, task, batches, *arguments, **options)

    monkeypatch.setattr(classifier_module, "fit", note)
    monkeypatch.setattr(classifier_module, "load_splits", lambda *arguments: (photographs(), photographs()))
    changes = {f"classifier__{name}": value for name, value in vars(EVERYTHING).items()}
    recipe = tiny_recipe(dataset__resolution=SIZE, classifier__epochs=2, classifier__batch_size=5, **changes)
    run = Run.create("classifier", recipe, tmp_path / "run")
    assert train_classifier(recipe, run, Runtime("cpu", "32-true")).is_file()
    assert seen["batches"].transforms == EVERYTHING and seen["batches"].workers == 0
    assert any("train.accuracy" in line for line in read_metrics(run.metrics_path))


# --- options -----------------------------------------------------------------------------------------------------


def test_off_by_default_and_read_from_the_recipe():
    assert Transforms.of(ClassifierConfig()) is None
    assert Transforms.of(ClassifierConfig(rand_augment_magnitude=20)) is None  # the strength of nothing
    config = load_recipe("birds", {"classifier.rotation": "15", "classifier.mixup": "0.2"}).classifier
    assert Transforms.of(config) == Transforms(rotation=15, mixup=0.2)
    assert not Transforms(mixup=0.2).changes_images


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rotation", -1),
        ("rotation", 181),
        ("noise", -0.1),
        ("blur", -1),
        ("rand_augment", 1.5),
        ("rand_augment_magnitude", 31),
        ("mixup", -1),
    ],
)
def test_values_out_of_range(key, value):
    with pytest.raises(ValueError, match=rf"classifier\.{key} = {value}"):
        load_recipe("birds", {f"classifier.{key}": value})


def test_images_too_small_for_the_padding_or_the_blur():
    assert batches(None, padding=SIZE - 1)(0)[0].shape == (6, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"classifier\.padding = 16: .* the 16 px .*choose at most 15"):
        batches(None, padding=SIZE)
    assert batches(Transforms(blur=5))(0)[0].shape == (6, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"classifier\.blur = 5\.1 px blurs across 16 px.* 16 px .*choose at most 5$"):
        batches(Transforms(blur=5.1))
