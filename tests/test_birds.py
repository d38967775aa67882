"""The birds: how they are drawn, what is true of them, and what interventions change."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from viscoin.datasets.birds import (
    ATTRIBUTE_GROUPS,
    GROUP_PART,
    MAX_CLASSES,
    PARTS,
    Bird,
    Scene,
    attribute_names,
    attributes,
    class_names,
    class_table,
    delete_background_objects,
    delete_part,
    image_attributes,
    item,
    render,
    sample_scene,
    swap_variant,
)

GOLDEN = Path(__file__).parent / "golden"
SMALL_GROUPS = {"beak", "beak colour", "eye", "head", "breast"}


def difference(a: Bird, b: Bird) -> set[str]:
    return {group for group in ATTRIBUTE_GROUPS if a[group] != b[group]}


def changed(a: np.ndarray, b: np.ndarray, above: int = 0) -> np.ndarray:
    return np.abs(a.astype(int) - b).max(-1) > above


def grown(mask: np.ndarray, by: int = 2) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0


def test_pictures_are_the_stored_ones() -> None:
    row = np.concatenate([render(*item("train", i, seed=0)[:2], size=64)[0] for i in range(10)], axis=1)
    stored = cv2.imread(str(GOLDEN / "birds_train_0_to_9.png"), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(row.astype(int) - stored).max() <= 1


def test_class_table_is_the_stored_one() -> None:
    stored = (GOLDEN / "birds_classes.txt").read_text().splitlines()
    written = [f"{name}: {', '.join(bird.values)}" for name, bird in zip(class_names(20), class_table(20))]
    assert written == stored


def test_item_depends_on_split_index_and_seed() -> None:
    pictures = {}
    for split, index, seed in [("train", 4, 0), ("train", 24, 0), ("test", 4, 0), ("train", 4, 1)]:
        bird, scene, label = item(split, index, seed, 20)
        assert (bird, scene, label) == item(split, index, seed, 20)
        assert label == 4 and bird == class_table(20)[4]
        pictures[render(bird, scene, 32)[0].tobytes()] = scene
    assert len(set(pictures.values())) == 4


def test_drawing_does_not_depend_on_what_was_drawn_before() -> None:
    bird, scene, _ = item("train", 5)
    first = render(bird, scene, 48)[0]
    render(*item("train", 6)[:2], 48)
    np.testing.assert_array_equal(first, render(bird, scene, 48)[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_value_is_shared_by_several_classes_and_absent_in_several(seed: int) -> None:
    counts = np.stack([attributes(bird) for bird in class_table(20, seed)]).sum(0)
    assert counts.min() >= 3 and counts.max() <= 17


@pytest.mark.parametrize("n_classes", [2, 20, 200])
def test_classes_differ_in_two_groups_or_more(n_classes: int) -> None:
    birds = class_table(n_classes)
    assert len(birds) == n_classes
    assert min(len(difference(a, b)) for i, a in enumerate(birds) for b in birds[:i]) >= 2


def test_some_pairs_differ_in_small_parts_only() -> None:
    birds = class_table(20)
    fine = [d for i, a in enumerate(birds) for b in birds[:i] if len(d := difference(a, b)) == 2 and d <= SMALL_GROUPS]
    assert len(fine) >= 3 and {"beak", "eye"} in fine


@pytest.mark.slow
def test_all_combinations_can_be_used() -> None:
    birds = class_table(MAX_CLASSES)
    assert len({bird.values[1:] for bird in birds}) == MAX_CLASSES


@pytest.mark.parametrize("n_classes", [2, 20, 500])
def test_class_names_are_unique_and_short(n_classes: int) -> None:
    names = class_names(n_classes)
    assert len(set(names)) == n_classes
    assert names[0].split()[-1] in {"hookbill", "needlebill", "finch"}
    if n_classes == 20:
        assert max(len(name.split()) for name in names) <= 6


@pytest.mark.parametrize("n_classes", [-1, 1, MAX_CLASSES + 1])
def test_impossible_class_counts_name_the_limit(n_classes: int) -> None:
    with pytest.raises(ValueError, match=f"{n_classes}; choose from 2 to {MAX_CLASSES}"):
        class_table(n_classes)


def test_unknown_words_are_answered_with_the_known_ones() -> None:
    bird, scene, _ = item("train", 0)
    with pytest.raises(ValueError, match="'curved'; choose one of: hooked, thin, cone"):
        swap_variant(bird, "beak", "curved")
    with pytest.raises(ValueError, match=r"'teeth'; choose one of: body colour, .*"):
        swap_variant(bird, "teeth", "long")
    with pytest.raises(ValueError, match=r"'teeth'; choose one of: body, head, .*"):
        delete_part(scene, "teeth")
    with pytest.raises(ValueError, match="'dev'; choose one of: train, validation, test"):
        item("dev", 0)
    with pytest.raises(ValueError, match="index is -1"):
        item("train", -1)
    with pytest.raises(ValueError, match="size is 4"):
        render(bird, scene, 4)
    with pytest.raises(ValueError, match=r"missing_share is 1\.5"):
        sample_scene(np.random.default_rng(0), 1.5)
    with pytest.raises(ValueError, match="needs 12 values"):
        Bird(("blue",))


def test_attributes_are_one_value_for_each_group() -> None:
    bird = Bird.from_variants({"beak": "hooked", "crest": "plumed"})
    names = [name for name, value in zip(attribute_names(), attributes(bird), strict=True) if value]
    assert len(names) == len(ATTRIBUTE_GROUPS)
    assert {"beak: hooked", "crest: plumed", "body colour: blue"} <= set(names)


def test_image_attributes_are_those_that_can_be_seen() -> None:
    bird = Bird.from_variants({"beak": "cone", "crest": "spiky", "eye": "red"})
    whole = Scene()
    np.testing.assert_array_equal(image_attributes(bird, whole), attributes(bird))
    seen = image_attributes(bird, delete_part(delete_part(whole, "beak"), "crest"))
    names = {name for name, value in zip(attribute_names(), seen, strict=True) if value}
    assert not any(name.startswith("beak") for name in names)
    assert "crest: none" in names and "crest: spiky" not in names and "eye: red" in names


@pytest.mark.parametrize("size", [64, 96])
def test_masks_are_disjoint_and_every_part_is_visible(size: int) -> None:
    for index in range(20):
        bird, scene, _ = item("test", index)
        image, masks = render(bird, scene, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert masks.shape == (len(PARTS), size, size) and masks.dtype == bool
        assert masks.sum(0).max() == 1
    masks = render(Bird.from_variants({"crest": "spiky"}), Scene(), 64)[1]
    assert masks.sum((1, 2)).min() >= 15


@pytest.mark.parametrize("part", PARTS)
def test_deleting_a_part_changes_only_its_pixels(part: str) -> None:
    for index in range(8):
        bird, scene, _ = item("test", index)
        image, masks = render(bird, scene, 64)
        without, masks_without = render(bird, delete_part(scene, part), 64)
        mask = masks[PARTS.index(part)]
        # A tip thinner than half a pixel belongs to no mask, so a faint change is allowed outside.
        assert not (changed(image, without, above=24) & ~grown(mask, by=3)).any()
        assert not masks_without[PARTS.index(part)].any()
        assert not mask.any() or changed(image, without)[mask].mean() > 0.7


@pytest.mark.parametrize("group", ATTRIBUTE_GROUPS)
def test_every_swap_is_visible_and_stays_inside_its_part(group: str) -> None:
    parts = {"body", "head", "tail"} if group == "body colour" else {GROUP_PART[group]}
    where = [PARTS.index(part) for part in parts]
    for bird in class_table(20)[:4]:
        drawn = {v: render(swap_variant(bird, group, v), Scene(), 64) for v in ATTRIBUTE_GROUPS[group]}
        for value, (image, masks) in drawn.items():
            for other, (other_image, other_masks) in drawn.items():
                if value != other:
                    area = (masks[where] | other_masks[where]).any(0)
                    change = changed(image, other_image)
                    assert not (change & ~grown(area)).any()
                    assert change.sum() >= 12


def test_deleting_background_objects_leaves_the_bird_alone() -> None:
    seen = 0
    for index in range(12):
        bird, scene, _ = item("test", index)
        image, masks = render(bird, scene, 64)
        clear, clear_masks = render(bird, delete_background_objects(scene), 64)
        inside = cv2.erode(masks.any(0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not changed(image, clear)[inside].any()
        np.testing.assert_array_equal(masks, clear_masks)
        seen += changed(image, clear).any()
    assert seen >= 6


def test_pictures_are_antialiased() -> None:
    for index in range(6):
        bird, scene, _ = item("test", index)
        small, masks = render(bird, scene, 64)
        large, large_masks = render(bird, scene, 256)
        averaged = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.abs(averaged - small).mean() < 3
        assert np.mean(masks == (large_masks.reshape(8, 64, 4, 64, 4).mean((2, 4)) > 0.5)) > 0.995


def test_flip_mirrors_the_bird() -> None:
    bird = class_table(20)[3]
    right, left = (render(bird, Scene(flip=flip), 64)[0].astype(int) for flip in (False, True))
    assert np.abs(right - left[:, ::-1]).mean() < 0.5
    assert np.abs(right - left).mean() > 10


def test_scenes_vary_and_parts_are_missing_in_the_given_share() -> None:
    scenes = [sample_scene(np.random.Generator(np.random.Philox(key=i)), 0.3) for i in range(1000)]
    assert 0.25 < np.mean([bool(scene.missing) for scene in scenes]) < 0.35
    assert not any(scene.missing & {"body", "head"} for scene in scenes)
    assert 0.08 < np.mean([bool(scene.occluders) for scene in scenes]) < 0.17
    assert set(Counter(len(scene.background) for scene in scenes)) == {0, 1, 2, 3, 4}
    for field, spread in [("scale", 0.25), ("rotation", 0.35), ("brightness", 0.35), ("x", 0.25), ("y", 0.2)]:
        assert np.ptp([getattr(scene, field) for scene in scenes]) > spread
    assert not any(item("test", i)[1].missing for i in range(50))
    assert any(item("train", i)[1].missing for i in range(50))
