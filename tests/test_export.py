"""Exported files compute what the model computes, without the project; what would not is refused."""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import Answer, tiny_recipe, write_images, write_models
from torch import Tensor

from stylegan2_ada.networks import Generator
from viscoin import export
from viscoin.export import Difference, export_model, images_for_check
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import LoadedModel, load_model, read_file, save_model, write_file
from viscoin.models.portable import PARTS, take_part

SIDE = 32
ALL = [(kind, part) for kind, parts in PARTS.items() for part in parts]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KAGGLEHUB_CACHE", str(tmp_path_factory.mktemp("kaggle")))
        yield


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models; the ensemble's explainer has normalised weights and a constant, G some noise."""
    folder = tmp_path_factory.mktemp("models")
    found = write_models(folder, tiny_recipe(viscoin__weight_norm=True))
    for kind in ("gan", "viscoin"):
        tensors, metadata = read_file(found[kind])
        for name, value in tensors.items():
            if name.endswith("noise_strength") or name == "explainer.linear.bias":
                value += 0.3
        write_file(found[kind], tensors, metadata)
    return found


@pytest.fixture(scope="module")
def models(paths: dict[str, Path]) -> dict[str, LoadedModel]:
    return {kind: load_model(path) for kind, path in paths.items()}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def inputs_and_outputs(loaded: LoadedModel, part: str, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into a part, and what the public functions of the model make of it."""
    model, torch_random = loaded.model, torch.Generator().manual_seed(2)
    with torch.no_grad():
        if loaded.kind == "gan":
            z = torch.randn(len(images), model.z_dim, generator=torch_random)
            ws = model.mapping(z)
            drawn = model(z, noise_mode="const")
            return ([z] if part == "generator" else [ws]), [drawn]
        if loaded.kind == "classifier":
            return [images], [model(images)]
        encoding = model.encode(images)
        codes = [encoding.concept_maps, encoding.support]
        if part == "classifier":
            return [images], [model.classifier(images)]
        if part == "decoder":
            return codes, [model.decode(*codes)]
        if part == "synthesis":
            return [model.generator.mapping(*codes)], [model.decode(*codes)]
        phi = model.activations(encoding.concept_maps)
        contributions = phi[:, None] * model.explainer.weight
        return [images], [encoding.logits, model(images), phi, contributions, *codes]


def check(run: Callable[..., Any], loaded: LoadedModel, part: str, images: Tensor) -> None:
    """Batches of five and of one give what the model gives."""
    for batch in (images, images[:1]):
        inputs, wanted = inputs_and_outputs(loaded, part, batch)
        got = run(*inputs)
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted):
            torch.testing.assert_close(torch.as_tensor(a), b, rtol=1e-4, atol=1e-4)
            assert b.abs().max() > 0


def test_contributions_add_up_to_the_explained_logits(models: dict[str, LoadedModel], images: Tensor) -> None:
    part = take_part(models["viscoin"])
    with torch.no_grad():
        _, explained, _, contributions, _, _ = part.module(images)
    torch.testing.assert_close(contributions.sum(2) + models["viscoin"].model.explainer.linear.bias, explained)


@pytest.fixture(scope="module")
def directed(models: dict[str, LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The tiny ensemble with a support of components, narrower than 9K, and random directions."""
    tiny, path = models["viscoin"], tmp_path_factory.mktemp("directed") / "viscoin.safetensors"
    generator = tiny.model.generator.architecture | {"directions": True, "linear": True, "inputs": "whitened"}
    options = {"support": "components", "support_width": 20, "generator": generator}
    torch.manual_seed(3)
    ensemble = VisCoIN.from_architecture(tiny.model.architecture | options, tiny.model.class_names)
    held = ensemble.state_dict()
    held |= {name: x for name, x in tiny.model.state_dict().items() if name in held and x.shape == held[name].shape}
    ensemble.load_state_dict(held)
    torch.nn.init.normal_(ensemble.generator.directions.vectors, std=0.2)
    ensemble.generator.directions.scale.uniform_(0.1, 1)
    return load_model(save_model(path, ensemble, "viscoin", recipe=tiny_recipe(), class_names=tiny.model.class_names))


@pytest.mark.parametrize("to", ["torchscript", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_decoder_with_directions_draws_edits(
    to: str, directed: LoadedModel, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    written, write = [], getattr(export, f"_to_{to}")
    monkeypatch.setattr(export, f"_to_{to}", lambda *arguments: written.append(write(*arguments)) or written[0])
    path = (tmp_path / "part").with_suffix(export.SUFFIXES[to])
    done = export_model(directed, to, path, images, part="decoder")
    assert [(port.name, port.shape) for port in done.part.inputs] == [
        ("concept_maps", (6, 3, 3)), ("support", (20,)), ("original", (6, 3, 3)),
    ]  # fmt: skip
    assert ">= 0" not in done.part.inputs[1].meaning
    model = directed.model
    with torch.no_grad():
        for batch in (images, images[:1]):
            code = model.encode(batch)
            edited = code.concept_maps * torch.rand(6, 1, 1) + 0.1
            (drawn,) = written[0]([edited, code.support, code.concept_maps])
            torch.testing.assert_close(drawn, model.edit(code, edited), rtol=1e-4, atol=1e-4 * float(drawn.abs().max()))
            assert (drawn - model.decode(edited, code.support)).abs().max() > 0.01
            (same,) = written[0]([code.concept_maps, code.support, code.concept_maps])
            torch.testing.assert_close(same, model.decode(code.concept_maps, code.support), rtol=1e-4, atol=1e-4)


def test_ports_of_an_ensemble_have_the_width_of_its_support(
    models: dict[str, LoadedModel], directed: LoadedModel
) -> None:
    support = {port.name: port for port in take_part(directed, "concepts").outputs}["support"]
    assert support.shape == (20,) and ">= 0" not in support.meaning
    plain = take_part(models["viscoin"], "decoder").inputs
    assert [port.name for port in plain] == ["concept_maps", "support"]
    assert plain[1].shape == (54,) and ">= 0" in plain[1].meaning


# --- the three formats


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("classifier", "classifier"),
        ("viscoin", "concepts"),
        ("viscoin", "decoder"),
        pytest.param("gan", "generator", marks=pytest.mark.long),
    ],
)  # which hold all the others
def test_onnx_computes_the_same_without_torch(
    kind: str, part: str, models: dict[str, LoadedModel], images: Tensor, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    done = export_model(models[kind], "onnx", tmp_path / "part.onnx", images, part=part)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(*inputs: Tensor) -> list[np.ndarray]:
        return session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})

    check(run, models[kind], part, images)
    assert done.largest <= 2e-5
    if part in ("decoder", "generator"):  # inputs that are scaled to one length, which zeros do not have
        assert all(np.isfinite(x).all() for x in run(*(torch.zeros(2, *port.shape) for port in done.part.inputs)))
    about = json.loads(session.get_modelmeta().custom_metadata_map["viscoin"])
    for described, ports in ((about["inputs"], session.get_inputs()), (about["outputs"], session.get_outputs())):
        assert [(one["name"], one["shape"]) for one in described] == [(port.name, port.shape) for port in ports]
    assert str(Path(export.__file__).parent).encode() not in done.path.read_bytes()  # nothing about this machine


@pytest.mark.parametrize(("kind", "part"), ALL)
def test_torchscript_computes_the_same(
    kind: str, part: str, models: dict[str, LoadedModel], images: Tensor, tmp_path: Path
) -> None:
    done = export_model(models[kind], "torchscript", tmp_path / "part.pt", images, part=part)
    files = {"viscoin": ""}
    check(torch.jit.load(done.path, _extra_files=files), models[kind], part, images)
    assert json.loads(files["viscoin"])["part"] == part


@pytest.mark.parametrize(("kind", "part"), ALL)
def test_plain_weights_hold_what_the_part_computes_with(
    kind: str, part: str, models: dict[str, LoadedModel], images: Tensor, tmp_path: Path
) -> None:
    done = export_model(models[kind], "safetensors", tmp_path / "part.safetensors", images, part=part)
    assert done.largest == 0
    assert done.path.stat().st_mode == models[kind].path.stat().st_mode


def test_plain_weights_have_the_names_that_others_use(
    models: dict[str, LoadedModel], images: Tensor, tmp_path: Path
) -> None:
    f, g, whole = (models[kind] for kind in ("classifier", "gan", "viscoin"))
    path = tmp_path / "f.safetensors"
    export_model(f, "safetensors", path, images)
    plain = timm.create_model("viscoin_resnet10", num_classes=4).eval()
    plain.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["viscoin"])
    assert about["normalisation"] == {
        "inside": False, "mean": [0.5] * 3, "std": [0.5] * 3, "of": "(images + 1) / 2"
    }  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(plain(images), f.model(images))
    export_model(g, "safetensors", tmp_path / "g.safetensors", images)
    assert load_file(tmp_path / "g.safetensors").keys() == g.model.state_dict().keys()
    export_model(whole, "safetensors", tmp_path / "v.safetensors", images)
    weights = load_file(tmp_path / "v.safetensors")
    torch.testing.assert_close(weights["explainer.linear.weight"], whole.model.explainer.weight.detach())
    assert {name.partition(".")[0] for name in weights} == {"classifier", "concept_extractor", "explainer"}
    assert "classifier.conv1.weight" in weights


