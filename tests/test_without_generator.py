"""An ensemble of f, Psi and Theta alone: training, its file, what works on it, and what says that it cannot draw."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import Answer, set_options, tiny_recipe

from viscoin.config import load_recipe
from viscoin.datasets import load_dataset
from viscoin.errors import Refused
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.ensemble import VisCoIN
from viscoin.models.explainer import Explainer
from viscoin.models.files import load_model, read_file, save_model, write_file
from viscoin.models.portable import take_part
from viscoin.training.viscoin import build_ensemble

CANNOT = "no generator, so it cannot draw"


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    """Trained for four steps."""
    path = tmp_path_factory.mktemp("alone") / "run"
    options = (*set_options(), "--classifier", models["classifier"], "--precision", "32-true", "--out", path)
    Answer("train", "viscoin", "--dataset", "birds", "--without-generator", *options).went_well()
    return path / "model.safetensors"


# --- model and file -------------------------------------------------------------------------------------------------


def test_the_file_is_of_the_usual_kind_and_holds_no_generator(alone, models):
    tensors, metadata = read_file(alone)
    assert metadata["kind"] == "viscoin" and metadata["architecture"]["generator"] is None
    assert metadata["scores"].keys() == {"validation.accuracy", "validation.agreement"}
    assert not [name for name in tensors if name.startswith(("generator", "concept_extractor.linear"))]
    model = load_model(alone, "viscoin").model
    assert not model.draws and load_model(models["viscoin"]).model.draws
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    code = model.encode(images)
    assert code.support.shape == (2, 0) and model(images).shape == (2, 4)
    assert copy.deepcopy(model).architecture == model.architecture


def test_it_trained_and_f_did_not(alone, models):
    recipe = tiny_recipe(viscoin__without_generator=True)
    f = load_model(models["classifier"]).model
    trained = load_model(alone).model
    torch.manual_seed(0)
    fresh = build_ensemble(recipe.viscoin, f, None, trained.class_names)
    for name, value in fresh.classifier.state_dict().items():
        assert torch.equal(value, trained.classifier.state_dict()[name]), name
    lines = [json.loads(line) for line in (alone.parent / "metrics.jsonl").read_text().splitlines()]
    assert any("output_fidelity" in json.dumps(line) for line in lines) and "perceptual" not in json.dumps(lines)


def test_a_support_without_a_generator_is_refused(alone, tmp_path):
    f = Classifier("viscoin_resnet10", 4, 32)
    extractor = ConceptExtractor(f.feature_shapes, 6, 8)
    with pytest.raises(ValueError, match="both or neither"):
        VisCoIN(f, extractor, Explainer(6, 4), None, list("abcd"))
    tensors, metadata = read_file(alone)
    for changes in ({"support": "learned"}, {"support_width": 54}):
        changed = {**metadata, "architecture": {**metadata["architecture"], **changes}}
        write_file(tmp_path / "x.safetensors", tensors, changed)
        with pytest.raises(ValueError, match="belong together"):
            load_model(tmp_path / "x.safetensors")


def test_whatever_draws_says_what_is_missing(alone):
    model = load_model(alone).model
    code = model.encode(torch.zeros(1, 3, 32, 32))
    for draw in (
        lambda: model.decode(code.concept_maps, code.support),
        lambda: model.edit(code, code.concept_maps),
        lambda: model.generator.mapping,
        lambda: model.generator.directions,
    ):
        with pytest.raises(Refused, match=CANNOT):
            draw()


# --- training -------------------------------------------------------------------------------------------------------


def test_concepts_of_the_pursuit_alone_need_no_training(here, models):
    pursuit = ("--initialisation", "pursuit", "--steps", "0", "--set", "viscoin.n_concepts=2")
    options = (*set_options(), *pursuit, "--classifier", models["classifier"], "--precision", "32-true", "--out", "p")
    done = Answer("train", "viscoin", "--dataset", "birds", "--without-generator", *options).went_well()
    assert "nothing trains" in done.err and not list(Path("p/checkpoints").glob("*.pt"))
    found = json.loads(Path("p/pursuit.json").read_text())
    model = load_model(Path("p")).model
    assert found["agreement"] > 0.6 and model.concept_extractor.opposites() == [1, 0]
    images = load_dataset("birds", "train", tiny_recipe().dataset).batch(range(64))[0]
    with torch.no_grad():
        same = (model(images).argmax(1) == model.classifier(images).argmax(1)).float().mean()
    assert float(same) == pytest.approx(found["agreement"], abs=0.05)


def test_concepts_that_are_held_for_good_are_not_trained_for_steps_in_vain(here, models):
    held = ("--initialisation", "pursuit", "--set", "viscoin.n_concepts=2", "--set", "viscoin.hold_concepts=1")
    options = (*set_options(), *held, "--classifier", models["classifier"], "--precision", "32-true", "--out", "p")
    done = Answer("train", "viscoin", "--dataset", "birds", "--without-generator", *options).went_well()
    assert "nothing trains" in done.err and "viscoin step" not in done.err


def test_settings_that_make_no_sense_are_refused(here, models):
    common = ("--dataset", "birds", *set_options(), "--classifier", models["classifier"], "--out", "r")
    Answer("train", "viscoin", *common, "--steps", "0").refused("viscoin.steps = 0", "viscoin.without_generator")
    Answer("train", "viscoin", *common, "--steps", "0", "--without-generator").refused("pursuit")
    Answer("train", "viscoin", *common, "--without-generator", "--gan", models["gan"]).refused("--gan")
    assert not Path("r").exists()
    assert load_recipe("birds", {"viscoin.without_generator": True}).viscoin.without_generator


def test_train_all_leaves_out_the_generator(here):
    options = (*set_options(), "--set", "classifier.backbone=viscoin_resnet10", "--set", "classifier.pretrained=false")
    alone = ("--set", "viscoin.without_generator=true", "--precision", "32-true", "--out", "all")
    paths = Answer("train", "all", "--dataset", "birds", *options, *alone).went_well().out.split()
    assert [Path(path).parent.name for path in paths] == ["classifier", "viscoin"]
    assert not load_model(Path(paths[1])).model.draws


# --- commands -------------------------------------------------------------------------------------------------------


def test_concepts_have_pages_without_strips(here, alone):
    done = Answer("concepts", "--checkpoints", alone, "--out", "c").went_well()
    assert f"Nothing is drawn: this ensemble has {CANNOT}" in done.err
    page = next(Path("c/pages").glob("concept-*.html")).read_text()
    assert "Where it fires most" in page and "What changes with it" not in page
    index = Path("c/index.html").read_text()
    assert "reconstruction error" not in index and "nan" not in index.lower().replace("dominan", "")
    assert not list(Path("c/pages/amplified").glob("*"))


@pytest.mark.slow
def test_measures_that_need_pictures_are_left_out_and_said_to_be(here, alone):
    small = ("--limit", "12", "--rivals", "none", "--out", "t")
    done = Answer("test", "viscoin", "--checkpoints", alone, *small).went_well()
    line = f"left out: reconstruction, fid, faithfulness, consistency, drawing: this ensemble has {CANNOT}"
    assert line in done.err and "what edits change in images" in done.err
    found = json.loads(Path("t/results.json").read_text())
    assert found["ensemble"].keys() == {"accuracy", "agreement"} and "reconstruction" not in found
    assert found["left_out"]["fid"].endswith("cannot draw") and found["kept_concepts"]
    assert "ensemble.agreement" in found["estimates"] and "NaN" not in Path("t/results.json").read_text()
    refused = ("test", "viscoin", "--checkpoints", alone, "--measures", "accuracy,fid", "--out", "u")
    Answer(*refused).refused("--measures", "fid", CANNOT)


def test_heatmaps_attributions_and_explanations_work(here, alone):
    one = ("--image-indices", "1")
    Answer("concept-heatmaps", "--checkpoints", alone, "--out", "h", "--concept-top-k", "2", *one).went_well()
    Answer("attribute", "--viscoin", alone, "--of", "concepts", "--out", "a", *one).went_well()
    Answer("explain", "--viscoin", alone, "--out", "e", *one).went_well()
    found = json.loads(Path("e/birds-test-1.json").read_text())
    assert found["concepts"]["leading"] and found["drawn_change"] is None and CANNOT in found["missing"]["drawing"]
    assert CANNOT in Path("e/birds-test-1.html").read_text()


def test_scorecard_works(here, alone):
    options = ("--scenes", "4", "--methods", "saliency", "--rivals", "none", "--out", "s")
    Answer("scorecard", "--viscoin-pickle-path", alone, *options).went_well()
    assert Path("s/results.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("amplify", "--concept-top-k", "2"),
        ("amplify", "--swap", "1:2"),
        ("amplify", "--set-concept", "1=1"),
        ("concept-heatmaps", "--method", "change", "--concept-top-k", "2"),
    ],
)
def test_commands_that_draw_say_in_one_line_what_is_missing(here, alone, command):
    Answer(*command, "--checkpoints", alone, "--image-indices", "1", "--out", "r").refused(CANNOT, "train gan")
    assert not Path("r").exists()


def test_export(here, alone):
    loaded = load_model(alone)
    part = take_part(loaded)
    assert [port.name for port in part.outputs][-1] == "concept_maps"
    found = part.module(torch.zeros(1, 3, 32, 32))
    assert len(found) == len(part.outputs)
    np.testing.assert_allclose(found[1].numpy(), loaded.model(torch.zeros(1, 3, 32, 32)).detach().numpy(), atol=1e-5)
    Answer("export", alone, "--to", "torchscript", "--output", "m.pt").went_well()
    Answer("export", alone, "--part", "decoder", "--to", "safetensors", "--output", "d.safetensors").refused(CANNOT)
    assert not Path("d.safetensors").exists()
    Answer("to-pickle", "--checkpoints", alone, "--output", "m.pkl").went_well()
    assert not load_model(Path("m.pkl")).model.draws


def test_saved_again_it_is_the_same(here, alone):
    loaded = load_model(alone)
    path = save_model(
        Path("again.safetensors"), loaded.model, "viscoin", recipe=tiny_recipe(viscoin__without_generator=True),
        class_names=loaded.class_names,
    )  # fmt: skip
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_model(path).model(images), loaded.model(images))
