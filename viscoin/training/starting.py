"""How an ensemble starts from the concepts that f already has: the pursuit written into Psi, and Theta fitted to f."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.together import once
from viscoin.config import ViscoinConfig
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import choose_images, evaluation, progress
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.models.pursuit import of_map, pursue

IMAGES, BATCH = 20_000, 128
LIFT = 8.0  # standard deviations of a score at single places; what lies lower is cut off
STEPS, SAMPLE, RATE, DECAY = 400, 512, 0.05, 1e-5  # of the fit of Theta
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What f makes of N images: features of its last layer (N, D), means of its coarsest map (N, C), logits (N, n)."""

    features: np.ndarray
    pooled: np.ndarray
    logits: Tensor


def start_from_pursuit(
    ensemble: VisCoIN, train: ImageDataset, config: ViscoinConfig, device: torch.device | str = "cpu", seed: int = 0
) -> int:
    """Write the concepts of f's last layer into Psi, and fit Theta to f on them; no label of an attribute is used.

    Returns:
        d, the dimensions of the search.

    Raises:
        Refused: f has no linear last layer, or fewer directions than concepts are asked for.
    """
    state, d = once(lambda: _started(ensemble, train, config, device, seed))
    for part, values in zip((ensemble.concept_extractor, ensemble.explainer), state, strict=True):
        part.load_state_dict(values)
    return d


def _started(
    ensemble: VisCoIN, train: ImageDataset, config: ViscoinConfig, device: torch.device | str, seed: int
) -> tuple[list[dict[str, Tensor]], int]:
    weight = ensemble.classifier.last_layer.weight.detach().cpu().numpy().astype(np.float64)
    indices = choose_images(len(train), IMAGES, seed)
    seen = _look(ensemble.classifier, train, indices, device)
    count = -(-ensemble.n_concepts // 2)
    found = pursue(weight, seen.features.astype(np.float64), count, config.pursuit_dimensions, seed)
    d = found.basis.shape[1]
    numbers = of_map(found, seen.features, seen.pooled)
    basis, offset, share = torch.from_numpy(numbers[0]).float(), torch.from_numpy(numbers[1]).float(), numbers[2]
    logger.info(
        "pursuit: %d directions over %s in %d dimensions; the coarsest map explains %.1f %% of their scores",
        count, found.over, d, 100 * share,
    )  # fmt: skip
    spread = _spread(ensemble.classifier, train, indices[:: max(1, len(indices) // 500)], basis, offset, device)
    extractor = ensemble.concept_extractor
    extractor.start_from_directions(basis, offset, torch.from_numpy(found.directions).float(), LIFT * spread)
    phi = _activations(ensemble, train, indices, device)
    fit_explainer(ensemble, phi, seen.logits, seed)
    return [extractor.state_dict(), ensemble.explainer.state_dict()], d


def _look(classifier: Classifier, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str) -> Seen:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluation(classifier, device), progress(len(indices), "pursuit", "image") as bar:
        for images, _ in dataset.batches(BATCH, indices):
            features, coarsest = classifier.last_features(images.to(device, memory_format=torch.channels_last))
            parts.append(
                (features.float().cpu(), coarsest.float().mean((2, 3)).cpu(), classifier.last_layer(features).cpu())
            )
            bar.update(len(images))
    features, pooled, logits = (torch.cat(column) for column in zip(*parts))
    return Seen(features.numpy(), pooled.numpy(), logits.float())


def _spread(
    classifier: Classifier,
    dataset: ImageDataset,
    indices: np.ndarray,
    basis: Tensor,
    offset: Tensor,
    device: torch.device | str,
) -> float:
    """Standard deviation of the scores at single places."""
    squares = []
    with evaluation(classifier, device):
        for images, _ in dataset.batches(BATCH, indices):
            coarsest = classifier.last_features(images.to(device))[1].float().cpu()
            scores = torch.einsum("bchw,cd->bdhw", coarsest, basis) + offset[:, None, None]
            squares.append(scores.square().mean())
    return float(torch.stack(squares).mean().sqrt())


def _activations(ensemble: VisCoIN, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str) -> Tensor:
    parts = []
    with evaluation(ensemble, device), progress(len(indices), "concepts", "image") as bar:
        for images, _ in dataset.batches(BATCH, indices):
            maps = ensemble.concept_maps(images.to(device, memory_format=torch.channels_last))[1]
            parts.append(ensemble.activations(maps).float().cpu())
            bar.update(len(images))
    return torch.cat(parts)


def fit_explainer(ensemble: VisCoIN, phi: Tensor, logits: Tensor, seed: int = 0) -> float:
    """Fit Theta, linear on activations phi (N, K), to the softmax of f's logits (N, n).

    Returns:
        Share of the images for which both say the same.
    """
    mean, spread = phi.mean(0), phi.std(0) + 1e-6
    inputs, targets = (phi - mean) / spread, logits.softmax(1)
    weight = torch.zeros(logits.shape[1], phi.shape[1], requires_grad=True)
    bias = torch.zeros(logits.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * min(1, (STEPS - step) / (0.6 * STEPS))
        rows = torch.randint(len(inputs), (SAMPLE,), generator=generator)
        loss = F.cross_entropy(F.linear(inputs[rows], weight, bias), targets[rows]) + DECAY * weight.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        own = weight / spread
        linear = ensemble.explainer.linear
        linear.weight = own if ensemble.explainer.weight_norm else nn.Parameter(own)
        linear.bias.copy_(bias - own @ mean)
        same = (F.linear(inputs, weight, bias).argmax(1) == logits.argmax(1)).float().mean()
    logger.info("theta says the same as f on %.4f of %d training images", float(same), len(phi))
    return float(same)
