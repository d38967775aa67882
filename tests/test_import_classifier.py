"""Classifiers of other libraries as model files: the same logits as there, or a refusal that says why."""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from tiny_models import Answer, write_images
from torch import Tensor, nn
from torchvision import models

from viscoin.errors import Refused
from viscoin.inference.loading import load_pictures
from viscoin.models.files import load_model, read_file
from viscoin.models.foreign import hub
from viscoin.models.foreign.class_names import find_class_names, imagenet_names
from viscoin.models.foreign.dialects import dialect_of
from viscoin.models.foreign.fitting import fit_checkpoint
from viscoin.models.foreign.importing import import_classifier
from viscoin.models.foreign.pipeline import Pipeline, share_of
from viscoin.models.foreign.reading import Checkpoint, read_checkpoint
from viscoin.models.foreign.starting import read_start, start_classifier

GOLDEN = Path(__file__).parent / "golden" / "transformers.safetensors"
HALF = Pipeline(224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def weighted(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with random weights everywhere, also where libraries start from zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = 0.1 * torch.randn(part.num_features, generator=generator)
            part.running_var = 0.5 + torch.rand(part.num_features, generator=generator)
    return model.eval()


def noise(side: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def names(count: int, path: Path) -> str:
    path.write_text("\n".join(f"class {i}" for i in range(count)))
    return str(path)


def imported(content: Any, folder: Path, classes: int = 1000, **keywords: Any) -> Any:
    """What import_classifier makes of a file of torch.save."""
    torch.save(content, folder / "net.pth")
    file = names(classes, folder / "names.txt")
    import_classifier(str(folder / "net.pth"), folder / "f.safetensors", classes=file, force=True, **keywords)
    return load_model(folder / "f.safetensors")


FAST = [
    ("resnet18", "resnet18"),
    ("mobilenet_v3_small", "mobilenetv3_small_100"),
]
SLOW = [
    ("mobilenet_v2", "mobilenetv2_100"),
    ("efficientnet_b0", "efficientnet_b0"),
    ("resnet50", "resnet50"),
    ("wide_resnet50_2", "wide_resnet50_2"),
    ("mobilenet_v3_large", "mobilenetv3_large_100"),
    ("efficientnet_v2_s", "efficientnetv2_s"),
    ("convnext_tiny", "convnext_tiny"),
    ("vit_b_16", "vit_base_patch16_224"),
    ("swin_t", "swin_tiny_patch4_window7_224"),
]


@pytest.mark.parametrize(("theirs", "ours"), [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)])
def test_networks_of_torchvision_give_the_same_logits(theirs, ours, tmp_path):
    network = weighted(getattr(models, theirs)(num_classes=7))
    loaded = imported(network.state_dict(), tmp_path, 7, preprocessing=HALF)
    assert loaded.model.architecture["backbone"] == ours
    images = noise(224)
    with torch.inference_mode():
        wanted, found = network(images), loaded.model(images)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max().clamp_min(1)), rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_small_100",
        pytest.param("deit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("deit_tiny_distilled_patch16_224", marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_lite0", marks=pytest.mark.slow),
        pytest.param("convnext_atto", marks=pytest.mark.slow),
    ],
)
def test_networks_of_timm_give_the_same_logits(name, tmp_path):
    network = weighted(timm.create_model(name, num_classes=7))
    loaded = imported(network.state_dict(), tmp_path, 7, preprocessing=HALF, backbone=name)
    images = noise(224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), network(images), atol=1e-5, rtol=0)


