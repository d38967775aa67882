"""Where concepts are: every method with maps known by hand, transformers, files, figures and the command."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from scipy.ndimage import label, maximum_filter
from tiny_models import Answer, write_models
from toy_ensemble import SIZE, ToyEnsemble, toy_dataset

from stylegan2_ada.networks import Generator
from viscoin.attribution import cam, gradients, occlusion
from viscoin.attribution.explained import Explained, blurred
from viscoin.attribution.heatmap_methods import METHODS
from viscoin.attribution.heatmaps import HeatmapResult, concept_heatmaps
from viscoin.attribution.targets import STAGES, ConceptActivation
from viscoin.datasets import load_dataset
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.ensemble import VisCoIN
from viscoin.models.explainer import Explainer
from viscoin.models.files import find_model, load_model
from viscoin.models.generator import AdaptedGenerator
from viscoin.plotting import style
from viscoin.plotting.heatmaps import heatmap_figure

NAMES = ["fork-tailed red-eyed spike-crested gold needlebill", "fork-tailed white-eyed spike-crested rust needlebill"]


pytestmark = pytest.mark.usefixtures("own_cache")


@cache
def real_ensemble(backbone: str, resolution: int) -> VisCoIN:
    """Random weights, 6 concepts, 2 classes."""
    torch.manual_seed(0)
    classifier = Classifier(backbone, 2, resolution)
    generator = Generator(8, 0, 16, resolution, 3, synthesis_kwargs={"channel_base": 256, "channel_max": 16})
    generator.mapping.w_avg.normal_()
    extractor = ConceptExtractor(classifier.feature_shapes, 6, 8)
    adapted = AdaptedGenerator.from_pretrained(generator, 6, 1, 5)
    return VisCoIN(classifier, extractor, Explainer(6, 2), adapted, ["a", "b"]).eval()


def noise(n: int, side: int) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def subject_of(ensemble, images: torch.Tensor, concepts: torch.Tensor) -> Explained:
    target = ConceptActivation(ensemble)
    return Explained(target, images, concepts, target.observe(images))


# --- methods --------------------------------------------------------------------------------------------------------


def test_weighings_by_hand():
    feature_map = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # (1, 2 channels, 1, 2)
    gradient = torch.tensor([[[[2.0, -1.0]], [[-1.0, 4.0]]]])
    assert cam.hirescam(feature_map, gradient).tolist() == [[[2 - 3, -2 + 0]]]
    assert cam.gradcam(feature_map, gradient).tolist() == [[[0.5 + 4.5, 1 + 0]]]
    assert cam.layercam(feature_map, gradient).tolist() == [[[2 + 0, 0 + 0]]]


@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_evening_out_takes_out_what_repeats_with_the_strides(period):
    one = torch.rand(1, 2, period, period, generator=torch.Generator().manual_seed(period))
    repeated = one.repeat(1, 1, 6, 6)
    even = cam.evened(repeated, period)
    assert even.shape == repeated.shape
    inner = even[:, :, period:-period, period:-period]
    torch.testing.assert_close(inner, one.mean((2, 3), keepdim=True).expand_as(inner))
    ramp = torch.arange(24.0).expand(1, 1, 24, 24)  # a slope stays where it is
    torch.testing.assert_close(cam.evened(ramp, period)[..., 5:-5], ramp[..., 5:-5])


def dots(heatmap: np.ndarray) -> int:
    """Single high places of a map; a plateau is one."""
    return int(label((heatmap == maximum_filter(heatmap, 9)) & (heatmap > 0.1))[1])


@pytest.mark.parametrize("method", ["hirescam", "layercam"])
@pytest.mark.parametrize("stage", [0, 1])
def test_maps_of_a_blank_image_show_no_lattice(method, stage, monkeypatch):
    """Nothing in the image distinguishes one place from the next, so dots could only come from the strides of Psi."""
    ensemble = load_model(find_model("viscoin", None, "birds")).model
    blank, every = torch.full((1, 3, 64, 64), 0.3), torch.arange(ensemble.n_concepts)[None]

    def mean_dots() -> float:
        found = concept_heatmaps(ensemble, blank, every, stages=(stage,), method=method).heatmaps[0]
        return float(np.mean([dots(heatmap) for heatmap in found if heatmap.any()]))

    even = mean_dots()
    assert even < (6 if stage == 0 else 15)
    monkeypatch.setattr(cam, "evened", lambda gradient, period: gradient)
    assert even < mean_dots() / 2


@pytest.mark.parametrize(
    "method", ["hirescam", "gradcam", "layercam", "integrated-gradients", "occlusion", "grid", "change"]
)
def test_every_method_finds_the_quadrants_of_the_toy_ensemble(method):
    images, _ = toy_dataset([[0.5, 0.4, 0.3, 0.0]], [0]).batch([0])
    result = concept_heatmaps(ToyEnsemble(), images, torch.tensor([[0, 1, 2, 3]]), method=method)
    assert result.heatmaps.shape == (1, 4, SIZE, SIZE) and result.method == method
    assert (result.heatmaps[0, 3] == 0).all()  # not active
    half = SIZE // 2
    for heat, (y, x) in zip(result.heatmaps[0, :3], [(0, 0), (0, half), (half, 0)], strict=True):
        assert heat.max() == pytest.approx(1) and heat.min() >= 0
        inside = heat[y : y + half, x : x + half].sum() / heat.sum()
        if method == "grid":
            assert (heat == 1).all()  # the toy's concept maps are the same everywhere
        elif method == "change" or (method == "integrated-gradients" and (y, x) != (0, 0)):
            assert inside > 0.5
        else:
            assert inside > 0.6


def test_path_integral_is_complete():
    ensemble = ToyEnsemble()
    images, _ = toy_dataset([[1.0, 0.8, 0.6, 0.1]], [0]).batch([0])
    concepts = torch.tensor([[0, 3]])
    found = gradients.path_integral(subject_of(ensemble, images, concepts))
    before, after = (ensemble.activations(ensemble.encode(x).concept_maps) for x in (blurred(images), images))
    assert found.sum((2, 3)).numpy() == pytest.approx((after - before)[:, [0, 3]].numpy(), abs=1e-5)
    assert found.sum((2, 3)).abs().min() > 0.01


def test_path_integral_follows_the_whole_path():
    ensemble, images = real_ensemble("viscoin_resnet10", 32), noise(1, 32)
    concepts = torch.arange(6)[None]
    with torch.enable_grad():
        subject = subject_of(ensemble, images, concepts)
        found = gradients.path_integral(subject, steps=200).sum((2, 3))
    change = (subject.scores(images) - subject.scores(blurred(images))).detach()
    assert change.abs().max() > 1e-3
    assert found.numpy() == pytest.approx(change.numpy(), abs=0.03 * change.abs().max().item())


def test_patches_hide_every_pixel_equally_often():
    masks = occlusion._patches(32, 32)
    assert masks.sum((1, 2)).max() == 16
    assert masks.sum(0).unique().tolist() == [4]


# --- real networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "resolution", "module"),
    [("test_vit", 128, "blocks.{}"), ("viscoin_resnet10", 32, "layer{}"), ("test_convnext", 128, "stages.{}")],
)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_are_those_of_finite_differences(backbone, resolution, module, stage):
    """A step along HiResCAM's own feature map changes phi_k by the sum of the map: through Psi and later blocks."""
    ensemble = real_ensemble(backbone, resolution).double()
    images = noise(1, resolution).double().requires_grad_()
    model = ensemble.classifier.model
    offset = {"blocks.{}": len(getattr(model, "blocks", [])) - 3, "layer{}": 2, "stages.{}": 1}[module]
    code = ensemble.encode(images)
    concept = int(ensemble.activations(code.concept_maps)[0].argmax())
    value = ensemble.activations(code.concept_maps)[0, concept]
    feature_map = code.maps[stage]
    found = cam.hirescam(feature_map, cam._gradients(value, [feature_map])[0]).sum()

    def scaled(size: float) -> torch.Tensor:
        prefix = getattr(model, "num_prefix_tokens", 0)

        def scale(_module, _given, output):
            output = output.clone()
            (output[:, prefix:] if output.ndim == 3 else output).mul_(1 + size)
            return output

        hook = model.get_submodule(module.format(stage + offset)).register_forward_hook(scale)
        try:
            return ensemble.activations(ensemble.encode(images).concept_maps)[0, concept]
        finally:
            hook.remove()

    difference = (scaled(1e-5) - scaled(-1e-5)) / 2e-5
    ensemble.float()
    assert abs(difference) > 1e-6
    assert found.item() == pytest.approx(difference.item(), rel=1e-3)


