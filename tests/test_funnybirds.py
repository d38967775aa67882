"""FunnyBirds: a small tree in the published format, part maps and interventions, and what can be wrong with it."""

import json
import shutil
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_recipe, train_and_test

from viscoin.config import DatasetConfig
from viscoin.datasets import funnybirds, load_dataset
from viscoin.datasets.files import noted_files
from viscoin.datasets.funnybirds import FunnyBirdsDataset
from viscoin.models.classifier import Classifier
from viscoin.plotting.truth import truth_figures
from viscoin.testing.truth import AttributeScore, scenes, test_truth
from viscoin.testing.truth.causal import causal_tests
from viscoin.training.gan import build_generator
from viscoin.training.viscoin import build_ensemble

measure_truth = test_truth
del test_truth  # pytest would collect it

SIZE = 16
SIDE = 64  # of the pictures; the published ones have 256 px
PARTS = {
    "wing": [{"model": f"wing0{n}.glb", "color": color} for color in ("red", "blue") for n in (1, 2)],
    "beak": [{"model": f"beak0{n}.glb", "color": "yellow"} for n in (1, 2)],
    "eye": [{"model": f"eye0{n}.glb"} for n in (1, 2, 3)],
    "foot": [{"model": "foot01.glb"}, {"model": "foot04.glb"}],
    "tail": [{"model": f"tail0{n}.glb", "color": color} for color in ("red", "green") for n in (1, 2)],
}
CLASSES = [
    {"beak": 0, "eye": 2, "foot": 1, "tail": 3, "wing": 0},
    {"beak": 1, "eye": 0, "foot": 0, "tail": 1, "wing": 2},
]
COUNTS = {"train": 12, "test": 3}  # of a class
COLOURS = {
    "beak": [(255, 255, 0)],
    "eye": [(255, 255, 253), (255, 255, 254)],
    "foot": [(255, 0, 1), (255, 0, 2)],
    "tail": [(0, 0, 255)],
    "wing": [(0, 255, 1), (0, 255, 2)],
}
CENTRES = {"beak": (8, 32), "eye": (24, 8), "foot": (40, 56), "tail": (56, 32), "wing": (32, 32)}  # x, y
CHANGED = (0, 4)  # test images with interventions; the published data have them of all
REMOVED_FROM = 4  # training images whose number is divisible by this have neither tail nor wing


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """For tests that only read."""
    return write_tree(tmp_path_factory.mktemp("data") / "FunnyBirds")


@pytest.fixture
def root(tree, tmp_path):
    """For tests that change something."""
    return shutil.copytree(tree, tmp_path / "FunnyBirds")


def write_tree(root: Path) -> Path:
    """Birds of squares on a background whose colour tells their number; a class after the other, as published."""
    root.mkdir()
    (root / "parts.json").write_text(json.dumps(PARTS))
    (root / "classes.json").write_text(
        json.dumps([{"class_idx": i, "parts": parts} for i, parts in enumerate(CLASSES)])
    )
    for source, count in COUNTS.items():
        scenes = [scene(label, source == "train" and n % REMOVED_FROM == 0) for label in (0, 1) for n in range(count)]
        (root / f"dataset_{source}.json").write_text(json.dumps(scenes))
        for number, entry in enumerate(scenes):
            name = f"{entry['class_idx']}/{number:06}"
            shown = [part for part in PARTS if entry[f"{part}_model"] != "placeholder"]
            save(root / source / f"{name}.png", picture(number, shown))
            save(root / f"{source}_part_map" / f"{name}.png", part_map(shown))
            if source == "test" and number in CHANGED:
                for left in (left for n in range(6) for left in combinations(sorted(PARTS), n)):
                    save(root / "test_interventions" / name / f"body_{'_'.join(left)}.png", picture(number, left))
                for k in (0, 1):
                    save(
                        root / "test_interventions" / name / "background_interventions" / f"{k}.png",
                        picture(50 + k, PARTS),
                    )
    return root


def scene(label: int, removed: bool) -> dict:
    entry = {"class_idx": label, "camera_distance": 300, "camera_pitch": 1.5, "bg_objects": "3,0,", "bg_radius": "1,2,"}
    for part, variant in CLASSES[label].items():
        for key, value in PARTS[part][variant].items():
            entry[f"{part}_{key}"] = "placeholder" if removed and part in ("tail", "wing") else value
    return entry


def picture(number: int, shown) -> np.ndarray:
    image = np.full((SIDE, SIDE, 4), [4 * number, 120, 120, 255], np.uint8)
    for part in shown:
        x, y = CENTRES[part]
        image[y - 4 : y + 4, x - 4 : x + 4, :3] = [255, 10 * list(PARTS).index(part), 0]
    return image


