"""How an ensemble starts from what is known in closed form.

The concepts that f already has: the pursuit written into Psi, and Theta fitted to f. And the way that Omega begins:
with whitened inputs, and with the regression of G's own styles on what f and Psi make of G's samples.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.networks import FullyConnected, Generator
from viscoin.config import ViscoinConfig
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import choose_images, evaluation, progress
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import CONCEPT_GRID
from viscoin.models.ensemble import VisCoIN
from viscoin.models.pursuit import Stability, of_map, pursue, stability
from viscoin.models.whitening import Scaled, Whitening

IMAGES, BATCH = 20_000, 128
LIFT = 8.0  # standard deviations of a score at single places; what lies lower is cut off
STEPS, SAMPLE, RATE, DECAY = 400, 512, 0.05, 1e-5  # of the fit of Theta
REAL, DRAWN = 8_000, 2_000  # images that Omega's start is fitted on
STYLE_RIDGE = 0.5  # of the mean variance of what Omega reads
SLOPE, GAIN = 0.2, 2**0.5  # of a leaky ReLU in StyleGAN
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """What a start from the pursuit found.

    Attributes:
        dimensions: d of the search.
        over: "classes" or "images", whichever were the points.
        values: of the directions, kurtosis - 0.85 skewness^2; 1.15 for two equal groups, 3 for a Gaussian.
        explained: share of the variance of the scores that the coarsest map explains.
        agreement: share of the training images for which g, as fitted, says the same as f.
        stability: how well other searches find the same directions.
    """

    dimensions: int
    over: str
    values: list[float]
    explained: float
    agreement: float
    stability: Stability


def start_from_pursuit(
    ensemble: VisCoIN, train: ImageDataset, config: ViscoinConfig, device: torch.device | str = "cpu", seed: int = 0
) -> Started:
    """Write the concepts of f's last layer into Psi, and fit Theta to f on them; no label of an attribute is used.

    Raises:
        Refused: f has no linear last layer, or fewer directions than concepts are asked for.
    """
    weight = ensemble.classifier.last_layer.weight.detach().cpu().numpy().astype(np.float64)
    indices = choose_images(len(train), IMAGES, seed)
    seen = _look(ensemble.classifier, train, indices, device)
    features = seen.features.astype(np.float64)
    found = pursue(weight, features, -(-ensemble.n_concepts // 2), config.pursuit_dimensions, seed)
    numbers = of_map(found, seen.features, seen.pooled)
    basis, offset, share = torch.from_numpy(numbers[0]).float(), torch.from_numpy(numbers[1]).float(), numbers[2]
    spread = _spread(ensemble.classifier, train, indices[:: max(1, len(indices) // 500)], basis, offset, device)
    signs = torch.from_numpy(found.directions).float()
    ensemble.concept_extractor.start_from_directions(basis, offset, signs, LIFT * spread)
    agreement = fit_explainer(ensemble, _activations(ensemble, train, indices, device), seen.logits, seed)
    same = stability(weight, features, found, seed)
    if (chosen := ensemble.explainer.chosen) is not None:
        known = float(torch.isin(seen.logits.argmax(1), chosen).float().mean())
        logger.info(
            "f says one of the %d classes that g knows on %.4f of these images: more g cannot agree on",
            len(chosen),
            known,
        )
    logger.info(
        "pursuit: %d directions over %s in %d dimensions; the coarsest map explains %.1f %% of their scores; g says "
        "the same as f on %.4f of %d training images; found again (|correlation|, mean): %.2f with another seed, %s "
        "from half of the classes",
        len(found.values), found.over, basis.shape[1], 100 * share, agreement, len(indices), same.seed,
        "unknown" if same.halves is None else f"{same.halves:.2f}",
    )  # fmt: skip
    return Started(basis.shape[1], found.over, found.values.tolist(), share, agreement, same)


@torch.no_grad()
def start_drawing(
    ensemble: VisCoIN, generator: Generator, train: ImageDataset, config: ViscoinConfig,
    device: torch.device | str = "cpu", seed: int = 0,
) -> None:  # fmt: skip
    """Fit what of Psi's support and of Omega has a closed form, on real images and on samples of G.

    These are the components of the support, the normalisation of what Omega reads, what is usual for the directions
    and, with `translator_start: closed_form`, Omega itself: the ridge regression of G's own styles on what f and Psi
    make of the images drawn from them.
    """
    extractor, translator = ensemble.concept_extractor, ensemble.generator.mapping
    indices = choose_images(len(train), REAL, seed)
    real = _coded(ensemble, (images for images, _ in train.batches(BATCH, indices)), len(indices), device)
    styles, samples = _samples(generator, device, seed)
    drawn = _coded(ensemble, samples.split(BATCH), len(samples), device)
    if extractor.components is not None:
        kept = extractor.components.fit([torch.cat(pair) for pair in zip(real.pooled, drawn.pooled, strict=True)])
        logger.info("support: %d components hold %.1f %% of the variance", extractor.support_width, 100 * kept)
    if isinstance(translator.concept_input, Whitening):
        kept = translator.concept_input.fit(torch.cat([real.concept_maps, drawn.concept_maps]).flatten(1))
        logger.info("omega: what it reads holds %.1f %% of the variance of concept maps", 100 * kept)
    support = _support(ensemble, drawn, device)
    for part, rows in ((translator.concept_input, drawn.concept_maps), (translator.support_input, support)):
        if isinstance(part, Scaled):
            part.fit(rows)
    if ensemble.generator.directions is not None:
        ensemble.generator.directions.measure(real.concept_maps.to(device))
    if config.translator_start == "closed_form":
        _start_translator(ensemble, drawn.concept_maps.to(device), support.to(device), styles)


def _start_translator(ensemble: VisCoIN, concept_maps: Tensor, support: Tensor, styles: Tensor) -> None:
    translator = ensemble.generator.mapping
    offsets = styles - translator.fixed_w_avg
    targets = offsets if translator.linear else _before_activation(offsets)
    concept_rows, support_rows = translator.concept_input(concept_maps.flatten(1)), translator.support_input(support)
    for concepts, rows in ((True, concept_rows), (False, support_rows)):
        weight, bias = _ridge(rows, targets)
        for i in range(translator.num_ws):
            if (i in translator.concept_styles) == concepts:
                _set_layer(translator.get_submodule(f"s{i}.0"), weight, bias)
    missed = (translator(concept_maps, support) - styles[:, None]).square().mean()
    share = 1 - missed / (styles - styles.mean(0)).square().mean()
    logger.info("omega starts with %.1f %% of the variance of G's styles explained", 100 * float(share))


def _ridge(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of the regression of targets (N, out) on rows (N, in)."""
    mean = rows.mean(0)
    centred = (rows - mean).double()
    square = centred.T @ centred / len(rows)
    square += STYLE_RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    weight = torch.linalg.solve(square, centred.T @ (targets - targets.mean(0)).double() / len(rows)).T.float()
    return weight, targets.mean(0) - weight @ mean