SIZES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 32, {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}),
    "deit": ("deit_tiny_distilled_patch16_224", 32, {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}),
    "convnext": ("convnext_tiny", 64, {"dims": [4, 8, 8, 12], "depths": [1, 1, 2, 1]}),
    "swin": (
        "swin_tiny_patch4_window7_224", 64,
        {"embed_dim": 4, "depths": [1, 1, 2], "num_heads": [1, 1, 2], "window_size": 4},
    ),
    "resnet": ("resnet18", 64, {"channels": [4, 8, 8, 12], "layers": [1, 1, 2, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("form", ["memory", "file"])
@pytest.mark.parametrize("kind", SIZES)
def test_networks_of_transformers_give_the_same_logits(kind, form, tmp_path):
    """Weights and logits as transformers itself wrote them (scripts/write_transformers_golden.py)."""
    from safetensors.torch import load_file

    golden = load_file(GOLDEN)
    backbone, side, options = SIZES[kind]
    prefix = f"{kind}.{form}."
    weights = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    loaded = imported(
        weights, tmp_path, 3, backbone=backbone, options=options, preprocessing=Pipeline(side, *([(0.5,) * 3] * 2))
    )
    with torch.inference_mode():
        found = loaded.model(golden[f"{kind}.pixels"] / 127.5 - 1)
    torch.testing.assert_close(found, golden[f"{kind}.logits"], atol=2e-6, rtol=1e-5)
    assert golden[f"{kind}.logits"].std() > 0.01


def photographs(folder: Path) -> list[Path]:
    """Two photographs, cut to odd sizes."""
    paths = []
    boxes = [(0, 0, 640, 427), (13, 5, 318, 422), (100, 30, 640, 259)]
    for i, (left, top, right, bottom) in enumerate(boxes):
        pixels = load_sample_images().images[i % 2][top:bottom, left:right]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        paths.append(folder / f"{i}.png")
    return paths


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"crop_pct": 0.95, "interpolation": "bicubic"}, Pipeline(crop_share=0.95, interpolation="bicubic")),
        ({"crop_pct": 0.875, "interpolation": "bilinear"}, Pipeline(crop_share=0.875, interpolation="bilinear")),
        (
            {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
            Pipeline(fit="squash", crop_share=1.0, interpolation="bicubic"),
        ),
    ],
)
def test_photographs_give_the_logits_of_timms_own_pipeline(theirs, ours, tmp_path):
    network = weighted(timm.create_model("test_resnet", num_classes=5))
    mean, std = (0.48, 0.46, 0.41), (0.23, 0.22, 0.24)
    transform = create_transform((3, 160, 160), mean=mean, std=std, **theirs)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    given = Pipeline(160, mean, std, ours.fit, ours.crop_share, ours.interpolation)
    import_classifier(
        str(tmp_path / "net.pth"), tmp_path / "f.safetensors", "test_resnet", names(5, tmp_path / "n"),
        preprocessing=given,
    )  # fmt: skip
    files = photographs(tmp_path)
    subject, pictures = load_pictures("classifier", tmp_path / "f.safetensors", files, None, None, None, 1)
    for i, file in enumerate(files):
        with Image.open(file) as image, torch.inference_mode():
            wanted = network(transform(image.convert("RGB"))[None])
            torch.testing.assert_close(subject.model(pictures.images[i : i + 1]), wanted, atol=1e-4, rtol=0)


# --- files


def small(classes: int = 3) -> nn.Module:
    return weighted(timm.create_model("viscoin_resnet10", num_classes=classes))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"model": {f"_orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"model_state_dict": {f"net.{name}": value for name, value in state.items()}, "loss": 0.1},
        lambda state: {
            "state_dict": {f"model.backbone.{name}": value for name, value in state.items()}
            | {"criterion.weight": torch.ones(3), "val_acc.total": torch.ones(())},
            "pytorch-lightning_version": "2.5", "hyper_parameters": argparse.Namespace(rate=0.1),
            "optimizer_states": [{"state": {}, "param_groups": []}],
        },
        lambda state: {
            "model": {name: torch.zeros_like(value) for name, value in state.items()},
            "ema": {"decay": 0.99, "module": state},
        },
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
        lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    ],
    ids=["plain", "DDP", "compiled", "net", "lightning", "ema", "old", "half"],
)  # fmt: skip
def test_weights_are_found_wherever_they_are(wrap, tmp_path):
    network = small()
    loaded = imported(wrap(network.state_dict()), tmp_path, 3, preprocessing=HALF, backbone="viscoin_resnet10")
    images = noise(224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), network(images), atol=1e-2, rtol=1e-2)


