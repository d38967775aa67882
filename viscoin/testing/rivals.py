"""Rivals of the concepts: other ways to about as many activations of an image, fitted to f alone. None sees labels."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.decomposition import PCA, FastICA, MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from viscoin.inference.batches import TooFewImages
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import CONCEPT_GRID
from viscoin.models.pursuit import of_map, pursue
from viscoin.testing.sparse_autoencoder import sparse_autoencoder

POSITIONS = 16_384  # most feature vectors that NMF and the autoencoder are fitted on
IMAGES = 2000  # most images of the pursuit, where classes are too few to be its points


class Rival(Protocol):
    """Activations, and where in the last map of f they come from.

    Attributes:
        differentiable: whether gradients flow through `places`.
        signed: whether an activation may be below zero, so that its opposite is as good a concept.
    """

    differentiable: bool
    signed: bool

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        """Last maps (B, C, h, w) of f -> activations (B, K)."""

    def places(self, maps: Tensor) -> Tensor:
        """Last maps (B, C, h, w) of f -> what is at each place, (B, K, h, w), before it is summed up."""

    def pool(self, places: Tensor) -> Tensor:
        """What is at each place -> the same activations (B, K)."""


@dataclass(frozen=True)
class Seen:
    """What f makes of N images: features of its last layer (N, D), and its last maps (N, C, h, w)."""

    classifier: Classifier
    features: np.ndarray
    maps: np.ndarray
    seed: int

    @property
    def pooled(self) -> np.ndarray:
        """(N, C)."""
        return self.maps.mean((2, 3))

    def sample(self) -> np.ndarray:
        """At most POSITIONS of the vectors of all places, (M, C)."""
        vectors = _vectors(self.maps)
        return vectors[np.random.default_rng(self.seed).permutation(len(vectors))[:POSITIONS]]


@dataclass(frozen=True)
class Directions:
    """Directions of the map, read as Psi reads them: relu, average over a grid of 3x3, the largest."""

    differentiable, signed = True, False
    weight: np.ndarray
    offset: np.ndarray

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        scores = np.einsum("bchw,ck->bkhw", maps, self.weight, optimize=True) + self.offset[:, None, None]
        grid = F.adaptive_avg_pool2d(torch.from_numpy(scores).relu(), CONCEPT_GRID)
        return grid.amax((2, 3)).float().numpy()

    def places(self, maps: Tensor) -> Tensor:
        return linear(maps, self.weight, self.offset).relu()

    def pool(self, places: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(places, CONCEPT_GRID).amax((2, 3))


@dataclass(frozen=True)
class Latents:
    """Latents of a sparse autoencoder, the largest over places.

    Not cut to the few active ones of a place: a latent just below these is a weak activation, not none, and the
    uncut ones follow the attributes of the birds better.
    """

    differentiable, signed = True, False
    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        latents = _vectors(maps) @ self.weight + self.bias
        return np.maximum(latents, 0).reshape(len(maps), -1, len(self.bias)).max(1)

    def places(self, maps: Tensor) -> Tensor:
        return linear(maps, self.weight, self.bias).relu()

    def pool(self, places: Tensor) -> Tensor:
        return places.amax((2, 3))


@dataclass(frozen=True)
class Factors:
    """Weights of non-negative factors, the largest over places."""

    differentiable, signed = False, False
    model: MiniBatchNMF

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        weights = _without_warning(self.model.transform, np.maximum(_vectors(maps), 0))
        return weights.reshape(len(maps), -1, weights.shape[1]).max(1)

    def places(self, maps: Tensor) -> Tensor:
        vectors = np.maximum(_vectors(maps.detach().cpu().numpy()), 0)
        weights = torch.from_numpy(_without_warning(self.model.transform, vectors)).to(maps)
        return weights.reshape(len(maps), *maps.shape[2:], -1).permute(0, 3, 1, 2)

    def pool(self, places: Tensor) -> Tensor:
        return places.amax((2, 3))


@dataclass(frozen=True)
class Components:
    """Components of the map's means."""

    differentiable, signed = True, True
    model: PCA | FastICA

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        return self.model.transform(maps.mean((2, 3)))

    def places(self, maps: Tensor) -> Tensor:
        weight = self.model.components_.T
        return linear(maps, weight, -self.model.mean_ @ weight)

    def pool(self, places: Tensor) -> Tensor:
        return places.mean((2, 3))


