"""Other libraries beside ours: the same where they are right, and what they do where they are not.

Versions are those of requirements.txt (captum 0.9.0, torchcam 0.5.0, grad-cam 1.5.7); a test that fails after an update
may mean that a fault has been mended: then docs/what-the-libraries-get-wrong.md says too much.
"""

import copy
import re
import runpy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attribution import Linear, close
from tiny_networks import TinyNet, golden, network, noise
from torch import Tensor, nn

from viscoin.attribution import attribute
from viscoin.attribution.explained import min_max

captum: Any = pytest.importorskip("captum.attr", reason="captum is part of the extra `attribution`")
torchcam: Any = pytest.importorskip("torchcam.methods", reason="torchcam is part of the extra `dev`")
grad_cam: Any = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is part of the extra `dev`")
model_targets: Any = pytest.importorskip("pytorch_grad_cam.utils.model_targets")

TARGETS = [1, 2]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # captum warns of the hooks that it sets


def own(name: str) -> Any:
    """A network of this test alone, as libraries leave things behind."""
    return copy.deepcopy(network(name))


def images(name: str, n: int = 2) -> Tensor:
    return noise(n, network(name).resolution)


def goals() -> list[Any]:
    return list(map(model_targets.ClassifierOutputTarget, TARGETS))


def native(method: str, name: str = "resnet", **options: Any) -> Tensor:
    return attribute(network(name), images(name), method, TARGETS, **options).native


# --- the same -------------------------------------------------------------------------------------------------------


def test_captum_pixels() -> None:
    net, x = own("resnet"), images("resnet")
    close(captum.Saliency(net).attribute(x.clone(), TARGETS).amax(1), native("saliency"), 1e-5)
    close(captum.InputXGradient(net).attribute(x.clone(), TARGETS).sum(1), native("input-x-gradient"), 1e-5)
    steps = {"n_steps": 8, "method": "riemann_middle"}
    found = captum.IntegratedGradients(net).attribute(x.clone(), target=TARGETS, **steps)
    close(found.sum(1), native("integrated-gradients", steps=8, baseline="grey"), 1e-5)
    window = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4)}
    found = captum.Occlusion(net).attribute(x, target=TARGETS, **window)
    ours = native("occlusion", window=8, stride=4, overhang=False, baseline="grey")
    close(found[:, 0], ours, 1e-5)


def test_captum_on_relu_networks() -> None:
    x = images("resnet")
    guided = captum.GuidedBackprop(own("resnet")).attribute(x.clone(), TARGETS)
    close(guided.abs().amax(1), native("guided-backprop"), 1e-5)
    lifted = captum.DeepLift(own("resnet")).attribute(x.clone(), 0 * x, target=TARGETS)
    close(lifted.sum(1), native("deeplift", baseline="grey"), 1e-5)


def test_captum_layers() -> None:
    net = own("resnet")
    found = captum.LayerGradCam(net, net.model.layer2).attribute(images("resnet"), TARGETS, relu_attributions=True)
    close(found[:, 0], native("gradcam", layer="layer2"), 1e-5)


def test_captum_kernel_shap_of_a_linear_function() -> None:
    net, x = Linear(), noise(1, 12)
    mask = (torch.arange(12) // 6)[:, None] * 2 + torch.arange(12) // 6
    torch.manual_seed(0)
    found = captum.KernelShap(net).attribute(x, target=1, feature_mask=mask.expand(1, 3, 12, 12), n_samples=60)
    ours = attribute(net, x, "kernel-shap", [1], baseline="grey", cells=2, samples=60).maps
    close(found[:, 0] / 36, ours, 1e-3)


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "XGradCAM", "CAM"])
def test_torchcam(name: str) -> None:
    layer, options = ("layer4", {"fc_layer": "model.fc"}) if name == "CAM" else ("layer2", {})
    found, net = [], own("resnet")
    with getattr(torchcam, name)(net, f"model.{layer}", **options) as method:
        for image, target in zip(images("resnet"), TARGETS, strict=True):
            found.append(method(target, net(image[None].clone().requires_grad_()))[0][0])
    ours = native(name.lower(), **({} if name == "CAM" else {"layer": layer}))
    close(torch.stack(found), min_max(ours), 1e-3)


