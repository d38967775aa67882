"""All measures of an ensemble that one pass over the images gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from stylegan2_ada.metrics import FeatureMoments, frechet_distance
from stylegan2_ada.together import collect
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages, check_classes, choose_images, evaluation, own_batches
from viscoin.models.ensemble import VisCoIN
from viscoin.models.perceptual import ClassifierPerceptual
from viscoin.statistics import measures
from viscoin.statistics.bootstrap import Estimate, bootstrap, jackknife
from viscoin.testing.faithfulness import Faithfulness, Generated, concatenate, probability_falls
from viscoin.testing.image_features import ClassifierFeatures, FeatureNetwork, to_uint8
from viscoin.testing.sufficiency import Sufficiency, kept_counts, kept_hits

Falls = list[Faithfulness] | None  # of one batch; None where no image of it is tested for faithfulness

RELEVANT = 0.5  # mean relevance of a concept that counts as one of a class
DRAWN = ("f_rebuilt", "g_rebuilt", "l1", "mse", "perceptual", "features", "features_rebuilt")  # of reconstructions

# (rebuilt, images, maps of f on rebuilt, maps of f on images) -> distance (B,)
Perceptual = Callable[[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class EnsembleResult:
    """Values per image (N,), from which every figure is one mean or median over all images.

    `f_*` and `g_*` are predicted classes; `*_rebuilt` those of the reconstruction x~. Distances are between x~
    (clamped) and x, both in [-1, 1]. `features` and `features_rebuilt` (N, D) are those of x and x~, rounded to 8 bit,
    for the Frechet distance. `activations` (N, K) >= 0 and `relevance` (N, K) in [-1, 1], for the class that g
    predicts, are those of the concepts in x.
    """

    class_names: list[str]
    indices: np.ndarray
    labels: np.ndarray
    f_predicted: np.ndarray
    g_predicted: np.ndarray
    f_rebuilt: np.ndarray
    g_rebuilt: np.ndarray
    l1: np.ndarray
    mse: np.ndarray
    perceptual: np.ndarray
    perceptual_name: str
    features: np.ndarray
    features_rebuilt: np.ndarray
    features_name: str
    activations: np.ndarray
    relevance: np.ndarray
    sufficiency: list[Sufficiency]
    faithfulness: list[Faithfulness]
    seed: int
    labelled: bool = True  # else labels are what f says, and there is no accuracy

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def drawn(self) -> bool:
        """Whether there are reconstructions; without a generator all that is of them has length 0."""
        return len(self.l1) > 0

    @property
    def confusion(self) -> np.ndarray:
        """Counts (C, C) of g: row = true class, column = predicted class."""
        return measures.confusion(self.g_predicted, self.labels, len(self.class_names))

    @cached_property
    def fid(self) -> float:
        """Frechet distance of x~ to x, NaN for fewer than 2 images."""
        return self._distance(np.arange(self.n)) if self.n > 1 else float("nan")

    def check_distance(self) -> None:
        """Raise TooFewImages if there is no Frechet distance."""
        if self.n < 2:
            raise TooFewImages(f"FID needs at least 2 images, there is {self.n}")

    @property
    def concepts_per_class(self) -> float:
        """Mean number of concepts of a class whose mean relevance is above 0.5, over the classes that g predicts."""
        return _concepts_per_class(self._relevance_and_class())

    @property
    def dead_concepts(self) -> int:
        """Number of concepts that no image activates."""
        return _dead(self.activations)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, in sections; `estimates` has them with intervals."""
        numbers: dict[str, Any] = {
            "n": self.n,
            "seed": self.seed,
            "classifier": {"accuracy": measures.accuracy(self.f_predicted, self.labels)},
            "ensemble": {
                "accuracy": measures.accuracy(self.g_predicted, self.labels),
                "agreement": measures.accuracy(self.g_predicted, self.f_predicted),
            },
        }
        if not self.labelled:
            del numbers["classifier"], numbers["ensemble"]["accuracy"]
        if self.drawn:
            for name, predicted in (("classifier", self.f_rebuilt), ("ensemble", self.g_rebuilt)):
                if self.labelled:
                    numbers[name]["accuracy_on_reconstructions"] = measures.accuracy(predicted, self.labels)
            numbers["reconstruction"] = {
                "l1": float(self.l1.mean()),
                "mse": float(self.mse.mean()),
                "perceptual": float(self.perceptual.mean()),
                "perceptual_name": self.perceptual_name,
                "fid": self.fid,
                "fid_features": self.features_name,
            }
        return numbers | {
            "faithfulness": {f"{item.threshold:g}": item.to_dict() for item in self.faithfulness},
            "kept_concepts": {item.ranking: item.to_dict() for item in self.sufficiency},
            "concepts": {
                "n": self.activations.shape[1],
                "dead": self.dead_concepts,
                "per_class": self.concepts_per_class,
            },
        }

    def estimates(self, fid: bool = True) -> dict[str, Estimate]:
        """Every measure with its 95 % interval over images, by the dotted names of `to_dict`.

        The interval of the Frechet distance comes from a jackknife of images and their reconstructions, the others from
        a bootstrap. It takes the longest by far, and can be left out.
        """
        hits = {
            "classifier.accuracy": self.f_predicted == self.labels,
            "ensemble.accuracy": self.g_predicted == self.labels,
            "ensemble.agreement": self.g_predicted == self.f_predicted,
        }
        if self.drawn:
            hits["classifier.accuracy_on_reconstructions"] = self.f_rebuilt == self.labels
            hits["ensemble.accuracy_on_reconstructions"] = self.g_rebuilt == self.labels
        if not self.labelled:
            hits = {"ensemble.agreement": hits["ensemble.agreement"]}
        if self.drawn:
            hits |= {f"reconstruction.{key}": getattr(self, key) for key in ("l1", "mse", "perceptual")}
        found = {key: bootstrap(values, seed=self.seed) for key, values in hits.items()}
        if fid and self.drawn and self.n > 1:
            found["reconstruction.fid"] = jackknife(self.n, self._distance, seed=self.seed)
        for part in self.faithfulness:
            found |= {f"faithfulness.{part.threshold:g}.{key}": e for key, e in part.estimates(self.seed).items()}
        for item in self.sufficiency:
            found |= {f"kept_concepts.{item.ranking}.{key}": e for key, e in item.estimates(self.seed).items()}
        return found | {
            "concepts.per_class": bootstrap(self._relevance_and_class(), _concepts_per_class, seed=self.seed),
            "concepts.dead": bootstrap(self.activations > 0, _dead, seed=self.seed),
        }

    def _distance(self, rows: np.ndarray) -> float:
        return frechet_distance(*(FeatureMoments.of(part[rows]) for part in (self.features, self.features_rebuilt)))

    def _relevance_and_class(self) -> np.ndarray:
        """(N, K + 1)."""
        return np.concatenate([self.relevance, self.g_predicted[:, None]], 1, dtype=np.float32)


