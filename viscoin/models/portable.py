"""Parts of a model that stand alone: tensors in, tensors out, no options. `viscoin.export` writes them to files."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stylegan2_ada.networks import Generator, Synthesis
from viscoin.errors import Refused
from viscoin.kinds import KINDS
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import CONCEPT_GRID
from viscoin.models.ensemble import VisCoIN
from viscoin.models.explainer import activations
from viscoin.models.files import LoadedModel
from viscoin.models.generator import AdaptedGenerator

NOISE_MODES = ("const", "none")
PARTS = {name: kind.parts for name, kind in KINDS.items() if kind.parts}  # of each kind, the usual one first


@dataclass(frozen=True)
class Port:
    """One input or output of a part: float32, the batch first."""

    name: str
    shape: tuple[int, ...]  # without the batch
    meaning: str


@dataclass(frozen=True)
class Part:
    """A part of a model, detached from it: in eval mode, on the CPU, without gradients for its weights."""

    name: str
    description: str
    module: nn.Module  # takes `inputs`, returns a tuple of `outputs`
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    architecture: dict[str, Any]  # what cannot be read off the weights
    weight_names: Callable[[str], str] = str  # names in plain weight files, from those of the module
    options: tuple[str, ...] = ()  # of `noise_mode` and `truncation_psi`, those that make a difference


class ClassifierPart(nn.Module):
    """f: images -> logits."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.classifier(images),)


class ConceptsPart(nn.Module):
    """f, Psi and Theta: images -> all that explains them."""

    def __init__(self, model: VisCoIN) -> None:
        super().__init__()
        self.classifier, self.concept_extractor, self.explainer = (
            model.classifier,
            model.concept_extractor,
            model.explainer,
        )
        self.explainer.linear = _plain(self.explainer.linear)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, maps = self.classifier.features(images)
        concept_maps, support, _ = self.concept_extractor(maps)
        phi = activations(concept_maps)
        contributions = phi[:, None, :] * self.explainer.weight
        found = (logits, self.explainer(concept_maps), phi, contributions, concept_maps)
        return (*found, support) if self.concept_extractor.support_width else found


def _plain(linear: nn.Linear) -> nn.Linear:
    """The same layer with its effective weight; removing the parametrization would change the class of all copies."""
    plain = nn.Linear(linear.in_features, linear.out_features)
    plain.load_state_dict({"weight": linear.weight, "bias": linear.bias})
    return plain.requires_grad_(False)


class DecoderPart(nn.Module):
    """Omega and G: concept maps and support -> images; with directions, the maps before they were edited as well."""

    def __init__(self, generator: AdaptedGenerator, noise_mode: str) -> None:
        super().__init__()
        self.generator, self.noise_mode = generator, noise_mode

    def forward(self, concept_maps: Tensor, support: Tensor, original: Tensor | None = None) -> tuple[Tensor, ...]:
        return (self.generator(concept_maps, support, self.noise_mode, original),)


class SynthesisPart(nn.Module):
    """The synthesis network of G: one style vector for each layer -> images."""

    def __init__(self, synthesis: Synthesis, noise_mode: str) -> None:
        super().__init__()
        self.synthesis, self.noise_mode = synthesis, noise_mode

    def forward(self, ws: Tensor) -> tuple[Tensor, ...]:
        return (self.synthesis(ws, self.noise_mode),)


