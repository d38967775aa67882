"""Concept functions: what turns images into K activations each. Those of an ensemble, and simpler ones beside them."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.decomposition import PCA, MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from stylegan2_ada.together import collect, once
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages, evaluation, own_batches
from viscoin.models.ensemble import VisCoIN

# Images (B, 3, H, W) in [-1, 1] -> activations (B, K) of each concept function, by its name.
ConceptFunctions = Callable[[Tensor], dict[str, np.ndarray]]

Extractor = TypeVar("Extractor", bound=nn.Module)

CONCEPTS = "concepts"
POSITIONS = 16_384  # most feature vectors that NMF is fitted on


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
) -> ConceptFunctions:
    """The concepts of an ensemble and its baselines, all from one pass of f.

    - `concepts`: phi.
    - `untrained`: phi of a freshly initialised Psi.
    - `pca`: K principal components of the last feature map of f, averaged over positions.
    - `nmf`: K factors of the feature vectors at all positions of that map (as CRAFT, Fel et al. 2023, which takes them
      from image crops), and the largest weight over positions, as phi is.
    - `channels_k`: the K channels of that map, averaged over positions, that vary most.
    - `channels`: all of them.

    K is at most the number of channels (and of images, for `pca`).

    Args:
        indices: images of the dataset that PCA, NMF and the choice of channels are fitted on; labels play no part.
    """
    random = _initialised(deepcopy(ensemble.concept_extractor), seed)
    with evaluation(ensemble, device):
        rows = collect(
            ensemble.encode(images).maps[-1].float().cpu().numpy()
            for images, _ in own_batches(dataset, indices, batch_size, device, "features for baselines")
        )

    def fitted() -> tuple[PCA, MiniBatchNMF, np.ndarray]:
        maps = np.concatenate(rows)
        pooled, vectors = maps.mean((2, 3)), _vectors(maps)
        k = min(ensemble.n_concepts, pooled.shape[1])
        pca = PCA(min(k, len(pooled)), random_state=seed).fit(pooled)
        if len(vectors) < k:
            places = f"{len(pooled)} images have {len(vectors)} places of the feature map"
            raise TooFewImages(f"{places}, {k} factors need as many; take more images")
        sample = np.random.default_rng(seed).permutation(len(vectors))[:POSITIONS]
        nmf = _without_warning(MiniBatchNMF(k, init="nndsvda", random_state=seed, max_iter=50).fit, vectors[sample])
        return pca, nmf, np.sort(np.argsort(-pooled.var(0), kind="stable")[:k])

    pca, nmf, widest = once(fitted)

    def activations(images: Tensor) -> dict[str, np.ndarray]:
        with evaluation(ensemble, device), evaluation(random, device):
            code = ensemble.encode(images.to(device, memory_format=torch.channels_last))
            last = code.maps[-1].float().cpu().numpy()
            means = last.mean((2, 3))
            weights = _without_warning(nmf.transform, _vectors(last))
            return {
                CONCEPTS: ensemble.activations(code.concept_maps).float().cpu().numpy(),
                "untrained": ensemble.activations(random(code.maps)[0]).float().cpu().numpy(),
                "pca": pca.transform(means),
                "nmf": weights.reshape(len(last), -1, weights.shape[1]).max(1),
                "channels_k": means[:, widest],
                "channels": means,
            }

    return activations


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


def _vectors(maps: np.ndarray) -> np.ndarray:
    """Maps (B, C, h, w) -> their vectors (B h w, C), without the negative values that maps of transformers have."""
    return np.maximum(maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1]), 0)


def _without_warning(function: Callable[[np.ndarray], Any], values: np.ndarray) -> Any:
    """NMF that stops early is as good a baseline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return function(values)
