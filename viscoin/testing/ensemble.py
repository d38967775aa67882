"""All measures of an ensemble that one pass over the images gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan2_ada.metrics import FeatureMoments, frechet_distance
from viscoin.datasets import ImageDataset
from viscoin.models.ensemble import VisCoIN
from viscoin.testing import measures
from viscoin.testing.faithfulness import Faithfulness, Generated, concatenate, probability_falls
from viscoin.testing.inference import check_classes, choose_images, evaluation, image_batches, pooled

# (rebuilt, images, maps of f on rebuilt, maps of f on images) -> distance (B,)
Perceptual = Callable[[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class EnsembleResult:
    """Values per image (N,), from which every figure is one mean or median over all images.

    `f_*` and `g_*` are predicted classes; `*_rebuilt` those of the reconstruction x~. Distances are between x~
    (clamped) and x, both in [-1, 1]. `fid` is the Frechet distance in pooled last-stage features of f.
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
    fid: float
    faithfulness: list[Faithfulness]
    seed: int

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def confusion(self) -> np.ndarray:
        """Counts (C, C) of g: row = true class, column = predicted class."""
        return measures.confusion(self.g_predicted, self.labels, len(self.class_names))

    def to_dict(self) -> dict[str, Any]:
        """The sections `classifier`, `ensemble`, `reconstruction` and `faithfulness` of a report."""
        return {
            "n": self.n,
            "seed": self.seed,
            "classifier": {
                "accuracy": measures.accuracy(self.f_predicted, self.labels),
                "accuracy_on_reconstructions": measures.accuracy(self.f_rebuilt, self.labels),
            },
            "ensemble": {
                "accuracy": measures.accuracy(self.g_predicted, self.labels),
                "agreement": measures.accuracy(self.g_predicted, self.f_predicted),
                "accuracy_on_reconstructions": measures.accuracy(self.g_rebuilt, self.labels),
            },
            "reconstruction": {
                "l1": float(self.l1.mean()),
                "mse": float(self.mse.mean()),
                "perceptual": float(self.perceptual.mean()),
                "perceptual_name": self.perceptual_name,
                "fid": self.fid,
                "fid_features": "pooled last stage of f",
            },
            "faithfulness": {f"{item.threshold:g}": item.to_dict() for item in self.faithfulness},
        }


def test_ensemble(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
    limit: int | None = None,
    faithfulness_limit: int | None = None,
    perceptual: tuple[Perceptual, str] | None = None,
) -> EnsembleResult:
    """Measure an ensemble: accuracies, agreement, reconstruction, FID and faithfulness, in one pass.

    Args:
        limit: a random sample of so many images instead of all.
        faithfulness_limit: images for faithfulness (it generates up to six more images for each), all by default.
        perceptual: distance and its name; by default that on feature maps of f.

    Raises:
        ValueError: the ensemble and the dataset have different numbers of classes, or fewer than 2 images.
    """
    indices = choose_images(len(dataset), limit, seed)
    removable = indices[choose_images(len(indices), faithfulness_limit, seed)]
    check_classes(len(ensemble.class_names), dataset)
    distance, name = perceptual or _feature_distance(ensemble)
    rows: list[dict[str, np.ndarray]] = []
    falls: list[list[Faithfulness]] = []
    real, rebuilt_moments = FeatureMoments(), FeatureMoments()
    with evaluation(ensemble, device):
        for images, chosen in image_batches(dataset, indices, batch_size, device, "testing the ensemble"):
            code = ensemble.encode(images)
            logits = ensemble.explain(code.concept_maps)
            rebuilt = ensemble.decode(code.concept_maps, code.support).float().clamp(-1, 1)
            again = ensemble.encode(rebuilt)
            logits_again = ensemble.explain(again.concept_maps)
            difference = (rebuilt - images).flatten(1)
            rows.append(
                {
                    "f_predicted": _array(code.logits.argmax(1)),
                    "g_predicted": _array(logits.argmax(1)),
                    "f_rebuilt": _array(again.logits.argmax(1)),
                    "g_rebuilt": _array(logits_again.argmax(1)),
                    "l1": _array(difference.abs().mean(1)),
                    "mse": _array(difference.square().mean(1)),
                    "perceptual": _per_image(distance(rebuilt, images, again.maps, code.maps), len(images)),
                }
            )
            real.add(pooled(code.maps[-1]))
            rebuilt_moments.add(pooled(again.maps[-1]))
            tested = np.isin(chosen, removable)
            if tested.any():
                keep = torch.from_numpy(tested).to(images.device)
                classes = logits.argmax(1)[keep]
                relevance = ensemble.relevance(ensemble.activations(code.concept_maps[keep]), classes)
                generated = Generated(logits_again.softmax(1)[keep], code.concept_maps[keep], code.support[keep])
                falls.append(probability_falls(ensemble, generated, relevance, classes, chosen[tested], seed))
    return EnsembleResult(
        class_names=list(dataset.class_names),
        indices=indices,
        labels=dataset.labels[indices],
        **{key: np.concatenate([row[key] for row in rows]) for key in rows[0]},
        perceptual_name=name,
        fid=frechet_distance(real, rebuilt_moments),
        faithfulness=concatenate(falls),
        seed=seed,
    )


def _feature_distance(ensemble: VisCoIN) -> tuple[Perceptual, str]:
    from viscoin.training.losses import make_perceptual

    return make_perceptual("classifier", ensemble.classifier)


def _per_image(distances: Tensor, n: int) -> np.ndarray:
    if distances.shape != (n,):
        raise ValueError(f"a perceptual distance must give one value per image, ({n},), not {tuple(distances.shape)}")
    return _array(distances)


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