@pytest.mark.parametrize("layout", ["(B, H, W, C)", "(B, N, C)"])
def test_gradients_include_what_goes_on_without_the_map(layout):
    """The map is a copy of x; the value depends on the copy and on x itself."""
    source = torch.rand((1, 2, 3, 4) if layout == "(B, H, W, C)" else (1, 1 + 6, 4)).requires_grad_()
    x = source * 1
    if layout == "(B, H, W, C)":
        feature_map, expected = x.permute(0, 3, 1, 2).contiguous(), (1 + 2 * source).permute(0, 3, 1, 2)
    else:
        feature_map = x[:, 1:].reshape(1, 2, 3, 4).permute(0, 3, 1, 2).contiguous()
        expected = (1 + 2 * source[:, 1:]).reshape(1, 2, 3, 4).permute(0, 3, 1, 2)
    gradient = cam._gradients(feature_map.sum() + x.square().sum(), [feature_map])[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("backbone", "resolution"), [("test_vit", 128), ("viscoin_resnet10", 32)])
@pytest.mark.parametrize("stages", [(0,), (1,), (2,), ("psi",), STAGES])
def test_every_stage_of_every_kind_of_network(backbone, resolution, stages):
    ensemble, images = real_ensemble(backbone, resolution), noise(2, resolution)
    result = concept_heatmaps(ensemble, images, top=2, stages=stages)
    assert result.heatmaps.shape == (2, 2, resolution, resolution) and result.stages == stages
    active = result.activations > 0
    assert active.any()
    highest = result.heatmaps.max((2, 3))[active]  # 0 where all that feeds a concept is its bias
    assert np.isin(highest, (0, 1)).all() and result.heatmaps.min() >= 0
    assert highest.any() or stages == ("psi",)
    assert all(parameter.grad is None for parameter in ensemble.parameters())


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion", "grid", "change"])
def test_other_methods_on_a_real_network(method):
    result = concept_heatmaps(real_ensemble("viscoin_resnet10", 32), noise(2, 32), top=2, method=method)
    assert np.isfinite(result.heatmaps).all() and 0 <= result.heatmaps.min() <= result.heatmaps.max() <= 1
    assert result.stages == () and result.title == METHODS[method].title


