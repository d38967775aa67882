"""Amplification: multiply the activation of chosen concepts and look at the new image (Parekh et al. 2025, Sec. 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viscoin.datasets import to_pixels
from viscoin.models.ensemble import VisCoIN, amplify
from viscoin.testing.inference import evaluation

FACTORS = (0.0, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class AmplificationResult:
    """B rows of one image each, generated with F factors on the selected concepts.

    Attributes:
        factors: (F,) multipliers; 1 is the reconstruction.
        originals: (B, H, W, 3) uint8.
        images: (B, F, H, W, 3) uint8.
        changes: (B, F, H, W) in [0, 1], mean absolute difference to the reconstruction over the colours; 1 is black
            against white.
        selection: (B, K) bool, the concepts that were amplified.
        relevance: (B, K) in [-1, 1], of each concept for `predicted`.
        predicted: (B,) class that g predicts for the original.
        f_original, g_original: (B,) probability of that class for the original.
        f_probability, g_probability: (B, F) the same for the generated images, which pass through the whole ensemble.
        f_predicted: (B,) class that f predicts for the original.
    """

    factors: np.ndarray
    originals: np.ndarray
    images: np.ndarray
    changes: np.ndarray
    selection: np.ndarray
    relevance: np.ndarray
    predicted: np.ndarray
    f_original: np.ndarray
    g_original: np.ndarray
    f_probability: np.ndarray
    g_probability: np.ndarray
    f_predicted: np.ndarray


def select_concepts(
    relevance: Tensor,
    threshold: float | None = None,
    top_k: int | None = None,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Choose concepts of each image: exactly one of the three ways.

    Args:
        relevance: (B, K) in [-1, 1].
        threshold: concepts with a relevance above it, in [0, 1).
        top_k: so many concepts of the highest relevance, 1 to K.
        indices: these concepts for every image, 0 to K - 1.

    Returns:
        (B, K) bool.

    Raises:
        ValueError: none or several ways given, or a value out of range.
    """
    given = {"--concept-threshold": threshold, "--concept-top-k": top_k, "--concept-indices": indices}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"give exactly one of {', '.join(given)}; got {' and '.join(named) or 'none'}")
    n_concepts = relevance.shape[1]
    if threshold is not None:
        if not 0 <= threshold < 1:
            raise ValueError(f"--concept-threshold {threshold} is out of range; relevance goes from 0 to below 1")
        return relevance > threshold
    if top_k is not None:
        if not 1 <= top_k <= n_concepts:
            raise ValueError(f"--concept-top-k {top_k} is out of range; the ensemble has {n_concepts} concepts")
        best = relevance.argsort(dim=1, descending=True, stable=True)[:, :top_k]
        return torch.zeros_like(relevance, dtype=torch.bool).scatter_(1, best, True)
    wrong = [index for index in indices or () if not 0 <= index < n_concepts]
    if wrong or not indices:
        raise ValueError(
            f"--concept-indices {', '.join(map(str, wrong)) or 'is empty'}{' is out of range' if wrong else ''}; "
            f"the ensemble has {n_concepts} concepts, counted from 0"
        )
    selection = torch.zeros_like(relevance, dtype=torch.bool)
    selection[:, list(indices)] = True
    return selection


def image_relevance(ensemble: VisCoIN, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Relevance (B, K) of the concepts of images (B, 3, H, W) for the classes that g predicts, on the CPU."""
    with evaluation(ensemble, device):
        concept_maps = ensemble.encode(images.to(device)).concept_maps
        classes = ensemble.explain(concept_maps).argmax(1)
        return ensemble.relevance(ensemble.activations(concept_maps), classes).float().cpu().clone()


def one_by_one(images: Tensor, selection: Tensor) -> tuple[Tensor, Tensor]:
    """A row for each image and selected concept: images (R, 3, H, W) and selections (R, K) of one concept each."""
    rows, concepts = selection.nonzero(as_tuple=True)
    single = torch.zeros(len(rows), selection.shape[1], dtype=torch.bool)
    single[torch.arange(len(rows)), concepts] = True
    return images[rows], single


def amplify_images(
    ensemble: VisCoIN,
    images: Tensor,
    selection: Tensor,
    factors: Sequence[float] = FACTORS,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> AmplificationResult:
    """Generate every image with each factor on its selected concepts; the support Phi' stays as it is.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        selection: (B, K) bool, from `select_concepts`.
        factors: multipliers, none below 0.

    Raises:
        ValueError: no images, a negative factor, or a selection of another shape.
    """
    if not factors or any(factor < 0 for factor in factors):
        raise ValueError(f"multipliers must be 0 or more, got {', '.join(map(str, factors)) or 'none'}")
    if not len(images) or len(images) != len(selection):
        raise ValueError(
            f"{len(selection)} selections for {len(images)} images; give at least one image, and a selection for each"
        )
    parts = [
        _amplify_batch(ensemble, images[i : i + batch_size], selection[i : i + batch_size], factors, device)
        for i in range(0, len(images), batch_size)
    ]
    return AmplificationResult(
        factors=np.array(factors, dtype=float),
        selection=selection.cpu().numpy(),
        originals=to_pixels(images),
        **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]},
    )


def _amplify_batch(
    ensemble: VisCoIN, images: Tensor, selection: Tensor, factors: Sequence[float], device: torch.device | str
) -> dict[str, np.ndarray]:
    with evaluation(ensemble, device):
        code = ensemble.encode(images.to(device, memory_format=torch.channels_last))
        logits = ensemble.explain(code.concept_maps)
        classes = logits.argmax(1)
        selection = selection.to(logits.device)

        def generate(factor: float) -> Tensor:
            maps = amplify(code.concept_maps, selection, factor)
            return ensemble.decode(maps, code.support).float().clamp(-1, 1)

        rebuilt = generate(1.0)
        generated = [rebuilt if factor == 1 else generate(factor) for factor in factors]
        probabilities = [_class_probabilities(ensemble, result, classes) for result in generated]
        values = {
            "changes": torch.stack([(result - rebuilt).abs().mean(1) / 2 for result in generated], 1),
            "relevance": ensemble.relevance(ensemble.activations(code.concept_maps), classes),
            "predicted": classes,
            "f_predicted": code.logits.argmax(1),
            "f_original": _of_class(code.logits, classes),
            "g_original": _of_class(logits, classes),
            "f_probability": torch.stack([f for f, _ in probabilities], 1),
            "g_probability": torch.stack([g for _, g in probabilities], 1),
        }
        arrays = {key: value.cpu().numpy() for key, value in values.items()}
        return arrays | {"images": np.stack([to_pixels(result) for result in generated], 1)}


def _class_probabilities(ensemble: VisCoIN, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    code = ensemble.encode(images)
    return _of_class(code.logits, classes), _of_class(ensemble.explain(code.concept_maps), classes)


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Softmax probability (B,) of one class per row."""
    return logits.float().softmax(1).gather(1, classes[:, None]).squeeze(1)
