"""Concept functions: what turns images into K activations each. Those of an ensemble, and its rivals beside them."""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from stylegan2_ada.together import collect, once
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import choose_images, evaluation, own_batches
from viscoin.models.ensemble import VisCoIN
from viscoin.testing.rivals import FITS, Rival, Seen

# Images (B, 3, H, W) in [-1, 1] -> activations (B, K) of each concept function, by its name.
ConceptFunctions = Callable[[Tensor], dict[str, np.ndarray]]

Extractor = TypeVar("Extractor", bound=nn.Module)

CONCEPTS, UNTRAINED = "concepts", "untrained"
RIVALS = (*FITS, UNTRAINED)
logger = logging.getLogger(__name__)


def choose_rivals(names: Sequence[str] | None) -> tuple[str, ...]:
    """Those of RIVALS that are named, in their order; ["all"] or None for all of them, ["none"] for none.

    Raises:
        Refused: there is no such rival.
    """
    if names is None or list(names) == ["all"]:
        return RIVALS
    if list(names) == ["none"]:
        return ()
    unknown = [name for name in names if name not in RIVALS]
    if unknown:
        raise Refused(
            "rivals", unknown[0], "there is no such rival", f"choose all, none or some of {', '.join(RIVALS)}"
        )
    return tuple(name for name in RIVALS if name in names)


def untrained(ensemble: VisCoIN, seed: int = 0) -> VisCoIN:
    """A copy of the ensemble with a freshly initialised Psi: the baseline for what the architecture gives for free."""
    copy = deepcopy(ensemble)
    copy.concept_extractor = _initialised(copy.concept_extractor, seed)
    return copy


def concept_functions(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    indices: np.ndarray,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
    rivals: Sequence[str] = RIVALS,
) -> ConceptFunctions:
    """The concepts of an ensemble and its rivals, all from one pass of f.

    - `concepts`: phi.
    - `pursuit`: two-valued directions of f's last layer, both signs of K/2 of them, read as Psi does; left out with a
      warning where f has no linear last layer or too few such directions.
    - `random`: random directions instead, read in the same way.
    - `sae`: K latents of a TopK sparse autoencoder of the vectors at all positions of the last feature map of f, the
      largest over positions.
    - `nmf`: K factors of these vectors (as CRAFT, Fel et al. 2023, which takes them from image crops), and the largest
      weight over positions, as phi is.
    - `ica`, `pca`: K independent or principal components of that map, averaged over positions.
    - `channels_k`: the K channels of that map, averaged over positions, that vary most.
    - `channels`: all of them.
    - `untrained`: phi of a freshly initialised Psi.

    Of `nmf`, `ica`, `pca` and `channels_k` there are at most as many as channels (of `ica` and `pca`, as images).

    Args:
        indices: images of the dataset that rivals are fitted on; labels play no part.
        rivals: some of RIVALS.
    """
    random = _initialised(deepcopy(ensemble.concept_extractor), seed) if UNTRAINED in rivals else None
    fitted = fit_rivals(ensemble, dataset, indices, device, batch_size, seed, [name for name in FITS if name in rivals])

    def activations(images: Tensor) -> dict[str, np.ndarray]:
        with evaluation(ensemble, device):
            code = ensemble.encode(images.to(device, memory_format=torch.channels_last))
            last = code.maps[-1].float().cpu().numpy()
            found = {CONCEPTS: ensemble.activations(code.concept_maps).float().cpu().numpy()}
            found |= {name: rival(last) for name, rival in fitted.items()}
            if random is not None:
                with evaluation(random, device):
                    found[UNTRAINED] = ensemble.activations(random(code.maps)[0]).float().cpu().numpy()
            return found

    return activations


def fit_rivals(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    indices: np.ndarray,
    device: torch.device | str,
    batch_size: int,
    seed: int,
    names: Sequence[str],
) -> dict[str, Rival]:
    """Those of `rivals.FITS` that are named, fitted on chosen images; one that cannot be is left out with a warning."""
    if not names:
        return {}
    with evaluation(ensemble, device):
        rows = collect(
            tuple(part.float().cpu().numpy() for part in ensemble.classifier.last_features(images))
            for images, _ in own_batches(dataset, indices, batch_size, device, "features for rivals")
        )

    def fit() -> dict[str, Rival]:
        features, maps = (np.concatenate(part) for part in zip(*rows, strict=True))
        seen, found = Seen(ensemble.classifier, features, maps, seed), {}
        for name in names:
            try:
                found[name] = FITS[name](seen, ensemble.n_concepts)
            except Refused as error:
                logger.warning("rival %s is left out: %s", name, error)
        return found

    return once(fit)


@dataclass(frozen=True)
class Comparison:
    """What concept functions make of validation images, `learned`, and test images, `chosen` (indices).

    `known` and `new` are their activations (N, K) by name.
    """

    functions: ConceptFunctions
    learned: np.ndarray
    chosen: np.ndarray
    known: dict[str, np.ndarray]
    new: dict[str, np.ndarray]


def compare(
    ensemble: VisCoIN,
    validation: ImageDataset,
    test: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
    rivals: Sequence[str] = RIVALS,
) -> Comparison:
    """Fit the rivals to validation images, and take all activations there and on test images.

    Args:
        limit: size of a random sample of validation and of test images, instead of all.
    """
    learned, chosen = (choose_images(len(dataset), limit, seed) for dataset in (validation, test))
    functions = concept_functions(ensemble, validation, learned, device, batch_size, seed, rivals)
    known, new = (
        all_activations(functions, dataset, indices, batch_size)
        for dataset, indices in ((validation, learned), (test, chosen))
    )
    return Comparison(functions, learned, chosen, known, new)


def all_activations(
    functions: ConceptFunctions,
    dataset: ImageDataset,
    indices: np.ndarray,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Activations (N, K) of the chosen images, for each function."""
    batches = own_batches(dataset, indices, batch_size, "cpu", "concept activations")
    rows = collect(functions(images) for images, _ in batches)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _initialised(extractor: Extractor, seed: int) -> Extractor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in extractor.modules():
            getattr(module, "reset_parameters", lambda: None)()
    return extractor
