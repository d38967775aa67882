"""The rows of the scorecard: whatever makes maps of scenes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viscoin.attribution import METHODS, attribute
from viscoin.attribution.explained import enlarged
from viscoin.attribution.targets import Target
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import batches, evaluation
from viscoin.models.classifier import Classifier
from viscoin.testing.scorecard.concepts import ConceptFunction, activations_of, concepts_in_question, standing
from viscoin.testing.scorecard.scenes import Cases

KINDS = ("class", "plugin", "concept", "control")
CONTROLS = ("random", "centre", "edges")
SLOW = ("scorecam", "sscam")  # and all that perturb images: hundreds of passes for one map
OWN, BY_GRADIENT = "own map", "hirescam"
FINEST = ", finest map"

# Images (B, 3, H, W) of the cases in these rows (B,) -> maps (B, H, W).
MapsOf = Callable[[Tensor, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """Something that makes maps.

    Attributes:
        name: unique among all.
        kind: of `KINDS`: it explains a class, or a concept, or is a control that knows neither.
        method: how the maps are made, as its paper writes it.
        function: name of the concept function, or None.
        maps: of chosen cases.
        asked: (N,) bool, the cases that have something to explain.
        signed: whether maps may be below zero.
        explains: (N,) for people, what is explained in each case.
    """

    name: str
    kind: str
    method: str
    maps: MapsOf
    asked: np.ndarray
    signed: bool
    explains: list[str]
    function: str | None = None
    k: int | None = None


def default_methods() -> list[str]:
    """Methods that need few passes and no training; plugins are among them, as nobody knows how many they need."""
    left = (*SLOW, *CONTROLS)
    return [
        name
        for name, method in METHODS.items()
        if name not in left and method.family != "perturbation" and "training" not in method.needs
    ]


def choose_methods(names: Sequence[str] | None) -> list[str]:
    """Methods by name; None: `default_methods`, ["all"]: every one that needs no training.

    Raises:
        Refused: an unknown name.
    """
    if names is None:
        return default_methods()
    if list(names) == ["all"]:
        return [name for name, method in METHODS.items() if name not in CONTROLS and "training" not in method.needs]
    for name in names:
        if name not in METHODS:
            raise Refused("methods", name, "unknown method", f"choose all or some of {', '.join(METHODS)}")
    return [name for name in dict.fromkeys(names) if name not in CONTROLS]


def class_subjects(
    classifier: Classifier, class_names: Sequence[str], cases: Cases, methods: Sequence[str],
    device: torch.device | str = "cpu", batch_size: int = 32, seed: int = 0,
) -> list[Subject]:  # fmt: skip
    """Maps of f's logit of the class that it predicts of the whole scene, by each method and by the controls.

    With HiResCAM there is a second row of it, at f's finest map: how the maps of concepts are made.
    """
    explains = [class_names[target] for target in cases.targets]

    def subject(name: str, suffix: str = "", layer: int | None = None) -> Subject:
        method = METHODS[name]
        kind = method.family if method.family in ("control", "plugin") else "class"
        maps = _attributed(classifier, name, cases.targets, cases, device, batch_size, seed, layer)
        everywhere = np.ones(len(cases), bool)
        return Subject(name + suffix, kind, method.title + suffix, maps, everywhere, method.signed, explains)

    finest = [subject(BY_GRADIENT, FINEST, 0)] if BY_GRADIENT in methods else []
    return [*map(subject, methods), *finest, *map(subject, CONTROLS)]


def concept_subjects(
    functions: Mapping[str, ConceptFunction], validation: ImageDataset, cases: Cases,
    device: torch.device | str = "cpu", batch_size: int = 32, seed: int = 0,
) -> Iterator[Subject]:  # fmt: skip
    """Maps of the concept that stands for what the part in question shows: by HiResCAM, and the function's own.

    Of an ensemble, HiResCAM looks at the finest map, as `concept-heatmaps` does; so it does for all others. What a
    function has at each place is its own map: of Psi its grid of 3x3, of others the last map of f, each enlarged.
    """
    for name, function in functions.items():
        activations = activations_of(function, validation, device, batch_size, f"activations: {name}")
        attributes, chosen = concepts_in_question(cases, *standing(activations, validation.attributes))
        explains = ["" if a < 0 else f"{cases.world.attributes[a]} (concept {c})" for a, c in zip(attributes, chosen)]
        maps = {OWN: _own(function, chosen, device, batch_size)}
        if function.differentiable:
            maps = {BY_GRADIENT: _attributed(
                function.target, BY_GRADIENT, chosen, cases, device, batch_size, seed, layer=0
            )} | maps  # fmt: skip
        for method, of in maps.items():
            title = METHODS[method].title if method in METHODS else method
            signed = method == OWN and function.signed
            k = activations.shape[1] // (2 if function.signed else 1)
            yield Subject(f"{name}, {method}", "concept", title, of, chosen >= 0, signed, explains, name, k)


def _attributed(
    target: Target | Classifier, method: str, scores: np.ndarray, cases: Cases, device: torch.device | str,
    batch_size: int, seed: int, layer: int | None = None,
) -> MapsOf:  # fmt: skip
    def maps(images: Tensor, rows: np.ndarray) -> np.ndarray:
        found = attribute(
            target, images, method, torch.from_numpy(scores[rows]), layer=layer, seed=seed, batch_size=batch_size,
            device=device, indices=cases.indices[rows].tolist(),
        )  # fmt: skip
        return found.maps.numpy()

    return maps


def _own(function: ConceptFunction, chosen: np.ndarray, device: torch.device | str, batch_size: int) -> MapsOf:
    def maps(images: Tensor, rows: np.ndarray) -> np.ndarray:
        found = []
        with evaluation(function.target.model, device):
            for part in batches(np.arange(len(images)), batch_size):
                places = function.own(images[part].to(device))
                of_concept = places[torch.arange(len(part)), torch.from_numpy(chosen[rows[part]])]
                found.append(enlarged(of_concept.float(), images.shape[-2:]).cpu().numpy())
        return np.concatenate(found)

    return maps
