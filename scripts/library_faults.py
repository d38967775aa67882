"""Show what attribution libraries return for networks of timm, beside what is right by a formula.

    python scripts/library_faults.py            # prints the table, about a minute on one core
    python scripts/library_faults.py --write    # and puts it into docs/what-the-libraries-get-wrong.md

Networks have random weights (seed 0), the image is uniform noise, and nothing is downloaded: the faults are of the
arithmetic. It needs the extra `dev`. Exit code 1: something is no longer as the page says, so the page must change.
"""

import copy
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import captum.attr as captum
import pytorch_grad_cam as grad_cam
import timm
import torch
import torchcam.methods as torchcam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "what-the-libraries-get-wrong.md"
START, END = "<!-- table: written by scripts/library_faults.py -->", "<!-- end of table -->"
PACKAGES = ("torch", "timm", "captum", "torchcam", "grad-cam")
RESNET, VIT, SWIN = "ResNet-18", "ViT-Ti/16", "Swin-T"
# By name: that of timm, and what keeps random weights from making residual branches vanish.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    RESNET: ("resnet18", {"zero_init_last": False}),
    "EfficientNet-B0": ("efficientnet_b0", {}),
    "ConvNeXt-A": ("convnext_atto", {"ls_init_value": 1.0}),
    VIT: ("vit_tiny_patch16_224", {}),
    SWIN: ("swin_tiny_patch4_window7_224", {}),
}
WITHOUT_RELU = tuple(NETWORKS)[1:]
LAYERS = ("layer1", "layer2", "layer3", "layer4")
BLOCKS = {VIT: "blocks.10", SWIN: "layers.3"}
TARGET, SIDE = 3, 224
TARGETS = [ClassifierOutputTarget(TARGET)]


@dataclass(frozen=True)
class Fault:
    """A row of the table; `shown` is whether the libraries still do it."""

    library: str
    call: str
    network: str
    returned: str
    right: str
    shown: bool

    @property
    def cells(self) -> list[str]:
        return [self.library, f"`{self.call}`", self.network, self.returned, self.right]


@cache
def _built(name: str) -> Any:
    torch.manual_seed(0)
    identifier, settings = NETWORKS[name]
    net = timm.create_model(identifier, num_classes=10, **settings)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0  # statistics of one batch, so that activations are of the usual size
    with torch.no_grad():
        net.train()(torch.randn(8, 3, SIDE, SIDE) * torch.linspace(0, 1, 8)[:, None, None, None])
    return net.eval()


def network(name: str) -> Any:
    """A network for one call alone, as libraries leave things behind."""
    return copy.deepcopy(_built(name))


def noise() -> Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def off(found: Tensor, right: Tensor) -> float:
    """Largest difference of two maps, as a share of the peak of the right one."""
    return float((found - right).abs().max() / right.abs().max())


def unit(heat: Tensor) -> Tensor:
    """A map as torchcam and grad-cam return it: relu, then brought to [0, 1]."""
    heat = heat.clamp(min=0)
    return (heat - heat.min()) / (heat.max() - heat.min())


def shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def decimals(numbers: list[float]) -> str:
    return ", ".join(f"{number:.2f}" for number in numbers)


def enlarged(heat: Tensor) -> Tensor:
    """A map (h, w) over the image, in [0, 1]."""
    return unit(nn.functional.interpolate(heat[None, None], size=SIDE, mode="bilinear")[0, 0])