def part_map(shown) -> np.ndarray:
    """Parts in their colours, halves of the eye in the two of the eyes, with a rim of blended colours."""
    image = np.zeros((SIDE, SIDE, 4), np.uint8)
    image[..., 3] = 255
    image[20:44, 20:44, :3] = 127  # the body
    for part in shown:
        (x, y), colours = CENTRES[part], COLOURS[part]
        image[y - 8 : y + 8, x - 8 : x + 8, :3] = np.array(colours[0]) // 2
        image[y - 4 : y + 4, x - 4 : x, :3] = colours[0]
        image[y - 4 : y + 4, x : x + 4, :3] = colours[-1]
    return image


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def load(root: Path, split: str = "test", **settings) -> FunnyBirdsDataset:
    config = DatasetConfig(**{"name": "funnybirds", "resolution": SIZE, "path": str(root)} | settings)
    dataset = load_dataset("funnybirds", split, config)
    assert isinstance(dataset, FunnyBirdsDataset)
    return dataset


def numbers(dataset: FunnyBirdsDataset) -> list[int]:
    return [int(red) // 4 for red in dataset.pixels[:, 0, 0, 0]]


# --- images and attributes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", ".."])
def test_published_split(tree, inside):
    parts = {split: load(tree / inside, split) for split in ("train", "validation", "test")}
    assert numbers(parts["test"]) == list(range(6)) and parts["test"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(numbers(parts["train"]) + numbers(parts["validation"])) == list(range(24))
    assert np.bincount(parts["validation"].labels).tolist() == [1, 1]
    for split, part in parts.items():
        assert (part.name, part.split, part.class_names) == ("funnybirds", split, ["bird 00", "bird 01"])
        assert [int(Path(file).stem) for file in part.files] == numbers(part)
    assert numbers(load(tree, "validation", seed=1)) != numbers(parts["validation"])


def test_attributes_are_the_variants_of_the_parts(tree):
    dataset = load(tree)
    assert dataset.has_truth and list(dataset.attribute_names) == [
        "wing: 1, red", "wing: 2, red", "wing: 1, blue", "wing: 2, blue", "beak: 1", "beak: 2", "eye: 1", "eye: 2",
        "eye: 3", "foot: 1", "foot: 4", "tail: 1, red", "tail: 2, red", "tail: 1, green", "tail: 2, green",
    ]  # fmt: skip
    shown = [[name for name, there in zip(dataset.attribute_names, row) if there] for row in dataset.attributes]
    assert shown[0] == shown[2] == ["wing: 1, red", "beak: 1", "eye: 3", "foot: 4", "tail: 2, green"]
    assert shown[3] == shown[5] == ["wing: 1, blue", "beak: 2", "eye: 1", "foot: 1", "tail: 2, red"]
    assert dataset.attributes.dtype == bool and dataset.parameters(0)["camera_distance"] == 300


def test_removed_parts_have_no_attribute_and_no_mask(tree):
    dataset = load(tree, "train")
    for index, number in enumerate(numbers(dataset)):
        removed = number % COUNTS["train"] % REMOVED_FROM == 0
        assert dataset.attributes[index].sum() == (3 if removed else 5)
        assert dataset.part_masks(index).any((1, 2)).tolist() == [not removed, True, True, True, not removed]


def test_truth_follows_the_images_that_are_left(root):
    (root / "test" / "0" / "000001.png").unlink()
    (root / "test" / "1" / "000003.png").write_bytes(b"broken")
    dataset = load(root, skip_bad_files=True)
    with noted_files() as found:
        load(root, skip_bad_files=True)
    assert sorted(Path(file).stem for file in found) == ["000001", "000003"]
    assert numbers(dataset) == [0, 2, 4, 5] and dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.attributes[:, 0].tolist() == [True, True, False, False]
    assert dataset.without_parts(2, [])[0, 0, 0] == 4 * 4
    assert numbers(load(root, test=2, skip_bad_files=True)) in ([0, 2], [0, 4], [0, 5], [2, 4], [2, 5], [4, 5])


def test_masks_are_the_pixels_of_the_colours(tree):
    dataset = load(tree)
    assert list(dataset.part_names) == list(PARTS)
    masks = dataset.part_masks(0)
    assert masks.shape == (5, SIZE, SIZE) and masks.dtype == bool
    for part, mask in zip(PARTS, masks):
        x, y = (value // 4 for value in CENTRES[part])
        expected = np.zeros((SIZE, SIZE), bool)
        expected[y - 1 : y + 1, x - 1 : x + 1] = True
        assert (mask == expected).all()


@pytest.mark.parametrize(
    "fit", [{"crop_share": 0.75}, {"fit": "squash", "crop_share": 0.6}, {"fit": "pad"}, {"interpolation": "nearest"}]
)
def test_masks_are_cut_as_the_pictures_are(tree, fit):
    dataset = load(tree, resolution=48, **fit)
    shown, masks = dataset.pixels[0, ..., 0] > 127, dataset.part_masks(0).any(0)  # parts are red, the rest is not
    assert shown.any() and (shown != masks).sum() <= 0.2 * shown.sum()


# --- interventions -------------------------------------------------------------------------------------------------


def test_parts_are_removed(tree):
    dataset = load(tree)
    assert dataset.has_interventions and dataset.background_objects(0) == 2
    for removed in ([], ["tail"], ["wing", "beak"], list(PARTS)):
        changed = dataset.without_parts(4, removed)
        assert changed.shape == (SIZE, SIZE, 3) and changed.dtype == np.uint8
        masks = dict(zip(PARTS, dataset.part_masks(4)))
        for part, mask in masks.items():
            same = (changed[mask] == dataset.pixels[4][mask]).all()
            assert same == (part not in removed)
    assert dataset.without_background_object(4, 1)[0, 0, 0] == 4 * 51


def test_interventions_that_are_not_there(root):
    with pytest.raises(ValueError, match=r"unknown part 'crest'; choose some of wing, beak, eye, foot, tail"):
        load(root).without_parts(0, ["crest"])
    with pytest.raises(ValueError, match=r"image 0 of funnybirds has 2 background objects, counted from 0, not 2"):
        load(root).without_background_object(0, 2)
    training = load(root, "train")
    assert not training.has_interventions
    with pytest.raises(
        ValueError, match=r"body_beak.png is not there; train images have no interventions, test images"
    ):
        training.without_parts(0, ["eye", "foot", "tail", "wing"])
    path = root / "test_interventions" / "0" / "000000" / "body_beak.png"
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"body_beak.png cannot be used: no image"):
        load(root).without_parts(0, ["eye", "foot", "tail", "wing"])
    path.unlink()
    with pytest.raises(ValueError, match=r"body_beak.png is not there$"):
        load(root).without_parts(0, ["eye", "foot", "tail", "wing"])


def test_trees_without_maps_and_interventions(root):
    shutil.rmtree(root / "test_part_map")
    shutil.rmtree(root / "test_interventions")
    dataset = load(root)
    assert dataset.has_truth and not dataset.part_names and not dataset.has_interventions
    with pytest.raises(ValueError, match=r"has no test_part_map; unpack the archive again"):
        dataset.part_masks(0)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"broken")])