def _before_activation(offsets: Tensor) -> Tensor:
    """What a leaky ReLU with StyleGAN's gain makes the offsets from."""
    scaled = offsets / GAIN
    return torch.where(scaled > 0, scaled, scaled / SLOPE)


def _set_layer(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    gains = (layer.weight_gain, layer.bias_gain) if isinstance(layer, FullyConnected) else (1.0, 1.0)
    layer.get_parameter("weight").copy_(weight / gains[0])
    layer.get_parameter("bias").copy_(bias / gains[1])


@dataclass(frozen=True)
class Coded:
    """What f and Psi make of N images: concept maps (N, K, 3, 3), latents (N, C, h, w) and, of each of f's maps, the
    average over a grid of 3 x 3 (N, 9 C_i); on the CPU."""

    concept_maps: Tensor
    latent: Tensor
    pooled: list[Tensor]


def _coded(ensemble: VisCoIN, batches: Iterable[Tensor], total: int, device: torch.device | str) -> Coded:
    extractor, rows = ensemble.concept_extractor, list[list[Tensor]]()
    with evaluation(ensemble, device), progress(total, "start of omega", "image") as bar:
        for images in batches:
            maps = ensemble.classifier.features(images.to(device, memory_format=torch.channels_last)).maps
            latent = extractor.latent(maps)
            pooled = [F.adaptive_avg_pool2d(part.float(), CONCEPT_GRID).flatten(1) for part in maps]
            rows.append([part.float().cpu() for part in (extractor.concept_maps(latent), latent, *pooled)])
            bar.update(len(images))
    concept_maps, latent, *pooled = (torch.cat(column) for column in zip(*rows, strict=True))
    return Coded(concept_maps.clone(), latent.clone(), [part.clone() for part in pooled])


def _samples(generator: Generator, device: torch.device | str, seed: int) -> tuple[Tensor, Tensor]:
    """Styles (N, w_dim) of random samples, and their images."""
    z = torch.randn(DRAWN, generator.z_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    with evaluation(generator, device), progress(DRAWN, "samples of G", "image") as bar:
        styles, images = list[Tensor](), list[Tensor]()
        for part in z.split(BATCH):
            ws = generator.mapping(part, None)
            styles.append(ws[:, 0])
            images.append(generator.synthesis(ws, noise_mode="const").float().clamp(-1, 1).cpu())
            bar.update(len(part))
    return torch.cat(styles).clone(), torch.cat(images).clone()


def _support(ensemble: VisCoIN, code: Coded, device: torch.device | str) -> Tensor:
    extractor = ensemble.concept_extractor
    if extractor.components is not None:
        return extractor.components.of_pooled([part.to(device) for part in code.pooled])
    with evaluation(ensemble, device):
        return torch.cat([extractor.support([], part.to(device)) for part in code.latent.split(BATCH)]).clone()


@dataclass(frozen=True)
class Seen:
    """What f makes of N images: features of its last layer (N, D), means of its coarsest map (N, C), logits (N, n)."""

    features: np.ndarray
    pooled: np.ndarray
    logits: Tensor


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


@torch.enable_grad()
def fit_explainer(ensemble: VisCoIN, phi: Tensor, logits: Tensor, seed: int = 0) -> float:
    """Fit Theta, linear on activations phi (N, K), to the softmax of those logits of f (N, n) whose classes it knows.

    Returns:
        Share of the images for which both say the same, of all classes.
    """
    mean, spread = phi.mean(0), phi.std(0) + 1e-6
    inputs, targets = (phi - mean) / spread, ensemble.explainer.known(logits).softmax(1)
    weight = torch.zeros(targets.shape[1], phi.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
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
        said = F.linear(phi, ensemble.explainer.weight, ensemble.explainer.bias)
        same = (said.argmax(1) == logits.argmax(1)).float().mean()
    return float(same)
