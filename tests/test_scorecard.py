"""The scorecard: maps whose answers are known, concepts that are known to be about a part, and its files."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_rivals import seen  # noqa: F401  # a fixture
from tiny_models import Answer, tiny_recipe, write_models
from torch import Tensor, nn

from viscoin.datasets import load_dataset
from viscoin.errors import Refused
from viscoin.plotting.scorecard import scorecard_figure, strip
from viscoin.reports.scorecard_page import csv_text, page_text, table_of
from viscoin.testing.rivals import FITS
from viscoin.testing.scorecard import scenes, subjects
from viscoin.testing.scorecard.concepts import RivalActivation, concepts_in_question, standing
from viscoin.testing.scorecard.questions import QUESTIONS, Maps, ask, fall, share_inside
from viscoin.testing.scorecard.result import Scorecard, scorecard
from viscoin.testing.scorecard.scenes import Cases, Version, choose_cases
from viscoin.testing.scorecard.subjects import Subject
from viscoin.testing.truth.scenes import World

SIZE, N = 16, 6
WORLD = World(("tail: long", "tail: fan", "eye: red"), ("tail", "eye"), {"tail": "tail", "eye": "eye"})


def masks() -> np.ndarray:
    """A square of 4 x 4 in the upper left, at another place in each scene."""
    found = np.zeros((N, SIZE, SIZE), bool)
    for row in range(N):
        found[row, row : row + 4, row : row + 4] = True
    return found


def cases() -> Cases:
    """A bright square on noise; gone without the part; and noise of its own behind the bird in all but the last."""
    random, where = np.random.default_rng(0), masks()
    plain = random.uniform(-0.2, 0.2, (N, SIZE, SIZE))
    objects = np.arange(N) < N - 1
    behind = plain + 0.5 * objects[:, None, None] * (np.arange(SIZE) > 12)
    images = [np.where(where, 1, behind), behind, np.where(where, 1, plain)]
    whole, without, empty = (torch.from_numpy(part[:, None].repeat(3, 1)).float() for part in images)
    return Cases(
        np.arange(N), whole, without, empty, objects, where, where, ["tail", "eye"] * (N // 2), np.zeros(N, int),
        np.ones(N), np.tile([True, False, True], (N, 1)), 0, WORLD,
    )  # fmt: skip


def bright(images: Tensor, rows: np.ndarray) -> np.ndarray:
    """A map that is right: where the image is very bright."""
    return np.asarray(images.mean(1) > 0.9).astype(float)


def subject(name: str, maps: subjects.MapsOf, kind: str = "class", asked: np.ndarray | None = None) -> Subject:
    there = np.ones(N, bool) if asked is None else asked
    return Subject(name, kind, name, maps, there, False, [f"scene {row}" for row in range(N)])


def edges(images: Tensor, rows: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(images.mean(1).numpy(), axis=2, append=0))


@pytest.fixture
def card(few_resamples: None) -> Scorecard:
    blob = np.exp(-((np.arange(SIZE) - 7.5) ** 2) / 20)
    rows = [
        subject("right", bright),
        subject("still", lambda images, rows: np.tile(blob * blob[:, None], (len(images), 1, 1)), "control"),
        subject("edges", edges, "control"),
        subject("half", bright, "concept", np.arange(N) < 3),
    ]
    rows[3] = replace(rows[3], function="pca", k=6)
    return scorecard(rows, cases())


# --- questions ------------------------------------------------------------------------------------------------------


def test_a_right_map_passes_every_question() -> None:
    where = masks().astype(float)
    found = ask(Maps(where, 0 * where, where, where[None]), masks(), np.arange(N) < N - 1)
    assert list(found) == list(QUESTIONS)
    values = {name: scores for name, (scores, _) in found.items()}
    for name in ("points", "mass", "falls", "stable"):
        assert values[name] == pytest.approx(np.ones(N))
    assert values["stays"][:-1] == pytest.approx(np.ones(N - 1)) and np.isnan(values["stays"][-1])
    assert found["points"][1] == pytest.approx(np.full(N, 16 / SIZE**2))
    assert (found["stable"][1] < 0.6).all()  # that of another scene, whose square is elsewhere


def test_a_map_that_never_changes_does_not_fall_and_is_no_more_stable_than_chance() -> None:
    flat = np.tile(np.arange(SIZE**2).reshape(SIZE, SIZE), (N, 1, 1))
    found = ask(Maps(flat, flat, flat, flat[None]), masks(), np.ones(N, bool))
    assert found["falls"][0] == pytest.approx(np.zeros(N))
    for name in ("stays", "stable"):
        assert found[name][0] == pytest.approx(found[name][1]) and found[name][0] == pytest.approx(np.ones(N))


def test_falls_is_about_shares_and_a_map_that_vanishes_has_left() -> None:
    where, whole = masks()[:4], np.ones((4, SIZE, SIZE))
    before = np.stack([masks()[0] * 1.0, masks()[1] + 0.0, whole[2], 0 * whole[3]])
    after = np.stack([0 * whole[0], 1 - where[1], whole[2] / 2, whole[3]])
    assert fall(before, after, where) == pytest.approx([1, 1, 0, -1])
    some = np.where(where[0], 3.0, 1.0)
    share = 3 * 16 / (3 * 16 + SIZE**2 - 16)
    chance = 16 / SIZE**2
    assert share_inside(some[None], where[:1]) == pytest.approx([share])
    assert fall(some[None], whole[:1], where[:1]) == pytest.approx([(share - chance) / (share + chance)])


def test_only_what_is_above_zero_counts() -> None:
    where = masks()
    signed = np.where(where, 1.0, -5.0)
    found = ask(Maps(signed, -signed, signed, signed[None]), where, np.ones(N, bool))
    assert found["mass"][0] == pytest.approx(np.ones(N)) and found["falls"][0] == pytest.approx(np.ones(N))


def test_stable_is_the_worst_of_all_noise() -> None:
    where = masks().astype(float)
    found = ask(Maps(where, where, where, np.stack([where, -where])), masks(), np.ones(N, bool))
    assert found["stable"][0] == pytest.approx(-np.ones(N))


# --- scenes ---------------------------------------------------------------------------------------------------------


class Quarters(nn.Module):
    """Two classes: twice the brightness of the upper left quarter, and that of the lower right; both less another."""

    def forward(self, images: Tensor) -> Tensor:
        grey, half = images.mean(1), images.shape[-1] // 2
        scores = torch.stack([2 * grey[:, :half, :half].mean((1, 2)), grey[:, half:, half:].mean((1, 2))], 1)
        return torch.cat([scores, -scores.sum(1, keepdim=True)], 1) + 100  # a constant that nobody should see


def version(**without: tuple[slice, slice]) -> Version:
    whole = np.full((8, 8, 3), 200, np.uint8)
    pixels = {}
    for part, where in without.items():
        pixels[part] = whole.copy()
        pixels[part][where] = 20
    some = {part: np.ones((8, 8), bool) for part in pixels}
    return Version(whole, None, pixels, some, np.ones(3, bool))


def test_the_part_in_question_is_the_one_that_the_classifier_needs_most() -> None:
    upper, lower = slice(0, 4), slice(4, 8)
    found = scenes._in_question(
        Quarters(), version(leg=(lower, lower), eye=(slice(0, 1), upper), tail=(upper, upper)), "cpu"
    )
    bright, dark = 200 / 127.5 - 1, 20 / 127.5 - 1
    assert found[:2] == ("tail", 0) and found[2] == pytest.approx(2 * (bright - dark), rel=1e-5)
    assert scenes._in_question(Quarters(), version(leg=(upper, lower)), "cpu") == (None, 0, 0.0)
    assert scenes._in_question(Quarters(), version(), "cpu")[0] is None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def birds_cases(models: dict[str, Path]) -> Cases:
    from viscoin.models.files import load_model

    test = load_dataset("birds", "test", tiny_recipe().dataset)
    return choose_cases(load_model(models["classifier"]).model, test, 8)


def test_cases_of_birds_hold_the_scenes_with_one_thing_deleted(birds_cases: Cases) -> None:
    found = birds_cases
    test = load_dataset("birds", "test", tiny_recipe().dataset)
    assert len(found) + found.skipped == 8 and len(found) > 3 and sum(found.counts.values()) == len(found)
    assert torch.equal(found.images, test.batch(found.indices)[0]) and (found.falls > 0).all()
    for row, part in enumerate(found.parts):
        mask = test.part_masks(int(found.indices[row]))[list(test.part_names).index(part)]
        assert np.array_equal(found.masks[row], mask) and found.grown[row].sum() > mask.sum() > 0
        changed = (found.images[row] != found.without[row]).any(0).numpy()
        assert changed.any() and changed[found.grown[row]].sum() >= 0.9 * changed.sum()
        assert found.objects[row] == bool(test.item(int(found.indices[row]))[1].background)
        assert found.objects[row] == bool((found.images[row] != found.plain[row]).any())
    assert found.shown[0].sum() >= 10 and found.world.parts == test.part_names


def test_data_whose_scenes_cannot_be_changed_are_refused() -> None:
    from toy_ensemble import toy_dataset

    with pytest.raises(Refused, match="cannot be rendered without a part") as error:
        choose_cases(Quarters(), toy_dataset(np.ones((3, 4)), [0, 1, 0]))
    assert error.value.parameter == "dataset"


# --- concepts -------------------------------------------------------------------------------------------------------


def test_the_concept_that_stands_for_an_attribute_is_the_strongest_where_it_is() -> None:
    random = np.random.default_rng(0)
    truth = random.random((400, 3)) < 0.5
    truth[:, 2] = np.arange(400) < 4  # too rare to match
    activations = np.stack([1 - truth[:, 0], truth[:, 1], truth[:, 0]], 1) + random.normal(0, (0.1, 0.5, 1), (400, 3))
    concepts, areas = standing(activations, truth)
    assert concepts.tolist() == [2, 1, -1]  # not the first, though it is surer: it is weak where the attribute is
    assert 0.6 < areas[0] < 0.9 and areas[1] > 0.85 and np.isnan(areas[2])


def test_each_scene_asks_for_what_its_part_shows() -> None:
    found = cases()
    found.shown[1] = [True, True, False]  # no attribute of the eye
    found.shown[2] = [False, True, True]
    attributes, chosen = concepts_in_question(found, np.array([7, 5, 3]), np.array([0.7, 0.9, 0.8]))
    assert attributes.tolist() == [0, -1, 1, 2, 0, 2] and chosen.tolist() == [7, -1, 5, 3, 7, 3]
    none = concepts_in_question(found, np.array([-1, 5, 3]), np.array([np.nan, 0.9, 0.8]))
    assert none[1].tolist() == [-1, -1, 5, 3, -1, 3]
    found.shown[0] = [True, True, False]  # both values of the tail: the surer concept
    assert concepts_in_question(found, np.array([7, 5, 3]), np.array([0.7, 0.9, 0.8]))[1][0] == 5


@pytest.mark.parametrize("name", FITS)
def test_places_of_a_rival_sum_up_to_its_activations(name: str, seen) -> None:  # noqa: F811
    images, _ = seen
    maps = images.maps[:20] + np.random.default_rng(0).normal(0, 0.1, (20, images.maps.shape[1], 3, 3))
    maps = maps.astype(np.float32)
    rival = FITS[name](images, 10)
    places = rival.places(torch.from_numpy(maps))
    assert places.shape[2:] == (3, 3) and places.shape[1] == rival(maps).shape[1]
    assert rival.pool(places).numpy() == pytest.approx(rival(maps), rel=1e-3, abs=1e-4)
    assert (float(places.min()) < 0) == rival.signed or name == "channels" or name == "channels_k"
    maps_with = torch.from_numpy(maps).requires_grad_()
    assert rival.places(maps_with).requires_grad == rival.differentiable


def test_a_signed_rival_has_each_concept_twice(seen) -> None:  # noqa: F811
    images, _ = seen
    target = RivalActivation(nn.Identity(), FITS["pca"](images, 4))  # type: ignore[arg-type]
    found = target.places_of(torch.from_numpy(images.maps[:2]))
    assert found.shape[1] == 8 and torch.equal(found[:, 4:], -found[:, :4])


# --- the table ------------------------------------------------------------------------------------------------------


def test_known_maps_get_their_known_values(card: Scorecard) -> None:
    right, still = card.rows[0], card.rows[1]
    for name in ("points", "mass", "falls", "stays", "stable"):
        assert right.answers[name].estimate.value == pytest.approx(1)
        assert right.answers[name].above_chance and right.answers[name].estimate.n == (N - (name == "stays"))
    assert right.answers["mass"].above_edges and right.answers["mass"].chance == pytest.approx(16 / SIZE**2)
    assert still.answers["falls"].estimate.value == 0 and not still.answers["stays"].above_chance
    assert still.answers["stays"].chance == pytest.approx(1) and still.answers["points"].above_edges is None


def test_a_concept_is_asked_only_where_it_knows_something(card: Scorecard) -> None:
    half = card.rows[3]
    assert half.answers["points"].estimate.n == 3 and half.example.case < 3
    assert not np.isnan(half.example.maps).any()


def test_one_that_refuses_is_left_out_and_the_others_go_on(
    few_resamples: None, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(images: Tensor, rows: np.ndarray) -> np.ndarray:
        raise Refused("method", "mine", "the plugin raised KeyError: 'x'", "mend it")

    found = scorecard([subject("mine", broken), subject("right", bright)], cases())
    assert [row.name for row in found.rows] == ["right"]
    assert found.left_out == {"mine": "the plugin raised KeyError: 'x'"}
    assert "mine is left out" in caplog.text
    one = scorecard([subject("rare", bright, asked=np.arange(N) == 0), subject("right", bright)], cases())
    assert "1 of 6 scenes show what it knows" in one.left_out["rare"]


def test_methods_are_chosen_by_name_and_slow_ones_by_all() -> None:
    quick, every = subjects.choose_methods(None), subjects.choose_methods(["all"])
    assert "gradcam" in quick and "rise" not in quick and "edges" not in every and {"rise", *quick} <= {*every}
    assert subjects.choose_methods(["rise", "gradcam", "rise", "edges"]) == ["rise", "gradcam"]
    with pytest.raises(Refused, match="unknown method") as error:
        subjects.choose_methods(["gradcamm"])
    assert error.value.parameter == "methods"


# --- texts, figure and command --------------------------------------------------------------------------------------


def test_csv_has_a_line_for_each_row_and_question(card: Scorecard) -> None:
    rows = list(csv.DictReader(csv_text(card).splitlines()))
    assert len(rows) == sum(len(row.answers) for row in card.rows)
    (found,) = [row for row in rows if row["row"] == "right" and row["question"] == "stays"]
    assert (found["n"], float(found["value"]), found["above_chance"]) == ("5", 1.0, "1")
    (control,) = [row for row in rows if row["row"] == "edges" and row["question"] == "points"]
    assert control["above_edges"] == ""


def test_a_star_is_for_what_beats_chance_and_edges(card: Scorecard) -> None:
    rows, header = table_of(card)
    by_name = {row[0]: dict(zip(header, row)) for row in rows}
    assert by_name["right"]["mass in the part"] == "1.00 ± 0.00*"
    assert not by_name["still"]["stays without background"].endswith("*")
    assert list(by_name) == ["right", "PCA of f: half", "edges", "still"]
    assert by_name["right"]["n"] == str(N) and by_name["PCA of f: half"]["n"] == "3"


def test_what_rounds_to_zero_has_no_sign(card: Scorecard) -> None:
    found = replace(card.rows[1].answers["falls"].estimate, value=-0.001)
    row = replace(
        card.rows[1], answers=card.rows[1].answers | {"falls": replace(card.rows[1].answers["falls"], estimate=found)}
    )
    rows, header = table_of(replace(card, rows=[row]))
    assert dict(zip(header, rows[0]))["falls with the part"].startswith("0.00")


def test_the_page_needs_nothing_else_and_shows_each_row(card: Scorecard) -> None:
    broken = replace(card, left_out={"mine": "raised <script>alert(1)</script>"})
    text = page_text(broken, {"model": "m & m", "dataset": "birds", "split": "test", "date": "2026-01-01"})
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert text.count("<tr>") == 1 + len(card.rows) and text.count("data:image/png") == 1 + len(card.rows)
    assert "m &amp; m" in text and "<script>alert" not in text and "mine" in text
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text and 'class="sortable"' in text


def test_a_strip_shows_a_map_that_vanishes(card: Scorecard) -> None:
    found = strip(card, card.rows[0].example)
    assert found.shape == (SIZE, 3 * SIZE + 4, 3) and found.dtype == np.uint8
    inside = masks()[card.rows[0].example.case]
    whole, without = found[:, :SIZE][inside], found[:, SIZE + 2 : 2 * SIZE + 2][inside]
    assert whole.mean() > without.mean() + 50


def test_the_figure_has_a_panel_for_each_question(card: Scorecard) -> None:
    figure = scorecard_figure(card)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == len(QUESTIONS) and len(panels[0].get_yticklabels()) == len(card.rows)


@pytest.mark.slow
def test_command_writes_the_table_and_names_a_broken_plugin(
    models: dict[str, Path], tmp_path: Path, few_resamples: None
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def good(images, targets, classifier): return images.mean(1) + 1\n"
        "def bad(images, targets, classifier): return images.mean(1)[:, :1] / 0\n"
    )
    found = Answer(
        "scorecard", "--checkpoints", models["viscoin"], "--scenes", 8, "--methods", "gradcam,rollout,good,bad",
        "--plugin", mine, "--rivals", "pca,nmf,channels,untrained", "--out", tmp_path / "out",
    ).went_well()  # fmt: skip
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    names = {row["name"] for row in numbers["rows"]}
    assert {"gradcam", "good", "random", "centre", "edges"} <= names
    assert {"concepts, hirescam", "concepts, own map", "pca, hirescam", "nmf, own map", "untrained, own map"} <= names
    assert "nmf, hirescam" not in names
    assert {"rollout", "bad"} <= set(numbers["left_out"]) and "no numbers" in numbers["left_out"]["bad"]
    assert "bad is left out" in found.err and "Grad-CAM" in found.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html", "scorecard.csv", "scorecard.md", "scorecard.png", "results.json",
    }  # fmt: skip
    assert "open first" in found.err and found.err.strip().endswith("index.html")


@pytest.mark.slow
def test_command_takes_a_classifier_alone(models: dict[str, Path], tmp_path: Path, few_resamples: None) -> None:
    found = Answer(
        "scorecard", "--classifier", models["classifier"], "--scenes", 6, "--methods", "hirescam", "--json",
        "--out", tmp_path / "out",
    ).went_well()  # fmt: skip
    rows = json.loads(found.out)["rows"]
    assert {row["kind"] for row in rows} == {"class", "control"}
    assert {"hirescam", "hirescam, finest map"} <= {row["name"] for row in rows}
    Answer("scorecard", "--classifier", models["classifier"], "--viscoin-pickle-path", models["viscoin"]).refused(
        "--classifier", "one of them"
    )


def test_results_are_plain_numbers(card: Scorecard) -> None:
    numbers = json.loads(json.dumps(card.to_dict()))
    assert numbers["scenes"] == N and numbers["with_objects"] == N - 1 and set(numbers["questions"]) == set(QUESTIONS)