def recorded(net: nn.Module, layer: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """The map A (C, h, w) of a layer, and the gradient G of the target's logit there, by autograd alone."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _given, output: seen.append(output))
    score = net(image.clone().requires_grad_())[0, TARGET]
    hook.remove()
    return seen[0][0].detach(), torch.autograd.grad(score, seen[0])[0][0]


def weighed(A: Tensor, weights: Tensor) -> Tensor:
    """The map of channels (C, h, w), each weighed by the sum of its weights over positions."""
    return unit((weights.sum((1, 2))[:, None, None] * A).sum(0))


# --- torchcam -------------------------------------------------------------------------------------------------------


def of_torchcam(name: str, net: nn.Module, layer: str, **options: Any) -> Tensor:
    with getattr(torchcam, name)(net, layer, **options) as method:
        found: Tensor = method(TARGET, net(noise().requires_grad_()))[0]
        return found[0]


def plus_plus() -> Iterator[Fault]:
    """Weights of Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063, Eq. 19)."""
    net = network(RESNET)
    seen = {layer: recorded(net, net.get_submodule(layer), noise()) for layer in LAYERS}
    found = {layer: of_torchcam("GradCAMpp", net, layer) for layer in LAYERS}
    errors = [off(found[layer], _plus_plus(*seen[layer])) for layer in LAYERS]
    others = max(off(found[layer], weighed(A, G.clamp(min=0) ** 3)) for layer, (A, G) in seen.items())
    yield Fault(
        "torchcam", "GradCAMpp", f"{RESNET}, layer1 to layer4",
        f"off by {decimals(errors)} of the peak; by at most {others:.2f} from weights Σ relu(G)³",
        "weights Σ relu(G) / (2 + G ΣA): Eq. 19", max(errors) > 0.1 > 0.05 > others,
    )  # fmt: skip
    for layer in LAYERS:
        with grad_cam.GradCAMPlusPlus(net, [net.get_submodule(layer)]) as method:
            found[layer] = torch.from_numpy(method(noise(), TARGETS))[0]
    errors = [off(found[layer], enlarged(_plus_plus(*seen[layer]))) for layer in LAYERS]
    others = max(off(found[layer], enlarged(_plus_plus(*seen[layer], 1e-6))) for layer in LAYERS)
    yield Fault(
        "grad-cam", "GradCAMPlusPlus", f"{RESNET}, layer1 to layer4",
        f"off by {decimals(errors)} of the peak; by at most {others:.2f} from Eq. 19 with 1e-6 added to 2 G² + G³ ΣA",
        "the same", max(errors) > 0.05 > others,
    )  # fmt: skip


def _plus_plus(A: Tensor, G: Tensor, added: float = 0.0) -> Tensor:
    alpha = G**2 / (2 * G**2 + A.sum((1, 2), keepdim=True) * G**3 + added)
    return weighed(A, torch.where(G > 0, alpha * G, 0))


def smooth_plus_plus() -> Iterator[Fault]:
    """Smooth Grad-CAM++ (Omeiza et al. 2019, arXiv 1908.01224): without noise Grad-CAM++, and a mean over samples."""
    net = network(RESNET)
    found = of_torchcam("SmoothGradCAMpp", net, "layer2", std=1e-6)
    still = off(found, _plus_plus(*recorded(net, net.layer2, noise())))
    noises = torch.randn(4, 1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.3
    forwards, backwards = (_with_noises(net, order) for order in (noises, noises.flip(0)))
    order = off(backwards, forwards)
    yield Fault(
        "torchcam", "SmoothGradCAMpp", f"{RESNET}, layer2",
        f"with noise of 1e-6 off by {still:.2f} of the peak from Grad-CAM++; the same four noises in reverse order "
        f"change it by {order:.2f}",
        "no difference, no change; Σ A G³ is taken for G³ ΣA, and relu of the last gradient for that of the mean",
        still > 0.01 and order > 0.05,
    )  # fmt: skip


def _with_noises(net: nn.Module, noises: Tensor) -> Tensor:
    left = iter(noises)
    given: Any = SimpleNamespace(sample=lambda _size: next(left))
    with torchcam.SmoothGradCAMpp(net, "layer2") as method:
        method._distrib = given
        net(noise())
        found: Tensor = method(TARGET)[0]
        return found[0]


def torchcam_channels() -> Iterator[Fault]:
    for name, patches in ((VIT, "14 x 14"), (SWIN, "7 x 7")):
        found = [of_torchcam(method, network(name), BLOCKS[name]) for method in ("GradCAM", "LayerCAM")]
        yield Fault(
            "torchcam", "GradCAM, LayerCAM", f"{name}, {BLOCKS[name]}",
            f"maps of {' and '.join(map(shape, found))}, without an error", f"{patches} patches",
            all(f"{shape(one)}" != patches for one in found),
        )  # fmt: skip
    with torchcam.GradCAM(network(VIT)) as extractor:
        chosen = extractor.target_names[0]
    yield Fault(
        "torchcam", "GradCAM without a layer", VIT, f"takes `{chosen}`, and warns that it chose",
        "a layer whose output is a map, or an error", chosen.endswith("k_norm"),
    )  # fmt: skip


# --- grad-cam -------------------------------------------------------------------------------------------------------


def of_grad_cam(name: str, network_name: str, **options: Any) -> Tensor:
    net = network(network_name)
    with getattr(grad_cam, name)(net, [net.get_submodule(BLOCKS[network_name])], **options) as method:
        return torch.from_numpy(method(noise(), TARGETS))[0]


def grad_cam_channels() -> Iterator[Fault]:
    """Of tokens (1, 197, 192) the sum over dimension 1, meant for channels, is one over tokens."""
    names = ("HiResCAM", "LayerCAM", "EigenCAM")
    found = [of_grad_cam(name, VIT) for name in names]
    apart, along = (max(float(heat.std(axis).max()) for heat in found) for axis in (0, 1))
    yield Fault(
        "grad-cam", ", ".join(names), f"{VIT}, {BLOCKS[VIT]}",
        f"224 x 224, all rows alike (std {apart:.0e}; along a row {along:.1g}): channels, without an error",
        "14 x 14 patches", apart < 1e-5 < along,
    )  # fmt: skip
    names = ("GradCAM", "HiResCAM", "LayerCAM")
    last = {"reshape_transform": lambda maps: maps.permute(0, 3, 1, 2)}
    errors = [off(of_grad_cam(name, SWIN), of_grad_cam(name, SWIN, **last)) for name in names]
    yield Fault(
        "grad-cam", ", ".join(names), f"{SWIN}, {BLOCKS[SWIN]}",
        f"off by {decimals(errors)} of the peak, without an error",
        "its own maps with a `reshape_transform` that puts channels first", min(errors) > 0.3,
    )  # fmt: skip


def grad_cam_leftovers() -> Iterator[Fault]:
    net = network(RESNET).train()
    method = grad_cam.GradCAM(net, [net.layer4])
    method(noise(), TARGETS)
    hooks, parameters = len(net.layer4._forward_hooks), list(net.parameters())
    filled = sum(parameter.grad is not None for parameter in parameters)
    yield Fault(
        "grad-cam", "GradCAM outside of with", f"{RESNET} in training mode",
        f"as long as it lives {hooks} hooks; eval mode; a `.grad` at {filled} of {len(parameters)} parameters",
        "all as before", bool(hooks and filled) and not net.training,
    )  # fmt: skip


# --- captum ---------------------------------------------------------------------------------------------------------


def guided_backprop() -> Iterator[Fault]:
    def apart(name: str) -> float:
        found = captum.GuidedBackprop(network(name)).attribute(noise(), TARGET)
        return off(found, captum.Saliency(network(name)).attribute(noise(), TARGET, abs=False))

    largest = max(map(apart, WITHOUT_RELU))
    yield Fault(
        "captum", "GuidedBackprop", ", ".join(WITHOUT_RELU),
        f"the plain gradient (difference at most {largest:.0e} of its peak), without an error",
        "not defined: there is no ReLU on the way back", largest < 1e-4,
    )  # fmt: skip


def deeplift() -> Iterator[Fault]:
    """Parts must add up to the change of the score (Shrikumar et al. 2017, arXiv 1704.02685, Eq. 1)."""
    for name in WITHOUT_RELU:
        net, zero = network(name), 0 * noise()
        found = captum.DeepLift(net).attribute(noise(), zero, target=TARGET)
        product = captum.InputXGradient(network(name)).attribute(noise(), TARGET)
        with torch.no_grad():
            change = float((_built(name)(noise()) - _built(name)(zero))[0, TARGET])
        total, same = float(found.sum()), off(found, product)
        alike = f"Input x Gradient (difference {same:.0e}); " if same < 1e-3 else ""
        yield Fault(
            "captum", "DeepLift", name, f"{alike}adds up to {total:.3f}, without an error",
            f"f(x) - f(0) = {change:.3f}", abs(total - change) > 0.05 * abs(change),
        )  # fmt: skip


def layer_gradcam() -> Iterator[Fault]:
    net = network(VIT)
    found = captum.LayerGradCam(net, net.get_submodule(BLOCKS[VIT])).attribute(noise(), TARGET)
    yield Fault(
        "captum", "LayerGradCam", f"{VIT}, {BLOCKS[VIT]}",
        f"{found.shape[-1]} values, one a channel, without an error", "14 x 14 patches", found.shape[1:] == (1, 192),
    )  # fmt: skip


def lrp() -> Iterator[Fault]:
    said = {error_of(captum.LRP(network(name)).attribute, noise(), target=TARGET) for name in NETWORKS}
    modules = sorted({re.sub(r".*<class '(?:\w+\.)*(\w+)'>.*", r"\1", text) for text in said})
    yield Fault(
        "captum", "LRP", "all five", f"TypeError: no rule for {', '.join(modules)}",
        "an error is right; LRP is not for these networks",
        all(text.startswith("TypeError") for text in said),
    )  # fmt: skip


def captum_leftovers() -> Iterator[Fault]:
    def broken(_images: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    images = noise()
    error_of(captum.Saliency(broken).attribute, images, TARGET)
    yield Fault(
        "captum", "Saliency, and an error in f", "any",
        f"the caller's images have requires_grad {images.requires_grad}", "False, as before", images.requires_grad,
    )  # fmt: skip
    drawn, halves = torch.random.get_rng_state(), (torch.arange(SIDE) // (SIDE // 2)).view(1, 1, 1, SIDE)
    captum.KernelShap(lambda x: x.mean((2, 3))).attribute(noise(), target=1, n_samples=3, feature_mask=halves)
    moved = not torch.equal(torch.random.get_rng_state(), drawn)
    yield Fault(
        "captum", "KernelShap", "any", "draws from torch's global random numbers, which all threads share",
        "a map that depends on its own seed alone", moved,
    )  # fmt: skip


def error_of(call: Callable[..., object], *given: Any, **named: Any) -> str:
    try:
        call(*given, **named)
    except Exception as error:  # whatever a library raises
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return "no error"


# --- by formula -----------------------------------------------------------------------------------------------------


def multiplier() -> Iterator[Fault]:
    """Of min over masks, max over alpha of sparsity + alpha (KL - eps): alpha must rise while KL is above eps."""

    def alpha(ascent: bool) -> float:
        value = torch.tensor(20.0, requires_grad=True)
        optimiser = torch.optim.Adam([value], lr=0.3, maximize=ascent)
        for _ in range(24):
            optimiser.zero_grad()
            (value * 1.0).backward()
            optimiser.step()
        return float(value.detach())

    down, up = alpha(False), alpha(True)
    yield Fault(
        "Vision DiffMask", "alpha of the Lagrangian", "KL - eps = 1; Adam, 24 steps from 20",
        f"{down:.1f}: down the gradient, so that a broken constraint counts less and less", f"{up:.1f}: up",
        down < 20 < up,
    )  # fmt: skip


def rollout() -> Iterator[Fault]:
    """Rows of F + I divided by their sums (Abnar & Zuidema 2020, arXiv 2005.00928), the smallest 90 % of F left out."""
    attention = (3 * torch.randn(3, 17, 17, generator=torch.Generator().manual_seed(0))).softmax(-1)
    kept = attention.where(attention > attention.flatten(1).quantile(0.9, dim=1)[:, None, None], 0)
    right, columns = _rolled(kept, -1), _rolled(kept, -2)
    apart = off(columns, right)
    yield Fault(
        "vit-explain", "rollout: a / a.sum(dim=-1)", "3 layers, 17 tokens, 90 % discarded",
        f"the sum of row j divides column j; map off by {apart:.2f} of the peak", "each row is divided by its own sum",
        apart > 0.05,
    )  # fmt: skip
    apart = off(_rolled(attention, -1), right)
    yield Fault(
        "Vision DiffMask", "rollout of a batch", "3 layers, 17 tokens, 90 % discarded",
        f"what any image discards becomes 0 in the first; map of a second off by {apart:.2f} of the peak",
        "each image discards its own", apart > 0.05,
    )  # fmt: skip


def _rolled(attention: Tensor, divided: int) -> Tensor:
    """Rollout of one image (L, N, N); sums of rows divide rows (-1) or, by mistake, columns (-2)."""
    open_ = attention + torch.eye(attention.shape[-1])
    layers = open_ / open_.sum(-1).unsqueeze(divided)
    heat = torch.linalg.multi_dot(list(layers.flip(0)))[0, 1:]
    return heat / heat.max()


ALL = (
    plus_plus, smooth_plus_plus, torchcam_channels, grad_cam_channels, grad_cam_leftovers, guided_backprop, deeplift,
    layer_gradcam, lrp, captum_leftovers, multiplier, rollout,
)  # fmt: skip


def table(faults: list[Fault]) -> str:
    lines = ["| library | call | network, layer | returned | right |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(fault.cells)} |" for fault in faults]
    return "\n".join([*lines, "", f"With {', '.join(f'{name} {version(name)}' for name in PACKAGES)}."])


def main() -> int:
    warnings.filterwarnings("ignore")  # of hooks that libraries set
    faults = [fault for demonstrate in ALL for fault in demonstrate()]
    print(table(faults))
    if "--write" in sys.argv[1:]:
        before, rest = PAGE.read_text().split(START)
        PAGE.write_text(f"{before}{START}\n\n{table(faults)}\n\n{END}{rest.split(END)[1]}")
    mended = [fault for fault in faults if not fault.shown]
    for fault in mended:
        print(f"no longer so: {' | '.join(fault.cells)}", file=sys.stderr)
    return 1 if mended else 0


if __name__ == "__main__":
    sys.exit(main())
