"""Psi, Theta, Omega and the ensemble: published numbers, shapes, and what stays frozen."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from stylegan2_ada.networks import Generator
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.ensemble import VisCoIN, amplify
from viscoin.models.explainer import Explainer, activations
from viscoin.models.generator import AdaptedGenerator, ConceptTranslator
from viscoin.models.perceptual import ClassifierPerceptual
from viscoin.training import losses

GOLDEN = Path(__file__).parent / "golden" / "viscoin" / "modules.safetensors"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


class Golden:
    def __init__(self) -> None:
        with safe_open(GOLDEN, "pt") as file:
            self.config = json.loads(file.metadata()["config"])
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def state(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def maps(self) -> list[Tensor]:
        return [self[f"feature_{i}"] for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def small_generator(resolution: int = 64) -> Generator:
    generator = Generator(8, 0, 16, resolution, 3, {"num_layers": 2}, {"channel_base": 512, "channel_max": 16})
    generator.mapping.w_avg.normal_()
    return generator


@pytest.fixture
def ensemble() -> VisCoIN:
    torch.manual_seed(0)
    classifier = Classifier("viscoin_resnet10", 3, 64)
    return VisCoIN(
        classifier,
        ConceptExtractor(classifier.feature_shapes, n_concepts=6, latent_channels=8),
        Explainer(6, 3),
        AdaptedGenerator.from_pretrained(small_generator(), 6, coarse_layer=2, mid_layer=7),
        ["wren", "robin", "heron"],
    )


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_concept_extractor_equals_published_values(golden):
    shapes = [tuple(part.shape[1:]) for part in golden.maps]
    extractor = ConceptExtractor(shapes, golden.config["n_concepts"], golden.config["latent_channels"])
    extractor.load_state_dict(golden.state("concept_extractor."))
    concept_maps, support, _ = extractor(golden.maps)
    torch.testing.assert_close(concept_maps, golden["phi"], **CLOSE)
    torch.testing.assert_close(support, golden["phi_support"], **CLOSE)


@pytest.mark.parametrize("name", ["explainer", "explainer_normalized"])
def test_explainer_equals_published_values(golden, name):
    explainer = Explainer(
        golden.config["n_concepts"], golden.config["n_classes"], weight_norm=name == "explainer_normalized"
    ).eval()
    explainer.load_state_dict(golden.state(f"{name}."))
    torch.testing.assert_close(explainer(golden["phi"]), golden[f"{name}_logits"], **CLOSE)
    logits = activations(golden["phi"]) @ explainer.weight.T + explainer.linear.bias
    torch.testing.assert_close(logits, golden[f"{name}_logits"], **CLOSE)


def test_generator_equals_published_values(golden):
    config = golden.config
    synthesis = {key: config[key] for key in ("w_dim", "img_resolution", "channel_base", "channel_max")}
    generator = AdaptedGenerator(
        synthesis | {"img_channels": 3}, config["n_concepts"], config["coarse_layer"], config["mid_layer"]
    )
    generator.load_state_dict(golden.state("gan."))
    ws = generator.mapping(golden["phi"], golden["phi_support"])
    torch.testing.assert_close(ws, golden["ws"], **CLOSE)
    image = generator(golden["phi"], golden["phi_support"], noise_mode=config["noise"])
    torch.testing.assert_close(image, golden["image"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "kernels", "strides"),
    [
        ((28, 14, 7), (5, 3, 3), (4, 2, 1)),
        ((16, 8, 4), (5, 3, 3), (4, 2, 1)),
        ((32, 16, 8), (5, 3, 3), (4, 2, 1)),
        ((14, 14, 14), (3, 3, 3), (1, 1, 1)),
        ((8, 4, 2), (3, 3, 3), (2, 1, 1)),
        ((13, 6, 2), (5, 3, 3), (4, 2, 1)),
    ],
)
def test_kernels_follow_from_the_feature_shapes(sizes, kernels, strides):
    shapes = [(channels, size, size) for channels, size in zip((4, 6, 8), sizes)]
    extractor = ConceptExtractor(shapes, n_concepts=5, latent_channels=3)
    layers = (extractor.conv1, extractor.conv2, extractor.conv3)
    assert tuple(layer.kernel_size[0] for layer in layers) == kernels
    assert tuple(layer.stride[0] for layer in layers) == strides
    concept_maps, support, _ = extractor([torch.randn(2, *shape) for shape in shapes])
    assert concept_maps.shape == (2, 5, 3, 3)
    assert support.shape == (2, 45)
    assert (concept_maps >= 0).all()


@pytest.mark.parametrize("sizes", [(28, 14, 7), (16, 8, 4), (14, 14, 14)])
def test_concepts_may_start_from_single_channels(sizes):
    """Each concept follows one channel of one map, and nothing else, as long as nothing is mixed in."""
    torch.manual_seed(0)
    shapes = [(channels, size, size) for channels, size in zip((4, 6, 8), sizes)]
    extractor = ConceptExtractor(shapes, n_concepts=9, latent_channels=3)
    extractor.start_from_channels(mixed=0.0)
    maps = [torch.rand(2, *shape) for shape in shapes]
    before = activations(extractor(maps)[0])
    read = []
    for index, shape in enumerate(shapes):
        for channel in range(shape[0]):
            changed = [part.clone() for part in maps]
            changed[index][:, channel] += 1
            moved = (activations(extractor(changed)[0]) - before).abs() > 1e-4
            assert moved.sum(1).max() <= 1
            read += moved[0].nonzero().flatten().tolist()
    assert sorted(read) == list(range(9))


def test_concept_extractor_needs_three_maps():
    with pytest.raises(ValueError, match="three feature maps, not 2"):
        ConceptExtractor([(4, 8, 8), (4, 4, 4)], 5, 3)


def test_translator_sends_concepts_to_the_middle_styles_only():
    torch.manual_seed(0)
    translator = ConceptTranslator(n_concepts=2, num_ws=8, w_dim=5, coarse_layer=2, mid_layer=6)
    concept_maps, support = torch.rand(1, 2, 3, 3), torch.rand(1, 18)
    ws = translator(concept_maps, support)
    by_concepts = (translator(concept_maps.flip(1), support) - ws).abs().amax((0, 2)) > 0
    by_support = (translator(concept_maps, support.flip(1)) - ws).abs().amax((0, 2)) > 0
    assert by_concepts.tolist() == [False, False, True, True, True, True, True, False]
    assert by_support.tolist() == [True, True, False, False, False, False, False, True]


def test_translator_of_no_concepts_gives_finite_styles():
    translator = ConceptTranslator(2, 8, 5, 2, 6)
    assert torch.isfinite(translator(torch.zeros(1, 2, 3, 3), torch.zeros(1, 18))).all()


def test_translator_needs_a_style_for_concepts():
    with pytest.raises(ValueError, match=r"coarse_layer \(9\).*8 styles"):
        ConceptTranslator(2, 8, 5, coarse_layer=9, mid_layer=10)


def test_adapted_generator_takes_weights_and_mean_style():
    source = small_generator()
    adapted = AdaptedGenerator.from_pretrained(source, 6, 2, 7)
    torch.testing.assert_close(adapted.mapping.fixed_w_avg, source.mapping.w_avg)
    ws = torch.randn(1, source.num_ws, 16)
    torch.testing.assert_close(adapted.synthesis(ws, noise_mode="const"), source.synthesis(ws, noise_mode="const"))
    assert source.synthesis.b4.const.requires_grad, "the caller's generator must stay trainable"


def test_adapted_generator_refuses_a_zero_mean_style():
    source = small_generator()
    source.mapping.w_avg.zero_()
    with pytest.raises(ValueError, match=r"mean style .* is zero.*trained generator"):
        AdaptedGenerator.from_pretrained(source, 6, 2, 7)


def test_ensemble_shapes(ensemble):
    ensemble.eval()
    code = ensemble.encode(images())
    assert code.logits.shape == (2, 3)
    assert [tuple(part.shape[1:]) for part in code.maps] == ensemble.classifier.feature_shapes
    assert code.concept_maps.shape == (2, 6, 3, 3)
    assert code.support.shape == (2, 54)
    assert ensemble.decode(code.concept_maps, code.support).shape == (2, 3, 64, 64)
    torch.testing.assert_close(ensemble(images()), ensemble.explain(code.concept_maps))
    torch.testing.assert_close(ensemble.activations(code.concept_maps), code.concept_maps.flatten(2).max(2).values)


def test_ensemble_rebuilds_from_its_architecture(ensemble):
    architecture = json.loads(json.dumps(ensemble.architecture))
    twin = VisCoIN.from_architecture(architecture, ensemble.class_names)
    twin.load_state_dict(ensemble.state_dict())
    assert twin.architecture == ensemble.architecture
    assert twin.class_names == ["wren", "robin", "heron"]
    code, again = ensemble.eval().encode(images()), twin.eval().encode(images())
    torch.testing.assert_close(twin.explain(again.concept_maps), ensemble.explain(code.concept_maps))
    torch.testing.assert_close(twin.decode(*again[2:4]), ensemble.decode(*code[2:4]))


def test_parts_that_do_not_fit_are_refused():
    classifier = Classifier("viscoin_resnet10", 3, 64)
    extractor = ConceptExtractor(classifier.feature_shapes, 6, 8)
    generator = AdaptedGenerator.from_pretrained(small_generator(), 6, 2, 7)
    names = ["wren", "robin", "heron"]
    with pytest.raises(ValueError, match="classifier knows 3 classes, the explainer 4"):
        VisCoIN(classifier, extractor, Explainer(6, 4), generator, names)
    with pytest.raises(ValueError, match="2 class names"):
        VisCoIN(classifier, extractor, Explainer(6, 3), generator, names[:2])
    with pytest.raises(ValueError, match="6 concepts, the explainer 5"):
        VisCoIN(classifier, extractor, Explainer(5, 3), generator, names)
    with pytest.raises(ValueError, match=r"images of 32 px .* takes 64 px"):
        VisCoIN(
            classifier,
            extractor,
            Explainer(6, 3),
            AdaptedGenerator.from_pretrained(small_generator(32), 6, 2, 7),
            names,
        )


def loss_terms(ensemble: VisCoIN, batch: Tensor) -> dict[str, Tensor]:
    """Every term of the loss, as the training composes them."""
    code = ensemble.encode(batch)
    ws = ensemble.generator.mapping(code.concept_maps, code.support)
    rebuilt = ensemble.generator.synthesis(ws, noise_mode="const")
    again = ensemble.classifier.features(rebuilt)
    perceptual = ClassifierPerceptual(ensemble.classifier)
    return {
        "output_fidelity": losses.output_fidelity(ensemble.explain(code.concept_maps), code.logits),
        "l1": losses.reconstruction_l1(rebuilt, batch),
        "l2": losses.reconstruction_l2(rebuilt, batch),
        "perceptual": perceptual(rebuilt, batch, again.maps, code.maps).mean(),
        "reconstruction_class": losses.reconstruction_class(again.logits, code.logits),
        "sparsity": losses.sparsity(code.concept_maps),
        "orthogonality": losses.concept_orthogonality(ensemble.concept_extractor.conv5.weight),
        "style": losses.style_regularization(ws, ensemble.generator.mapping.fixed_w_avg),
    }


IMAGE_TERMS = ("l1", "l2", "perceptual", "reconstruction_class")
PARTS = {  # which of Psi, Theta and Omega a term must teach; nothing else
    **{term: {"concept_extractor", "generator"} for term in (*IMAGE_TERMS, "style")},
    "output_fidelity": {"concept_extractor", "explainer"},
    "sparsity": {"concept_extractor"},
    "orthogonality": {"concept_extractor"},
}


@pytest.mark.parametrize("term", PARTS)
def test_every_term_teaches_its_parts(ensemble, term):
    ensemble.train()
    loss_terms(ensemble, images())[term].backward()
    taught = {name.split(".")[0] for name, p in ensemble.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == PARTS[term]


def test_classifier_and_synthesis_stay_frozen_in_training(ensemble):
    ensemble.train()
    frozen = ("classifier.", "generator.synthesis.")
    trained = [(name, p) for name, p in ensemble.named_parameters() if not name.startswith(frozen)]
    assert all(p.requires_grad for _, p in trained)
    assert not any(p.requires_grad for name, p in ensemble.named_parameters() if name.startswith(frozen))
    assert not any(m.training for m in (*ensemble.classifier.modules(), *ensemble.generator.synthesis.modules()))
    assert ensemble.concept_extractor.training and ensemble.explainer.training and ensemble.generator.mapping.training
    before = {key: value.clone() for key, value in ensemble.state_dict().items()}
    optimizer = torch.optim.SGD((p for _, p in trained), lr=1.0)
    torch.stack(list(loss_terms(ensemble, images()).values())).sum().backward()
    optimizer.step()
    changed = {key for key, value in ensemble.state_dict().items() if not torch.equal(value, before[key])}
    assert "classifier.model.bn1.running_mean" in before
    assert not any(key.startswith(frozen) for key in changed)
    assert {key.split(".")[0] for key in changed} == {"concept_extractor", "explainer", "generator"}


def test_encode_keeps_a_graph_of_f_only_for_images_that_ask(ensemble):
    assert not ensemble.encode(images()).maps[0].requires_grad
    wanted = images().requires_grad_()
    ensemble.encode(wanted).concept_maps.sum().backward()
    assert wanted.grad.abs().sum() > 0
    with torch.no_grad():
        assert not ensemble.encode(wanted).maps[0].requires_grad


def test_relevance_is_the_contribution_over_the_largest(ensemble):
    with torch.no_grad():
        ensemble.explainer.linear.weight.zero_()
        ensemble.explainer.linear.weight[1, :3] = torch.tensor([2.0, -4.0, 1.0])
    phi = torch.tensor([[1.0, 2.0, 0.0, 5.0, 0.0, 0.0], [0.0] * 6])
    relevance = ensemble.relevance(phi, torch.tensor([1, 1]))
    torch.testing.assert_close(relevance[0], torch.tensor([2 / 8, -1.0, 0, 0, 0, 0]))
    assert relevance[1].tolist() == [0] * 6


def test_amplify_changes_chosen_concepts_only():
    concept_maps = torch.ones(2, 3, 3, 3)
    chosen = torch.tensor([[True, False, False], [False, False, True]])
    amplified = amplify(concept_maps, chosen, 2.5)
    assert amplified[:, :, 0, 0].tolist() == [[2.5, 1, 1], [1, 1, 2.5]]
    assert amplify(concept_maps, torch.tensor([False, True, False]), 0)[:, :, 2, 2].tolist() == [[1, 0, 1]] * 2
    assert (concept_maps == 1).all()
