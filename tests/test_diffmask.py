"""DiffMask: gates, masks and losses against reference numbers, its training, and maps of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from toy_ensemble import ToyEnsemble

from viscoin.attribution import METHODS, attribute
from viscoin.attribution.diffmask import diffmask_maps
from viscoin.attribution.targets import ConceptActivation
from viscoin.errors import Refused
from viscoin.models.classifier import Classifier
from viscoin.models.diffmask import GATE, DiffMask, kl_divergence
from viscoin.models.digests import digest
from viscoin.models.hard_concrete import HardConcrete
from viscoin.models.tokens import PatchTokens
from viscoin.training.diffmask import sparsity

GOLDEN = Path(__file__).parent / "golden" / "attribution"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
CLOSE_AFTER = {"atol": 1e-3, "rtol": 1e-3}  # gradients, and what comes out of masked networks


def golden(name: str) -> tuple[dict[str, Tensor], dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def close(found: Tensor, wanted: Tensor, tolerances: dict = CLOSE) -> None:
    torch.testing.assert_close(found, wanted, **tolerances)


# --- the distribution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diffmask", "louizos"])
def test_hard_concrete_is_that_of_the_reference(name):
    tensors, config = golden("hard_concrete")
    gate = HardConcrete(**config["sets"][name])
    found = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(name)}
    v = found["logits"].requires_grad_()
    z = gate.gate(v, found["uniforms"])
    close(gate.concrete(v, found["uniforms"]), found["concrete"])
    close(z, found["gate"])
    close(torch.autograd.grad(z.sum(), v)[0], found["gate_gradient"], CLOSE_AFTER)
    close(gate.log_prob(v, found["values"]), found["log_prob"], CLOSE_AFTER)
    close(gate.cdf(v, found["values"]), found["cdf"])
    close(gate.log_open(v), found["log_open"])
    close(gate.one(v), found["one"])


def test_the_gates_of_diffmask_are_those_of_the_design():
    assert HardConcrete() == GATE
    v = torch.tensor([-3.0, 0.0, 8.0])
    close(GATE.log_open(v).exp(), torch.sigmoid(v + 0.2 * torch.log(torch.tensor(5.0))))


def test_extreme_uniforms_give_finite_gates_and_gradients():
    v = torch.tensor([-2.0, 3.0], requires_grad=True)
    z = GATE.gate(v, torch.tensor([0.0, 1 - 2**-24]))
    assert z.tolist() == [0, 1]
    assert torch.autograd.grad(z.sum(), v)[0].isfinite().all()


# --- the model ----------------------------------------------------------------------------------------------------


class Toy(Classifier):
    """The transformer of the reference numbers, which takes images as they are."""

    def __init__(self, tensors: dict[str, Tensor], config: dict) -> None:
        nn.Module.__init__(self)
        self.model = VisionTransformer(**config["vit"])
        assert self.model.norm.eps == config["norm_eps"]
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        self.n_classes, self.resolution = config["vit"]["num_classes"], config["vit"]["img_size"]
        self.input_size, self.architecture = self.resolution, {"backbone": "toy"}
        self.scale, self.shift = torch.ones(()), torch.zeros(())
        self.eval().requires_grad_(False)


def reference_mask(tensors: dict[str, Tensor], config: dict) -> DiffMask:
    layers, width = config["layers"], config["vit"]["embed_dim"]
    model = DiffMask("digest", layers, width, config["mul_activation"])
    gates = [f"gate.g_hat.{k}" for k in range(layers)]
    names = {"v1": "f.0.weight_v", "g1": "f.0.weight_g", "b1": "f.0.bias",
             "v2": "f.2.weight_v", "g2": "f.2.weight_g", "b2": "f.2.bias", "add": "add_activation"}  # fmt: skip
    model.gates.load_state_dict({n: torch.stack([tensors[f"{g}.{key}"] for g in gates]) for n, key in names.items()})
    model.placeholder.data.copy_(tensors["gate.placeholder"].flatten())
    return model


@pytest.fixture
def reference():
    tensors, config = golden("diffmask")
    f = Toy(tensors, config)
    return tensors, PatchTokens(f), reference_mask(tensors, config), config


def test_tokens_are_those_of_the_reference(reference):
    tensors, tokens, _, config = reference
    logits, states = tokens.states(tensors["images"])
    close(logits, tensors["logits"])
    close(tokens.classifier(tensors["images"]), logits)
    assert tokens.layers == config["layers"] == len(states) and tokens.grid == (4, 4) and tokens.width == 16
    for k, state in enumerate(states):
        close(state, tensors[f"hidden.{k}"][:, 1:])
    close(tokens.logits(states[0]), logits)


def all_states(tensors: dict[str, Tensor], layers: int) -> Tensor:
    """States of the reference, class token included, whose gates the published code trains as well."""
    return torch.stack([tensors[f"hidden.{k}"] for k in range(layers)])


def test_masks_are_those_of_the_reference(reference):
    tensors, tokens, model, config = reference
    v = model.gates(all_states(tensors, config["layers"]))
    close(GATE.log_open(v), tensors["each.log_open"])
    close(GATE.gate(v, tensors["uniforms"]).cumprod(-1), tensors["all.gates"])
    close(GATE.log_open(v).cumsum(-1), tensors["all.log_open"])
    found = model.explain(tokens, tensors["images"])
    enlarged = found.mask.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0]
    close(enlarged, tensors["mask"])
    for k in range(config["layers"]):
        alone = model.explain(tokens, tensors["images"], k, aggregated=False).mask
        close(alone, tensors["each.log_open"][:, 1:, k].exp())
        so_far = model.explain(tokens, tensors["images"], k).mask
        close(so_far, tensors["each.log_open"][:, 1:, : k + 1].sum(-1).exp())


@pytest.mark.parametrize("layer", range(4))
def test_losses_and_gradients_are_those_of_the_reference(reference, layer):
    tensors, tokens, model, config = reference
    wanted = {key.removeprefix(f"train.{layer}."): value for key, value in tensors.items() if f"train.{layer}." in key}
    logits, states = tokens.states(tensors["images"])
    uniforms = tensors["uniforms"][..., : layer + 1]
    mask, log_open = model.sample(states[: layer + 1], uniforms[:, 1:])
    close(mask, wanted["gates"][:, 1:])
    close(log_open, wanted["log_open"][:, 1:])
    masked = tokens.logits(model.replace(states[0], mask))
    kl = kl_divergence(logits, masked)
    close(masked, wanted["masked_logits"], CLOSE_AFTER)
    close(kl, wanted["kl"], CLOSE_AFTER)
    close(sparsity(log_open, "expected"), wanted["loss_g.expected"])
    # what the published code minimises: logs, and the gate of the class token, which does nothing, among them
    of_class = model.log_open(all_states(tensors, layer + 1)[:, :, :1]).sum(-1)
    published = sparsity(torch.cat([of_class, log_open], 1), "log")
    close(published, wanted["loss_g"])
    loss = (config["alpha"] * (kl - config["eps"]) + published).mean()
    close(loss, wanted["loss"], CLOSE_AFTER)
    loss.backward()
    close(model.placeholder.grad, wanted["placeholder_gradient"].flatten(), CLOSE_AFTER)
    close(model.gates.add.grad[layer], wanted["add_gradient"], CLOSE_AFTER)
    close(model.gates.v1.grad[layer], wanted["gate_gradient"], CLOSE_AFTER)
    close((kl - config["eps"]).mean(), wanted["alpha_gradient"], CLOSE_AFTER)


# --- other transformers, and networks that are none ---------------------------------------------------------------


def wrapped(model: nn.Module, size: int) -> Classifier:
    """A classifier around any network, without asking timm for it by name."""
    f = Classifier("viscoin_vit_patch8", 5, 32)
    f.model, f.resolution = model, size
    return f.eval()


KINDS = {
    "class token": {},
    "average": {"global_pool": "avg", "class_token": False},
    "registers": {"reg_tokens": 4, "init_values": 1e-5, "no_embed_class": True},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "norm first": {"pre_norm": True},
}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_all_plain_vits_run_from_their_embeddings(kind):
    torch.manual_seed(0)
    f = wrapped(VisionTransformer(**SMALL, **KINDS[kind]), 32)
    tokens, images = PatchTokens(f), torch.rand(2, 3, 32, 32)
    logits, states = tokens.states(images)
    close(logits, f(images))
    close(tokens.logits(tokens.embed(images)), logits)
    assert states.shape == (5, 2, 16, 16)


def test_distilled_tokens_are_no_patches():
    torch.manual_seed(0)
    f = wrapped(VisionTransformerDistilled(**SMALL), 32)
    logits, states = PatchTokens(f).states(torch.rand(2, 3, 32, 32))
    assert states.shape == (5, 2, 16, 16) and logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda: Classifier("viscoin_resnet10", 4, 32), "a ResNet has no tokens that stay patches"),
        (lambda: wrapped(VisionTransformer(**SMALL, dynamic_img_size=True), 32), "follows the size of the image"),
        (lambda: wrapped(VisionTransformer(**SMALL, embed_layer=Mixing), 32), "from a Mixing, in which patches mix"),
    ],
)  # fmt: skip
def test_what_is_no_plain_vit_is_refused_with_the_reason(f, reason):
    with pytest.raises(Refused, match=reason):
        PatchTokens(f())


class Mixing(nn.Module):
    """Embeddings that are not made patch by patch."""

    def __init__(self, embed_dim: int, **settings: object) -> None:
        super().__init__()
        self.num_patches, self.grid_size = 16, (4, 4)


# --- maps ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> tuple[Classifier, DiffMask, Tensor]:
    """A classifier, a DiffMask of it with gates that are neither open nor shut, and images."""
    torch.manual_seed(0)
    f = Classifier("viscoin_vit_patch8", 5, 32)
    tokens = PatchTokens(f)
    model = DiffMask(digest(f=f)["f"], tokens.layers, tokens.width, 3.0, 1.0)
    return f, model, torch.rand(5, 3, 32, 32) * 2 - 1


def test_maps_are_deterministic_and_of_the_grid_of_patches(pair):
    f, model, images = pair
    found = diffmask_maps(f, model, images)
    assert found.maps.shape == (5, 4, 4) and found.maps.dtype == torch.float32
    assert found.maps.min() > 0 and found.maps.max() < 1 and found.maps.std() > 0.001
    close(found.kept, found.maps.mean((1, 2)))
    for other in (diffmask_maps(f, model, images), diffmask_maps(f, model, images, batch_size=2)):
        close(other.maps, found.maps)
    close(diffmask_maps(f, model, images[3:4]).maps, found.maps[3:4])


def test_what_f_says_with_the_mask_is_reported(pair):
    f, model, images = pair
    found, tokens = diffmask_maps(f, model, images), PatchTokens(f.eval())
    blended = model.replace(tokens.embed(images), found.maps.flatten(1))
    close(found.masked_logits, tokens.logits(blended))
    close(found.logits, f(images))
    p, q = found.logits.softmax(1), found.masked_logits.softmax(1)
    close(found.kl, (p * (p / q).log()).sum(1))


def test_masks_shrink_with_every_layer_and_are_the_product_of_those_alone(pair):
    f, model, images = pair
    so_far = [diffmask_maps(f, model, images, layer=k).maps for k in range(model.layers)]
    alone = [diffmask_maps(f, model, images, layer=k, aggregated=False).maps for k in range(model.layers)]
    for k in range(1, model.layers):
        assert (so_far[k] <= so_far[k - 1]).all()
        close(so_far[k], so_far[k - 1] * alone[k])
    close(so_far[-1], diffmask_maps(f, model, images).maps)


def test_patches_of_mask_zero_are_the_placeholder_and_of_one_the_image(pair):
    _, model, _ = pair
    embeddings = torch.rand(1, 3, 96)
    found = model.replace(embeddings, torch.tensor([[0.0, 1.0, 0.5]]))[0]
    close(found[0], model.placeholder)
    close(found[1], embeddings[0, 1])
    close(found[2], (embeddings[0, 2] + model.placeholder) / 2)


def test_models_come_back_as_they_were(pair):
    f, model, images = pair
    f.train()
    f.model.blocks[0].eval()
    before = {module: module.training for module in f.modules()}
    diffmask_maps(f, model, images)
    with pytest.raises(ValueError, match="the classifier takes images"):
        diffmask_maps(f, model, images[..., :16])
    assert {module: module.training for module in f.modules()} == before
    assert all(weight.requires_grad and weight.grad is None for weight in f.parameters())


def test_a_mask_of_another_classifier_is_refused_with_both_digests(pair):
    f, model, images = pair
    trained_on = model.classifier[:16]
    with torch.no_grad():
        f.last_layer.bias.add_(1e-3)
    given = digest(f=f)["f"][:16]
    with pytest.raises(Refused, match=f"trained on a classifier of digest {trained_on}, and this one has {given}"):
        diffmask_maps(f, model, images)


@pytest.mark.parametrize("layer", [-1, 8])
def test_layers_that_do_not_exist_are_refused(pair, layer):
    f, model, images = pair
    with pytest.raises(Refused, match=rf"layer {layer}: there is no such layer; choose 0 .* 1 to 6 .* or 7"):
        diffmask_maps(f, model, images, layer=layer)


# --- as one of the methods ----------------------------------------------------------------------------------------


def test_as_a_method_it_gives_the_same_maps(pair):
    f, model, images = pair
    found = attribute(f, images, "diffmask", diffmask=model, batch_size=2)
    close(found.native, diffmask_maps(f, model, images).maps)
    assert found.maps.shape == (5, 32, 32) and not found.signed and not found.maps.is_inference()
    assert (found.forwards, found.backwards) == (1, 0)
    assert json.loads(json.dumps(found.options))["diffmask"] == digest(model=model)["model"]
    assert METHODS["diffmask"].family == "learned" and METHODS["diffmask"].needs == ("training",)


@pytest.mark.parametrize("aggregated", [True, False])
def test_as_a_method_it_shows_single_layers(pair, aggregated):
    f, model, images = pair
    found = attribute(f, images, "diffmask", diffmask=model, gates=2, aggregated=aggregated)
    close(found.native, diffmask_maps(f, model, images, layer=2, aggregated=aggregated).maps)


def test_as_a_method_it_is_refused_in_one_line(pair):
    f, model, images = pair

    def refused(message: str, classifier: object = f, **options: object) -> None:
        with pytest.raises(Refused, match=message):
            attribute(classifier, images, "diffmask", **options)

    refused(r"method diffmask: it has to be trained .*, and no DiffMask is given; train one with `train diffmask`")
    refused(r"gates 8: there is no such layer; choose 0", diffmask=model, gates=8)
    refused(r"aggregated 3: not possible for method diffmask; choose True or False", diffmask=model, aggregated=3)
    resnet = Classifier("viscoin_resnet10", 4, 32)
    refused(r"method diffmask: does not hold for \w+: .* a ResNet has no tokens .*; those that do: .*gradcam", resnet)
    given = digest(f=f)["f"][:16]
    model.classifier = "another-classifier"
    refused(f"digest another-classifi, and this one has {given}", diffmask=model)
    with pytest.raises(Refused, match=r"does not hold for .*: a DiffMask explains what the classifier f predicts"):
        attribute(ConceptActivation(ToyEnsemble()), torch.zeros(1, 3, 8, 8), "diffmask", diffmask=model)
