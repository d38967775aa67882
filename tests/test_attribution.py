"""Attribution: formulas against reference numbers, what `attribute` promises, and what it refuses."""

import gc
import logging
import runpy
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import Plain, TinyNet, golden, network, noise
from torch import Tensor, nn

from viscoin.attribution import (
    METHODS,
    AttributionResult,
    activation,
    attention,
    attribute,
    cam,
    register,
    rise,
)
from viscoin.attribution.explained import enlarged, min_max, unit
from viscoin.attribution.question import Question
from viscoin.errors import Refused

ROOT = Path(__file__).parents[1]
# Options that make a method cheap; the tests with reference numbers give their own.
CHEAP: dict[str, dict[str, Any]] = {
    "smoothgradcampp": {"samples": 2},
    "sscam": {"samples": 2},
    "smoothgrad": {"samples": 3},
    "gradient-shap": {"samples": 3},
    "integrated-gradients": {"steps": 3},
    "occlusion": {"window": 6},
    "rise": {"samples": 5, "cells": 3},
    "kernel-shap": {"samples": 12, "cells": 2},
}
OF_LIBRARIES = {name for name, method in METHODS.items() if method.extra}
UNTRAINED = [name for name, method in METHODS.items() if "training" not in method.needs]  # others: test_diffmask.py
ON_TINY = [name for name in UNTRAINED if "attention" not in METHODS[name].needs]


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest) -> None:
    """Methods of Captum are tested where it is installed."""
    method = getattr(request.node, "callspec", None) and request.node.callspec.params.get("method")
    if method in OF_LIBRARIES:
        pytest.importorskip("captum", reason="captum is part of the extra `attribution`")


def given(method: str, layer: str | None = "relu1") -> dict[str, Any]:
    return {**CHEAP.get(method, {}), **({"layer": layer} if METHODS[method].layered and method != "cam" else {})}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def filled(net: nn.Module, numbers: dict[str, Tensor]) -> nn.Module:
    net.load_state_dict({key.removeprefix("model."): t for key, t in numbers.items() if key.startswith("model.")})
    return net.eval()


# --- reference numbers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cams() -> tuple[nn.Module, dict[str, Tensor]]:
    numbers = golden("cam")
    return filled(TinyNet(), numbers), numbers


@pytest.mark.parametrize("layer", ["relu1", "relu2"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "gradcampp", "xgradcam", "scorecam", "smoothgradcampp"])
def test_activation_methods_give_the_reference_numbers(cams, method, layer, monkeypatch):
    net, numbers = cams
    noises = numbers["noise.smoothgradcampp"].transpose(0, 1)
    monkeypatch.setattr(Question, "noise", lambda self, rows, some: noises[rows][:, list(some)] / 0.3)
    result = attribute(net, numbers["images"], method, numbers["targets"], layer=layer)
    close(result.native, numbers[f"{layer}.{method}"])
    close(result.logits, numbers["logits"])
    assert result.maps.shape == (3, 12, 12) and result.options["layer"] == layer


@pytest.mark.parametrize("layer", ["relu1", "relu2"])
def test_maps_and_gradients_of_a_layer(cams, layer):
    net, numbers = cams
    found = attribute(net, numbers["images"], "layercam", numbers["targets"], layer=layer)
    close(found.native, numbers[f"{layer}.layercam"], 1e-4)
    A, G = numbers[f"{layer}.activations"], numbers[f"{layer}.gradients"]
    close(found.native, cam.layercam(A, G).clamp(min=0))


def test_cam_gives_the_reference_numbers(cams):
    net, numbers = cams
    close(attribute(net, numbers["images"], "cam", numbers["targets"]).native, numbers["relu2.cam.signed"])


def test_sscam_gives_the_reference_numbers(cams, monkeypatch):
    """Those of torchcam, which brings maps to [0, 1] before it enlarges them."""
    net, numbers = cams

    class Given:
        def __init__(self, row: int, sample: int) -> None:
            self.noise = numbers["noise.sscam"][sample, row] / 2

        def standard_normal(self, shape: tuple[int, ...], _kind: str) -> np.ndarray:
            assert shape == self.noise.shape
            return self.noise.numpy()

    monkeypatch.setattr(Question, "generator", lambda self, row, sample: Given(row, sample))

    def found() -> Tensor:
        return attribute(net, numbers["images"], "sscam", numbers["targets"], layer="relu2", samples=2).native

    close(found(), numbers["relu2.sscam.torchcam"], 0.01)
    monkeypatch.setattr(activation, "enlarged", lambda maps, size: enlarged(min_max(maps), size))
    monkeypatch.setattr(activation, "min_max", lambda maps: maps)
    close(found(), numbers["relu2.sscam.torchcam"])