def test_safetensors_with_their_own_config(tmp_path):
    """A folder as timm and the hub write it: architecture, class names and preprocessing stand in it."""
    network = small()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "viscoin_resnet10", "label_names": ["a", "b", "c"],
        "pretrained_cfg": {
            "input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9,
            "interpolation": "bilinear", "crop_mode": "center",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = Answer("import-classifier", tmp_path, "--output", tmp_path / "out" / "f.safetensors").went_well()
    assert "the files of the checkpoint" in answer.out
    loaded = load_model(tmp_path / "out" / "f.safetensors")
    assert loaded.class_names == ["a", "b", "c"]
    assert loaded.model.input_size == 96 and loaded.model.mean == (0.1, 0.2, 0.3)
    data = loaded.recipe["dataset"]
    assert (data["fit"], data["crop_share"], data["interpolation"], data["resolution"]) == ("crop", 0.9, "bilinear", 96)


@pytest.mark.parametrize(("options", "said"), [((), True), (("--fit", "crop", "--interpolation", "bilinear"), False)])
def test_a_resnet_may_be_of_torchvision(tmp_path, options, said):
    """Its tensors are called as in timm, whose usual preparation is another one."""
    network = timm.create_model("resnet18", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    base = (
        "import-classifier",
        tmp_path / "net.pt",
        "--classes",
        names(3, tmp_path / "n"),
        "--output",
        tmp_path / "f.safetensors",
    )
    answer = Answer(*base, *options).went_well()
    assert (
        "a crop share of 0.875 and bilinear interpolation, as is usual there" in " ".join(answer.out.split())
    ) == said


def test_preprocessing_of_transformers_is_understood(tmp_path):
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    values = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "do_center_crop": True}
    values |= {"size": {"height": 80, "width": 80}, "crop_size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    arguments = ("--backbone", "viscoin_resnet10", "--classes", names(3, tmp_path / "n"))
    Answer("import-classifier", tmp_path, "--output", tmp_path / "o" / "f.safetensors", *arguments).went_well()
    loaded = load_model(tmp_path / "o" / "f.safetensors")
    data = loaded.recipe["dataset"]
    assert (data["fit"], data["crop_share"], data["interpolation"]) == ("squash", 0.8, "bicubic")
    assert loaded.model.input_size == 64


def test_a_vit_takes_images_of_another_size(tmp_path):
    network = weighted(timm.create_model("test_vit", num_classes=3))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    arguments = [
        "--backbone",
        "test_vit",
        "--classes",
        names(3, tmp_path / "n"),
        "--output",
        tmp_path / "f.safetensors",
    ]
    Answer("import-classifier", tmp_path / "net.pt", *arguments, "--resolution", 64).went_well()
    model = load_model(tmp_path / "f.safetensors").model
    assert (model.resolution, model.input_size) == (64, 160)
    assert model(noise(64)).shape == (2, 3)
    Answer("import-classifier", tmp_path / "net.pt", *arguments, "--input-size", 96, "--force").refused(
        "--input-size 96: the position embedding is of 160 px"
    )


def test_tensors_in_the_same_order_have_to_be_confirmed(tmp_path, caplog):
    """Names as another port of the network has them."""
    network = weighted(timm.create_model("tf_efficientnet_lite0", num_classes=3))
    state = {f"_part{i}": value for i, value in enumerate(network.state_dict().values())}
    torch.save(state, tmp_path / "net.pt")
    arguments = [
        "import-classifier", tmp_path / "net.pt", "--classes", names(3, tmp_path / "n"),
        "--output", tmp_path / "f.safetensors", "--backbone", "tf_efficientnet_lite0",
    ]  # fmt: skip
    answer = Answer(*arguments)
    answer.refused("same shapes in the same order", "--by-order")
    assert "_part0 -> conv_stem.weight" in answer.err and not (tmp_path / "f.safetensors").exists()
    Answer(*arguments, "--by-order").went_well()
    with torch.inference_mode():
        found = load_model(tmp_path / "f.safetensors").model(noise(224))
        torch.testing.assert_close(found, network(noise(224)), atol=1e-4, rtol=0)
    torch.save(dict(list(state.items())[6:] + list(state.items())[:6]), tmp_path / "net.pt")
    Answer(*arguments, "--by-order", "--force").refused("--by-order", "other shapes", "first differs")
    save_file(state, tmp_path / "net.safetensors")
    arguments[1] = tmp_path / "net.safetensors"
    Answer(*arguments, "--by-order", "--force").refused("--by-order", "in the order of their names")


# --- what is refused


def quantised() -> Any:
    with pytest.warns((DeprecationWarning, UserWarning)):
        return {"fc.weight": torch.quantize_per_tensor(torch.randn(3, 3), 0.1, 0, torch.qint8)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: models.resnet18(), "whole pickled object (torchvision.models.resnet.ResNet)"),
        (lambda: {"model": models.resnet18(), "epoch": 1}, "torch.save(model.state_dict()"),
        (lambda: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1).state_dict(), "the state of an optimiser"),
        (lambda: [torch.ones(2)], "holds a list, no dictionary of tensors"),
        (lambda: {"epoch": 3, "names": ["a"]}, "holds no dictionary of tensors, but epoch, names"),
        (quantised, "its weights are quantised"),
        (lambda: {"fc.weight": torch.ones(2, 2, dtype=torch.int8)}, "its weights are quantised"),
        (lambda: small().state_dict() | {"fc.weight": torch.full((3, 192), float("nan"))}, "tensors are not finite"),
    ],
    ids=["whole", "whole inside", "optimiser", "list", "nothing", "quantised", "int8", "nan"],
)
def test_files_without_weights_are_refused(content, words, tmp_path):
    torch.save(content(), tmp_path / "net.pt")
    arguments = ("--classes", names(3, tmp_path / "n"), "--backbone", "viscoin_resnet10")
    Answer("import-classifier", tmp_path / "net.pt", *arguments, "--output", tmp_path / "f.safetensors").refused(words)
    assert not (tmp_path / "f.safetensors").exists()


