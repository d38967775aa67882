"""A training step of the ensemble computes nothing twice and nothing that nobody uses."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_recipe
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stylegan2_ada.ops import modulated_conv2d
from stylegan2_ada.ops.modulated_conv2d import synthesis_tail_reference
from viscoin.config import ViscoinConfig
from viscoin.datasets import ImageDataset
from viscoin.models.classifier import Classifier
from viscoin.models.explainer import activations
from viscoin.training import losses
from viscoin.training import viscoin_task as training
from viscoin.training.gan import build_generator
from viscoin.training.runtime import Runtime, make_fabric
from viscoin.training.viscoin import build_ensemble
from viscoin.training.viscoin_task import ViscoinTask

REAL, GENERATED, RECONSTRUCTED = 6, 2, 3
DRAWN = GENERATED + RECONSTRUCTED


def make_task(**changes: object) -> ViscoinTask:
    recipe = tiny_recipe(viscoin__batch_size=REAL, viscoin__generated=GENERATED, **changes)
    size, names = recipe.dataset.resolution, ["a", "b", "c"]
    torch.manual_seed(0)
    f, g = Classifier("viscoin_resnet10", len(names), size), build_generator(recipe.gan, size)
    g.mapping.w_avg.normal_()
    pixels = torch.zeros(4, size, size, 3, dtype=torch.uint8).numpy()
    images = ImageDataset("none", "validation", pixels, torch.zeros(4).numpy(), names)
    fabric = make_fabric(Runtime(device="cpu", precision="32-true"))
    return ViscoinTask(build_ensemble(recipe.viscoin, f, g, names), g, recipe.viscoin, fabric, images)


def take_step(task: ViscoinTask) -> dict[str, Tensor]:
    config: ViscoinConfig = task.config
    torch.manual_seed(1)
    images = torch.rand(REAL, 3, 32, 32) * 2 - 1
    return task.step(images, torch.zeros(REAL, dtype=torch.long), config.warmup_steps)


def counted(module: nn.Module) -> list[tuple[int, bool]]:
    """Grows by (images, whether a graph is kept) with each forward pass of a module."""
    seen: list[tuple[int, bool]] = []
    module.register_forward_hook(lambda _, inputs, out: seen.append((len(inputs[0]), _first(out).requires_grad)))
    return seen


def _first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


class Convolutions(TorchDispatchMode):
    """Counts backward passes of convolutions, and those that compute gradients of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.of_weights = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.all += 1
            self.of_weights += args[-1][1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("perceptual", ["classifier", "other"])
def test_f_and_g_run_once_for_each_image(perceptual: str) -> None:
    task = make_task(viscoin__reconstructed=RECONSTRUCTED)
    if perceptual == "other":
        task.perceptual = lambda a, b, *maps: (a - b).square().mean((1, 2, 3))
    f, ensemble = task.ensemble.classifier, task.ensemble
    passes = counted(f.model.conv1)  # every way through f starts here
    drawn, sampled = counted(ensemble.generator.synthesis), counted(task.sampler.synthesis)
    extracted, explained = counted(ensemble.concept_extractor.conv4), counted(ensemble.explainer)
    take_step(task)
    # Real images without a graph; then what G made of them, for the class and for the perceptual term together.
    assert passes == [(GENERATED + REAL, False), (DRAWN, True)]
    assert drawn == [(DRAWN, True)]
    assert sampled == [(GENERATED, False)]
    assert extracted == explained == [(GENERATED + REAL, True)]


@pytest.mark.parametrize(("reconstructed", "images"), [(RECONSTRUCTED, DRAWN), (None, GENERATED + REAL)])
def test_support_is_computed_for_images_that_are_drawn(reconstructed: int | None, images: int) -> None:
    task = make_task(viscoin__reconstructed=reconstructed)
    supported = counted(task.ensemble.concept_extractor.linear1)
    take_step(task)
    assert supported == [(images, True)]


def test_the_losses_share_the_concept_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(viscoin__bimodality=0.5)
    pooled: list[torch.Size] = []

    def counting(concept_maps: Tensor) -> Tensor:
        pooled.append(concept_maps.shape)
        return activations(concept_maps)

    for module in (training, losses):
        monkeypatch.setattr(module, "activations", counting)
    assert {"sparsity", "bimodality"} <= set(take_step(task))
    assert len(pooled) == 1


def test_support_of_some_is_that_of_all() -> None:
    ensemble = make_task().ensemble.eval()
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    whole, part = ensemble.encode(images), ensemble.encode(images, 2)
    torch.testing.assert_close(part.support, whole.support[:2])
    assert torch.equal(part.concept_maps, whole.concept_maps)


def test_frozen_weights_get_no_gradients() -> None:
    task = make_task()
    with Convolutions() as convolutions:
        take_step(task)
    extractor = task.ensemble.concept_extractor
    own = sum(isinstance(layer, nn.Conv2d) for layer in extractor.modules())
    assert convolutions.all > 2 * own  # through f and G as well
    assert convolutions.of_weights == own
    frozen = [task.ensemble.classifier, task.ensemble.generator.synthesis, task.sampler]
    assert not any(weight.requires_grad for module in frozen for weight in module.parameters())
    assert all(weight.grad is not None for weight in extractor.parameters())


def test_rgb_layer_has_right_gradients_of_both_orders() -> None:
    torch.manual_seed(0)
    x, weight, styles = (
        torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in ((2, 4, 3, 3), (3, 4, 1, 1), (2, 4))
    )

    def rgb(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
        return modulated_conv2d(x, weight, styles, demodulate=False)

    expected = torch.einsum("bchw,oc,bc->bohw", x, weight[:, :, 0, 0], styles)
    torch.testing.assert_close(rgb(x, weight, styles), expected)
    assert torch.autograd.gradcheck(rgb, (x, weight, styles))
    assert torch.autograd.gradgradcheck(rgb, (x, weight, styles))


@pytest.mark.parametrize("shape", [(4, 4), (2, 1, 4, 4), None])
def test_tail_adds_stored_and_drawn_noise_alike(shape: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    x, coefficients, bias = torch.randn(2, 3, 4, 4), torch.rand(2, 3), torch.randn(3)
    noise = None if shape is None else torch.randn(shape)
    tail = synthesis_tail_reference(x, coefficients, noise, bias, "lrelu", 0.2, 1.5, 2.0)
    whole = x * coefficients[:, :, None, None] + bias[:, None, None] + (0 if noise is None else noise)
    torch.testing.assert_close(tail, (nn.functional.leaky_relu(whole, 0.2) * 1.5).clamp(-2, 2))
