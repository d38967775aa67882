"""An ensemble whose g explains some of the classes of f, and ones trained on images that have not f's classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import Answer, set_options, tiny_recipe, write_images, write_models
from torch.nn import functional as F

from viscoin.analysis import explanation_concepts
from viscoin.datasets import load_dataset
from viscoin.models.explainer import NEVER, Explainer
from viscoin.models.files import load_model, read_file, save_model, write_file
from viscoin.training.viscoin import build_ensemble, choose_classes

NAMES = ["robin", "wren", "blue tit", "great tit"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def f(own_cache, tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))["classifier"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(f: Path, *options: object) -> Answer:
    """An ensemble without a generator, of that f, in `run`."""
    common = ("--without-generator", "--classifier", f, "--precision", "32-true", "--out", "run", *set_options())
    return Answer("train", "viscoin", *common, *options)


# --- Theta ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_norm", [False, True])
def test_g_gives_other_classes_no_probability(weight_norm):
    torch.manual_seed(0)
    explainer = Explainer(5, 4, 0, weight_norm, chosen=[1, 3])
    maps = torch.rand(2, 5, 3, 3)
    logits, phi = explainer(maps), maps.amax((2, 3))
    torch.testing.assert_close(logits[:, [1, 3]], F.linear(phi, explainer.linear.weight, explainer.linear.bias))
    assert (logits[:, [0, 2]] == NEVER).all() and logits.softmax(1)[:, [0, 2]].sum() == 0
    torch.testing.assert_close(F.linear(phi, explainer.weight, explainer.bias), logits)
    assert not explainer.weight[[0, 2]].any() and explainer.linear.weight.shape == (2, 5)
    assert torch.equal(explainer.known(torch.arange(4.0)[None]), torch.tensor([[1.0, 3.0]]))
    logits.logsumexp(1).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in explainer.parameters())


def test_classes_are_chosen_by_name():
    assert choose_classes(["wren", "robin"], NAMES) == [0, 1]
    assert choose_classes(None, NAMES) is None and choose_classes(NAMES[::-1], NAMES) is None
    for names, words in (
        (["robin", "great tot"], r"viscoin\.classes 'great tot'.*did you mean 'great tit'"),
        (["robin", "zebra"], "f knows 4 classes"),
        (["wren", "robin", "wren"], "wren.*twice"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_classes(names, NAMES)


def test_the_file_keeps_which_classes(tmp_path, f):
    recipe = tiny_recipe(viscoin__without_generator=True, viscoin__classes=["wren", "blue tit"])
    model = build_ensemble(recipe.viscoin, load_model(f).model, None, NAMES)
    assert model.explained_classes == ["wren", "blue tit"] and model.architecture["classes"] == [1, 2]
    metadata = read_file(f)[1]
    parts = {"kind": "viscoin", "class_names": NAMES, "architecture": model.architecture}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_file(tmp_path / "v.safetensors", tensors, metadata | parts)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    again = load_model(tmp_path / "v.safetensors").model
    assert torch.equal(again(images), model.eval()(images)) and again.explained_classes == ["wren", "blue tit"]
    for wrong in ([2, 1], [1, 1], [1, 4], [1], [-1, 2]):
        changed = parts | {"architecture": {**model.architecture, "classes": wrong}}
        write_file(tmp_path / "w.safetensors", tensors, metadata | changed)
        with pytest.raises(ValueError, match=r"w\.safetensors"):
            load_model(tmp_path / "w.safetensors")


# --- commands -------------------------------------------------------------------------------------------------------


def test_training_and_explaining_some_classes(here, f):
    names = load_model(f).class_names
    Path("two.txt").write_text(f"{names[3]}\n{names[1]}\n")
    trained(f, "--dataset", "birds", "--classes", "two.txt").went_well()
    loaded = load_model(Path("run"))
    assert loaded.model.explained_classes == [names[1], names[3]] and loaded.class_names == names
    assert loaded.recipe["viscoin"]["classes"] == [names[3], names[1]]
    line = f"g explains 2 classes ({names[1]}, {names[3]}) of the 4 of f"
    done = Answer("explain", "--viscoin", "run", "--image-indices", "1", "--out", "e").went_well()
    assert line in done.err
    found = json.loads(Path("e/birds-test-1.json").read_text())
    assert found["concepts"]["g"]["predicted"] in (names[1], names[3]) and len(found["classes"]) > 2
    options = ("--measures", "accuracy", "--rivals", "none", "--limit", "12", "--out", "t")
    assert line in Answer("test", "viscoin", "--checkpoints", "run", *options).went_well().err
    Answer("concepts", "--checkpoints", "run", "--out", "c").went_well()
    Answer("export", "run", "--to", "torchscript", "--output", "m.pt").went_well()


def test_theta_is_fitted_to_the_classes_that_it_knows(here, f):
    """Concepts of the pursuit, which need no training; f says other classes, too."""
    names = load_model(f).class_names
    options = ("--classes", f"{names[1]},{names[3]}", "--initialisation", "pursuit", "--steps", "0")
    trained(f, "--dataset", "birds", *options, "--set", "viscoin.n_concepts=2").went_well()
    ensemble = load_model(Path("run")).model
    images = load_dataset("birds", "train", tiny_recipe().dataset).batch(range(64))[0]
    with torch.inference_mode():
        wanted = ensemble.classifier(images)[:, [1, 3]].softmax(1).mean(0)
        found = ensemble(images).softmax(1)[:, [1, 3]].mean(0)
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


def test_votes_are_about_classes_that_g_knows(here, f):
    """The runner-up of f may be unknown to g, which then has no votes for or against it."""
    assert explanation_concepts._rivals(torch.tensor([0.1, 0.9, 0.5, 0.3]), None) == [1, 2]
    assert explanation_concepts._rivals(torch.tensor([0.1, 0.9, 0.5, 0.3]), torch.tensor([0, 1, 3])) == [1, 3]
    names = load_model(f).class_names
    options = ("--classes", f"{names[1]},{names[3]}", "--initialisation", "pursuit", "--steps", "0")
    started = trained(f, "--dataset", "birds", *options, "--set", "viscoin.n_concepts=2").went_well()
    assert "f says one of the 2 classes that g knows on 0." in started.err
    assert "concepts --checkpoints run" in started.err
    Answer("explain", "--viscoin", "run", "--image-indices", "1", "--out", "e").went_well()
    page = Path("e/birds-test-1.html").read_text()
    pairs = ((names[1], names[3]), (names[3], names[1]))
    assert any(f"<h3>For {a}</h3>" in page and f"<h3>Rather than {b}</h3>" in page for a, b in pairs)


def test_photographs_are_prepared_as_those_of_f(here):
    f = write_models(here, tiny_recipe(dataset__fit="squash"))["classifier"]
    loose, fewer = write_images(Path("loose"), {".": 30}, 40), ("--set", "viscoin.n_concepts=2")
    common = ("train", "viscoin", "--recipe", "photos", "--classifier", f, "--dataset", loose, *fewer)
    Answer(*common, "--out", "a").went_well()
    assert load_model(Path("a")).recipe["dataset"].items() >= {"resolution": 32, "fit": "squash"}.items()
    Answer(*common, "--out", "b", "--set", "dataset.fit=crop").went_well()
    assert load_model(Path("b")).recipe["dataset"]["fit"] == "crop"


def test_classes_that_f_does_not_know_are_refused(here, f):
    names = load_model(f).class_names
    trained(f, "--dataset", "birds", "--classes", f"{names[0]},{names[1]}x").refused("--classes", repr(names[1]))
    trained(f, "--dataset", "birds", "--classes", f"{names[0]},{names[0]}").refused("--classes", "twice")
    trained(f, "--dataset", "birds", "--classes", names[0]).refused("classes")
    assert not Path("run").exists()


def test_concepts_of_images_with_other_classes_or_none(here, f):
    names = load_model(f).class_names
    pursuit = ("--initialisation", "pursuit", "--steps", "0", "--set", "viscoin.n_concepts=2")
    loose = write_images(Path("loose"), {".": 30}, 32)
    done = trained(f, "--dataset", loose, *pursuit).went_well()
    assert "images without classes; no accuracy is given" in done.err
    loaded = load_model(Path("run"))
    assert loaded.metadata["scores"].keys() == {"validation.agreement"} and loaded.class_names == names
    test = ("test", "viscoin", "--checkpoints", "run", "--rivals", "none", "--measures")
    Answer(*test, "accuracy,concepts", "--out", "t").went_well()
    found = json.loads(Path("t/results.json").read_text())
    assert found["ensemble"].keys() == {"agreement"} and "classifier" not in found
    assert "ensemble.agreement" in found["estimates"] and "classifier.accuracy" not in found["estimates"]
    Answer(*test, "kept", "--out", "u").refused("--measures kept", "no accuracy to measure")
    other = write_images(Path("other"), {names[2]: 12, "emu": 12}, 32)
    options = ("--dataset", other, *pursuit, "--out", "second")
    trained(f, *options).refused("--classifier", "emu", "--class-map")
    Path("map.csv").write_text(f"emu,{names[0]}\n")
    trained(f, *options, "--class-map", "map.csv").went_well()
    assert load_model(Path("second")).metadata["scores"].keys() == {"validation.agreement", "validation.accuracy"}
    test = ("test", "viscoin", "--checkpoints", "second", "--rivals", "none", "--out", "w")
    Answer(*test).refused("--class-map")
    Answer(*test, "--class-map", "map.csv").went_well()
    assert {"accuracy", "agreement"} == json.loads(Path("w/results.json").read_text())["ensemble"].keys()
    trained(f, "--dataset", other, *pursuit, "--out", "third", "--class-map", "none").went_well()
    trained(f, "--dataset", "birds", "--class-map", "map.csv").refused("--class-map", "classes of its own")


@pytest.mark.slow
@pytest.mark.parametrize("classes", [None, ["wren", "blue tit"]])
def test_onnx_of_an_ensemble_without_a_generator(tmp_path, f, classes):
    onnxruntime = pytest.importorskip("onnxruntime")
    recipe = tiny_recipe(viscoin__without_generator=True, viscoin__classes=classes)
    model = build_ensemble(recipe.viscoin, load_model(f).model, None, NAMES).eval()
    save_model(tmp_path / "v.safetensors", model, "viscoin", recipe=recipe, class_names=NAMES)
    Answer("export", tmp_path / "v.safetensors", "--to", "onnx", "--output", tmp_path / "v.onnx").went_well()
    session = onnxruntime.InferenceSession(str(tmp_path / "v.onnx"), providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_outputs()][-1] == "concept_maps"
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    logits, explained, phi, contributions, maps = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        f_says, wanted = model.concept_maps(images)
        g_says = model.explain(wanted)
    for found, expected in ((logits, f_says), (explained, g_says), (maps, wanted), (phi, wanted.amax((2, 3)))):
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(contributions.sum(2) + model.explainer.bias.detach().numpy(), explained, atol=1e-4)
