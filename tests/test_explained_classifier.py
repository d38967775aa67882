"""Classifiers that end early, and classifiers with a map as second output, also as ONNX and TorchScript."""

from pathlib import Path

import pytest
import torch
from tiny_models import Answer, set_options
from torch import Tensor, nn

from viscoin.attribution import attribute
from viscoin.attribution.explained_classifier import ExplainedClassifier
from viscoin.config import load_recipe
from viscoin.errors import Refused
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model, save_model

SIDE = 32


def images(side: int = SIDE, n: int = 3) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def classifier(backbone: str = "viscoin_resnet10", side: int = SIDE, cut: str | None = None) -> Classifier:
    torch.manual_seed(0)
    return Classifier(backbone, 4, side, cut=cut).eval()


# --- networks that end early ----------------------------------------------------------------------------------------


def test_a_cut_network_is_the_mean_of_a_module_and_one_linear_layer():
    cut = classifier(cut="layer3")
    seen: list[Tensor] = []
    hook = cut.model.layer3.register_forward_hook(lambda _m, _x, output: seen.append(output))
    with torch.no_grad():
        logits = cut(images())
        hook.remove()
        torch.testing.assert_close(logits, cut.last_layer(seen[0].mean((2, 3))))
    assert cut.last_layer.in_features == 96 and cut.architecture["cut"] == "layer3"
    assert not any(name.startswith("model.layer4") for name, _ in cut.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "cut", "shape"),
    [
        ("efficientnetv2_s", "bn2", (1280, 2, 2)),
        ("efficientnetv2_s", "blocks.5.0.bn1", (960, 4, 4)),
        ("mobilenetv3", "blocks.6.0", (960, 2, 2)),
        ("mobilenetv3", "blocks.5.0.bn1", (672, 4, 4)),
    ],
)
def test_the_four_places_have_the_channels_and_the_stride_that_are_published(backbone, cut, shape):
    from viscoin.models.classifier import build_classifier

    f = build_classifier(backbone, 4, 64, pretrained=False, cut=cut).eval()
    assert f.last_layer.in_features == shape[0]
    assert attribute(f, images(64, 1), "cam").native.shape == (1, *shape[1:])  # at 224 px: 7 x 7 and 14 x 14


def test_mobilenet_v3_has_no_class_map_without_a_cut():
    with pytest.raises(Refused, match="method cam: does not hold for mobilenetv3_small_100"):
        ExplainedClassifier(classifier("mobilenetv3_small_100", 64))
    assert ExplainedClassifier(classifier("mobilenetv3_small_100", 64, "blocks.5.0"))(images(64))[1].shape == (
        3,
        64,
        64,
    )


@pytest.mark.parametrize(
    ("backbone", "cut", "message"),
    [
        ("viscoin_resnet10", "layer9", "classifier.cut layer9: there is no such module; choose .*layer4"),
        ("viscoin_resnet10", "layer3.0.bn1", "not all that goes on from there"),  # a shortcut is added
        ("test_vit", "blocks.1", "not all that goes on from there, or is no map"),
    ],
)
def test_wrong_places_are_refused(backbone, cut, message):
    with pytest.raises(Refused, match=message):
        classifier(backbone, 64, cut)


def test_a_cut_network_trains_is_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["--set", "classifier.cut=layer3", "--no-pretrained", "--device", "cpu", "--out", "run"]
    Answer("train", "classifier", *set_options(), *options).went_well()
    loaded = load_model(Path("run"))
    assert loaded.model.architecture["cut"] == "layer3" and loaded.model.last_layer.in_features == 96
    export = ["export", "run", "--to", "torchscript", "--with-map", "cam"]
    assert "maps" in Answer(*export).went_well().out


# --- a map as second output -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "method", "options"),
    [
        ("viscoin_resnet10", "cam", {}),
        ("test_vit", "rollout", {"discard_ratio": 0.2}),
        ("test_vit", "rollout", {"fusion": "max"}),
        ("test_vit", "attention", {"fusion": "min"}),
    ],
)
def test_both_outputs_are_those_of_the_library(backbone, method, options):
    f, x = classifier(backbone, 64), images(64)
    before = {name: type(part) for name, part in f.named_modules()}
    explained = ExplainedClassifier(f, method, **options)
    with torch.no_grad():
        logits, maps = explained(x)
        torch.testing.assert_close(logits, f(x), rtol=1e-4, atol=1e-5)
    wanted = attribute(f, x, method, **options).maps
    torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert {name: type(part) for name, part in f.named_modules()} == before


@pytest.mark.parametrize(
    ("backbone", "method", "options", "message"),
    [
        ("viscoin_resnet10", "gradcam", {}, "is no map of one forward pass; choose one of: cam, attention, rollout"),
        ("viscoin_resnet10", "rollout", {}, "does not hold for viscoin_resnet10"),
        ("test_vit", "cam", {}, "does not hold for test_vit"),
        ("test_vit", "rollout", {"discard_ratio": 1.0}, "discard_ratio 1.0: not possible"),
    ],
)
def test_maps_that_take_more_are_refused(backbone, method, options, message):
    with pytest.raises(Refused, match=message):
        ExplainedClassifier(classifier(backbone, 64), method, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for backbone, side in (("viscoin_resnet10", 32), ("test_vit", 64)):
        recipe = load_recipe("birds", {"dataset.resolution": side, "dataset.classes": 4})
        model, names = classifier(backbone, side), ["a", "b", "c", "d"]
        found[backbone] = save_model(
            folder / f"{backbone}.safetensors", model, "classifier", recipe=recipe, class_names=names
        )
    return found


@pytest.mark.parametrize("to", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("backbone", "method"), [("viscoin_resnet10", "cam"), ("test_vit", "rollout")])
def test_exported_files_have_both_outputs(files, to, backbone, method, tmp_path, monkeypatch):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / ("f.onnx" if to == "onnx" else "f.pt")
    answer = Answer("export", files[backbone], "--to", to, "--with-map", method, "--output", output).went_well()
    assert "[logits, maps] = " in answer.out
    model = load_model(files[backbone]).model
    x = images(model.resolution, 5)
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
        logits, maps = (torch.from_numpy(one) for one in session.run(None, {"images": x.numpy()}))
    else:
        logits, maps = torch.jit.load(str(output))(x)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(maps, attribute(model, x, method).maps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--to", "safetensors", "--with-map", "cam"], ["--with-map cam", "compute no map"]),
        (["--to", "onnx", "--with-map", "gradcam"], ["--with-map gradcam", "cam, attention, rollout"]),
        (["--to", "torchscript", "--with-map", "rollout"], ["--with-map rollout", "does not hold"]),
    ],
)
def test_export_refuses(files, options, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Answer("export", files["viscoin_resnet10"], *options).refused(*texts)
    assert not list(tmp_path.glob("*.pt")) and not list(tmp_path.glob("*.onnx"))


def test_identity_is_what_comes_after_the_cut():
    f = classifier(cut="layer2")
    assert isinstance(f.model.layer3, nn.Identity) and isinstance(f.model.layer4, nn.Identity)
