"""Checkpoints of older VisCoIN code: published numbers, ResNets in other names, files that ask for more than data."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_models import Answer, write_images, write_models
from torch import Tensor
from torch.nn import functional as F

from viscoin.datasets.birds import class_names
from viscoin.legacy.checkpoint import Checkpoint, read_checkpoint
from viscoin.legacy.ensemble import build_ensemble
from viscoin.legacy.resnet import backbone_name, timm_names
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.ensemble import VisCoIN
from viscoin.models.explainer import Explainer
from viscoin.models.files import load_model, read_file
from viscoin.models.generator import AdaptedGenerator

GOLDEN = Path(__file__).parent / "golden" / "viscoin"
TINY = GOLDEN / "legacy_tiny.pth"
SHAPES: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "legacy_checkpoint_keys.json").read_text())
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN / "modules.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def tiny() -> dict[str, dict[str, Tensor]]:
    return torch.load(TINY, weights_only=True)


def saved(content: Any, name: str = "old.pth") -> Path:
    torch.save(content, name)
    return Path(name)


def check_outputs(model: Any, golden: dict[str, Tensor], explainer: str = "explainer") -> None:
    concept_maps, support, _ = model.concept_extractor([golden[f"feature_{i}"] for i in (1, 2, 3)])
    torch.testing.assert_close(concept_maps, golden["phi"], **CLOSE)
    torch.testing.assert_close(support, golden["phi_support"], **CLOSE)
    torch.testing.assert_close(model.explainer(concept_maps), golden[f"{explainer}_logits"], **CLOSE)
    torch.testing.assert_close(model.generator.mapping(concept_maps, support), golden["ws"], **CLOSE)
    image = model.generator(concept_maps, support, noise_mode="const")
    torch.testing.assert_close(image, golden["image"], atol=1e-3, rtol=1e-3)


# --- published numbers


@torch.no_grad()
def test_tiny_checkpoint_gives_published_outputs(golden):
    answer = Answer("import-viscoin", TINY, "--output", "new.safetensors").went_well()
    assert "holds no classifier" in answer.err and "--classifier" in answer.err
    assert "2 to 6 of 8, not in the file" in answer.out and "none in the file: class 0" in answer.out
    loaded = load_model(Path("new.safetensors"))
    assert loaded.kind == "parts" and loaded.class_names == [f"class {i}" for i in range(5)]
    check_outputs(loaded.model, golden)
    Answer("test", "viscoin", "--checkpoints", "new.safetensors").refused("holds a parts model", "viscoin")


@torch.no_grad()
@pytest.mark.parametrize("names", [("original0", "original1"), ("g", "v")])
def test_weight_normalised_explainer(golden, names):
    state = {"linear.bias": golden["explainer_normalized.linear.bias"]}
    for own, key in zip(("original0", "original1"), names):
        old = f"linear.parametrizations.weight.{key}" if len(key) > 1 else f"linear.weight_{key}"
        state[old] = golden[f"explainer_normalized.linear.parametrizations.weight.{own}"]
    checkpoint = read_checkpoint(saved({**tiny(), "explainer": state}))
    check_outputs(build_ensemble(checkpoint, list("abcde")), golden, "explainer_normalized")


@pytest.mark.parametrize("way", ["pickle", "old torch"])
def test_other_ways_to_save_give_the_same(way):
    path = Path("old.pkl")
    if way == "pickle":
        path.write_bytes(pickle.dumps(tiny()))
    else:
        torch.save(tiny(), path, _use_new_zipfile_serialization=False)
    expected, found = tiny(), read_checkpoint(path).parts
    assert found.keys() == expected.keys()
    for part in expected:
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(found[part][name], expected[part][name]) for name in expected[part])


# --- the classifier


def resnet(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Logits and the maps of the four stages, by the names of transformers (its ResNet has the stride in the 3x3)."""

    def layer(x: Tensor, name: str, stride: int = 1, relu: bool = True) -> Tensor:
        weight = state[f"{name}.convolution.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        values = [state[f"{name}.normalization.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (value[:, None, None] for value in values)
        x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        return x.relu() if relu else x

    x = F.max_pool2d(layer(x, "resnet.embedder.embedder", 2), 3, 2, 1)
    maps = []
    for i, blocks in enumerate((3, 4, 6, 3)):
        for j in range(blocks):
            name, stride = f"resnet.encoder.stages.{i}.layers.{j}", 2 if i > 0 and j == 0 else 1
            y = layer(x, f"{name}.layer.0")
            y = layer(layer(y, f"{name}.layer.1", stride), f"{name}.layer.2", relu=False)
            x = (y + (layer(x, f"{name}.shortcut", stride, relu=False) if j == 0 else x)).relu()
        maps.append(x)
    return [x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"], *maps]


def random_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=random) * 0.1
        if name.endswith("convolution.weight"):
            tensor *= 14 / np.prod(shape[1:]) ** 0.5
        elif name.endswith(("running_var", "normalization.weight")):
            tensor = tensor.abs() + 0.5
        elif name.endswith("num_batches_tracked"):
            tensor = torch.tensor(7)
        state[name] = tensor
    return state


@torch.no_grad()
def test_full_size_classifier_computes_what_its_names_mean():
    state = random_state(SHAPES["classifier"])
    assert backbone_name(state) == "resnet50"
    f = Classifier("resnet50", 200, 64).eval()
    f.model.load_state_dict(timm_names(state))  # all names, or it raises
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    logits, *maps = resnet(state, pixels)
    found = f.features(images)
    assert logits.std() > 0.1
    for own, reference in zip((found.logits, *found.maps), (logits, *maps[1:]), strict=True):
        torch.testing.assert_close(own, reference, atol=1e-3, rtol=1e-3)


def test_every_key_and_shape_of_a_full_size_checkpoint_has_its_place():
    with torch.device("meta"):  # but for filters, which networks share and no device changes
        parts = {
            part: {n: torch.empty(s, device="cpu" if "resample_filter" in n else None) for n, s in SHAPES[part].items()}
            for part in SHAPES
        }
        model = build_ensemble(Checkpoint(parts, (), Path("old.pth")), [f"class {i}" for i in range(200)])
    assert isinstance(model, VisCoIN)
    assert len(model.state_dict()) == sum(map(len, SHAPES.values())) == 491
    assert model.architecture == {
        "classifier": {"backbone": "resnet50", "n_classes": 200, "resolution": 256},
        "generator": {
            "synthesis": {
                "w_dim": 512,
                "img_resolution": 256,
                "img_channels": 3,
                "channel_base": 32768,
                "channel_max": 512,
                "use_noise": True,
            },
            "coarse_layer": 2,
            "mid_layer": 10,
            "linear": False,
            "inputs": "second_moment",
            "rank": None,
            "directions": False,
        },
        "n_concepts": 256,
        "latent_channels": 512,
        "support_width": 2304,
        "support": "learned",
        "dropout": 0.01,
        "weight_norm": False,
    }


def test_classifiers_that_are_no_known_resnet():
    with pytest.raises(ValueError, match="no ResNet in the names of transformers; it starts with conv1"):
        backbone_name({"conv1.weight": torch.zeros(1)})
    state = {name: torch.zeros(1) for name in SHAPES["classifier"] if ".stages.2.layers.5." not in name}
    with pytest.raises(ValueError, match=r"3-4-5-3 blocks with 3 convolutions each; known are resnet18, "):
        backbone_name(state)


# --- whole ensembles through the commands


def small_names() -> Iterator[tuple[str, str]]:
    """Modules of a ResNet-18: name in transformers, name in timm."""
    yield from [("resnet.embedder.embedder.convolution", "conv1"), ("resnet.embedder.embedder.normalization", "bn1")]
    for stage in range(4):
        for block in range(2):
            old, new = f"resnet.encoder.stages.{stage}.layers.{block}", f"layer{stage + 1}.{block}"
            for layer in range(2):
                yield f"{old}.layer.{layer}.convolution", f"{new}.conv{layer + 1}"
                yield f"{old}.layer.{layer}.normalization", f"{new}.bn{layer + 1}"
            if stage > 0 and block == 0:
                yield f"{old}.shortcut.convolution", f"{new}.downsample.0"
                yield f"{old}.shortcut.normalization", f"{new}.downsample.1"
    yield "linear", "fc"


def small_ensemble(n_classes: int) -> tuple[VisCoIN, dict[str, Any]]:
    """An ensemble around a ResNet-18 for 64 px, and the same as an older checkpoint."""
    torch.manual_seed(0)
    f = Classifier("resnet18", n_classes, 64)
    synthesis = {"w_dim": 8, "img_resolution": 64, "img_channels": 3, "channel_base": 512, "channel_max": 16}
    adapted = AdaptedGenerator(synthesis, 6, 2, 8)
    psi = ConceptExtractor(f.feature_shapes, 6, 4)
    ensemble = VisCoIN(f, psi, Explainer(6, n_classes), adapted, [f"class {i}" for i in range(n_classes)])
    old = {new: old for old, new in small_names()}
    state = {f"{old[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t for n, t in f.model.state_dict().items()}
    parts = {"concept_extractor": psi, "explainer": ensemble.explainer, "gan": adapted}
    checkpoint = {"classifier": state, **{part: module.state_dict() for part, module in parts.items()}}
    return ensemble.eval(), {"epoch": 3, "optimizer": {"lr": 0.1}, **checkpoint}


def imported(here: Path) -> tuple[VisCoIN, str]:
    """An ensemble, and what was printed when it was imported to new.safetensors with the classes of a folder."""
    write_images(here / "photos", dict.fromkeys(["heron", "robin", "wren"], 10), size=64)
    ensemble, checkpoint = small_ensemble(3)
    answer = Answer("import-viscoin", saved(checkpoint), "--output", "new.safetensors", "--dataset", "photos")
    return ensemble, answer.went_well().out


def test_imported_ensemble_equals_the_one_that_was_saved(here):
    ensemble, printed = imported(here)
    assert "epoch, optimizer" in printed and "from dataset photos" in printed and "resnet18" in printed
    loaded = load_model(Path("new.safetensors"), "viscoin")
    assert loaded.class_names == ["heron", "robin", "wren"] and loaded.metadata["origin"] == "old.pth"
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        one, two = ensemble.encode(images), loaded.model.encode(images)
        torch.testing.assert_close(one.logits, two.logits)
        torch.testing.assert_close(ensemble.decode(*one[2:4]), loaded.model.decode(*two[2:4]), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_imported_ensemble_works_where_ensembles_do(here):
    imported(here)
    Answer("test", "viscoin", "--checkpoints", "new.safetensors", "--out", "tested").went_well()
    assert json.loads((here / "tested" / "results.json").read_text())["dataset"] == "photos"
    Answer("amplify", "--checkpoints", "new.safetensors", "--concept-indices", "0,3", "--out", "amplified").went_well()
    assert list((here / "amplified").glob("*.png"))


def test_classifier_from_another_file(here):
    models = write_models(here)  # 4 classes, 32 px
    ensemble, metadata = read_file(models["viscoin"])
    old: dict[str, dict[str, Tensor]] = {}
    for name, tensor in ensemble.items():
        part, _, rest = name.partition(".")
        old.setdefault(part.replace("generator", "gan"), {})[rest] = tensor
    del old["classifier"]
    given = ("--classifier", models["classifier"], "--coarse-layer", 1, "--mid-layer", 5)
    Answer("import-viscoin", saved(old), "--output", "new.safetensors", *given).went_well()
    loaded = load_model(Path("new.safetensors"), "viscoin")
    state = loaded.model.state_dict()
    assert state.keys() == ensemble.keys() and all(torch.equal(state[name], ensemble[name]) for name in state)
    assert loaded.class_names == metadata["class_names"]
    assert loaded.metadata["architecture"]["generator"]["mid_layer"] == 5
    assert loaded.recipe["dataset"]["name"] == "birds" and loaded.recipe["dataset"]["classes"] == 4
    Answer("import-viscoin", TINY, "--output", "b.safetensors", *given).refused("--classifier", "4 different", "5")
    old["classifier"] = {}
    Answer("import-viscoin", saved(old), "--output", "b.safetensors", *given).refused("holds a classifier already")


def test_class_names_from_a_file_or_a_dataset(here):
    classes, output = here / "classes.txt", ("--output", "new.safetensors")
    classes.write_text("ant\nbee\n\ncat\ndog\nemu\n")
    Answer("import-viscoin", TINY, *output, "--classes", classes).went_well()
    assert load_model(here / "new.safetensors").class_names == ["ant", "bee", "cat", "dog", "emu"]
    Answer("import-viscoin", TINY, *output, "--classes", classes).refused("new.safetensors: exists", "--force")
    Answer("import-viscoin", TINY, *output, "--dataset", "birds", "--force").went_well()
    loaded = load_model(here / "new.safetensors")
    assert loaded.class_names == class_names(5)
    assert loaded.recipe["dataset"]["classes"] == 5
    Answer("import-viscoin", TINY, *output, "--dataset", "faraway", "--force").went_well()
    assert load_model(here / "new.safetensors").metadata["dataset"] == "faraway"
    classes.write_text("ant\nbee\nbee\ncat\ndog\n")
    Answer("import-viscoin", TINY, *output, "--classes", classes, "--force").refused("4 different names", "5 classes")
    Answer("import-viscoin", TINY, *output, "--classes", "none.txt", "--force").refused("--classes none.txt")


# --- files that are no such checkpoints


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("way", ["pth", "old pth", "pkl"])
def test_nothing_in_a_malicious_file_runs(here, way):
    content, path = {**tiny(), "extra": Evil()}, here / "old.pth"
    if way == "pkl":
        path = here / "old.pkl"
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "pth")
    Answer("import-viscoin", path, "--output", "new.safetensors").refused(str(path), f"{os.name}.system", "refused")
    assert not (here / "hacked").exists() and not (here / "new.safetensors").exists()
    torch.load(path, weights_only=False) if way != "pkl" else pickle.loads(path.read_bytes())
    assert (here / "hacked").exists()  # so it was malicious


def test_weights_that_do_not_fit_are_listed(here):
    output = ("--output", "new.safetensors")
    old = tiny()
    old["gan"]["mapping.s0.1.weight"] = torch.zeros(2)
    del old["concept_extractor"]["linear2.weight"]
    old["explainer"]["linear.weight"] = torch.zeros(5, 9)
    answer = Answer("import-viscoin", saved(old), *output)
    answer.refused("old.pth: ", "1 missing, first concept_extractor.linear2.weight")
    answer.refused("1 unknown, first generator.mapping.s0.1.weight", "explainer.linear.weight (5x9, needed 5x8)")
    Answer("import-viscoin", saved({"gan": {}, "model": 3}), *output).refused("it holds gan, model, not concept_")
    Answer("import-viscoin", saved([1, 2]), *output).refused("it holds a list")
    Answer("import-viscoin", saved({**tiny(), "gan": {"a": 1}}), *output).refused("gan holds 1 entries", "first a")
    Answer("import-viscoin", saved({**tiny(), "gan": {}}), *output).refused("gan holds no synthesis network")
    Answer("import-viscoin", saved({**tiny(), "explainer": {}}), *output).refused("explainer: linear.bias is missing")
    Answer("import-viscoin", "nowhere.pth", *output).refused("no file nowhere.pth")
    Path("cut.pth").write_bytes(TINY.read_bytes()[:9999])
    Answer("import-viscoin", "cut.pth", *output).refused("cut.pth")
    Answer("import-viscoin", TINY, "--output", "new.pkl").refused("new.pkl", ".safetensors")
    assert not (here / "new.safetensors").exists()


def test_older_checkpoints_elsewhere_are_pointed_to_the_importer():
    Answer("test", "viscoin", "--checkpoints", TINY).refused("legacy_tiny.pth", "import-viscoin")


# --- pickles and back


@pytest.mark.parametrize("kind", ["viscoin", "gan"])
def test_pickle_and_back_changes_no_bit(here, kind):
    path = write_models(here)[kind]
    Answer("to-pickle", "--checkpoints", path, "--output", "a.pkl").went_well()
    Answer("from-pickle", "a.pkl", "--output", "back.safetensors").went_well()
    assert (here / "back.safetensors").read_bytes() == path.read_bytes()
    Answer("from-pickle", "a.pkl", "--output", "back.safetensors").refused("back.safetensors exists", "--force")
    Answer("from-pickle", "a.pkl", "--output", "b.pkl").refused("b.pkl", ".safetensors")
    Answer("from-pickle", TINY, "--output", "b.safetensors").refused("legacy_tiny.pth", "import-viscoin")
    Answer("import-viscoin", "a.pkl", "--output", "b.safetensors").refused("convert it with from-pickle")