@pytest.mark.parametrize("name", ["GradCAM", "HiResCAM", "XGradCAM", "LayerCAM"])
def test_grad_cam(name: str) -> None:
    net = own("resnet")
    with getattr(grad_cam, name)(net, [net.model.layer2]) as method:
        found = torch.from_numpy(method(images("resnet").clone(), goals()))
    ours = attribute(network("resnet"), images("resnet"), name.lower(), TARGETS, layer="layer2").min_max
    close(found, ours, 1e-4)


# --- not the same ---------------------------------------------------------------------------------------------------


def off(found: Tensor, ours: Tensor) -> float:
    """Largest difference, as a share of the peak."""
    return float((found - ours).abs().max() / ours.abs().max())


def of_torchcam(name: str, net: nn.Module, layer: str, image: Tensor, target: int, **options: Any) -> Tensor:
    with getattr(torchcam, name)(net, layer, **options) as method:
        return method(target, net(image[None].clone().requires_grad_()))[0][0]


@pytest.mark.parametrize(("name", "least"), [("GradCAMpp", 0.3), ("SmoothGradCAMpp", 0.01)])
def test_torchcam_plus_plus_is_something_else(name: str, least: float) -> None:
    """Its weights of Grad-CAM++ are sums of relu(G)^3, as the division works on a copy."""
    options = {"std": 1e-6} if name == "SmoothGradCAMpp" else {}
    torch.manual_seed(0)
    found = of_torchcam(name, own("resnet"), "model.layer2", images("resnet")[0], 1, **options)
    ours = min_max(native("gradcampp", layer="layer2"))[0]
    assert off(found, ours) > least
    numbers, name = golden("cam"), name.lower()
    assert off(numbers[f"relu1.{name}.torchcam"], min_max(numbers[f"relu1.{name}"])) > 0.3


def test_torchcam_cam_refuses_several_linear_layers() -> None:
    class Two(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(8, 2)

    with pytest.raises(ValueError, match="multiple fully connected layers"):
        torchcam.CAM(Two(), "relu2", input_shape=(3, 12, 12))
    assert attribute(Two(), noise(1, 12), "cam").maps.any()


def test_torchcam_leaves_a_hook_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.distributions.Distribution, "_validate_args", True
    )  # as it is, if nothing loaded before has switched it off
    net = own("resnet")
    with pytest.raises(ValueError, match="scale"):
        torchcam.SmoothGradCAMpp(net, "model.layer2", std=0.0)
    assert net._forward_pre_hooks


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "GradCAMpp", "XGradCAM"])
def test_torchcam_maps_channels_of_tokens(name: str) -> None:
    found = of_torchcam(name, own("vit"), "model.blocks.1", images("vit")[0], 1)
    assert found.shape == (16,)  # as many as channels; there are 4 x 4 patches
    assert native("gradcam", "vit").shape == (2, 4, 4)


def test_torchcam_maps_channels_of_swin() -> None:
    found = of_torchcam("GradCAM", own("swin"), "model.layers.2", images("swin")[0], 1)
    assert found.shape == (4, 32)  # rows x channels
    assert native("gradcam", "swin", layer="layers.2").shape == (2, 4, 4)


@pytest.mark.parametrize("name", ["HiResCAM", "LayerCAM", "EigenCAM"])
def test_grad_cam_maps_channels_of_tokens(name: str) -> None:
    """The map is the same in all rows: it has one dimension, the channels."""
    net = own("vit")
    with getattr(grad_cam, name)(net, [net.model.blocks[1]]) as method:
        found = torch.from_numpy(method(images("vit", 1).clone(), [model_targets.ClassifierOutputTarget(1)]))
    assert found.shape == (1, 32, 32) and found.std(1).max() < 1e-5 < 0.1 < found.std(2).max()
    if name != "EigenCAM":
        assert native(name.lower(), "vit").std(1).max() > 1e-3


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus", "XGradCAM"])
def test_grad_cam_raises_for_tokens(name: str) -> None:
    net = own("vit")
    with getattr(grad_cam, name)(net, [net.model.blocks[1]]) as method, pytest.raises(ValueError, match="shape"):
        method(images("vit", 1).clone(), [model_targets.ClassifierOutputTarget(1)])