def test_half_the_size_by_dtype(models: dict[str, LoadedModel], images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    done = export_model(models["classifier"], "safetensors", path, images, dtype="float16")
    kinds = {value.dtype for value in load_file(path).values()}
    assert kinds == {torch.float16, torch.int64}  # batch normalisation counts its batches
    assert 0 < done.largest <= 0.02 == done.tolerance
    with pytest.raises(ValueError, match=r"logits differs .* more than `tolerance` 1e-09"):
        export_model(models["classifier"], "safetensors", path, images, dtype="float16", tolerance=1e-9)


def test_metadata_say_all_that_a_user_needs(models: dict[str, LoadedModel], images: Tensor, tmp_path: Path) -> None:
    files = {"viscoin": ""}
    done = export_model(models["viscoin"], "torchscript", tmp_path / "part.pt", images)
    torch.jit.load(done.path, _extra_files=files)
    about = json.loads(files["viscoin"])
    assert about["inputs"] == [
        {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", 3, SIDE, SIDE],
            "meaning": "RGB in [-1, 1], which is pixels / 127.5 - 1",
        }
    ]
    assert [one["name"] for one in about["outputs"]][:3] == ["logits", "explained_logits", "activations"]
    assert about["normalisation"]["inside"] is True
    assert about["class_names"] == models["viscoin"].class_names and about["n_concepts"] == 6
    assert about["exported_with"]["torch"] == version("torch") and about["dataset"] == "birds"


# --- generators


def test_condition_truncation_and_noise_are_those_asked_for(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    g = Generator(8, 4, 8, SIDE, 3, {"num_layers": 2}, {"channel_base": 256, "channel_max": 8}).eval()
    g.mapping.get_buffer("w_avg").normal_()
    for name, value in g.named_parameters():
        if name.endswith("noise_strength"):
            value.data.fill_(0.3)
    path = save_model(
        tmp_path / "g.safetensors", g, "gan", recipe=tiny_recipe(), class_names=["a", "b", "c", "d"]
    )  # fmt: skip
    done = export_model(
        load_model(path), "torchscript", tmp_path / "g.pt", images, noise_mode="none", truncation_psi=0.5
    )
    z, c = torch.randn(3, 8), torch.eye(4)[:3]
    files = {"viscoin": ""}
    with torch.no_grad():
        (drawn,) = torch.jit.load(done.path, _extra_files=files)(z, c)
        torch.testing.assert_close(drawn, g(z, c, truncation_psi=0.5, noise_mode="none"))
        assert not torch.allclose(drawn, g(z, c, truncation_psi=0.5, noise_mode="const"), atol=1e-2)
    about = json.loads(files["viscoin"])
    assert (about["noise_mode"], about["truncation_psi"]) == ("none", 0.5)
    assert about["inputs"][1]["shape"] == ["batch", 4]


# --- files that are wrong


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_a_file_that_computes_something_else_is_not_kept(
    error: float, models: dict[str, LoadedModel], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export._to_torchscript

    def wrong(*arguments: Any) -> Any:
        run = write(*arguments)
        return lambda inputs: [x + error * (len(x) == 1) for x in run(inputs)]  # only for a single image

    monkeypatch.setattr(export, "_to_torchscript", wrong)
    output = tmp_path / "f.pt"
    output.write_text("an earlier one")
    with pytest.raises(ValueError, match=r"logits differs from PyTorch by .* on .*images.*`tolerance` 0.0001.*; try "):
        export_model(models["classifier"], "torchscript", output, images)
    assert [path.name for path in tmp_path.iterdir()] == ["f.pt"] and output.read_text() == "an earlier one"


def test_outputs_of_another_shape_are_refused(models: dict[str, LoadedModel], images: Tensor) -> None:
    part = take_part(models["classifier"])
    with pytest.raises(ValueError, match=r"logits has shape \(1, 4\) in the file, \(5, 4\) in PyTorch"):
        export._compare(part, lambda inputs: [torch.zeros(1, 4)], {"images": (images,)})


def test_difference_is_relative_to_large_values_only() -> None:
    assert Difference(0.5, 10).relative == 0.05
    assert Difference(0.5, 0.1).relative == 0.5


def test_what_a_library_cannot_write_names_the_backbone_and_another_way(
    models: dict[str, LoadedModel], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("wrapped") from NotImplementedError("no such operator: strange_attention\nmore")

    monkeypatch.setattr(torch.jit, "trace", fail)
    with pytest.raises(ValueError) as caught:
        export_model(models["classifier"], "torchscript", tmp_path / "f.pt", images)
    assert str(caught.value) == (
        "to torchscript: part 'classifier' with backbone 'viscoin_resnet10' cannot be exported to it "
        "(no such operator: strange_attention); try onnx or safetensors"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_it_says_which(
    package: str, models: dict[str, LoadedModel], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install viscoin\[export\]"):
        export_model(models["classifier"], "onnx", tmp_path / "f.onnx", images)


# --- images to compare on


def test_images_come_from_the_dataset_of_the_model_or_the_one_given(
    models: dict[str, LoadedModel], tmp_path: Path
) -> None:
    own, what = images_for_check(models["classifier"])
    assert own.shape == (8, 3, SIDE, SIDE) and what == "test images of birds"
    photos = write_images(tmp_path / "photos", {"cat": 20, "dog": 20}, size=SIDE)
    given, what = images_for_check(models["classifier"], str(photos))
    assert given.shape == own.shape and what == f"test images of {photos}"
    assert given.diff(dim=3).abs().mean() > 0.5 > 2 * own.diff(dim=3).abs().mean()  # noise, not birds


def test_nothing_is_downloaded_for_the_comparison(
    models: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("kagglehub.dataset_download", download)
    monkeypatch.setattr("viscoin.datasets.download.download", download)
    caplog.set_level(logging.INFO, "viscoin")
    monkeypatch.setattr(logging.getLogger("viscoin"), "propagate", True)
    loaded = models["classifier"]
    for name in ("cub", "celeba_hq", "mnist", "no/such/folder"):
        recipe = loaded.recipe | {"dataset": loaded.recipe["dataset"] | {"name": name}}
        other = LoadedModel(loaded.model, loaded.kind, {**loaded.metadata, "recipe": recipe}, loaded.path)
        assert images_for_check(other)[1] == "test images of birds"
        assert f"the images of dataset {name} are not here" in caplog.text


# --- the command


def test_command_prints_differences_and_lines_that_run(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    monkeypatch.chdir(tmp_path)
    said = Answer("export", paths["viscoin"], "--to", "torchscript").went_well().out
    assert "largest difference from PyTorch on random images" in said
    assert "largest difference from PyTorch on test images of birds" in said
    assert "largest difference relative to the values: 0.0e+00 (tolerance: 0.0001)" in said
    snippet = said[said.index("import json") : said.rindex("birds-concepts.pt")]
    names: dict[str, Any] = {"images": images}
    exec(snippet, names)
    assert names["activations"].shape == (5, 6) and names["about"]["part"] == "concepts"
    Answer("export", paths["viscoin"], "--to", "torchscript").refused("birds-concepts.pt exists", "--force")
    before = (tmp_path / "birds-concepts.pt").stat().st_ino
    Answer("export", paths["viscoin"], "--to", "torchscript", "--force").went_well()
    assert (tmp_path / "birds-concepts.pt").stat().st_ino != before  # replaced, not written into
    said = Answer("export", paths["gan"], "--to", "safetensors").went_well().out
    exec(said[said.index("import json") : said.rindex("birds-generator.safetensors")], names)
    assert "mapping.w_avg" in names["weights"]
    said = Answer("export", paths["gan"], "--to", "torchscript", "--output", 'a"b.pt').went_well().out
    exec(said[said.index("import json") : said.rindex('a"b.pt')], names | {"z": torch.zeros(1, 8)})
    assert {path.name for path in tmp_path.iterdir()} == {"birds-concepts.pt", "birds-generator.safetensors", 'a"b.pt'}


@pytest.mark.parametrize(
    ("kind", "options", "texts"),
    [
        ("viscoin", ["--to", "tflite"], ["--to tflite", "onnx, torchscript, safetensors"]),
        ("viscoin", ["--to", "torchscript", "--part", "soul"], ["--part soul", "concepts, classifier, decoder"]),
        ("classifier", ["--to", "torchscript", "--part", "concepts"], ["classifier model", "of a viscoin model"]),
        ("gan", ["--to", "torchscript", "--part", "classifier"], ["gan model", "of a classifier or viscoin model"]),
        ("gan", ["--to", "torchscript", "--noise", "random"], ["--noise random", "const or none"]),
        ("classifier", ["--to", "torchscript", "--noise", "none"], ["--noise none", "no noise in part"]),
        ("classifier", ["--to", "torchscript", "--truncation", "0.5"], ["--truncation 0.5", "'generator'"]),
        ("gan", ["--to", "safetensors", "--truncation", "0.5"], ["--truncation 0.5", "plain weights"]),
        ("gan", ["--to", "safetensors", "--noise", "none"], ["--noise none", "plain weights"]),
        ("classifier", ["--to", "torchscript", "--dtype", "float16"], ["--dtype float16", "safetensors"]),
        ("classifier", ["--to", "safetensors", "--dtype", "int8"], ["--dtype int8", "float32, float16"]),
        ("classifier", ["--to", "onnx", "--opset", "99"], ["--opset 99", "18 to 23"]),
        ("classifier", ["--to", "torchscript", "--opset", "18"], ["--opset 18", "only ONNX"]),
        ("classifier", ["--to", "torchscript", "--output", "f.onnx"], ["--output f.onnx", "ends in .pt"]),
        ("classifier", ["--to", "torchscript", "--output", "file/f.pt"], ["--output file/f.pt", "cannot write"]),
        ("classifier", ["--to", "torchscript", "--dataset", "nowhere"], ["unknown dataset 'nowhere'"]),
    ],
)
def test_mistakes_are_named(
    kind: str,
    options: list[str],
    texts: list[str],
    paths: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Answer("export", paths[kind], *options).refused(*texts)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("to", ["torchscript", "safetensors"])
def test_a_full_disk_is_told_from_what_cannot_be_exported(
    to: str, models: dict[str, LoadedModel], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr(export, "atomic_path", full)
    with pytest.raises(ValueError, match=r"output .*: cannot write there \(No space left on device\)"):
        export_model(models["classifier"], to, (tmp_path / "f").with_suffix(export.SUFFIXES[to]), images)


def test_other_models_and_files_are_refused(paths: dict[str, Path], tmp_path: Path) -> None:
    f, g = paths["classifier"], tmp_path / "g.safetensors"
    Answer("export", tmp_path / "none.safetensors", "--to", "torchscript").refused("there is no model file")
    Answer("export", tmp_path, "--to", "torchscript").refused("holds no finished model")
    (tmp_path / "folder.pt").mkdir()
    Answer("export", f, "--to", "torchscript", "--output", tmp_path / "folder.pt", "--force").refused("is a folder")
    g.write_bytes(f.read_bytes())
    Answer("export", g, "--to", "safetensors", "--output", g, "--force").refused("is the model itself")
    assert g.read_bytes() == f.read_bytes()
    Answer("export", f, "--to", "safetensors", "--output", g, "--force").went_well()
    Answer("export", g, "--to", "torchscript").refused("has the format 'viscoin-export/1'")


@pytest.mark.parametrize(
    ("kind", "text"), [("parts", "import it again together with its classifier"), ("concept2clip", "can")]
)
def test_kinds_without_parts_are_refused(kind: str, text: str, models: dict[str, LoadedModel]) -> None:
    loaded = LoadedModel(torch.nn.Identity(), kind, models["classifier"].metadata, Path("m.safetensors"))
    with pytest.raises(ValueError, match="cannot be exported") as caught:
        take_part(loaded)
    assert text in str(caught.value)


def test_page_on_onnx_needs_neither_torch_nor_this_project() -> None:
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in block]
    assert len(blocks) == 1
    assert set(re.findall(r"^(?:import|from) (\w+)", blocks[0], re.MULTILINE)) == {
        "json",
        "numpy",
        "onnxruntime",
        "PIL",
    }