def test_a_pickle_with_code_in_it_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": small().state_dict(), "hook": Evil()}, tmp_path / "net.pt")
    assert len(read_checkpoint(tmp_path / "net.pt").tensors) > 50
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused(tmp_path):
    refused = [
        ("model-00001-of-00002.safetensors", b"", "spread over several files"),
        ("model.safetensors.index.json", b"{}", "spread over several files"),
        ("net.safetensors", b"nonsense", "damaged or no file of safetensors"),
        ("net.pth", b"nonsense", "damaged, or no file of tensors"),
        ("net.pt", b"", "it is empty"),
    ]
    for name, content, words in refused:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refused, match=words):
            read_checkpoint(tmp_path / name)
    with pytest.raises(Refused, match="there is no such file"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="must hold one file of weights, this one holds none"):
        read_checkpoint(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/code/__torch__.py", "")
    with pytest.raises(Refused, match="is a TorchScript program"):
        read_checkpoint(tmp_path / "script.pt")


def of(network: nn.Module) -> Checkpoint:
    return Checkpoint(Path("net.pt"), network.state_dict())


def test_a_checkpoint_of_another_network_names_its_own():
    with torch.device("meta"):
        deeper, other = of(models.resnet34()), of(models.googlenet(init_weights=False))
    with pytest.raises(Refused, match=r"backbone resnet18: .*80 are too many \(layer1.2.conv1.weight 64x64x3x3, .*"
                                      "its names are those of ResNet; it fits resnet34"):  # fmt: skip
        fit_checkpoint(deeper, "resnet18")
    assert fit_checkpoint(deeper).backbone == "resnet34"
    with pytest.raises(Refused, match=r"names of no network that is known here .*nearest backbone by shapes is resnet"):
        fit_checkpoint(other)


def test_a_size_that_nobody_has_names_the_nearest():
    with torch.device("meta"):
        odd = of(timm.create_model("resnet18", layers=(3, 2, 2, 2)))
    with pytest.raises(Refused, match="of no size that is known here; for resnet18, the nearest, 10 are too many"):
        fit_checkpoint(odd)


def test_backbones_that_cannot_be_told_apart_are_named():
    with torch.device("meta"):
        fitted = fit_checkpoint(of(timm.create_model("efficientnet_b0")))
    assert fitted.backbone == "efficientnet_b0" and fitted.also == ("tf_efficientnet_b0",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb", "names 2 classes, the last layer has 3"),
        ("a\nb\nc\nd\n", "names 4 classes, the last layer has 3"),
        ("a\nb\na\n", "1 names occur twice, first 'a' (classes 0, 2)"),
        ("a\n\nc\n", "class 1 has no name"),
        ('["a", "b", 3]', "is no list of names"),
        ('{"0": "a", "2": "b", "3": "c"}', "not numbered from 0 on"),
        ('["a"', "is no JSON"),
    ],
)
def test_class_files_that_do_not_fit_are_refused(text, words, tmp_path):
    torch.save(small().state_dict(), tmp_path / "net.pt")
    (tmp_path / "names.txt").write_text(text)
    arguments = ("--backbone", "viscoin_resnet10", "--output", tmp_path / "f.safetensors")
    answer = Answer("import-classifier", tmp_path / "net.pt", "--classes", tmp_path / "names.txt", *arguments)
    answer.refused("--classes", words)
    Answer("import-classifier", tmp_path / "net.pt", *arguments).refused("--classes", "does not name its 3 classes")