@dataclass(frozen=True)
class Channels:
    """Some channels of the map, averaged."""

    differentiable, signed = True, False
    columns: np.ndarray

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        return maps.mean((2, 3))[:, self.columns]

    def places(self, maps: Tensor) -> Tensor:
        return maps[:, torch.from_numpy(self.columns).to(maps.device)]

    def pool(self, places: Tensor) -> Tensor:
        return places.mean((2, 3))


def fit_pursuit(seen: Seen, k: int) -> Rival:
    """Both signs of the K/2 most two-valued directions of f's last layer.

    Raises:
        Refused: f has no linear last layer, or fewer such directions.
    """
    weight = seen.classifier.last_layer.weight.detach().cpu().numpy().astype(np.float64)
    features = seen.features.astype(np.float64)
    found = pursue(weight, features[:: -(-len(features) // IMAGES)], -(-k // 2), seed=seen.seed)
    basis, offset, _ = of_map(found, features, seen.pooled)
    return _both_signs(basis @ found.directions, offset @ found.directions, k)


def fit_random(seen: Seen, k: int) -> Rival:
    """The control of the pursuit: random directions of the standardised channels, read in the same way."""
    mean, spread = seen.pooled.mean(0), seen.pooled.std(0) + 1e-12
    drawn = np.random.default_rng(seen.seed).normal(size=(len(mean), -(-k // 2))) / spread[:, None]
    return _both_signs(drawn, -mean @ drawn, k)


def fit_sae(seen: Seen, k: int) -> Rival:
    weight, bias, _ = sparse_autoencoder(torch.from_numpy(seen.sample()), k, seen.seed)
    return Latents(weight.numpy(), bias.numpy())


def fit_nmf(seen: Seen, k: int) -> Rival:
    vectors, k = np.maximum(seen.sample(), 0), min(k, seen.maps.shape[1])
    if len(vectors) < k:
        places = f"{len(seen.maps)} images have {len(vectors)} places of the feature map"
        raise TooFewImages(f"{places}, {k} factors need as many; take more images")
    model = MiniBatchNMF(k, init="nndsvda", random_state=seen.seed, max_iter=50)
    return Factors(_without_warning(model.fit, vectors))


def fit_ica(seen: Seen, k: int) -> Rival:
    rank = np.linalg.matrix_rank(seen.pooled - seen.pooled.mean(0))
    model = FastICA(max(1, min(k, int(rank))), whiten="unit-variance", max_iter=400, random_state=seen.seed)
    return Components(_without_warning(model.fit, seen.pooled))


def fit_pca(seen: Seen, k: int) -> Rival:
    return Components(PCA(min(k, *seen.pooled.shape), random_state=seen.seed).fit(seen.pooled))


def fit_channels_k(seen: Seen, k: int) -> Rival:
    return Channels(np.sort(np.argsort(-seen.pooled.var(0), kind="stable")[:k]))


def fit_channels(seen: Seen, k: int) -> Rival:
    return Channels(np.arange(seen.maps.shape[1]))


FITS: dict[str, Callable[[Seen, int], Rival]] = {
    "pursuit": fit_pursuit,
    "random": fit_random,
    "sae": fit_sae,
    "nmf": fit_nmf,
    "ica": fit_ica,
    "pca": fit_pca,
    "channels_k": fit_channels_k,
    "channels": fit_channels,
}


def linear(maps: Tensor, weight: np.ndarray, offset: np.ndarray) -> Tensor:
    """Maps (B, C, h, w), weights (C, K) and offsets (K,) -> (B, K, h, w)."""
    kernel, bias = (torch.from_numpy(np.asarray(part, np.float32)).to(maps.device) for part in (weight.T, offset))
    return F.conv2d(maps, kernel[..., None, None], bias)


def _both_signs(weight: np.ndarray, offset: np.ndarray, k: int) -> Directions:
    """Directions (C, k/2) and offsets (k/2,) -> their K signed ones, in the order of Psi."""
    signed = np.concatenate([weight, -weight], 1)[:, :k].astype(np.float32)
    return Directions(signed, np.concatenate([offset, -offset])[:k].astype(np.float32))


def _vectors(maps: np.ndarray) -> np.ndarray:
    """Maps (B, C, h, w) -> their vectors (B h w, C)."""
    return maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _without_warning(function: Callable[[np.ndarray], Any], values: np.ndarray) -> Any:
    """A fit that stops early is as good a rival."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return function(values)