@pytest.mark.parametrize("method", ["hirescam", "change"])
def test_concepts_of_the_shipped_ensemble_lie_apart(method):
    """What a map of a layer, sold as map of a concept, cannot do: its correlation would be 1."""
    loaded = load_model(find_model("viscoin", None, "birds"), "viscoin")
    images, _ = load_dataset("birds", "validation", loaded_config(loaded)).batch(range(4))
    result = concept_heatmaps(loaded.model, images, top=4, method=method)
    correlations = [
        np.corrcoef(maps[active].reshape(active.sum(), -1))[np.triu_indices(active.sum(), 1)]
        for maps, active in zip(result.heatmaps, result.activations > 0, strict=True)
    ]
    assert np.mean(np.concatenate(correlations)) < 0.9


def loaded_config(loaded):
    from viscoin.config import DatasetConfig

    return DatasetConfig.model_validate({**loaded.recipe["dataset"], "validation": 8})


def test_results_tell_classes_numbers_and_the_highest_point():
    images, _ = toy_dataset([[0.0, 1.0, 0.6, 0.0]], [0]).batch([0])
    row = concept_heatmaps(ToyEnsemble(), images, torch.tensor([[1, 3]])).to_dict(["left", "right"], [0])[0]
    assert row["predicted"] == "right" and row["true"] == "left"
    x, y = row["concepts"][0]["highest_point"]
    assert x >= SIZE // 2 > y and row["concepts"][0]["activations"] == pytest.approx(1)
    assert row["concepts"][1]["highest_point"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "saliency"}, "method saliency: unknown method; choose one of: hirescam, gradcam, layercam"),
        ({"stages": (3,)}, "stage 3: unknown stage"),
        ({"stages": ()}, r"stage '\(none\)': unknown stage"),
        ({"stages": (0,), "method": "grid"}, "stage: does not go with `method` grid"),
        ({"concepts": torch.tensor([[0, 4]])}, "concept_indices 4: out of range; there are 4 concepts"),
        ({"concepts": torch.tensor([[-1]])}, "concept_indices -1: out of range"),
        ({"concepts": torch.tensor([0])}, r"indices \(1,\) must be \(B, M\) for 1 images"),
    ],
)
def test_wrong_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        concept_heatmaps(ToyEnsemble(), torch.zeros(1, 3, SIZE, SIZE), **options)


# --- figures --------------------------------------------------------------------------------------------------------


