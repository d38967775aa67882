"""Intervals, sufficiency, concept counts and the table of `test viscoin`, against values computed by hand."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import Answer, tiny_recipe, write_images, write_models
from toy_ensemble import ToyEnsemble, toy_dataset

from stylegan2_ada.metrics import FeatureMoments, frechet_distance
from viscoin.statistics import bootstrap
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing import sufficiency, table, viscoin
from viscoin.testing.ensemble import test_ensemble as measure_ensemble

# --- intervals ------------------------------------------------------------------------------------------------------


def test_a_bootstrap_interval_of_a_mean_is_that_of_normal_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap.bootstrap(values, resamples=4000)
    error = 1.96 * values.std() / math.sqrt(400)
    assert found.value == values.mean()
    assert (found.n, found.unit) == (400, "images")
    assert found.low == pytest.approx(values.mean() - error, abs=0.03)
    assert found.high == pytest.approx(values.mean() + error, abs=0.03)


def test_bootstrap_intervals_hold_the_truth_in_95_percent_of_all_samples():
    rng = np.random.default_rng(0)
    found = [bootstrap.bootstrap(rng.exponential(size=100), seed=i, resamples=300) for i in range(300)]
    assert np.mean([e.low <= 1 <= e.high for e in found]) == pytest.approx(0.95, abs=0.04)  # sd 0.013


def test_intervals_follow_the_seed_alone():
    values = np.random.default_rng(0).random(50)
    assert bootstrap.bootstrap(values, np.median, seed=1) == bootstrap.bootstrap(values, np.median, seed=1)
    assert bootstrap.bootstrap(values, seed=1) != bootstrap.bootstrap(values, seed=2)


def test_a_constant_has_an_interval_of_no_width():
    assert bootstrap.bootstrap(np.full(9, 0.25)) == Estimate(0.25, 0.25, 0.25, 9)


def test_hits_without_a_miss_have_the_exact_binomial_interval():
    found = bootstrap.bootstrap(np.ones(200, bool))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 200))
    none = bootstrap.bootstrap(np.zeros(200, bool))
    assert (none.low, none.high) == (0, pytest.approx(1 - found.low))


def test_rows_are_drawn_whole():
    # The difference of two columns is 1 in every row, whichever are drawn.
    first = np.random.default_rng(0).random(30)
    found = bootstrap.bootstrap(np.stack([first, first + 1], 1), lambda rows: rows[:, 1].mean() - rows[:, 0].mean())
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


def test_resamples_without_a_value_are_left_out():
    values = np.array([0.0] * 20 + [1.0])
    found = bootstrap.bootstrap(values, lambda rows: rows.sum() if rows.any() else np.nan)
    assert found.low == 1
    empty = bootstrap.bootstrap(values, lambda rows: np.nan)
    assert math.isnan(empty.low) and math.isnan(empty.high)


def test_one_value_has_no_interval_and_none_is_refused():
    one = bootstrap.bootstrap(np.array([0.5]))
    assert one.value == 0.5 and math.isnan(one.low) and math.isnan(one.high)
    with pytest.raises(ValueError, match="no value"):
        bootstrap.bootstrap(np.zeros(0))


def test_a_jackknife_of_a_mean_has_the_standard_error_of_group_means():
    values = np.random.default_rng(0).normal(5, 1, 200)
    found = bootstrap.jackknife(200, lambda rows: values[rows].mean(), groups=200)
    groups = values[np.random.default_rng(0).permutation(200)].reshape(100, 2).mean(1)  # two images at least
    error = stats.t.ppf(0.975, 99) * groups.std(ddof=1) / 10
    assert (found.value, found.n) == (pytest.approx(values.mean()), 200)
    assert (found.low, found.high) == (pytest.approx(found.value - error), pytest.approx(found.value + error))


def frechet(pairs: np.ndarray, rows: np.ndarray) -> float:
    return frechet_distance(*(FeatureMoments.of(part[rows]) for part in pairs))


def test_the_interval_of_a_frechet_distance_holds_that_at_as_many_images():
    # A bootstrap fails here: of resamples with repeated images, hardly any is as near as the images themselves.
    rng, n = np.random.default_rng(0), 120
    found = []
    for i in range(80):
        real = rng.normal(size=(n, 8))
        pairs = np.stack([real, 0.8 * real + 0.5 * rng.normal(size=(n, 8)) + 0.1])
        found.append(bootstrap.jackknife(n, lambda rows, pairs=pairs: frechet(pairs, rows), seed=i))
    expected = np.mean([e.value for e in found])
    assert np.mean([e.low <= expected <= e.high for e in found]) == pytest.approx(0.95, abs=0.08)  # sd 0.025
    again = bootstrap.bootstrap(
        pairs.transpose(1, 0, 2), lambda p: frechet(p.transpose(1, 0, 2), np.arange(n)), resamples=50
    )
    assert again.low > again.value


def test_a_jackknife_interval_of_a_distance_does_not_go_below_zero():
    values = np.array([0.0] * 9 + [1.0])
    assert bootstrap.jackknife(10, lambda rows: values[rows].mean()).low == 0
    assert bootstrap.jackknife(10, lambda rows: values[rows].mean() - 0.5).low < 0
    few = bootstrap.jackknife(3, lambda rows: 1.0)
    assert few.value == 1 and math.isnan(few.low)


# --- kept concepts --------------------------------------------------------------------------------------------------


def result_of(model, amounts, labels, **options):
    return measure_ensemble(model, toy_dataset(np.array(amounts), labels), faithfulness_limit=0, **options)


def test_numbers_of_kept_concepts_are_powers_of_two_and_all():
    assert sufficiency.kept_counts(1) == (1,)
    assert sufficiency.kept_counts(4) == (1, 2, 4)
    assert sufficiency.kept_counts(6) == (1, 2, 4, 6)
    assert sufficiency.kept_counts(64) == (1, 2, 4, 8, 16, 32, 64)


def test_accuracy_with_kept_concepts_by_hand():
    # Logits 4 a + b and 4 c for amounts a, b, c, d. Of these, class 0 gets 3 and class 1 gets 2.4, so g is right, and
    # relevance ranks a, b before the rest. Activation ranks b, c, a, d: (1, 0) is right, (1, 2.4) is wrong.
    result = result_of(ToyEnsemble(), [[0.5, 1, 0.6, 0]] * 2 + [[0, 0, 0.2, 0.9]], [0, 0, 1])
    found = {item.ranking: item for item in result.sufficiency}
    assert [item.kept for item in found.values()] == [(1, 2, 4)] * 3
    assert found["relevance"].hits.tolist() == [[True] * 3] * 3
    assert found["activation"].hits.tolist() == [[True, False, True]] * 2 + [[False, True, True]]
    assert found["random"].hits[:, 2].all()
    # trapezoids over log2 N / log2 K = 0, 0.5, 1: (1 + 0) / 4 + (0 + 1) / 4 and (0 + 1) / 4 + (1 + 1) / 4
    assert found["activation"].area.tolist() == [0.5, 0.5, 0.75]
    numbers = result.to_dict()["kept_concepts"]["activation"]
    assert numbers == pytest.approx({"area_log2": 1.75 / 3, "1": 2 / 3, "2": 1 / 3, "4": 1.0})
    estimates = result.estimates()
    assert estimates["kept_concepts.activation.area_log2"].value == pytest.approx(1.75 / 3)
    assert estimates["kept_concepts.relevance.4"].value == 1


def test_all_concepts_kept_give_the_accuracy_of_g():
    rng = np.random.default_rng(0)
    result = result_of(ToyEnsemble(), rng.random((50, 4)), rng.integers(0, 2, 50).tolist())
    accuracy = result.to_dict()["ensemble"]["accuracy"]
    assert [item.hits[:, -1].mean() for item in result.sufficiency] == [accuracy] * 3


def test_constant_and_random_ensembles_gain_nothing_by_more_concepts():
    rng = np.random.default_rng(0)
    amounts, labels = rng.random((400, 4)), rng.integers(0, 2, 400).tolist()
    constant = result_of(ToyEnsemble(g=[[0.0] * 4] * 2), amounts, labels)
    assert [item.area.mean() for item in constant.sufficiency] == pytest.approx([labels.count(0) / 400] * 3)
    random = result_of(ToyEnsemble(g=rng.normal(size=(2, 4)).tolist()), amounts, labels)
    assert [item.area.mean() for item in random.sufficiency] == pytest.approx([0.5] * 3, abs=0.08)


def test_random_concepts_are_kept_at_random_by_seed_and_image():
    amounts = [[1, 0, 0, 0]] * 600  # right with concept 0 alone, and class 0 without any: use class 1
    flipped = ToyEnsemble(g=[[0.0, 0, 0, 0.1], [4.0, 0, 0, 0]])
    random = result_of(flipped, amounts, [1] * 600).sufficiency[2]
    assert random.hits.mean(0) == pytest.approx([1 / 4, 2 / 4, 1], abs=0.07)
    same, other = (result_of(flipped, amounts, [1] * 600, batch_size=7, seed=s).sufficiency[2].hits for s in (0, 1))
    assert (same == random.hits).all() and (other != random.hits).any()


# --- counts of concepts ---------------------------------------------------------------------------------------------


def test_concepts_of_a_class_and_dead_ones_by_hand():
    # r is (1, 0.75, 0, 0) for the images of class 0, so two concepts; (0, 0, 1, 0) for the one of class 1.
    model = ToyEnsemble(g=[[4.0, 3.0, 0, 0], [0, 0, 4.0, 0]])
    amounts = [[1, 1, 0, 0], [0.6, 0.6, 0, 0], [0, 0, 1, 0]]
    result = result_of(model, amounts, [0, 1, 1])
    assert result.concepts_per_class == 1.5
    assert result.dead_concepts == 1
    assert result.to_dict()["concepts"] == {"n": 4, "dead": 1, "per_class": 1.5}
    found = result.estimates()
    assert found["concepts.dead"].low == 1 and found["concepts.dead"].high >= 2  # resamples may miss class 1
    assert (found["concepts.per_class"].low, found["concepts.per_class"].high) == (1, 2)


def test_mean_relevance_decides_and_not_that_of_single_images():
    # r of concept 1 is 0.75 in one image and 0 in two others of the class.
    model = ToyEnsemble(g=[[4.0, 3.0, 0, 0], [0, 0, 4.0, 0]])
    result = result_of(model, [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], [0, 0, 0])
    assert result.concepts_per_class == 1


# --- every estimate -------------------------------------------------------------------------------------------------


def test_estimates_have_the_values_of_the_plain_numbers():
    rng = np.random.default_rng(0)
    dataset = toy_dataset(rng.random((40, 4)), rng.integers(0, 2, 40).tolist())
    result = measure_ensemble(ToyEnsemble(g=[[4.0, 1, 3, 0], [0, 0, 4.0, 0]], offset=0.2), dataset, seed=4)
    numbers = result.to_dict()
    for key, estimate in result.estimates().items():
        *path, name = key.split(".")
        if path[0] == "faithfulness":
            path = ["faithfulness", key.removeprefix("faithfulness.").rpartition(".")[0]]
        value = numbers
        for part in [*path, name]:
            value = value[part]
        assert estimate.value == pytest.approx(value, rel=1e-5), key
        assert estimate.low <= estimate.value <= estimate.high or key == "concepts.per_class", key
        assert (estimate.n, estimate.unit) == (40, "images")
    assert len(result.estimates()) == 5 + 4 + 9 + 3 * 4 + 2
    assert numbers["seed"] == 4


def test_measures_are_chosen_by_name():
    dataset = toy_dataset(np.random.default_rng(0).uniform(0.2, 0.8, (50, 4)), [0, 1] * 25)
    everything = viscoin.measure_viscoin(ToyEnsemble(), dataset)
    without = {"surrogate", "truth"}  # no validation images are given, and the toy dataset has no truth
    assert everything.wanted == tuple(name for name in viscoin.MEASURES if name not in without)
    assert everything.estimates()["consistency.2"].value == 1.0
    assert {viscoin.measure_of(key) for key in everything.estimates()} == set(everything.wanted)
    some = viscoin.measure_viscoin(ToyEnsemble(), dataset, measures=["fid", "kept"])
    assert {viscoin.measure_of(key) for key in some.estimates()} == {"fid", "kept"}
    assert set(some.to_dict()) == {"n", "seed", "reconstruction", "kept_concepts"}
    assert some.ensemble.faithfulness == [] and some.consistency is None
    with pytest.raises(
        ValueError, match="measures ssim: there is no such measure; choose some of accuracy, reconstruction, fid"
    ):
        viscoin.measure_viscoin(ToyEnsemble(), dataset, measures=["ssim"])
    with pytest.raises(ValueError, match="dataset 'toy' has no ground truth"):
        viscoin.measure_viscoin(ToyEnsemble(), dataset, measures=["truth"])


def test_what_needs_more_images_is_left_out_with_a_line_unless_asked_for(caplog):
    one, few = (toy_dataset(np.full((n, 4), 0.5), [0] * n) for n in (1, 7))
    with caplog.at_level(logging.WARNING):
        result = viscoin.measure_viscoin(ToyEnsemble(), few)
    assert [record.getMessage() for record in caplog.records] == [
        "left out: consistency needs 20 images that activate one concept; of the 7 images at most 7 do"
    ]
    assert list(result.left_out) == ["consistency"] and "consistency" not in result.wanted
    assert result.to_dict()["left_out"] == result.left_out
    assert viscoin.measure_viscoin(ToyEnsemble(), one).left_out["fid"] == "FID needs at least 2 images, there is 1"
    with pytest.raises(ValueError, match="measures consistency: consistency needs 20 images"):
        viscoin.measure_viscoin(ToyEnsemble(), few, measures=["consistency"])
    with pytest.raises(ValueError, match="measures fid: FID needs at least 2 images"):
        viscoin.measure_viscoin(ToyEnsemble(), one, measures=["fid", "accuracy"])


def test_a_fast_extent_measures_a_sample():
    dataset = toy_dataset(np.random.default_rng(0).uniform(0.2, 0.8, (300, 4)), [0, 1] * 150)
    extent = viscoin.Extent(limit=60, consistency_concepts=2, consistency_images=30)
    result = viscoin.measure_viscoin(ToyEnsemble(), dataset, extent=extent, seed=1)
    assert result.ensemble.n == 60
    assert [item.images for item in result.consistency.concepts] == [30, 30]
    assert result.consistency.untested == 2


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_value_interval_and_n_of_every_measure():
    estimates = {
        "classifier.accuracy": Estimate(0.5, 0.25, 0.75, 40),
        "reconstruction.fid": Estimate(123.456, 100, 150.26, 40),
        "faithfulness.0.1.relevant": Estimate(0.2, math.nan, math.nan, 1),
        "consistency.2": Estimate(0.9, 0.8, 1.0, 8, "concepts"),
        "kept_concepts.relevance.16": Estimate(1, 1, 1, 40),
        "kept_concepts.random.16": Estimate(1, 1, 1, 40),
    }
    rows = table.table_rows(estimates, {"reconstruction": {"fid_features": "inception"}})
    assert rows == [
        ("accuracy of f", "0.5000", "[0.2500, 0.7500]", "40 images"),
        ("reconstruction: FID (inception)", "123.5", "[100.0, 150.3]", "40 images"),
        ("faithfulness, concepts with r > 0.1 removed", "0.2000", "–", "1 images"),
        ("consistency, lambda 2", "0.9000", "[0.8000, 1.0000]", "8 concepts"),
        ("accuracy of g, top 16 of the concepts kept", "1.0000", "[1.0000, 1.0000]", "40 images"),
    ]
    lines = table.text_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[0].split() == [
        "measure",
        "value",
        "95",
        "%",
        "interval",
        "n",
    ]
    assert table.markdown_table(rows).splitlines()[:3] == [
        "| measure | value | 95 % interval | n |",
        "| --- | ---: | ---: | ---: |",
        "| accuracy of f | 0.5000 | [0.2500, 0.7500] | 40 images |",
    ]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))
        yield write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.usefixtures("few_resamples")
def test_the_command_writes_every_measure_with_interval_count_and_seed(here, models):
    options = ["--checkpoints", models["viscoin"], "--fast", "--limit", 30, "--seed", 3, "--consistency-concepts", 2]
    answer = Answer("test", "viscoin", *options, "--consistency-images", 20, "--out", "out").went_well()
    found = json.loads(Path("out/results.json").read_text())
    assert found["n"] == 30 and found["seed"] == 3
    for key in (
        "ensemble.accuracy", "reconstruction.fid", "faithfulness.0.2.random", "kept_concepts.relevance.area_log2",
        "concepts.dead", "consistency.2", "consistency.3",
    ):  # fmt: skip
        assert set(found["estimates"][key]) == {"value", "low", "high", "n", "unit", "seed"}
        assert found["estimates"][key]["seed"] == 3
    assert len(found["consistency"]["by_concept"]) == 2
    assert found["consistency"]["by_concept"][0]["images"] == 20
    lines = Path("out/measures.md").read_text().splitlines()
    assert lines[2].startswith("| accuracy of f | ")
    rivals = [line.split(" | ")[0] for line in Path("out/rivals.md").read_text().splitlines()[2:]]
    assert rivals[:3] == ["| theta", "| concepts", "| random"] and rivals[-1] == "| constant"
    assert "accuracy of g on its own reconstructions" in answer.out and "30 test images of birds, seed 3" in answer.out
    pictures = {path.stem for path in Path("out").glob("*.png")}
    own = {"accuracy", "confusion", "consistency", "faithfulness", "kept-concepts", "reconstructions"}
    assert own <= pictures and "truth-attributes" in pictures
    assert "attributes.concepts.auroc" in found["estimates"] and "attributes: AUROC of the best concept" in answer.out


def test_the_command_takes_what_is_named_and_refuses_what_cannot_be_had(here, models):
    options = ["test", "viscoin", "--checkpoints", models["viscoin"]]
    Answer(*options, "--measures", "kept, accuracy", "--out", "some").went_well()
    found = json.loads(Path("some/results.json").read_text())
    assert {key.partition(".")[0] for key in found["estimates"]} == {"classifier", "ensemble", "kept_concepts"}
    Answer(*options, "--measures", "kept,speed").refused("--measures speed", "accuracy, reconstruction, fid")
    Answer(*options, "--rivals", "pca,kmeans").refused("--rivals kmeans: there is no such rival", "pursuit, random")
    Answer(*options, "--limit", 10, "--measures", "consistency", "--out", "few").refused("consistency needs 20 images")
    assert not Path("few").exists()
    Answer(*options, "--features", "vgg", "--out", "few").refused("--features vgg")


def test_the_command_measures_datasets_without_truth(here, models):
    data = write_images(here / "data", dict.fromkeys("abcd", 40), size=32)
    own = write_models(here / "own", tiny_recipe(dataset__name=str(data), dataset__test=24))["viscoin"]
    Answer("test", "viscoin", "--checkpoints", own, "--out", "out").went_well()
    found = json.loads(Path("out/results.json").read_text())
    assert "attributes" not in found and "left_out" not in found
    assert found["estimates"]["ensemble.accuracy"]["n"] == found["n"] == 24
    Answer("test", "viscoin", "--checkpoints", own, "--measures", "truth").refused("no ground truth")
    Answer("test", "viscoin", "--checkpoints", models["viscoin"], "--dataset", "data").refused(
        "green finch, gold needlebill", "a, b, c, d"
    )
