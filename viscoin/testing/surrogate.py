"""Surrogate faithfulness (SURF, Kumar and Ahuja, arXiv 2504.10833): do concepts, added up, say all that f says?

A linear surrogate of concept activations stands for f, and is compared with f in the logits and in the probabilities
of all classes, on images that it was not fitted to. The paper takes the weights of the sum from the explanation
itself; that is Theta here. Rivals have no such weights, so every concept function, the ensemble's too, also gets those
of ridge regression of f's logits: the best that any weights of them could do.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stylegan2_ada.together import collect, own
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages, evaluation, own_batches
from viscoin.models.ensemble import VisCoIN
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.testing.baselines import Comparison

THETA, CONSTANT = "theta", "constant"  # surrogates beside those of concept functions: g itself, and no concepts at all
PENALTIES = np.logspace(-6, 4, 11)  # of the ridge, chosen by leaving images out
FEWEST = 10  # images to fit a surrogate to


@dataclass(frozen=True)
class Surrogate:
    """How far a surrogate is from f on N images, and whether it names the same class.

    Attributes:
        mae: (N,) mean absolute error of the logits over classes, both without their mean, which no softmax sees.
        emd: (N,) half the sum of absolute errors of the probabilities, in [0, 1].
        agreement: (N,) bool.
    """

    mae: np.ndarray
    emd: np.ndarray
    agreement: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, expected: np.ndarray) -> "Surrogate":
        """Logits (N, C) of the surrogate and of f."""
        error = _centred(logits) - _centred(expected)
        missed = softmax(logits, 1) - softmax(expected, 1)
        return cls(np.abs(error).mean(1), np.abs(missed).sum(1) / 2, logits.argmax(1) == expected.argmax(1))


@dataclass(frozen=True)
class SurrogateResult:
    """By name: g as it is (`theta`), each concept function, and `constant`, the mean logits."""

    functions: dict[str, Surrogate]
    fitted_to: int
    seed: int

    def estimates(self) -> dict[str, Estimate]:
        """Every mean over images with its interval, by "function.measure"."""
        return {
            f"{name}.{key}": bootstrap(values, seed=self.seed)
            for name, part in self.functions.items()
            for key, values in vars(part).items()
        }

    def to_dict(self) -> dict[str, Any]:
        functions = {
            name: {key: float(values.mean()) for key, values in vars(part).items()}
            for name, part in self.functions.items()
        }
        return {"fitted_to": self.fitted_to, **functions}


def test_surrogates(
    ensemble: VisCoIN,
    validation: ImageDataset,
    test: ImageDataset,
    comparison: Comparison,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
) -> SurrogateResult:
    """Surrogates of every concept function, fitted to validation images and measured on test images.

    Raises:
        TooFewImages: there are fewer than FEWEST validation images.
    """
    if len(comparison.learned) < FEWEST:
        raise TooFewImages(f"a surrogate needs {FEWEST} validation images, there are {len(comparison.learned)}")
    known, _ = _logits(ensemble, validation, comparison.learned, device, batch_size)
    expected, own_logits = _logits(ensemble, test, comparison.chosen, device, batch_size)
    names = list(comparison.known)
    fitted = collect(
        Surrogate.of(linear_surrogate(comparison.known[name], known, comparison.new[name]), expected)
        for name in own(names)
    )
    constant = np.broadcast_to(known.mean(0), expected.shape)
    functions = {THETA: Surrogate.of(own_logits, expected), **dict(zip(names, fitted, strict=True))}
    return SurrogateResult(functions | {CONSTANT: Surrogate.of(constant, expected)}, len(known), seed)


def linear_surrogate(activations: np.ndarray, logits: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Logits (M, C) for activations `new` (M, K), by ridge regression of logits (N, C) on activations (N, K)."""
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return model.fit(activations.astype(np.float64), _centred(logits)).predict(new.astype(np.float64))


def _logits(
    ensemble: VisCoIN, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those of f and of g, (N, C) each."""
    with evaluation(ensemble, device):
        rows = collect(
            _pair(ensemble, images)
            for images, _ in own_batches(dataset, indices, batch_size, device, "logits for surrogates")
        )
    f, g = (np.concatenate(part).astype(np.float64) for part in zip(*rows, strict=True))
    return f, g


def _pair(ensemble: VisCoIN, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    logits, maps = ensemble.concept_maps(images)
    return logits.float().cpu().numpy(), ensemble.explain(maps).float().cpu().numpy()


def _centred(logits: np.ndarray) -> np.ndarray:
    return logits - logits.mean(1, keepdims=True)
