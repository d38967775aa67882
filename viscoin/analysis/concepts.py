"""Which concepts there are, where they are active and which classes they speak for."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.special import entr
from torch import Tensor, nn

from stylegan2_ada.together import collect, once
from viscoin.datasets import ImageDataset
from viscoin.datasets.cache import cache_folder, is_cached, keep
from viscoin.inference.batches import TooFewImages, check_classes, choose_images, evaluation, own_batches
from viscoin.inference.execution import precision_of
from viscoin.models.ensemble import VisCoIN

IMPORTANT = 0.2  # relevance; the middle of the three thresholds of the paper
NO_MATTER = ("generator.", "concept_extractor.linear")  # weights of the generator, on which no concept depends


@dataclass(frozen=True)
class ConceptTable:
    """Concepts of N images; what is asked of them follows from it without a model.

    activations (N, K) >= 0; f_probabilities, g_probabilities (N, C); labels (N,); relevance (N, K) in [-1, 1] of each
    concept for the class that g predicts; indices (N,) of the images in their dataset; weight (C, K) of the explainer:
    the vote of a concept for a class, for each unit of activation.
    """

    activations: np.ndarray
    f_probabilities: np.ndarray
    g_probabilities: np.ndarray
    labels: np.ndarray
    relevance: np.ndarray
    indices: np.ndarray
    weight: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(N,) classes that g predicts."""
        return self.g_probabilities.argmax(1)

    @property
    def dead(self) -> np.ndarray:
        """(K,) concepts that no image activates."""
        return np.asarray((self.activations <= 0).all(0))

    @property
    def active_per_image(self) -> np.ndarray:
        """(N,) number of active concepts of each image."""
        return (self.activations > 0).sum(1)

    @property
    def active_share(self) -> np.ndarray:
        """(K,) share of the images that activate a concept."""
        return (self.activations > 0).mean(0)

    @property
    def mean_activation(self) -> np.ndarray:
        """(K,) over all images."""
        return self.activations.mean(0)

    @cached_property
    def activation_by_rank(self) -> np.ndarray:
        """(3, K) 10 %, 50 % and 90 % quantile over images of an image's strongest, second strongest, ... activation."""
        return np.quantile(-np.sort(-self.activations, axis=1), (0.1, 0.5, 0.9), axis=0)

    @cached_property
    def class_activation(self) -> np.ndarray:
        """(C, K) mean activation over the images of each class; NaN for classes without images."""
        return _class_means(self.activations, self.labels, self.g_probabilities.shape[1])

    @cached_property
    def entropy(self) -> np.ndarray:
        """(K,) entropy of a concept's mean activation over classes, as a share of log C.

        0: active in one class only; 1: equally in all. NaN for dead concepts.
        """
        activation = np.nan_to_num(self.class_activation)
        totals = activation.sum(0)
        shares = np.divide(activation, totals, out=np.zeros_like(activation), where=totals > 0)
        return np.where(totals > 0, entr(shares).sum(0) / np.log(len(activation)), np.nan)

    @cached_property
    def class_concept_importance(self) -> np.ndarray:
        """(C, K) mean relevance of each concept over the images that g assigns to the class; NaN if there are none."""
        return _class_means(self.relevance, self.predicted, self.g_probabilities.shape[1])

    @cached_property
    def concept_class_importance(self) -> np.ndarray:
        """(K, C) shares of the classes in a concept's positive relevance; rows add up to 1, or 0 without any."""
        importance = np.nan_to_num(self.class_concept_importance).clip(min=0).T
        totals = importance.sum(1, keepdims=True)
        return np.divide(importance, totals, out=np.zeros_like(importance), where=totals > 0)

    @cached_property
    def importance(self) -> np.ndarray:
        """(K,) relevance of a concept for the class for which it matters most; 0 if it speaks for none."""
        return np.nan_to_num(self.class_concept_importance).max(0).clip(min=0)

    @cached_property
    def order(self) -> np.ndarray:
        """Concepts that are ever active, the most important first."""
        order = np.lexsort((-self.mean_activation, -self.importance))
        return order[~self.dead[order]]

    @cached_property
    def co_activation(self) -> np.ndarray:
        """(K, K) correlation of activations over images; NaN for concepts that are alike in all images.

        Of concepts that are on or off this is the phi coefficient.
        """
        deviations = self.activations - self.activations.mean(0)
        lengths = np.linalg.norm(deviations, axis=0)
        constant = lengths <= 1e-6 * np.abs(self.activations).max(initial=1e-30)
        deviations /= np.where(constant, np.nan, lengths)
        return (deviations.T @ deviations).clip(-1, 1)

    @property
    def concepts_per_class(self) -> np.ndarray:
        """(C,) number of concepts with mean relevance above 0.2."""
        return (np.nan_to_num(self.class_concept_importance) > IMPORTANT).sum(1)