def located() -> HeatmapResult:
    rng = np.random.default_rng(0)
    heat, activations = rng.random((3, 4, 16, 16)), rng.random((3, 4))
    activations[0, 1] = 0
    pixels = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    predicted = np.array([0, 1, 0])
    return HeatmapResult(pixels, np.arange(12).reshape(3, 4), heat, heat, activations, activations, predicted)


@pytest.mark.parametrize("width", [style.COLUMN, style.PAGE])
@pytest.mark.parametrize("named", [False, True])
def test_figures_can_be_read_on_a_column_and_on_a_page(width, named):
    names = {0: "wing colour: charcoal", 2: "a name that is far too long for the width of one small image"}
    outlines = np.zeros((3, 16, 16), bool)
    outlines[:2, 4:8, 4:8] = True
    figure = heatmap_figure(located(), NAMES, np.array([0, 0, 0]), width, names if named else None, outlines)
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    words = "\n".join(text.get_text() for text in texts)
    assert "not active" in words and "HiResCAM, finest map" in words and "concept 11" in words.replace("\n", " ")
    assert ("wing colour" in words.replace("\n", " ")) == named
    assert figure.get_figwidth() <= width + 1e-6 and all(text.get_fontsize() >= 6.5 for text in texts)
    ink = figure.get_tightbbox()
    assert min(ink.x0, ink.y0) >= -0.01
    assert ink.x1 <= figure.get_figwidth() + 0.01 and ink.y1 <= figure.get_figheight() + 0.01
    bar = figure.axes[-1].get_window_extent()
    assert not [text for text in texts if text.axes is figure.axes[0] and text.get_window_extent().overlaps(bar)]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts]
    assert not [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(own_cache, tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))["viscoin"]


def test_help_names_every_method():
    from viscoin.cli.concept_heatmaps import METHOD_HELP

    assert METHOD_HELP.split(";")[0].rstrip(".").split("|") == list(METHODS)
    assert all(f"{name} is slow" in METHOD_HELP for name, method in METHODS.items() if method.slow)


def test_command_on_files_without_their_dataset(here, model):
    Image.new("RGB", (50, 30), "red").save("photo.png")
    (here / "names.csv").write_text("concept,name\n1,red wing\n2,\n")
    options = ["--image", "photo.png", "--concept-indices", "1,2", "--method", "gradcam", "--stage", "all"]
    Answer(
        "concept-heatmaps", "--viscoin-pickle-path", model, *options, "--concept-names", "names.csv", "--out", "out"
    ).went_well()
    found = json.loads((here / "out" / "results.json").read_text())
    assert found["method"] == "gradcam" and found["stages"] == [0, 1, 2, "psi"]
    assert found["images"][0]["image"] == "photo" and "true" not in found["images"][0]
    assert [concept["concept"] for concept in found["images"][0]["concepts"]] == [1, 2]


def test_command_on_test_images_with_a_part(here, model):
    options = ["--image-indices", "3,5", "--part", "wing", "--method", "change", "--out", "out"]
    Answer("concept-heatmaps", "--viscoin-pickle-path", model, *options).went_well()
    found = json.loads((here / "out" / "results.json").read_text())
    assert [row["image"] for row in found["images"]] == ["birds-test-3", "birds-test-5"]
    assert all(row["true"] in load_names(model) for row in found["images"])


def load_names(model):
    return load_model(model, "viscoin").class_names


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--method", "magic"], ["--method magic", "hirescam"]),
        (["--stage", "3"], ["--stage 3", "psi"]),
        (["--stage", "0", "--method", "occlusion"], ["--stage", "--method occlusion"]),
        (["--part", "hat"], ["--part hat", "wing"]),
        (["--image", "note.png"], ["note.png", "no image"]),
        (["--image", "missing.png"], ["missing.png"]),
        (["--image", "note.png", "--image-indices", "1"], ["--image", "--image-indices"]),
        (["--concept-names", "note.png"], ["--concept-names note.png"]),
        (["--concept-indices", "6"], ["--concept-indices 6", "6 concepts"]),
        (["--concept-top-k", "7"], ["--concept-top-k 7", "6 concepts"]),
        (["--image-indices", "0,1,2,3,4,5,6"], ["7 images", "at most 6"]),
    ],
)
def test_command_refuses(here, model, options, texts):
    (here / "note.png").write_text("no image")
    Answer("concept-heatmaps", "--viscoin-pickle-path", model, *options).refused(*texts)
    assert not list(here.glob("runs/*"))