def test_part_maps_that_cannot_be_read(root, damage):
    damage(root / "test_part_map" / "0" / "000002.png")
    dataset = load(root)
    assert dataset.part_masks(1).any()
    with pytest.raises(ValueError, match=r"test_part_map/0/000002.png is no readable part map .* unpack"):
        dataset.part_masks(2)


# --- what can be wrong ---------------------------------------------------------------------------------------------


def change(path: Path, where: list, value: object) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name, where, value, message",
    [
        (
            "dataset_test.json",
            [2, "class_idx"],
            2,
            r"dataset_test.json: image 2 has class_idx 2, which is none of the 2",
        ),
        ("dataset_test.json", [2, "class_idx"], "0", r"dataset_test.json: image 2 has class_idx '0'"),
        ("dataset_test.json", [2], 7, r"dataset_test.json: image 2 has class_idx None"),
        (
            "dataset_test.json",
            [2, "class_idx"],
            1,
            r"1 of 6 images that .*dataset_test.json names are missing \(first: .*1/000002",
        ),
        ("classes.json", [1, "class_idx"], 5, r"classes.json does not list classes with class_idx 0, 1, 2"),
        ("parts.json", ["tail"], [], r"parts.json is not of the form"),
        ("parts.json", ["tail", 0], {"model": 3, "color": "red"}, r"parts.json is not of the form"),
    ],
)
def test_tables_that_do_not_fit(root, name, where, value, message):
    change(root / name, where, value)
    with pytest.raises(ValueError, match=message) as error:
        load(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
@pytest.mark.parametrize("name", ["dataset_test.json", "classes.json", "parts.json"])
def test_files_of_another_form(root, name, text):
    (root / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} (is not valid JSON|does not hold|does not list|is not of the form)"):
        load(root)


def test_parts_unknown_to_the_list_of_variants(root):
    change(root / "dataset_test.json", [4, "tail_model"], "tail09.glb")
    dataset = load(root)
    with pytest.raises(
        ValueError, match=r"dataset_test.json: image 4 has a tail .*tail09.glb.*which parts.json does not"
    ):
        _ = dataset.attributes


def test_a_class_without_test_images(root):
    path = root / "dataset_test.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:3]))
    with pytest.raises(
        ValueError, match=r"funnybirds: class 'bird 01' has no images for split 'test' in .*dataset_test"
    ):
        load(root)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(
        ValueError, match=r"cats is not a folder of dataset funnybirds, which holds parts.json, classes"
    ):
        load(tmp_path / "cats")


def test_the_archive_is_the_published_one():
    assert funnybirds.SOURCE.file_name == "FunnyBirds.zip"


def test_copies_across_splits_are_reported(root, caplog):
    for path in (root / "train").rglob("*.png"):  # drawn as the test images are
        path.write_bytes(path.read_bytes() + b"other bytes")
    with caplog.at_level("WARNING"):
        load(root)
    assert "several splits" not in caplog.text
    shutil.copy(root / "train" / "0" / "000000.png", root / "test" / "0" / "000001.png")
    with caplog.at_level("WARNING"):
        load(root)
    assert "funnybirds: 1 image lies in several splits" in caplog.text


# --- ground truth ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A tree with the interventions of all test images, as published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "CHANGED", range(6))
        return write_tree(tmp_path_factory.mktemp("changed") / "FunnyBirds")


def seen_parts(images: torch.Tensor) -> dict[str, np.ndarray]:
    """A concept function with one concept for each part that is 1 where the part is drawn."""
    x, y = np.array([CENTRES[part] for part in PARTS]).T * images.shape[-1] // SIDE
    return {"concepts": (images[:, 0, y, x] > 0).numpy().astype(float)}


def test_a_concept_falls_when_its_part_is_deleted_and_not_with_another(changed):
    dataset = load(changed)
    interventions, responses = scenes.intervene(seen_parts, dataset, np.arange(6), batch_size=20)
    assert interventions.visible.all() and not interventions.swap_visible.any()
    own = [score(name, list(PARTS).index(name.partition(":")[0])) for name in dataset.attribute_names]
    found = causal_tests(interventions, responses["concepts"], np.ones(5), own)
    assert found.deletion.share().value == found.deletion_first.share().value == 1
    assert found.deletion_other.share().value == 0
    assert found.deletion.share().n == 30  # the variants of five parts of six birds
    assert found.deletion_first_chance.share().value == pytest.approx(1 / 5)
    for absent in (found.swap, found.swap_other, found.background):
        assert absent.share() is None
    others = [score(each.name, (each.concept + 1) % 5) for each in own]
    assert causal_tests(interventions, responses["concepts"], np.ones(5), others).deletion.share().value == 0


def score(name: str, concept: int) -> AttributeScore:
    return AttributeScore(name, concept, 1, 1.0, 1.0)


def test_the_truth_about_an_ensemble(changed):
    splits = [load(changed, split, resolution=32) for split in ("validation", "test")]
    splits[0] = load(changed, "train", resolution=32)  # with both classes
    recipe = tiny_recipe()
    torch.manual_seed(0)
    f = Classifier("viscoin_resnet10", 2, 32)
    g = build_generator(recipe.gan, 32)
    g.mapping.w_avg.normal_()
    ensemble = build_ensemble(recipe.viscoin, f, g, splits[1].class_names)
    found = measure_truth(ensemble, *splits, scenes=4)
    assert (found.n, found.intervened, found.examples) == (6, 4, [])
    assert {"auroc", "deletion", "deletion_other", "deletion_first", "pointing"} <= set(found.concepts.summary)
    assert not {"swap", "background", "purity"} & set(found.concepts.summary)
    assert list(truth_figures(found)) == ["truth-attributes", "truth-tests", "truth-places"]
    assert json.loads(json.dumps(found.to_dict()))


def test_without_interventions_only_attributes_are_asked_for(root):
    shutil.rmtree(root / "test_interventions")
    assert scenes.world_of(load(root)) is None
    with pytest.raises(ValueError, match="have no interventions"):
        scenes.intervene(seen_parts, load(root), np.arange(2))


@pytest.mark.slow
def test_the_recipe_trains_and_its_concepts_are_tested_by_deletions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "CHANGED", range(6))
    monkeypatch.chdir(tmp_path)
    found = train_and_test("funnybirds", write_tree(tmp_path / "FunnyBirds"), tmp_path / "tested")
    assert found["ensemble"]["agreement"] == 1
    assert found["estimates"]["attributes.concepts.deletion"]["n"] >= len(PARTS)
