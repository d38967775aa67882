"""Every term of the loss against published numbers or a value worked out by hand."""

import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from viscoin.models import perceptual
from viscoin.models.classifier import Classifier
from viscoin.models.perceptual import ClassifierPerceptual, Lpips
from viscoin.training import losses
from viscoin.training.viscoin_task import perceptual_distance

GOLDEN = Path(__file__).parent / "golden" / "viscoin"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "losses.safetensors")


@pytest.fixture(scope="module")
def modules() -> dict[str, Tensor]:
    return load_file(GOLDEN / "modules.safetensors")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier("viscoin_resnet10", 3, 64).eval().requires_grad_(False)


def test_losses_equal_published_values(golden, modules):
    kernels = modules["concept_extractor.conv5.weight"]
    mean_style = modules["gan.mapping.fixed_w_avg"]
    values = {
        "output_fidelity": losses.output_fidelity(golden["explainer_logits"], golden["classifier_logits"]),
        "reconstruction_l1": losses.reconstruction_l1(golden["x"], golden["y"]),
        "reconstruction_l2": losses.reconstruction_l2(golden["x"], golden["y"]),
        "concept_regularization": losses.sparsity(golden["phi"]),
        "conciseness_diversity_eta1": losses.conciseness_diversity(golden["phi"], 1),
        "concept_orthogonality": losses.concept_orthogonality(kernels),
        "gan_regularization": losses.style_regularization(golden["ws"], mean_style),
    }
    assert {f"loss.{name}" for name in values} == {name for name in golden if name.startswith("loss.")}
    for name, value in values.items():
        assert value.ndim == 0
        torch.testing.assert_close(value, golden[f"loss.{name}"][0], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("loss", [losses.output_fidelity, losses.reconstruction_class])
def test_soft_cross_entropy_of_certain_logits_is_finite(loss):
    certain = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    value = loss(certain, certain)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(certain.grad).all()


@pytest.mark.parametrize("loss", [losses.output_fidelity, losses.reconstruction_class])
def test_soft_cross_entropy_teaches_the_first_argument_only(loss):
    student, target = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    loss(student, target).backward()
    expected = (student.softmax(1) - target.softmax(1)).detach() / 2
    torch.testing.assert_close(student.grad, expected)
    assert target.grad is None


def test_entropy_of_certain_concepts_is_finite():
    phi = torch.zeros(2, 4, 3, 3)
    phi[:, 0] = 1e4
    phi.requires_grad_()
    value = losses.conciseness_diversity(phi, 0)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(phi.grad).all()


# p of two values: kurtosis 1/(pq) - 3 and skewness^2 (1 - 2p)^2/(pq) of the Bernoulli distribution
@pytest.mark.parametrize(("share", "expected"), [(0.5, 1.0), (0.25, 7 / 3 - 0.85 * 4 / 3)])
def test_bimodality_of_concepts_with_two_values(share, expected):
    phi = (torch.arange(400) < 400 * share).float()[:, None] * torch.tensor([[1.0, 5.0, 0.3]])
    torch.testing.assert_close(losses.bimodality(phi), torch.tensor(expected), atol=1e-3, rtol=0)


def test_bimodality_prefers_two_values_to_many_and_is_finite_for_constant_and_rare_concepts():
    torch.manual_seed(0)
    spread = torch.rand(4000, 2)
    assert losses.bimodality(spread).item() == pytest.approx(1.8, abs=0.05)  # kurtosis of a uniform variable
    rare = torch.zeros(1000, 2, requires_grad=True)
    value = losses.bimodality(rare + torch.eye(1000)[:, :1] * torch.tensor([[1.0, 0.0]]))
    value.backward()
    assert value.item() <= 50
    assert torch.isfinite(rare.grad).all()


def test_sparsity_of_one_hot_and_of_equal_concepts():
    one_hot, equal = torch.zeros(1, 4, 3, 3), torch.ones(1, 4, 3, 3)
    one_hot[0, 1] = 2
    assert losses.sparsity(one_hot).item() == pytest.approx(1 / 4 + 2 / 4)
    assert losses.sparsity(equal).item() == pytest.approx(1 / math.sqrt(4) + 1)
    assert losses.sparsity(torch.zeros(1, 4, 3, 3)).item() == 0


def test_orthogonality_of_disjoint_and_of_equal_kernels():
    assert losses.concept_orthogonality(torch.eye(3)[..., None, None]).item() == pytest.approx(0, abs=1e-6)
    assert losses.concept_orthogonality(torch.ones(3, 5, 1, 1)).item() == pytest.approx((9 - 3) / 9)
    assert losses.concept_orthogonality(-torch.ones(3, 5, 1, 1)).item() == pytest.approx((9 - 3) / 9)


def test_style_regularization_compares_every_style_with_the_mean():
    mean = torch.arange(4.0)
    assert losses.style_regularization(mean.expand(2, 3, 4), mean).item() == 0
    assert losses.style_regularization(mean + torch.full((2, 3, 4), 2.0), mean).item() == pytest.approx(4)


def test_perceptual_distance_of_the_classifier(classifier):
    torch.manual_seed(1)
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    distance = ClassifierPerceptual(classifier)
    torch.testing.assert_close(distance(a, a), torch.zeros(2))
    torch.testing.assert_close(distance(a, b), distance(b, a))
    maps_a, maps_b = classifier.features(a).maps, classifier.features(b).maps
    # |u - v|^2 = 2 - 2 cos for unit vectors; where a vector is zero the distance is the other's length, 1 or 0
    expected = torch.zeros(2)
    for u, v in zip(maps_a, maps_b):
        lengths = (u.norm(dim=1) > 0).float() + (v.norm(dim=1) > 0).float()
        expected += (lengths - 2 * F.cosine_similarity(u, v, dim=1)).mean((1, 2))
    torch.testing.assert_close(distance.distance(maps_a, maps_b), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(distance(a, b), expected, atol=1e-4, rtol=1e-4)


def test_perceptual_distance_runs_no_pass_for_given_maps(classifier, monkeypatch):
    images = torch.zeros(1, 3, 64, 64)
    maps = classifier.features(images).maps
    monkeypatch.setattr(classifier, "features", lambda images: pytest.fail("f was run again"))
    assert ClassifierPerceptual(classifier)(images, images, maps, maps).item() == 0


def test_perceptual_distance_has_a_gradient_to_the_image(classifier):
    torch.manual_seed(2)
    image = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    ClassifierPerceptual(classifier)(image, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert image.grad.abs().sum() > 0


def test_lpips_of_equal_and_of_different_images():
    torch.manual_seed(3)
    distance = Lpips(network="squeeze", pretrained=False)
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    assert distance(a, a).tolist() == [0, 0]
    assert distance(a, b).shape == (2,)
    assert (distance(a, b) > 0).all()


def test_perceptual_kind_of_the_recipe(classifier, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(device):
        raise OSError("no route to host")

    monkeypatch.setattr(perceptual, "Lpips", unreachable)
    fallback, name = perceptual_distance("auto", classifier)
    assert isinstance(fallback, ClassifierPerceptual)
    assert name == "classifier"
    assert "528 MB" in caplog.text and str(tmp_path) in caplog.text
    assert "no route to host" in caplog.text and "feature maps of the classifier" in caplog.text
    with pytest.raises(ValueError, match=r"perceptual_loss lpips: .*no route to host.*choose classifier"):
        perceptual_distance("lpips", classifier)
    with pytest.raises(ValueError, match=r"perceptual_loss vgg: .*choose auto, lpips, classifier"):
        perceptual_distance("vgg", classifier)
    monkeypatch.setattr(perceptual, "Lpips", lambda device: "LPIPS")
    assert perceptual_distance("auto", classifier) == ("LPIPS", "lpips")
    assert perceptual_distance("classifier", classifier)[1] == "classifier"
