"""Part scores: the numbers of the published code, and maps whose scores are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from viscoin.testing.attribution import parts
from viscoin.testing.attribution.parts import ABSENT, PartTruth

GOLDEN = load_file(Path(__file__).parent / "golden" / "attribution" / "funnybirds.safetensors")
OWNERS = (0, 1, 2, 3, 4, 4, 5, 6)  # two wings, two background objects
ROWS = np.arange(16)


def golden_truth() -> PartTruth:
    part_map, objects, images = GOLDEN["part_map"], GOLDEN["objects"], GOLDEN["images"]
    part = np.array([ABSENT, 0, 1, 2, 3, 4, 4])[part_map]
    weight, bias = GOLDEN["model.weight"].reshape(8, -1), GOLDEN["model.bias"]

    def logits(gone: np.ndarray) -> np.ndarray:
        return np.where(gone[:, None], GOLDEN["plain"], images).reshape(16, -1) @ weight.T + bias

    sets = [np.isin(part, [p for p in range(5) if number >> p & 1]) for number in range(32)]
    return PartTruth(
        GOLDEN["labels"],
        np.stack([logits(gone) for gone in sets], 1),
        np.stack([logits(objects == number) for number in (1, 2)], 1),
        GOLDEN["class_parts"],
        np.stack([(part == p).any((1, 2)) for p in range(5)] + [(objects == n).any((1, 2)) for n in (1, 2)], 1),
    )


@pytest.fixture(scope="module")
def truth() -> PartTruth:
    return golden_truth()


@pytest.fixture(scope="module")
def importance() -> np.ndarray:
    pieces = [GOLDEN["part_map"] == number for number in range(1, 7)] + [GOLDEN["objects"] == n for n in (1, 2)]
    masks = np.stack(pieces, 1)
    columns = [parts.part_importance(GOLDEN["attributions"][:, c], masks, OWNERS) for c in range(8)]
    return np.stack(columns, 1)


def close(found: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(found, GOLDEN[name], atol=1e-4, rtol=1e-4)


def marks(importance: np.ndarray, classes: np.ndarray) -> np.ndarray:
    total = GOLDEN["attributions"].sum((2, 3))[ROWS, classes]
    return parts.marked(importance[ROWS, classes], total, GOLDEN["thresholds"])


# --- golden ------------------------------------------------------------------------------------------------------


def test_thresholds_logits_and_importances_are_those_of_the_published_code(truth, importance):
    close(parts.THRESHOLDS, "thresholds")
    close(truth.logits[:, 0], "logits")
    close(importance, "part_importance")
    assert truth.right.mean() == GOLDEN["published_code.accuracy"]


def test_minimal_sufficient_sets(truth):
    assert (parts.sufficient_sets(truth.class_parts) == GOLDEN["minimal_sufficient_sets"]).all()
    assert not parts.sufficient_sets(truth.class_parts, published=True)[-1].any()


@pytest.mark.parametrize("published", [False, True])
def test_csdc(truth, importance, published):
    sets = parts.sufficient_sets(truth.class_parts, published)
    found = parts.sufficient_share(truth, marks(importance, truth.labels)[..., :5], sets)
    assert np.isnan(found).all(1).sum() == 1  # one wrong prediction
    close(np.nanmean(found, 0), f"{'published_code.' if published else ''}controlled_synthetic_data_check")


def test_preservation_and_deletion(truth, importance):
    important = marks(importance, truth.predicted)[..., :5]
    close(parts.preservation(truth, important).mean(0), "published_code.preservation_check")
    close(parts.deletion(truth, important).mean(0), "published_code.deletion_check")


def test_distractibility(truth, importance):
    found = parts.distractibility(marks(importance, truth.labels), parts.irrelevant(truth, published=True))
    close(np.nanmean(found, 0), "published_code.distractibility")


def test_single_deletion_and_target_sensitivity(truth, importance):
    single = parts.single_deletion(truth, importance[ROWS, truth.labels, :5], published=True)
    close(single.mean(), "published_code.single_deletion")
    classes, shared = parts.class_pairs(truth, published=True)
    found = parts.target_sensitivity(importance[ROWS[:, None], classes, :5], shared, published=True)
    assert (~np.isnan(found)).sum() == 6
    close(np.nanmean(found), "published_code.target_sensitivity")


def test_background_independence(truth):
    close(np.nanmean(parts.background_independence(truth, published=True)), "published_code.background_independence")


# --- known answers -----------------------------------------------------------------------------------------------


def additive(weights: np.ndarray, classes: int = 4, n: int = 3) -> PartTruth:
    """Scenes of class 0, to whose logit each part adds its weight; object 0 adds nothing, object 1 is not there."""
    count = len(weights)
    left = ~(np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)
    logits = np.zeros((n, 2**count, classes))
    logits[..., 0] = left @ weights - 0.5
    without = np.full((n, 2, classes), np.nan)
    without[:, 0] = logits[:, 0]
    table = np.arange(classes)[:, None].repeat(count, 1)
    return PartTruth(np.zeros(n, int), logits, without, table, np.ones((n, count + 2), bool))


def test_everything_or_nothing_marked():
    truth = additive(np.array([1.0, 0, 0]))
    sets = parts.sufficient_sets(truth.class_parts)
    everything, nothing = np.ones((3, 1, 3), bool), np.zeros((3, 1, 3), bool)
    assert parts.sufficient_share(truth, everything, sets).tolist() == [[1]] * 3
    assert parts.sufficient_share(truth, nothing, sets).tolist() == [[0]] * 3
    assert parts.preservation(truth, everything).min() == 1
    unneeded = parts.irrelevant(truth)
    assert unneeded.tolist() == [[False, True, True, True, False]] * 3
    assert parts.distractibility(np.zeros((3, 1, 5), bool), unneeded).min() == 1
    assert parts.distractibility(np.ones((3, 1, 5), bool), unneeded).max() == 0


def test_one_decisive_part_has_to_be_named():
    truth = additive(np.array([1.0, 0, 0]))
    for named in range(3):
        important = np.zeros((3, 1, 3), bool)
        important[..., named] = True
        assert (parts.deletion(truth, important) == (named == 0)).all()
        assert (parts.preservation(truth, important) == (named == 0)).all()


def test_single_deletion_of_true_drops_is_one_and_of_a_constant_one_half():
    drops = np.array([3.0, 0.1, 1.0])
    truth = additive(drops)
    assert parts.single_deletion(truth, np.tile(drops, (3, 1))).tolist() == [1] * 3
    assert parts.single_deletion(truth, np.tile(-drops, (3, 1))).tolist() == [0] * 3
    assert parts.single_deletion(truth, np.ones((3, 3))).tolist() == [0.5] * 3
    assert np.isnan(parts.single_deletion(truth, np.ones((3, 3)), published=True)).all()
    assert np.isnan(parts.single_deletion(additive(np.zeros(3)), np.tile(drops, (3, 1)))).all()


def test_a_map_that_is_blind_to_classes_has_half_the_target_sensitivity():
    shared = np.array([[[True, True, False, False], [False, False, True, True]]])
    blind = np.ones((1, 2, 4))
    own = shared.astype(float)
    assert parts.target_sensitivity(blind, shared).tolist() == [0.5]
    assert parts.target_sensitivity(blind, shared, published=True).tolist() == [0]
    assert parts.target_sensitivity(own, shared).tolist() == [1]
    assert parts.target_sensitivity(own[:, ::-1], shared).tolist() == [0]
    assert np.isnan(parts.target_sensitivity(own, np.zeros_like(shared))).all()


def test_classes_of_target_sensitivity_are_disjoint_and_f_prefers_them():
    table = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]])
    sees_parts = np.zeros((1, 16, 4))
    for number in range(16):
        left = [not number >> p & 1 for p in range(4)]
        sees_parts[0, number] = [sum(left), left[0] + left[1], 0, left[2] + left[3]]
    scenes = PartTruth(np.zeros(1, int), sees_parts, np.zeros((1, 0, 4)), table, np.ones((1, 4), bool))
    classes, shared = parts.class_pairs(scenes)
    assert classes.tolist() == [[1, 3]]
    assert shared.tolist() == [[[True, True, False, False], [False, False, True, True]]]
    blind = PartTruth(scenes.labels, sees_parts * 0, scenes.without_object, table, scenes.visible)
    assert parts.class_pairs(blind)[0].tolist() == [[ABSENT, ABSENT]]
    overlapping = PartTruth(scenes.labels, sees_parts[..., :3], scenes.without_object, table[:3], scenes.visible)
    assert parts.class_pairs(overlapping)[0].tolist() == [[ABSENT, ABSENT]]


def test_a_constant_added_to_all_logits_changes_nothing():
    truth = additive(np.array([1.0, 0.03, 0]))
    shifted = PartTruth(truth.labels, truth.logits + 100, truth.without_object + 100, truth.class_parts, truth.visible)
    assert (parts.irrelevant(truth) == parts.irrelevant(shifted)).all()
    assert not (parts.irrelevant(truth, published=True) == parts.irrelevant(shifted, published=True)).all()


def test_a_part_that_a_class_lacks_is_in_no_set_and_what_is_not_seen_is_not_counted():
    table = np.array([[0, ABSENT], [1, 0], [2, 0]])
    assert parts.sufficient_sets(table).tolist() == [[False, True, False, False]] * 3
    truth = additive(np.array([1.0, 0, 0]))
    hidden = replace(truth, visible=truth.visible & [True, False, True, True, True])
    assert parts.irrelevant(hidden).tolist() == [[False, False, True, True, False]] * 3
    behind = replace(truth, visible=truth.visible & [True, True, True, False, True])
    assert parts.irrelevant(behind).tolist() == [[False, True, True, False, False]] * 3
    assert parts.irrelevant(behind, published=True).tolist() == [[False, True, True, True, False]] * 3
    assert np.isnan(parts.background_independence(behind)).all()
    assert parts.background_independence(behind, published=True)[:, 0].tolist() == [1] * 3


def test_a_background_that_f_does_not_see_is_independent():
    truth = additive(np.array([1.0, 0]))
    found = parts.background_independence(truth)
    assert found[:, 0].tolist() == [1] * 3 and np.isnan(found[:, 1]).all()


def test_two_wings_are_added_and_overlaps_count_twice():
    masks = np.zeros((1, 2, 9, 9), bool)
    masks[0, 0, 4, 3] = masks[0, 1, 4, 5] = True
    assert parts.part_importance(np.ones((1, 9, 9)), masks, (0, 0)).tolist() == [[50]]
    assert parts.part_importance(np.ones((1, 9, 9)), masks, (0, 1)).tolist() == [[25, 25]]
