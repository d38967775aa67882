"""Surgery: what is asked for, what contradicts itself, what is drawn and read back, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_editing import Operated, usual
from tiny_models import Answer, tiny_recipe, write_models
from toy_ensemble import toy_dataset

from viscoin.analysis.surgery import Surgery, check_known, check_surgery, operate
from viscoin.errors import Refused
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import load_model, save_model
from viscoin.plotting.surgery import surgery_figure

NAMES = ["left", "right"]


def operated(*surgeries: Surgery, **options: float):
    images = toy_dataset([[0.0, 0.2, 0.6, 0.4], [0.4, 0.2, 0.0, 0.6]], [0, 1]).batch([0, 1])[0]
    return operate(Operated(usual(), **options), images, surgeries, usual(), batch_size=1)


def test_what_a_surgery_says_of_itself():
    surgery = Surgery({3: 0.5}, [(0, 1)])
    assert surgery.concepts == [0, 1, 3] and len(surgery.lengths) > 1 and Surgery({3: 1.0}).lengths == (1.0,)
    assert surgery.describe({1: "plume crest"}) == ["concept 0 → 1 (plume crest)", "concept 3 = 0.5"]
    assert surgery.one_by_one() == [Surgery(swaps=((0, 1),)), Surgery({3: 0.5})]


def test_values_are_drawn_as_asked_and_read_back():
    result = operated(Surgery({0: 0.5}))
    (operation,) = result.operations
    assert operation.lengths.tolist() == [1, 1]
    assert operation.target[:, 0] == pytest.approx([0.2, 0.2]) and operation.found[:, 0] == pytest.approx([0.2, 0.2])
    assert result.phi[0] == pytest.approx(np.array([[0, 0.2, 0.6, 0.4]] * 2), abs=1e-6)
    assert operation.found[0] == pytest.approx([0.2, 0.2, 0, 0.4], abs=1e-6)  # its opposite goes
    assert operation.missed == pytest.approx([0, 0], abs=1e-5) and operation.off_target == pytest.approx(
        [0, 0], abs=1e-5
    )
    assert operation.changes[0].mean() == pytest.approx((0.2 + 0.6) / 4, abs=1e-5)


def test_a_swap_takes_the_length_at_which_it_disturbs_least():
    surgery = Surgery(swaps=[(1, 0)])
    calm, leaky = (operated(surgery, **options).operations[0] for options in ({}, {"most": 0.1, "leak": 9.0}))
    assert calm.lengths[0] == 1 and leaky.lengths[0] < 1
    assert calm.found[0] == pytest.approx([0.4, 0, 0, 0.4], abs=1e-5)
    assert leaky.costs.argmin(1).tolist() == [surgery.lengths.index(round(float(s), 2)) for s in leaky.lengths]


def test_the_table_of_a_surgery():
    result = operated(Surgery(swaps=[(3, 0)]), Surgery({1: 0.0}))
    rows = json.loads(json.dumps(result.to_dict(NAMES)))
    assert [len(row) for row in rows] == [2, 2]
    swap, removed = rows[0]
    assert swap["swap"] == [[3, 0]] and swap["length"] == 1 and len(swap["costs"]) == 6
    assert swap["concepts"]["0"] == pytest.approx(
        {"original": 0, "reconstruction": 0, "target": 1, "edited": 1}, abs=1e-5
    )
    assert swap["predicted"]["g"] == {"original": "right", "reconstruction": "right", "edited": "left"}
    assert removed["set"] == {"1": 0} and removed["concepts"]["1"]["edited"] == pytest.approx(0, abs=1e-5)
    before = 1 / (1 + np.exp(0.2 - 4 * 0.6))
    assert swap["classes"]["right"]["f"]["original"] == pytest.approx(before, abs=1e-4)
    figure = surgery_figure(result, NAMES, np.array([0, 1]), concept_names={0: "plume crest"}, image_names=["x", "y"])
    shown = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "concept 3 → 0 (plume crest)" in shown and "length by read-back: 1" in shown and "0:  0.00 → 1.00" in shown


@pytest.mark.parametrize(
    ("surgery", "text"),
    [
        (Surgery({4: 1.0}), "set_concept 4: out of range; the ensemble has 4 concepts"),
        (Surgery(swaps=[(0, -1)]), "swap -1: out of range"),
        (Surgery({1: -1.0}), "set_concept '1=-1': expected a value of 0 or more"),
        (Surgery({1: float("nan")}), "expected a value of 0 or more"),
        (Surgery(swaps=[(1, 1)]), "swap 1:1: a concept cannot be swapped for itself"),
        (Surgery(swaps=[(1, 3), (3, 1)]), "swap 1: the concept is turned on and off at once"),
        (Surgery({3: 0.5}, [(1, 3)]), "swap 3: the concept is turned on twice"),
        (Surgery({3: 0.0}, [(1, 3)]), "swap 3: the concept is turned on and off at once"),
        (Surgery({0: 1.0, 2: 1.0}), "0 and 2 are two signs of one direction"),
        (Surgery(), "no change is given"),
    ],
)
def test_surgeries_that_make_no_sense(surgery, text):
    with pytest.raises(Refused) as caught:
        check_surgery(Operated(usual()), surgery)
    assert text in str(caught.value)


def test_surgeries_that_make_sense():
    for surgery in (Surgery(swaps=[(0, 2)]), Surgery({0: 0.0}, [(1, 3)]), Surgery(swaps=[(1, 0), (1, 3)])):
        check_surgery(Operated(usual()), surgery)


def test_a_concept_that_hardly_any_image_has_cannot_be_turned_on():
    rare = usual()
    rare.strong[1] = 0
    with pytest.raises(Refused, match="set_concept 1: fewer than a tenth of the images have the concept"):
        check_known(Surgery({1: 0.5}), rare)
    check_known(Surgery({1: 0.0}, [(1, 3)]), rare)  # but off


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny ensemble with random directions, and concepts that are there in most images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("models")
        plain = load_model(write_models(folder)["viscoin"]).model
        options = {"generator": plain.generator.architecture | {"directions": True}}
        torch.manual_seed(1)
        ensemble = VisCoIN.from_architecture(plain.architecture | options, plain.class_names)
        ensemble.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            ensemble.concept_extractor.conv5.bias += 0.5
            ensemble.generator.directions.vectors.normal_()
            ensemble.generator.directions.measure(ensemble.concept_maps(torch.rand(40, 3, 32, 32) * 2 - 1)[1])
            ensemble.generator.directions.strong.clamp_(min=0.1)
        yield save_model(
            folder / "directed.safetensors", ensemble, "viscoin", recipe=tiny_recipe(), class_names=plain.class_names
        )


@pytest.fixture
def run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")
    return lambda *options: Answer("amplify", "--viscoin-pickle-path", path, *options)


def test_command_operates(run):
    Path("names.csv").write_text("concept,name\n4,plume crest\n1,twin\n2,twin\n")
    options = ["--swap", "0:3", "--set-concept", "plume crest=1.5", "--concept-names", "names.csv"]
    run(*options, "--image-indices", "3,5", "--out", "out").went_well()
    assert {one.name for one in Path("out").iterdir()} == {"surgery.png", "results.json"}
    found = json.loads(Path("out/results.json").read_text())
    assert found["images"] == ["birds-test-3", "birds-test-5"] and [len(row) for row in found["surgery"]] == [1, 1]
    first = found["surgery"][0][0]
    assert first["set"] == {"4": 1.5} and first["swap"] == [[0, 3]] and set(first["concepts"]) == {"0", "3", "4"}
    run(*options, "--one-by-one", "--image-indices", "3", "--out", "single").went_well()
    single = json.loads(Path("single/results.json").read_text())["surgery"][0]
    assert [one["set"] for one in single] == [{}, {"4": 1.5}] and single[1]["length"] == 1
    names = ["--concept-names", "names.csv"]
    run("--set-concept", "twin=1", *names).refused("--set-concept twin", "concepts 1, 2 have this name")
    run("--set-concept", "crest=1", *names).refused("--set-concept crest", "no concept has this name")


def test_command_refuses_surgeries_that_make_no_sense(run, tmp_path):
    run("--set-concept", "6=1").refused("--set-concept 6", "6 concepts")
    run("--set-concept", "1=-1").refused("--set-concept '1=-1'", "0 or more")
    run("--set-concept", "1=lots").refused("--set-concept '1=lots'", "0 or more")
    run("--set-concept", "1=nan").refused("--set-concept '1=nan'", "0 or more")
    run("--set-concept", "1").refused("--set-concept 1", "12=1")
    run("--set-concept", "1=1", "--set-concept", "1=2").refused("--set-concept '1=2'", "concept 1 is given twice")
    run("--set-concept", "crest=1").refused("--set-concept crest", "--concept-names")
    run("--swap", "0:9").refused("--swap 9", "6 concepts")
    run("--swap", "0").refused("--swap 0", "3:12")
    run("--swap", "2:2").refused("--swap 2:2", "itself")
    run("--swap", "0:3,3:1").refused("--swap 3", "on and off at once")
    for option in (["--concept-top-k", 1], ["--multipliers", "0,1"], ["--curve"], ["--gif", "a.gif"]):
        run("--swap", "0:3", *option).refused(option[0], "is for multiplied concepts", "--swap")
    assert not list(tmp_path.glob("runs/*"))
