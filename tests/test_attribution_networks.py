"""Every method on every family of networks: right, or refused in one line."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attribution import CHEAP, OF_LIBRARIES, UNTRAINED, close
from test_heatmaps import real_ensemble
from tiny_networks import NETWORKS, network, noise
from torch import Tensor, nn

from viscoin.attribution import METHODS, attribute
from viscoin.attribution.heatmaps import concept_heatmaps
from viscoin.attribution.targets import ClassifierLogit, ConceptActivation, ExplainerLogit
from viscoin.errors import Refused
from viscoin.inference import execution
from viscoin.inference.twins import twin
from viscoin.models import layers

PLAIN = {"vit", "vit-distilled", "vit-registers", "vit-average", "eva", "beit"}
HOLDS = {
    "pooling": {"resnet", "efficientnet", "regnet", "swin"},
    "attention": PLAIN,
    "relu": {"resnet", "regnet"},
    "maps": set(NETWORKS),
}
SMALLER: dict[str, dict[str, Any]] = {
    **CHEAP,
    "smoothgrad": {"samples": 1},
    "gradient-shap": {"samples": 1},
    "integrated-gradients": {"steps": 1},
    "occlusion": {"window": 32},
    "rise": {"samples": 2, "cells": 2},
    "kernel-shap": {"samples": 5, "cells": 2},
    "sscam": {"samples": 1},
}
SLOW = {"mobilenetv3", "regnet"}


def side(name: str) -> int:
    return network(name).resolution


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_on_every_family(name):
    classifier, images = network(name), noise(1, side(name))
    for method in UNTRAINED:
        entry = METHODS[method]
        if method in OF_LIBRARIES and not _has_captum():
            continue
        if method in ("scorecam", "sscam") and name in SLOW:
            continue  # as many passes as channels, hundreds of them; the same code as on all others
        holds = all(name in HOLDS[need] for need in entry.needs)
        if holds:
            found = attribute(classifier, images, method, [1], **SMALLER.get(method, {}))
            assert found.maps.shape == (1, *images.shape[2:]) and found.maps.isfinite().all(), method
            assert found.native.shape[1] == found.native.shape[2], method
            assert found.maps.any() or entry.family == "activation", method  # relu may leave nothing
        else:
            with pytest.raises(Refused) as refused:
                attribute(classifier, images, method, [1], **SMALLER.get(method, {}))
            text = str(refused.value)
            assert "\n" not in text and re.match(rf"method {method}: does not hold for \w+: .*; those that do: ", text)
            named = text.split("those that do: ")[1].split(", ")
            assert named == [m for m in UNTRAINED if all(name in HOLDS[need] for need in METHODS[m].needs)]


def _has_captum() -> bool:
    try:
        import captum  # noqa: F401
    except ImportError:
        return False
    return True


def test_page_says_what_holds_for_which_network():
    """The columns of docs/attribution.md by what their methods need, the rows by their networks here."""
    page = (Path(__file__).parents[1] / "docs" / "attribution.md").read_text()
    section = page.split("## Networks")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.split("\n") if line.startswith("| ")]
    found = {name: cells for cells in rows[1:] for key, names in ROWS.items() if key in cells[0] for name in names}
    needs = ("pooling", "maps", "attention", "relu")
    assert len(rows) == 1 + len(ROWS) and set(found) == set(NETWORKS)
    for name, cells in found.items():
        assert cells[1:] == [*("yes" if name in HOLDS[need] else "no" for need in needs), "yes"], name


ROWS = {
    "ResNet": ("resnet", "regnet"), "EfficientNet": ("efficientnet",), "MobileNetV3": ("mobilenetv3",),
    "ConvNeXt": ("convnext",), "Swin": ("swin",),
    "DINOv2": ("vit", "vit-distilled", "vit-registers", "eva", "beit"), "mean pooling": ("vit-average",),
    "SigLIP": ("vit-map",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin", "it attends inside windows"),
        ("vit-map", "another attention pools the tokens"),
        ("convnext", "it is no plain vision transformer"),
    ],
)
def test_why_there_is_no_attention_to_read(name, reason):
    with pytest.raises(Refused, match=f"method rollout: does not hold for .*: {reason}; those that do: .*gradcam"):
        attribute(network(name), noise(1, side(name)), "rollout")


@pytest.mark.parametrize(("name", "reason"), [("convnext", "computes .*Gelu"), ("mobilenetv3", "computes .*Hardsw")])
def test_why_guided_backprop_would_be_the_gradient(name, reason):
    with pytest.raises(Refused, match=f"method guided-backprop: does not hold for .*: besides ReLU .*{reason}"):
        attribute(network(name), noise(1, side(name)), "guided-backprop")


def test_relus_that_are_no_modules_are_seen():
    class Functional(nn.Module):
        n_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 2, 3), nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return self.relu(self.conv(images)).relu().mean((2, 3))

    with pytest.raises(Refused, match="does not hold for Functional: some of its ReLUs are no modules"):
        attribute(Functional(), noise(1, 8), "guided-backprop")


# --- layers ---------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "resnet": ("layer4", 2), "efficientnet": ("blocks.4", 2), "mobilenetv3": ("blocks.5", 2), "regnet": ("s4", 2),
    "convnext": ("stages.3", 2), "vit": ("blocks.1", 4), "vit-distilled": ("blocks.1", 4),
    "vit-registers": ("blocks.1", 4), "vit-average": ("blocks.1", 4), "vit-map": ("blocks.1", 4),
    "eva": ("blocks.1", 4), "beit": ("blocks.1", 4), "swin": ("layers.3", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_by_default_and_by_stage(name):
    classifier, images = network(name), noise(1, side(name))
    found = attribute(classifier, images, "layercam")
    assert (found.options["layer"], found.native.shape[1]) == DEFAULTS[name]
    for stage, shape in enumerate(classifier.feature_shapes[:2]):
        at = attribute(classifier, images, "layercam", layer=stage)
        assert at.native.shape[1:] == shape[1:] and at.native.any()


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        *((name, stage) for name in ("resnet", "eva", "swin") for stage in (0, 1)),
        ("convnext", 2),
        ("vit", 0),
        ("vit-registers", 0),
    ],
)
def test_gradients_at_a_layer_are_those_of_finite_differences(name, stage):
    """A step along the map itself changes the logit by the sum of HiResCAM: so maps are laid out as they should."""
    classifier, images = network(name), noise(1, side(name))
    model = layers.backbone_of(classifier)
    A: list[Tensor] = []

    def scaled(size: float, place: tuple[int, int]) -> float:
        def scale(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
            output = output.clone()
            layout = layers.lay_out(output, model)
            assert layout is not None
            A.append(layout)
            layout[:, :, place[0], place[1]] *= 1 + size  # a view
            return output

        hook = model.get_submodule(layers.stage_layers(model)[stage]).register_forward_hook(scale)
        with torch.no_grad():
            try:
                return float(classifier(images)[0, 1])
            finally:
                hook.remove()

    from viscoin.attribution import activation, cam

    seen: list[Tensor] = []
    original = activation.activations_and_gradients

    def spy(*given: Any) -> tuple[Tensor, Tensor]:
        found = original(*given)
        seen.extend(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation, "activations_and_gradients", spy)
        attribute(classifier, images, "hirescam", [1], layer=stage)
    heat = cam.hirescam(*seen)[0]
    for place in ((0, 1), (-1, 0)):
        difference = (scaled(0.01, place) - scaled(-0.01, place)) / 0.02
        assert float(heat[place]) == pytest.approx(difference, rel=0.03, abs=2e-4)
    close(A[0][0, :, 1, 1], seen[0][0, :, 1, 1])


@pytest.mark.parametrize("name", ["vit", "vit-distilled", "vit-registers"])
def test_tokens_that_the_score_does_not_see_are_refused(name):
    classifier, images = network(name), noise(1, side(name))
    for layer in (2, "blocks.2", "norm"):
        with pytest.raises(Refused, match=r"layer .*: of its tokens the score reads the class token alone"):
            attribute(classifier, images, "gradcam", layer=layer)
    assert attribute(classifier, images, "layercam", layer="all").maps.any()
    assert attribute(network("vit-average"), images, "layercam", layer=2).maps.any()


@pytest.mark.parametrize("name", ["vit", "vit-distilled", "vit-registers"])
def test_tokens_whose_length_a_norm_takes_out_are_refused_where_only_that_counts(name):
    """The score depends on the patch tokens entering the last block through its norm alone: G . A = 0 at each."""
    classifier, images = network(name), noise(2, side(name))
    with pytest.raises(Refused, match=r"layer blocks.1: a norm takes out the length at each position .*blocks.2.norm1"):
        attribute(classifier, images, "hirescam", layer="blocks.1")
    found = attribute(classifier, images, "hirescam")
    assert found.options["layer"] == "blocks.2.norm1" and found.maps.amax() > 1e-4
    assert attribute(network("vit-average"), images, "hirescam").options["layer"] == "blocks.1"


@pytest.mark.parametrize(
    ("name", "layer", "default"),
    [("swin", "layers.3", "norm"), ("convnext", "stages.0", "stages.3"), ("convnext", "stages.2", "stages.3")],
)
def test_maps_in_front_of_a_norm_of_each_position_are_refused_by_hirescam_alone(name, layer, default):
    classifier, images = network(name), noise(1, side(name))
    with pytest.raises(Refused, match=f"layer {layer}: a norm takes out the length .*the norm behind it, or {default}"):
        attribute(classifier, images, "hirescam", [1], layer=layer)
    assert attribute(classifier, images, "hirescam", [1]).options["layer"] == default
    assert attribute(classifier, images, "layercam", [1], layer=layer).maps.any()


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("resnet", "layer5", "layer layer5: there is no such module; choose 0, 1, 2 .* or a module such as layer4"),
        ("resnet", 3, "layer 3: unknown stage; choose 0, 1, 2"),
        ("resnet", "fc", "layer fc: its output .* is no map of the image"),
        ("swin", "layers.0.blocks.0.attn", "its output .* is no map of the image"),
        ("vit", "blocks.0.attn.attn_drop", "layer blocks.0.attn.attn_drop: it is not used in one pass"),
    ],
)
def test_layers_without_a_map_are_refused(name, layer, message):
    with pytest.raises(Refused, match=message):
        attribute(network(name), noise(1, side(name)), "gradcam", layer=layer)


def test_cam_looks_at_what_the_last_layer_reads():
    images = noise(1, 64)
    found = attribute(network("efficientnet"), images, "cam")
    close(found.maps, attribute(network("efficientnet"), images, "cam", layer="bn2").maps)
    with pytest.raises(Refused, match="does not hold for test_efficientnet: its logits are no linear function"):
        attribute(network("efficientnet"), images, "cam", layer="blocks.4")


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_attention_is_that_of_the_network(name):
    """Logits with the plain kernel are those of the fused one, and rows of the maps add up to what patches get."""
    classifier, images = network(name), noise(2, 32)
    model = classifier.model
    assert model.blocks[0].attn.fused_attn
    found = attribute(classifier, images, "chefer", [0, 1])
    close(found.logits, classifier(images).detach())
    assert found.native.any() and model.blocks[0].attn.fused_attn
    last = attribute(classifier, images, "attention").native.sum((1, 2))
    assert (last > 0).all() and (last <= 1 + 1e-5).all()
    if model.num_prefix_tokens == 0:
        close(last, torch.ones(2))


def test_average_pooling_takes_the_mean_of_the_patches_rows():
    classifier, images = network("vit-average"), noise(1, 32)
    seen: list[Tensor] = []
    same = twin(classifier)
    same.model.blocks[2].attn.fused_attn = False
    same.model.blocks[2].attn.attn_drop.register_forward_hook(lambda *given: seen.append(given[2]))
    same(images)
    close(attribute(classifier, images, "attention").native.flatten(1), seen[0].mean(1).mean(1).detach())


# --- other scores, and twins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("method", ["hirescam", "layercam"])
def test_maps_of_concepts_are_those_of_concept_heatmaps(method, stage):
    ensemble, images = real_ensemble("viscoin_resnet10", 32), noise(2, 32)
    concepts = torch.tensor([[0], [3]])
    found = attribute(ConceptActivation(ensemble), images, method, concepts[:, 0], layer=stage, even=True)
    expected = concept_heatmaps(ensemble, images, concepts, method=method, stages=(stage,))
    active = torch.from_numpy(expected.activations[:, 0] > 0)
    assert active.any()
    close(found.unit[active], torch.from_numpy(expected.heatmaps[:, 0])[active], 1e-3)
    close(found.logits.gather(1, concepts), torch.from_numpy(expected.activations), 1e-4)


@pytest.mark.parametrize("method", ["gradcam", "saliency", "rise", "occlusion", "scorecam"])
def test_scores_of_an_ensemble(method):
    ensemble, images = real_ensemble("viscoin_resnet10", 32), noise(1, 32)
    options = {**SMALLER.get(method, {}), **({"layer": 0} if method == "scorecam" else {})}
    for target in (ConceptActivation(ensemble), ExplainerLogit(ensemble), ClassifierLogit(ensemble.classifier)):
        found = attribute(target, images, method, [1], **options)
        assert found.maps.isfinite().all() and found.logits.shape == (1, target.n_scores)
    with pytest.raises(Refused, match="targets 6: out of range; there are 6 concepts"):
        attribute(ConceptActivation(ensemble), images, method, [6], **options)


def test_cam_and_ensembles_are_refused_where_they_mean_nothing():
    ensemble, images = real_ensemble("viscoin_resnet10", 32), noise(1, 32)
    with pytest.raises(Refused, match=r"method cam: .*logits of f alone; those that do: gradcam"):
        attribute(ExplainerLogit(ensemble), images, "cam")
    with pytest.raises(Refused, match="classifier: an ensemble has several scores"):
        attribute(ensemble, images)


def test_a_twin_shares_memory_and_nothing_else():
    classifier = network("resnet")
    same = twin(classifier)
    assert torch.equal(same(noise(1, 32)), classifier(noise(1, 32)))
    ours, theirs = dict(classifier.named_parameters()), same.model.layer4[0].conv1.weight
    assert theirs.data_ptr() == ours["model.layer4.0.conv1.weight"].data_ptr() and not theirs.requires_grad
    same.train()
    same.model.layer4.register_forward_hook(lambda *_: None)
    assert not classifier.training and not classifier.model.layer4._forward_hooks
    assert same.model.bn1 is not classifier.model.bn1


def test_a_twin_of_a_prepared_network_looks_at_itself():
    torch.manual_seed(0)
    classifier = type(network("resnet"))("viscoin_resnet10", 4, 32).eval()
    exact = attribute(classifier, noise(2, 32), "gradcam")
    execution.prepare(classifier, "bf16-mixed")
    close(attribute(classifier, noise(2, 32), "gradcam", exact.targets).maps, exact.maps, 1e-5)