@pytest.mark.parametrize(
    "text", ["a\nb\nc\n", '["a", "b", "c"]', '{"0": "a", "1": "b", "2": "c"}', '{"b": 1, "a": 0, "c": 2}']
)
def test_ways_to_write_class_names(text, tmp_path):
    (tmp_path / "names").write_text(text)
    assert find_class_names(str(tmp_path / "names"), {}, 3) == ["a", "b", "c"]


def test_names_of_imagenet_are_all_different():
    found = imagenet_names()
    assert len(set(found)) == 1000
    assert found[134] == "crane (1)" and found[517] == "crane (2)" and found[367] == "chimpanzee"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mean", "123.7,116.3,103.5"], "--mean '123.7, 116.3, 103.5': is not of pixels in [0, 1]"),
        (["--std", "0.5,0.5"], "--std '0.5, 0.5': expected three numbers"),
        (["--std", "dark"], "--std dark: expected three numbers"),
        (["--crop-share", "1.5"], "--crop-share 1.5: out of range"),
        (["--interpolation", "area"], "--interpolation area: unknown"),
        (["--fit", "stretch"], "--fit stretch: unknown"),
        (["--input-size", "8"], "--input-size 8: out of range"),
        (["--backbone", "resnet999"], "there is no backbone 'resnet999'"),
        (["--output", "f.pt"], "--output f.pt: a model file must end in .safetensors"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(small().state_dict(), "net.pt")
    base = ["import-classifier", "net.pt", "--backbone", "viscoin_resnet10", "--classes", names(3, Path("n"))]
    Answer(*base, "--output", "f.safetensors", *options).refused(words)
    assert not Path("f.safetensors").exists()


def test_names_of_the_hub_need_a_network(tmp_path, monkeypatch):
    def offline(*arguments: object, **keywords: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "get_session", offline)
    for name in ("hf_hub:nobody/nothing", "resnet18.a1_in1k"):
        Answer("import-classifier", name, "--output", tmp_path / "f.safetensors").refused(
            f"{name}: its published weights are not here", "no route to host", "download the file elsewhere"
        )
    Answer("import-classifier", "viscoin_resnet10", "--output", tmp_path / "f.safetensors").refused(
        "no published weights for it"
    )


def test_shares_give_the_size_back():
    for inner, whole in [(384, 236), (240, 232), (224, 256), (480, 232), (299, 320)]:
        assert np.floor(inner / share_of(inner, whole)) == whole


def test_dialects_are_told_apart():
    with torch.device("meta"):
        networks = {name: getattr(models, name)() for name in ("swin_t", "convnext_tiny", "vit_b_16", "mobilenet_v2")}
    titles = {name: dialect_of(network.state_dict()).title for name, network in networks.items()}
    assert titles == {
        "swin_t": "Swin of torchvision", "convnext_tiny": "ConvNeXt of torchvision",
        "vit_b_16": "ViT of torchvision", "mobilenet_v2": "MobileNetV2 of torchvision",
    }  # fmt: skip
    assert dialect_of({"features.0.weight": torch.ones(1)}) is None


# --- code of the user's

CODE = """
import timm, torch

def network():
    torch.manual_seed(0)
    return timm.create_model("viscoin_resnet10", num_classes=3)

class Wrapper(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = network()
    def forward(self, images):
        return self.model(images)

class Noisy(Wrapper):
    def forward(self, images):
        return self.model(images) + torch.randn(())

class Other(Wrapper):
    def forward(self, images):
        return self.model(images.flip(1))

def nothing():
    return 3

def stops():
    raise KeyError("weights")
"""


def test_a_network_from_the_users_code(tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    base = ["import-classifier", "--classes", names(3, tmp_path / "n"), "--output", tmp_path / "f.safetensors"]
    base += ["--backbone", "viscoin_resnet10", "--input-size", 64]
    answer = Answer(*base, "--module", f"{tmp_path / 'own.py'}:Wrapper").went_well()
    assert f"running {tmp_path / 'own.py'}, code of your own" in answer.err
    torch.manual_seed(0)
    network = timm.create_model("viscoin_resnet10", num_classes=3).eval()
    model = load_model(tmp_path / "f.safetensors").model
    with torch.inference_mode():
        torch.testing.assert_close(model(noise(64)), network(model._normalised(noise(64))))
    (tmp_path / "f.safetensors").unlink()
    for function, words in {
        "nothing": "returns int, no torch.nn.Module",
        "stops": "its code stopped with KeyError",
        "none": "has no function 'none'",
        "Noisy": "its output changes from call to call",
        "Other": "computes something else than viscoin_resnet10",
    }.items():
        Answer(*base, "--module", f"{tmp_path / 'own.py'}:{function}").refused("--module", words)
    Answer(*base, "--module", "own").refused("--module own: expected FILE.py:function")
    Answer(*base).refused("there is nothing to import")
    assert not (tmp_path / "f.safetensors").exists()


# --- is it right?


def test_the_accuracy_is_measured_at_once(tmp_path):
    """A network that calls all images "b": right on the images of folder b alone."""
    network = small(4)
    nn.init.zeros_(network.fc.weight)
    network.fc.bias.data[:] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    torch.save(network.state_dict(), tmp_path / "net.pt")
    (tmp_path / "names").write_text("a\nb\nc\nd\n")
    write_images(tmp_path / "data", {"b": 9, "d": 3}, 40)
    write_images(tmp_path / "other", {"bees": 9, "d": 3}, 40)
    base = ["import-classifier", tmp_path / "net.pt", "--backbone", "viscoin_resnet10", "--classes", tmp_path / "names"]
    base += ["--input-size", 32, "--output", tmp_path / "f.safetensors", "--force", "--device", "cpu"]
    words = "accuracy on 12 images of {}: 0.75 [0."
    assert words.format(tmp_path / "data") in Answer(*base, "--check", tmp_path / "data").went_well().out
    scores = read_file(tmp_path / "f.safetensors")[1]["scores"]
    assert scores == {"accuracy": 0.75, "n": 12}  # where `explain` looks for it
    failed = Answer(*base, "--check", tmp_path / "other")
    failed.refused("the model knows 4 classes (a, b, c, d)", "bees")
    assert f"{tmp_path / 'f.safetensors'} is written; only the check failed" in failed.err
    (tmp_path / "map.csv").write_text("folder;class\nbees;b\n")
    answer = Answer(*base, "--check", tmp_path / "other", "--class-map", tmp_path / "map.csv").went_well()
    assert words.format(tmp_path / "other") in answer.out
    Answer(*base, "--class-map", tmp_path / "map.csv").refused("--class-map", "translates the folders of --check")
    Answer(*base, "--check", tmp_path / "nowhere").refused("unknown dataset")
    for command in (("test", "classifier", "--checkpoints"), ("attribute", "--classifier")):
        Answer(*command, tmp_path / "f.safetensors").refused("its images, 'net', are no dataset that is here")


# --- training from such a file


def train(folder: Path, *options: object) -> Answer:
    sizes = ["--set", "dataset.resolution=64", "--epochs", 1, "--batch-size", 4, "--device", "cpu"]
    sizes += ["--precision", "32-true", "--train-layers", "head"]
    return Answer("train", "classifier", "--dataset", folder / "data", "--out", folder / "run", *sizes, *options)


def test_training_starts_from_a_checkpoint(tmp_path):
    """The body is that of the checkpoint, and the head, of other classes, starts from zeros."""
    write_images(tmp_path / "data", {"a": 10, "b": 10}, 64)
    network = weighted(timm.create_model("resnet18", num_classes=7))
    torch.save({"model": network.state_dict()}, tmp_path / "net.pth")
    train(tmp_path, "--weights", tmp_path / "net.pth", "--learning-rate", 1e-12).went_well()
    loaded = load_model(tmp_path / "run" / "model.safetensors")
    assert loaded.class_names == ["a", "b"] and loaded.model.architecture["backbone"] == "resnet18"
    body = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    found = loaded.model.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in body.items())
    assert found["fc.weight"].abs().max() < 1e-9
    recipe = loaded.recipe["classifier"]
    assert recipe["backbone"] == "resnet18" and recipe["weights"] == str(tmp_path / "net.pth")
    # the model that came of it is one to start from as well
    again = start_classifier(read_start(tmp_path / "run" / "model.safetensors"), 5, 64)
    assert torch.equal(again.model.conv1.weight, network.conv1.weight) and again.n_classes == 5


def test_training_from_weights_that_do_not_fit_is_refused(tmp_path):
    write_images(tmp_path / "data", {"a": 10, "b": 10}, 64)
    torch.save(weighted(timm.create_model("test_vit", num_classes=7)).state_dict(), tmp_path / "vit.pth")
    base = ["--backbone", "test_vit", "--weights", tmp_path / "vit.pth"]
    train(tmp_path, *base, "--set", "classifier.input_size=64").refused(
        "classifier.input_size 64: the weights fit 160 px"
    )
    train(tmp_path, "--weights", tmp_path / "none.pth").refused("none.pth: there is no such file")
    train(tmp_path, "--backbone", "resnet18", "--weights", tmp_path / "vit.pth").refused("does not fit")
    assert not (tmp_path / "run").exists()
    start = read_start(tmp_path / "vit.pth", "test_vit")
    model = start_classifier(start, 2, 64)
    assert (model.input_size, model.resolution) == (160, 64) and torch.equal(
        model.model.norm.weight, start.tensors["norm.weight"]
    )