class GeneratorPart(nn.Module):
    """G: latents, and the condition where there is one -> images."""

    def __init__(self, generator: Generator, noise_mode: str, truncation_psi: float) -> None:
        super().__init__()
        self.generator, self.noise_mode, self.truncation_psi = generator, noise_mode, truncation_psi

    def forward(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        return (self.generator(z, c, truncation_psi=self.truncation_psi, noise_mode=self.noise_mode),)


def default_part(loaded: LoadedModel) -> str:
    """Name of the part that a model is about; ValueError for a kind of which nothing can be exported."""
    if loaded.kind not in PARTS:
        remedy = "import it again together with its classifier" if loaded.kind == "parts" else ""
        kinds = f"kind {loaded.kind!r}, which cannot be exported; {', '.join(PARTS)} can"
        raise Refused(None, None, f"{loaded.path} holds a model of {kinds}", remedy)
    return PARTS[loaded.kind][0]


def take_part(
    loaded: LoadedModel, name: str | None = None, noise_mode: str = "const", truncation_psi: float = 1
) -> Part:
    """A copy of one part of a model; the model stays as it is.

    Args:
        name: "classifier" (f), "concepts" (f, Psi and Theta), "decoder" (Omega and G), "generator" (G, from z) or
            "synthesis" (G, from w+); None takes f, f + Psi + Theta or G from z, whichever the model is about.
        noise_mode: "const" for the stored noise of G, "none" for none; random noise could not be compared.
        truncation_psi: of the generator: 1 leaves styles alone, 0 gives the mean style everywhere.

    Raises:
        ValueError: the model has no such part, an unknown noise mode, or an argument that the part does not know.
    """
    usual = default_part(loaded)
    name = usual if name is None else name
    if name not in PARTS[loaded.kind]:
        kinds = [kind for kind, parts in PARTS.items() if name in parts]
        raise Refused(
            "part", name, f"{loaded.path} holds a {loaded.kind} model, whose parts are {', '.join(PARTS[loaded.kind])}",
            f"{name!r} is part of a {' or '.join(kinds)} model" if kinds else "",
        )  # fmt: skip
    if noise_mode not in NOISE_MODES:
        reason = "unknown; with random noise nothing could be compared"
        raise Refused("noise_mode", noise_mode, reason, f"choose {' or '.join(NOISE_MODES)}")
    model = copy.deepcopy(loaded.model).cpu().float().eval().requires_grad_(False)
    part = _build(name, model, noise_mode, truncation_psi)
    if noise_mode != NOISE_MODES[0] and "noise_mode" not in part.options:
        raise Refused("noise_mode", noise_mode, f"there is no noise in part {name!r}", "leave it out")
    if truncation_psi != 1 and "truncation_psi" not in part.options:
        reason = f"only part 'generator' truncates, not {name!r}"
        raise Refused("truncation_psi", truncation_psi, reason, "leave it out")
    return part


def _build(name: str, model: Any, noise_mode: str, truncation_psi: float) -> Part:
    if name == "classifier":
        return _classifier(model if isinstance(model, Classifier) else model.classifier)
    if name == "concepts":
        return _concepts(model)
    if name == "decoder":
        return _decoder(model, noise_mode)
    if name == "synthesis":
        return _synthesis(model if isinstance(model, Generator) else model.generator, noise_mode)
    return _generator(model, noise_mode, truncation_psi)


def _classifier(f: Classifier) -> Part:
    return Part(
        "classifier",
        "Classifier f: images to logits",
        ClassifierPart(f),
        (_images(f),),
        (Port("logits", (f.n_classes,), "logits of f, one for each class"),),
        {"classifier": f.architecture},
        lambda key: key.removeprefix("classifier.model."),  # those of timm
    )


def _concepts(model: VisCoIN) -> Part:
    f, n_concepts = model.classifier, model.n_concepts
    outputs = (
        Port("logits", (f.n_classes,), "logits of the classifier f, one for each class"),
        Port("explained_logits", (f.n_classes,), "logits of g, computed from the concepts alone"),
        Port("activations", (n_concepts,), "concept activations phi >= 0: the maximum of each concept map"),
        Port(
            "contributions",
            (f.n_classes, n_concepts),
            "activation times weight of each concept for each class; their sum over concepts and a constant of the "
            "class are the explained logits, and divided by the largest absolute value over concepts they are the "
            "relevance",
        ),
        *_codes(model),
    )
    architecture = {"classifier": f.architecture, "latent_channels": model.concept_extractor.latent_channels}
    return Part(
        "concepts",
        "f, concept extractor and explainer: images to logits, concepts and what each concept says for each class",
        ConceptsPart(model),
        (_images(f),),
        outputs,
        architecture,
        lambda key: key.replace("classifier.model.", "classifier.", 1),
    )


def _decoder(model: VisCoIN, noise_mode: str) -> Part:
    generator, inputs = model.generator, _codes(model)
    if generator.directions is not None:
        unedited = "concept maps before they were edited; the same as concept_maps for a reconstruction"
        inputs = (*inputs, Port("original", inputs[0].shape, unedited))
    return Part(
        "decoder",
        "Concept translator and generator: concept maps and support to images",
        DecoderPart(generator, noise_mode),
        inputs,
        (_drawn(generator),),
        {"generator": generator.architecture},
        lambda key: key.removeprefix("generator."),
        ("noise_mode",),
    )


def _synthesis(generator: Generator | AdaptedGenerator, noise_mode: str) -> Part:
    network = generator.synthesis
    config = (
        {"w_dim": generator.w_dim, "img_resolution": generator.img_resolution, "img_channels": generator.img_channels}
        | generator.config["synthesis_kwargs"]
        if isinstance(generator, Generator)
        else generator.architecture["synthesis"]
    )
    return Part(
        "synthesis",
        "Synthesis network of the generator: styles w+ to images",
        SynthesisPart(network, noise_mode),
        (Port("ws", (network.num_ws, network.w_dim), "one style vector for each layer (w+)"),),
        (_drawn(generator),),
        {"synthesis": config},
        options=("noise_mode",),
    )


def _generator(generator: Generator, noise_mode: str, truncation_psi: float) -> Part:
    inputs = [Port("z", (generator.z_dim,), "latents, standard normal")]
    if generator.c_dim:
        inputs.append(Port("c", (generator.c_dim,), "1 at the class to draw, 0 at the others, in order of class_names"))
    return Part(
        "generator",
        "Generator: latents to images",
        GeneratorPart(generator, noise_mode, truncation_psi),
        tuple(inputs),
        (_drawn(generator),),
        {"generator": generator.config},
        lambda key: key.removeprefix("generator."),
        ("noise_mode", "truncation_psi"),
    )


def _images(f: Classifier) -> Port:
    return Port("images", (3, f.resolution, f.resolution), "RGB in [-1, 1], which is pixels / 127.5 - 1")


def _drawn(generator: Generator | AdaptedGenerator) -> Port:
    channels, side = generator.img_channels, generator.img_resolution
    return Port("images", (channels, side, side), "around [-1, 1], not clamped; pixels are (images + 1) * 127.5")


def _codes(model: VisCoIN) -> tuple[Port, ...]:
    extractor = model.concept_extractor
    sign = " >= 0" if extractor.components is None else ""
    maps = Port("concept_maps", (extractor.n_concepts, CONCEPT_GRID, CONCEPT_GRID), "concept maps Phi >= 0")
    if not model.draws:
        return (maps,)
    return (
        maps,
        Port("support", (extractor.support_width,), f"support Phi'{sign}, which the generator alone needs"),
    )