@pytest.fixture(scope="module")
def grads() -> tuple[nn.Module, dict[str, Tensor]]:
    numbers = golden("gradients")
    return filled(TinyNet(), numbers), numbers


@pytest.mark.parametrize(
    ("method", "key", "options"),
    [
        ("input-x-gradient", "input_x_gradient", {}),
        ("integrated-gradients", "ig.zero.riemann_middle.16", {"steps": 16, "baseline": "grey"}),
        ("integrated-gradients", "ig.zero.riemann_middle.64", {"steps": 64, "baseline": "grey"}),
        ("integrated-gradients", "ig.baselines.riemann_middle.16", {"steps": 16, "baseline": "baselines"}),
        ("integrated-gradients", "ig.baselines.riemann_middle.64", {"steps": 64, "baseline": "baselines"}),
        ("deeplift", "deeplift.zero", {"baseline": "grey"}),
        ("deeplift", "deeplift.baselines", {"baseline": "baselines"}),
    ],
)
def test_gradient_methods_give_the_reference_numbers(grads, method, key, options):
    net, numbers = grads
    options = {**options}
    if options.get("baseline") == "baselines":
        options["baseline"] = numbers["baselines"]
    close(attribute(net, numbers["images"], method, numbers["targets"], **options).maps, numbers[key].sum(1), 1e-3)


def test_largest_of_three_colours(grads):
    net, numbers = grads
    close(attribute(net, numbers["images"], "saliency", numbers["targets"]).maps, numbers["saliency"], 1e-3)
    guided = attribute(net, numbers["images"], "guided-backprop", numbers["targets"]).maps
    close(guided, numbers["guided_backprop"].abs().amax(1), 1e-3)


def test_smoothgrad_gives_the_reference_numbers(grads, monkeypatch):
    net, numbers = grads
    images = numbers["images"]
    spread = (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))[:, None, None, None, None]
    noises = numbers["smoothgrad.noise"] / (0.15 * spread)
    monkeypatch.setattr(Question, "noise", lambda self, rows, some: noises[rows][:, list(some)])
    close(attribute(net, images, "smoothgrad", numbers["targets"], samples=5).maps, numbers["smoothgrad"].sum(1), 1e-3)


@pytest.mark.parametrize("key", ["occlusion", "occlusion.baselines"])
def test_occlusion_gives_the_reference_numbers(grads, key):
    net, numbers = grads
    baseline = numbers["baselines"] if key == "occlusion.baselines" else "grey"
    options = {"window": 4, "stride": 2, "overhang": False, "baseline": baseline}
    close(attribute(net, numbers["images"], "occlusion", numbers["targets"], **options).maps, numbers[key][:, 0], 1e-3)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_rise_gives_the_reference_numbers(grads, kind):
    net, numbers = grads
    for image, target, expected in zip(numbers["images"], numbers["targets"], numbers[f"rise.{kind}"], strict=True):
        scores = net(image * numbers["rise.masks"][:, None]).detach()
        chosen = (scores.softmax(1) if kind == "probabilities" else scores)[:, target]
        close(rise.weighed_masks(chosen, numbers["rise.masks"], 0.5), expected)


def test_rise_masks_are_kept_half_and_do_not_depend_on_how_many_are_made():
    size = torch.Size((20, 20))
    masks = rise.random_masks(np.random.default_rng(0), 200, 7, 0.5, size)
    assert masks.shape == (200, 20, 20) and masks.min() >= 0 and masks.max() <= 1 + 1e-6
    assert masks.mean() == pytest.approx(0.5, abs=0.02)
    generator = np.random.default_rng(0)
    assert torch.equal(torch.cat([rise.random_masks(generator, n, 7, 0.5, size) for n in (1, 3)]), masks[:4])


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", ["0.0", "0.2", "0.5", "0.9"])
def test_rollout_gives_the_reference_numbers(fusion, ratio):
    numbers, whole = golden("attention"), golden("vit_end_to_end")
    heat = attention.rollout(numbers["attentions"], fusion, float(ratio))[:, 0, 1:].unflatten(1, (4, 4))
    close(heat / heat.amax((1, 2), keepdim=True), numbers[f"rollout.{fusion}.{ratio}"])
    options = {"fusion": fusion, "discard_ratio": float(ratio)}
    close(attribute(vit(), whole["images"], "rollout", **options).native, whole[f"rollout.{fusion}.{ratio}"])