def _concepts_per_class(rows: np.ndarray) -> float:
    """Rows (N, K + 1) of relevance and predicted class."""
    _, classes, counts = np.unique(rows[:, -1], return_inverse=True, return_counts=True)
    n = len(rows)
    member = csr_array((np.ones(n, np.float32), (classes, np.arange(n))), shape=(len(counts), n))
    return float((member @ rows[:, :-1] / counts[:, None] > RELEVANT).sum(1).mean())


def _dead(activations: np.ndarray) -> int:
    return int((activations <= 0).all(0).sum())


def test_ensemble(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
    limit: int | None = None,
    faithfulness_limit: int | None = None,
    perceptual: tuple[Perceptual, str] | None = None,
    features: FeatureNetwork | None = None,
) -> EnsembleResult:
    """Accuracies, agreement, reconstruction, faithfulness and sufficiency of concepts, in one pass over the images.

    Args:
        limit: size of a random sample of images, instead of all.
        faithfulness_limit: images for faithfulness (it generates up to six more images for each), all by default; 0
            leaves it out.
        perceptual: distance and its name; by default that on feature maps of f.
        features: network for the Frechet distance; by default pooled last-stage features of f.

    Raises:
        ValueError: the ensemble and the dataset have different numbers of classes.
    """
    check_classes(len(ensemble.class_names), dataset)
    indices = choose_images(len(dataset), limit, seed)
    tested = indices[choose_images(len(indices), faithfulness_limit, seed)] if faithfulness_limit != 0 else indices[:0]
    distance, name = perceptual or (ClassifierPerceptual(ensemble.classifier), "classifier")
    network = features or ClassifierFeatures(ensemble.classifier)

    def measured(images: Tensor, chosen: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Falls]:
        code = ensemble.encode(images)
        logits = ensemble.explain(code.concept_maps)
        classes, phi = logits.argmax(1), ensemble.activations(code.concept_maps)
        relevance = ensemble.relevance(phi, classes)
        labels = torch.from_numpy(dataset.labels[chosen]).to(images.device)
        hits = kept_hits(ensemble, phi, relevance, labels, chosen, seed)
        values = {
            "f_predicted": _array(code.logits.argmax(1)),
            "g_predicted": _array(classes),
            "activations": _array(phi),
            "relevance": _array(relevance),
        }
        if not ensemble.draws:
            return {**values, **dict.fromkeys(DRAWN, np.zeros(0))}, hits, None
        rebuilt = ensemble.decode(code.concept_maps, code.support).float().clamp(-1, 1)
        again = ensemble.encode(rebuilt)
        logits_again = ensemble.explain(again.concept_maps)
        difference = (rebuilt - images).flatten(1)
        values |= {
            "f_rebuilt": _array(again.logits.argmax(1)),
            "g_rebuilt": _array(logits_again.argmax(1)),
            "l1": _array(difference.abs().mean(1)),
            "mse": _array(difference.square().mean(1)),
            "perceptual": _per_image(distance(rebuilt, images, again.maps, code.maps), len(images)),
            "features": _array(network(to_uint8(images))[0].float()),
            "features_rebuilt": _array(network(to_uint8(rebuilt))[0].float()),
        }
        removable = np.isin(chosen, tested)
        if not removable.any():
            return values, hits, None
        keep = torch.from_numpy(removable).to(images.device)
        generated = Generated(logits_again.softmax(1)[keep], code.concept_maps[keep], code.support[keep])
        falls = probability_falls(ensemble, generated, relevance[keep], classes[keep], chosen[removable], seed)
        return values, hits, falls

    with evaluation(ensemble, device), evaluation(network, device):
        batches = own_batches(dataset, indices, batch_size, device, "testing the ensemble")
        rows, hits, falls = zip(*collect(measured(*batch) for batch in batches), strict=True)
    kept = kept_counts(ensemble.n_concepts)
    return EnsembleResult(
        class_names=list(dataset.class_names),
        indices=indices,
        labels=dataset.labels[indices],
        **_joined(rows),
        sufficiency=[Sufficiency(ranking, kept, found) for ranking, found in _joined(hits).items()],
        perceptual_name=name,
        features_name="pooled last stage of f" if network.name == "classifier" else network.name,
        faithfulness=concatenate([part for part in falls if part is not None]),
        seed=seed,
        labelled=dataset.labelled,
    )


def _joined(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


def _per_image(distances: Tensor, n: int) -> np.ndarray:
    if distances.shape != (n,):
        raise ValueError(f"a perceptual distance must give one value per image, ({n},), not {tuple(distances.shape)}")
    return _array(distances)


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