def test_grad_cam_plus_plus_has_a_small_number_in_its_divisor() -> None:
    net = own("resnet")
    with grad_cam.GradCAMPlusPlus(net, [net.model.layer2]) as method:
        found = torch.from_numpy(method(images("resnet").clone(), goals()))
    ours = attribute(network("resnet"), images("resnet"), "gradcampp", TARGETS, layer="layer2").min_max
    assert 0.005 < off(found, ours) < 0.1


def test_grad_cam_leaves_hooks_modes_and_gradients() -> None:
    net = own("resnet").train()
    method = grad_cam.GradCAM(net, [net.model.layer4])
    method(images("resnet").clone(), goals())
    assert not net.training and net.model.layer4._forward_hooks
    assert all(parameter.grad is not None for parameter in net.parameters())
    method.activations_and_grads.release()


@pytest.mark.parametrize("name", ["convnext", "vit", "swin"])
def test_captum_guided_backprop_without_relu_is_the_gradient(name: str) -> None:
    x = images(name, 1)
    found = captum.GuidedBackprop(own(name)).attribute(x.clone(), [1])
    close(found, captum.Saliency(own(name)).attribute(x.clone(), [1], abs=False), 1e-5)


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_captum_deeplift_without_relu_is_input_x_gradient(name: str) -> None:
    x, net = images(name, 1), own(name)
    found = captum.DeepLift(net).attribute(x.clone(), 0 * x, target=[1])
    close(found, captum.InputXGradient(own(name)).attribute(x.clone(), [1]), 1e-4)
    with torch.no_grad():
        change = (network(name)(x) - network(name)(0 * x))[0, 1]
    assert abs(found.sum() - change) > 0.2 * abs(change)


def test_captum_deeplift_on_swin_does_not_add_up() -> None:
    x = images("swin", 1)
    found = captum.DeepLift(own("swin")).attribute(x.clone(), 0 * x, target=[1]).sum()
    with torch.no_grad():
        change = (network("swin")(x) - network("swin")(0 * x))[0, 1]
    assert abs(found - change) > abs(change)


@pytest.mark.parametrize("name", ["convnext", "vit", "swin"])
def test_captum_lrp_fails(name: str) -> None:
    with pytest.raises(TypeError, match="has no rule defined"):
        captum.LRP(own(name)).attribute(images(name, 1).clone(), target=1)


def test_captum_layer_gradcam_maps_channels_of_tokens() -> None:
    net = own("vit")
    assert captum.LayerGradCam(net, net.model.blocks[1]).attribute(images("vit", 1), [1]).shape == (1, 1, 16)


def test_captum_leaves_images_with_gradients_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    x = noise(1, 12)
    with pytest.raises(RuntimeError, match="out of memory"):
        captum.Saliency(Broken()).attribute(x, 1)
    assert x.requires_grad


def test_captum_draws_from_the_random_numbers_of_all() -> None:
    """So two threads, or a training beside it, change one another's results; this is why Kernel SHAP is own here."""
    drawn = torch.random.get_rng_state()
    halves = (torch.arange(144) // 72).view(1, 1, 12, 12)
    captum.KernelShap(Linear()).attribute(noise(1, 12), target=1, n_samples=3, feature_mask=halves)
    assert not torch.equal(torch.random.get_rng_state(), drawn)


# --- the page -------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[1] / "scripts" / "library_faults.py"


def test_page_is_of_the_versions_that_are_pinned() -> None:
    script = runpy.run_path(str(SCRIPT))
    said = re.search(r"With (.*)\.", script["PAGE"].read_text())
    assert said is not None, "run: python scripts/library_faults.py --write"
    assert said[1] == ", ".join(f"{name} {version(name)}" for name in script["PACKAGES"])


@pytest.mark.long
def test_every_row_of_the_page_is_still_so() -> None:
    script = runpy.run_path(str(SCRIPT))
    rows = [line.strip("| ").split(" | ") for line in script["PAGE"].read_text().split("\n") if line.startswith("| ")]
    found = [fault for demonstrate in script["ALL"] for fault in demonstrate()]
    assert [row[:3] for row in rows[1:]] == [fault.cells[:3] for fault in found]
    assert [fault.cells for fault in found if not fault.shown] == []