def test_matrix_of_rollout_and_rows_that_add_up_to_one():
    numbers = golden("attention")
    R = attention.rollout(numbers["attentions"])
    close(R, numbers["rollout.matrix.mean.0.0"])
    close(R.sum(-1), torch.ones(2, 17))


def vit() -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    made = VisionTransformer(**sizes, num_classes=5, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    return Plain(filled(made, golden("vit_end_to_end")), 5)


def test_chefer_gives_the_reference_numbers():
    numbers, whole = golden("attention"), golden("vit_end_to_end")
    R = attention.chefer(numbers["attentions"], numbers["gradients"])
    close(R, numbers["chefer.full"])
    result = attribute(vit(), whole["images"], "chefer", whole["targets"])
    close(result.native, whole["relevance"].unflatten(1, (4, 4)))
    close(result.logits, whole["logits"])


def test_attention_of_the_last_block():
    whole = golden("vit_end_to_end")
    expected = whole["attentions"][-1].mean(1)[:, 0, 1:].unflatten(1, (4, 4))
    close(attribute(vit(), whole["images"], "attention").native, expected)


# --- formulas -------------------------------------------------------------------------------------------------------


def test_mean_of_cam_and_bias_are_the_logit():
    classifier = network("resnet")
    result = attribute(classifier, noise(3, 32), "cam", [0, 2, 3])
    bias = classifier.last_layer.bias.detach()[result.targets]
    close(result.native.mean((1, 2)) + bias, result.logits.gather(1, result.targets[:, None])[:, 0])
    assert result.signed and (result.native < 0).any()


def test_gradcam_behind_mean_pooling_is_cam_over_its_places():
    images, targets = noise(3, 32), [0, 2, 3]
    of_cam = attribute(network("resnet"), images, "cam", targets).native
    for method in ("gradcam", "hirescam", "xgradcam"):
        close(attribute(network("resnet"), images, method, targets).native, of_cam.clamp(min=0) / of_cam[0].numel())


def test_smooth_gradcampp_without_noise_is_gradcampp():
    images = noise(2, 12)
    smooth = attribute(TinyNet(), images, "smoothgradcampp", layer="relu1", std=0.0)
    close(smooth.native, attribute(TinyNet(), images, "gradcampp", layer="relu1").native, 1e-6)
    assert smooth.native.any()


def test_weights_are_zero_where_their_divisor_is():
    A, G = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    A[0, 0] = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert not cam.xgradcam(A, G).any()
    A[0, 0] = torch.tensor([[-2.0, 0.0], [0.0, 0.0]])
    assert cam.gradcampp(A, G).isfinite().all()  # 2 + S G = 0
    assert not cam.smoothgradcampp(A, 0 * G, 0 * G, 0 * G).any()


def test_scorecam_of_constant_channels_shows_grey():
    net = TinyNet()
    nn.init.zeros_(net.conv1.weight)  # all channels of relu1 are the same everywhere
    result = attribute(net, noise(2, 12), "scorecam", layer="relu1")
    assert result.native.isfinite().all()
    expected = net.conv1.bias.clamp(min=0).mean().detach()  # as all channels weigh the same
    close(result.native, expected.expand(2, 12, 12))


def test_integrated_gradients_say_what_is_missing():
    net, images = TinyNet(), noise(2, 12)
    found = attribute(net, images, "integrated-gradients", baseline="grey", steps=1)
    change = (net(images) - net(0 * images)).gather(1, found.targets[:, None])[:, 0].detach()
    close(found.gap, found.maps.sum((1, 2)) - change)
    assert found.options["steps"] == [1, 1] and found.gap.abs().min() > 1e-3


def test_steps_are_doubled_for_the_images_that_need_it():
    class Bent(nn.Module):
        n_classes = 1

        def forward(self, images: Tensor) -> Tensor:  # flat, but for a steep place near the middle of the way
            return torch.sigmoid(400 * (images.mean((1, 2, 3), keepdim=True)[..., 0, 0] - 0.253))

    images = torch.cat([torch.full((1, 3, 4, 4), 0.1), torch.full((1, 3, 4, 4), 1.0)])
    found = attribute(Bent(), images, "integrated-gradients", baseline="grey")
    assert found.options["steps"][0] == 16 and found.options["steps"][1] > 16
    assert found.gap.abs().max() < 0.02
    few = attribute(Bent(), images, "integrated-gradients", baseline="grey", steps=16)
    assert few.gap[1].abs() > 0.02


class Linear(nn.Module):
    """Class c is the sum of weight[c] * image."""

    n_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", images, self.weight)


@pytest.mark.parametrize("method", ["input-x-gradient", "integrated-gradients", "gradient-shap"])
def test_of_a_linear_function_each_pixel_counts_its_own_part(method):
    net, images = Linear(), noise(2, 12)
    options = {} if method == "input-x-gradient" else {"baseline": "grey", **CHEAP[method]}
    found = attribute(net, images, method, [0, 1], **options)
    close(found.maps, (images * net.weight.detach()).sum(1), 1e-5)
    if method != "input-x-gradient":
        close(found.gap, torch.zeros(2), 1e-3)


def test_kernel_shap_of_a_linear_function_is_exact():
    net, images = Linear(), noise(2, 12)
    found = attribute(net, images, "kernel-shap", [0, 1], baseline="grey", cells=2, samples=60)
    parts = (images * net.weight.detach()).sum(1).unflatten(1, (2, 6)).unflatten(3, (2, 6)).mean((2, 4))
    close(found.maps, parts.repeat_interleave(6, 1).repeat_interleave(6, 2), 1e-3)
    close(found.gap, torch.zeros(2), 1e-3)


def test_occlusion_finds_what_raises_and_what_lowers_a_score():
    class Corners(nn.Module):
        n_classes = 1

        def forward(self, images: Tensor) -> Tensor:
            return (images[:, 0, :4, :4].sum((1, 2)) - images[:, 0, 8:, 8:].sum((1, 2)))[:, None]

    found = attribute(Corners(), torch.ones(1, 3, 12, 12), "occlusion", baseline="grey", window=4).maps[0]
    assert found[:4, :4].min() > 0 and found[8:, 8:].max() < 0 and not found[:4, 8:].any()


def test_maps_brought_to_a_scale():
    maps = torch.tensor([[[0.0, 2.0], [-4.0, 1.0]], [[3.0, 3.0], [3.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    close(min_max(maps)[0], torch.tensor([[4 / 6, 1.0], [0.0, 5 / 6]]))
    assert not min_max(maps)[1:].any()
    assert unit(maps)[0].tolist() == [[0.0, 0.5], [-1.0, 0.25]] and not unit(maps)[2].any()
    result = attribute(TinyNet(), noise(2, 12), "gradcam", layer="relu1")
    assert torch.equal(result.unit, unit(result.maps)) and torch.equal(result.min_max, min_max(result.maps))


# --- promises -------------------------------------------------------------------------------------------------------


def same(a: AttributionResult, b: AttributionResult, rows: Any = slice(None)) -> None:
    peak = float(a.maps.abs().max()) or 1.0
    torch.testing.assert_close(a.maps[rows] / peak, b.maps / peak, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.native[rows] / peak, b.native / peak, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", UNTRAINED)
def test_a_map_does_not_depend_on_the_batch(method):
    net, side, layer = (TinyNet(), 12, "relu1") if method in ON_TINY else (network("vit"), 32, None)
    images, targets, options = noise(3, side), torch.tensor([0, 1, 3]), given(method, layer)
    whole = attribute(net, images, method, targets, baseline="noise", **options)
    assert whole.maps.dtype == torch.float32 and whole.maps.shape == (3, side, side) and whole.maps.any()
    assert whole.signed == METHODS[method].signed and (whole.signed or whole.maps.min() >= 0)
    assert (whole.gap is not None) == (METHODS[method].complete or method == "gradient-shap")
    order = [2, 0]
    part = attribute(net, images[order], method, targets[order], baseline="noise", indices=order, **options)
    same(whole, part, order)
    same(whole, attribute(net, images, method, targets, baseline="noise", batch_size=2, **options))
    if METHODS[method].random:
        other = attribute(net, images, method, targets, baseline="noise", seed=1, **options)
        assert not torch.equal(other.maps, whole.maps) and other.options["seed"] == 1


def state(model: nn.Module) -> dict[str, Any]:
    """All that a careless method could change."""
    modules = list(model.modules())
    return {
        "training": [module.training for module in modules],
        "hooks": [[len(value) for key, value in vars(module).items() if "hooks" in key] for module in modules],
        "attributes": [sorted(vars(module)) for module in modules],
        "fused": [getattr(module, "fused_attn", None) for module in modules],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "weights": [tensor.clone() for tensor in model.state_dict().values()],
    }


def unchanged(before: dict[str, Any], model: nn.Module) -> None:
    before, after = dict(before), state(model)
    for old, new in zip(before.pop("weights"), after.pop("weights"), strict=True):
        assert torch.equal(old, new)
    assert before == after


class Broken(TinyNet):
    """Raises in its n-th pass."""

    failure: BaseException | None = None
    passes = 0

    def forward(self, images: Tensor) -> Tensor:
        calls[0] += 1
        if self.failure is not None and calls[0] == self.passes:
            raise self.failure
        return super().forward(images)


calls = [0]


@pytest.mark.parametrize("failure", [None, RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("method", ON_TINY)
def test_the_model_stays_as_it_was(method, failure):
    net = Broken()
    net.conv1.weight.requires_grad_(False)
    net.train()
    net.conv2.eval()
    net.failure, net.passes, calls[0] = failure, 2, 0
    images, before = noise(2, 12), state(net)
    if failure is None or METHODS[method].family == "control":
        attribute(net, images, method, **given(method))
    else:
        with pytest.raises(type(failure)):
            attribute(net, images, method, **given(method))
    unchanged(before, net)
    assert not images.requires_grad and images.grad is None


@pytest.mark.parametrize("method", ["attention", "rollout", "chefer", "gradcam"])
def test_a_transformer_stays_as_it_was(method, monkeypatch):
    classifier = network("vit").train()
    try:
        before = state(classifier)
        attribute(classifier, noise(2, 32), method)
        unchanged(before, classifier)
        monkeypatch.setattr(VisionTransformer, "forward_head", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            attribute(classifier, noise(2, 32), method)
        unchanged(before, classifier)
    finally:
        classifier.eval()


@pytest.mark.parametrize("method", ["gradcam", "chefer", "guided-backprop", "smoothgrad"])
def test_four_threads_on_one_model(method):
    classifier, side = (network("resnet"), 32) if method == "guided-backprop" else (network("vit"), 32)
    images, before = noise(2, side), state(classifier)
    expected = attribute(classifier, images, method, **CHEAP.get(method, {}))
    found: list[AttributionResult | BaseException] = []

    def work() -> None:
        try:
            found.extend(attribute(classifier, images, method, **CHEAP.get(method, {})) for _ in range(3))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for result in found:
        assert isinstance(result, AttributionResult), result
        same(expected, result)
    unchanged(before, classifier)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradcam", "guided-backprop", "chefer"])
def test_memory_is_flat_over_200_calls(method):
    net, side, layer = (TinyNet(), 12, "relu1") if method != "chefer" else (vit(), 16, None)
    images = noise(1, side)
    options = given(method, layer)
    gc.collect()
    gc.disable()  # so that what goes away only with a search for circles counts as well
    try:
        attribute(net, images, method, **options)
        before = len(gc.get_objects())
        for _ in range(200):
            attribute(net, images, method, **options)
        assert len(gc.get_objects()) - before < 200
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ON_TINY)
def test_nothing_is_drawn_from_the_random_numbers_of_all(method):
    net, images = TinyNet(), noise(1, 12)
    drawn, shared = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    attribute(net, images, method, **given(method))
    assert torch.equal(torch.random.get_rng_state(), drawn) and (np.random.get_state()[1] == shared).all()


def test_passes_are_counted():
    net, images = TinyNet(), noise(2, 12)
    counted = {
        method: (result.forwards, result.backwards)
        for method in ("cam", "gradcam", "smoothgradcampp", "scorecam", "smoothgrad", "integrated-gradients", "random")
        for result in [attribute(net, images, method, **given(method))]
    }
    assert counted == {
        "cam": (1, 0), "gradcam": (1, 1), "smoothgradcampp": (3, 2), "scorecam": (7, 0), "smoothgrad": (3, 3),
        "integrated-gradients": (5, 3), "random": (0, 0),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["cam", "input-x-gradient", "integrated-gradients", "occlusion"])
def test_one_class_against_another_is_the_difference(method):
    net, images, options = TinyNet(), noise(2, 12), given(method)
    found = attribute(net, images, method, [0, 1], against=[2, 3], **options)
    one, other = (attribute(net, images, method, targets, **options) for targets in ([0, 1], [2, 3]))
    close(found.maps, one.maps - other.maps, 1e-5)
    assert found.options["against"] == [2, 3]


@pytest.mark.parametrize("method", UNTRAINED)
def test_every_method_takes_one_class_against_another(method):
    net, side, layer = (TinyNet(), 12, "relu1") if method in ON_TINY else (network("vit"), 32, None)
    options = given(method, layer)
    found = attribute(net, noise(2, side), method, [0, 1], against=[2, 3], **options)
    alone = attribute(net, noise(2, side), method, [0, 1], **options)
    blind = METHODS[method].family == "control" or method in ("attention", "rollout")
    assert torch.equal(found.maps, alone.maps) == blind


def test_targets_are_the_predicted_classes_unless_given():
    net, images = TinyNet(), noise(3, 12)
    found = attribute(net, images, "saliency")
    assert torch.equal(found.targets, net(images).argmax(1))
    same(found, attribute(net, images, "saliency", found.targets.tolist()))


def test_all_stages_multiplied():
    classifier, images = network("resnet"), noise(2, 32)
    found = attribute(classifier, images, "layercam", layer="all")
    alone = [attribute(classifier, images, "layercam", found.targets, layer=stage).unit for stage in range(3)]
    close(found.maps, torch.stack(alone).prod(0), 1e-5)


def test_maps_are_enlarged_once_and_last():
    found = attribute(network("resnet"), noise(2, 32), "gradcam")
    assert found.native.shape == (2, 2, 2)
    close(found.maps, enlarged(found.native, (32, 32)))


def test_maps_below_zero_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "viscoin"):
        attribute(network("vit"), noise(1, 32), "gradcampp")
        attribute(TinyNet(), noise(1, 12), "xgradcam", layer="conv1")
        attribute(TinyNet(), noise(1, 12), "xgradcam", layer="relu1")
    assert len(caplog.records) == 2 and "at blocks.1 are below 0" in caplog.records[0].message


def test_controls_know_nothing_of_the_model():
    images = torch.zeros(2, 3, 16, 16)
    images[:, :, :, 8:] = 1.0
    found = {method: attribute(Linear16(), images, method).maps for method in ("random", "centre", "edges")}
    assert not torch.equal(found["random"][0], found["random"][1])
    assert found["centre"][0].argmax() in (7 * 16 + 7, 7 * 16 + 8, 8 * 16 + 7, 8 * 16 + 8)
    close(found["centre"][0], found["centre"][0].flip(0).T)
    assert found["edges"][0, 3].nonzero().flatten().tolist() == [7, 8]


class Linear16(nn.Module):
    n_classes = 2

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))[:, :2]


# --- methods from outside -------------------------------------------------------------------------------------------


@pytest.fixture
def entered():
    known = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(known)


def brightness(images: Tensor, targets: Tensor, classifier: nn.Module) -> Tensor:
    return images.mean(1)[:, ::2, ::2] - 0.1


def test_a_plugin_is_a_method_like_any_other(entered):
    register("brightness", brightness, title="Brightness")
    images = noise(2, 12)
    found = attribute(TinyNet(), images, "brightness")
    close(found.native, (images.mean(1)[:, ::2, ::2] - 0.1).clamp(min=0))
    assert found.maps.shape == (2, 12, 12) and METHODS["brightness"].family == "plugin"
    with pytest.raises(Refused, match="name brightness: there is such a method"):
        register("brightness", brightness)
    register("brightness", brightness, signed=True, replace=True)
    assert (attribute(TinyNet(), images, "brightness").maps < 0).any()
    with pytest.raises(Refused, match="name gradcam: there is such a method"):
        register("gradcam", brightness, replace=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images, targets, classifier: images, r"gave \(2, 3, 12, 12\), not maps \(2, h, w\)"),
        (lambda images, targets, classifier: None, "gave NoneType, not maps"),
        (lambda images, targets, classifier: images.mean(1) / 0, "the map of image 0 has values that are no numbers"),
        (lambda images, targets, classifier: 1 / 0, "the plugin raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_bad_plugin_is_named(entered, function, message):
    register("bad", function)
    with pytest.raises(Refused, match=f"method bad: {message}"):
        attribute(TinyNet(), noise(2, 12), "bad")


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method magic: unknown method; choose one of: cam, gradcam"),
        ({"method": "gradcam"}, "layer: TinyNet does not say where its maps are; name the module"),
        ({"layer": "relu3"}, "layer relu3: there is no such module; choose a module such as relu2, relu1"),
        ({"layer": 0}, "layer 0: unknown stage"),
        ({"layer": "fc"}, r"layer fc: its output \(2, 5\) is no map of the image"),
        ({"method": "saliency", "layer": "relu1"}, "layer relu1: does not go with `method` saliency; only with cam"),
        ({"method": "saliency", "samples": 2}, "samples 2: method saliency has no such option; it takes none"),
        ({"method": "smoothgrad", "steps": 2}, "no such option; it takes samples, std"),
        ({"method": "smoothgrad", "samples": 0}, "samples 0: not possible .*; give a whole number from 1"),
        ({"method": "smoothgrad", "std": -0.1}, "std -0.1: .* give a number from 0"),
        ({"method": "rise", "p": 1.0}, "p 1.0: .* give a number from 0.01, below 1"),
        ({"method": "occlusion", "window": 13}, "option .window=13.: larger than the image, 12 px"),
        ({"method": "occlusion", "window": 2, "stride": 3}, "option .stride=3.: pixels between windows"),
        ({"method": "saliency", "targets": [0, 5]}, "targets 5: out of range; there are 5 classes, counted from 0"),
        ({"method": "saliency", "targets": [-1, 0]}, "targets -1: out of range"),
        ({"method": "saliency", "targets": [0]}, "targets: must be 2 indices"),
        ({"method": "saliency", "targets": [0, 1], "against": [1, 1]}, "against 1: the same as the target"),
        ({"method": "saliency", "against": [7, 0]}, "against 7: out of range"),
        ({"method": "saliency", "seed": -1}, "seed -1: below 0"),
        ({"method": "saliency", "indices": [0]}, "indices: must be 2 numbers"),
        ({"method": "saliency", "batch_size": 0}, "batch_size 0: counts from 1"),
        ({"method": "integrated-gradients", "baseline": "black"}, "baseline black: unknown; choose blur, grey, noise"),
        ({"method": "integrated-gradients", "baseline": torch.zeros(1, 3, 2, 2)}, "baseline: .* must be as the images"),
        ({"method": "saliency", "images": torch.zeros(2, 1, 12, 12)}, r"images: must be \(B, 3, H, W\)"),
        ({"method": "saliency", "images": torch.zeros(0, 3, 12, 12)}, r"images: must be \(B, 3, H, W\)"),
        ({"method": "saliency", "images": torch.full((1, 3, 12, 12), torch.nan)}, "images: there are values"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, message):
    options = {"method": "gradcam", "images": noise(2, 12), **options}
    with pytest.raises(Refused, match=message):
        attribute(TinyNet(), **options)


def test_images_of_another_size_and_ensembles_are_refused():
    with pytest.raises(Refused, match="images: 12x12 px, but the model takes 32x32; resize them"):
        attribute(network("resnet"), noise(1, 12), "saliency")


def test_every_method_says_what_it_is():
    for name, method in METHODS.items():
        assert method.title and method.reference and method.cost, name
        assert method.family in {"activation", "attention", "gradient", "perturbation", "learned", "control"}
        assert set(method.needs) <= {"maps", "pooling", "attention", "relu", "training"}


def test_page_has_the_table_of_today():
    script = runpy.run_path(str(ROOT / "scripts" / "write_attribution_docs.py"))
    text = script["PAGE"].read_text()
    assert text == script["page"](text), "run: python scripts/write_attribution_docs.py"
    assert all(f"| `{name}` |" in script["table"]() for name in METHODS)