def concept_name(concept: int, names: Mapping[int, str] | None = None) -> str:
    """ "plume crest (12)" for a concept that has a name, else "concept 12"."""
    name = (names or {}).get(int(concept))
    return f"{name} ({concept})" if name else f"concept {concept}"


def cluster_order(correlation: np.ndarray) -> np.ndarray:
    """An order of M concepts that puts the correlated (M, M) side by side: leaves of average linkage on 1 - r."""
    if len(correlation) < 3:
        return np.arange(len(correlation))
    rows, columns = np.triu_indices(len(correlation), 1)
    distances = 1 - np.nan_to_num(correlation)[rows, columns]
    return leaves_list(linkage(distances, "average", optimal_ordering=True))


def collect_concepts(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
    force: bool = False,
) -> ConceptTable:
    """Run the ensemble over a dataset, or take the result of an earlier run from the user's cache folder.

    The cache is keyed by the contents of model and dataset, never by their names, and by the precision that `prepare`
    has given to the model. `force` computes anew.

    Raises:
        TooFewImages: fewer than two.
    """
    check_classes(len(ensemble.class_names), dataset)
    indices = choose_images(len(dataset), limit, seed)
    if len(indices) < 2:
        raise TooFewImages(f"co-activation of concepts needs at least 2 images, got {len(indices)}; raise the limit")

    def kept() -> tuple[Path, ConceptTable | None]:
        path = cache_folder() / "concepts" / f"{fingerprint(ensemble, dataset, indices)}.npz"
        return path, _read(path) if not force and is_cached(path) else None

    path, table = once(kept)
    if table is None:
        table = _compute(ensemble, dataset, indices, device, batch_size)
        once(lambda: _keep(path, table))
    return table


def _keep(path: Path, table: ConceptTable) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **asdict(table))

    keep(path, write)


def _compute(
    ensemble: VisCoIN, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str, batch_size: int
) -> ConceptTable:

    def seen(images: Tensor) -> list[np.ndarray]:
        f_logits, concept_maps = ensemble.concept_maps(images)
        logits, phi = ensemble.explain(concept_maps), ensemble.activations(concept_maps)
        parts = phi, f_logits.softmax(1), logits.softmax(1), ensemble.relevance(phi, logits.argmax(1))
        return [part.float().cpu().numpy() for part in parts]

    with evaluation(ensemble, device):
        batches = own_batches(dataset, indices, batch_size, device, "concepts")
        rows = collect(seen(images) for images, _ in batches)
        weight = ensemble.explainer.weight.float().cpu().numpy()
    activations, f_probabilities, g_probabilities, relevance = (np.concatenate(column) for column in zip(*rows))
    return ConceptTable(
        activations, f_probabilities, g_probabilities, dataset.labels[indices], relevance, indices, weight
    )


def fingerprint(
    model: nn.Module, dataset: ImageDataset, indices: np.ndarray, left_out: tuple[str, ...] = NO_MATTER
) -> str:
    """What a cached result depends on: weights, but for those whose names begin so, these images, and the precision."""
    digest = hashlib.sha256()  # in hardware on most machines, where blake2b is not
    if (precision := precision_of(model)) != "32-true":
        digest.update(precision.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(left_out):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    digest.update(json.dumps([dataset.name, dataset.split, dataset.class_names, list(dataset.pixels.shape)]).encode())
    for part in np.array_split(indices, len(indices) // 512 + 1):
        for values in (part, dataset.labels[part], dataset.pixels[part]):
            digest.update(values.data)
    return digest.hexdigest()[:32]


def _read(path: Path) -> ConceptTable | None:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return ConceptTable(**{name: file[name] for name in file.files})
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):  # absent, damaged or of an older version
        return None


def _class_means(values: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    totals = np.zeros((n_classes, values.shape[1]))
    np.add.at(totals, classes, values)
    counts = np.bincount(classes, minlength=n_classes)[:, None]
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
