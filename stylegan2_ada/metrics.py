"""How near generated images come to real ones, from features of both, and how smooth the way between two images is.

Features are plain arrays (N, D), whatever network they come from; the name of a number must say which. KID, precision
and recall, and the inception score are computed by torch-fidelity (the extra `metrics`); so are Inception features.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .networks import Generator
from .plain_pickle import read_tensor_file
from .together import collect, own, turn

logger = logging.getLogger(__name__)

NEIGHBOURS = 3  # of precision and recall, as in the paper
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # as in the paper
IS_SPLITS = 10  # as in the paper
PPL_EPSILON, PPL_TRIM, PPL_RESOLUTION = 1e-4, 0.01, 256  # as in the public code of StyleGAN
ROWS = 1000  # rows of a distance matrix at a time

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SIZE = "96 MB"


@dataclass
class FeatureMoments:
    """Sums from which mean and covariance of (N, D) features follow; filled batch by batch, in float64."""

    n: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    products: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def of(cls, features: np.ndarray, batch_size: int = ROWS) -> "FeatureMoments":
        """The moments of an array (N, D), which may be a memory map."""
        moments = cls()
        for start in range(0, len(features), batch_size):
            moments.add(features[start : start + batch_size])
        return moments

    def add(self, features: np.ndarray) -> None:
        """Take in a batch (B, D)."""
        features = features.astype(np.float64)
        self.total = features.sum(0) + (self.total if self.n else 0.0)
        self.products = features.T @ features + (self.products if self.n else 0.0)
        self.n += len(features)

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.n

    @property
    def covariance(self) -> np.ndarray:
        if self.n < 2:
            raise ValueError(f"the Frechet distance needs at least 2 images of each kind, got {self.n}")
        return (self.products - self.n * np.outer(self.mean, self.mean)) / (self.n - 1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Squared Frechet distance of two Gaussians, |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    Heusel et al. 2017, Eq. 6. The trace of the root is the sum of the singular values of S_a^(1/2) S_b^(1/2), which
    stays real and stable for singular covariances.
    """
    roots = [_square_root(moments.covariance) for moments in (a, b)]
    overlap = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return float(max(((a.mean - b.mean) ** 2).sum() + spread, 0.0))


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    seed: int = 0,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
) -> tuple[float, float]:
    """KID (Binkowski et al., arXiv 1801.01401): unbiased squared MMD with the kernel (x.y / D + 1)^3.

    Args:
        real, generated: features (N, D) and (M, D).
        subsets, subset_size: number of random subsets for the estimate, and of images of each kind in a subset.

    Returns:
        Mean and standard deviation over the subsets; the mean may fall a little below 0.

    Raises:
        ValueError: fewer images than a subset has, or no torch-fidelity.
    """
    if min(len(real), len(generated)) < subset_size:
        raise ValueError(
            f"KID draws subsets of {subset_size} images, but there are {len(real)} real and {len(generated)} generated "
            "ones; take smaller subsets or more images"
        )
    library = _torch_fidelity("metric_kid")
    found = library.kid_features_to_metric(
        _double(generated),
        _double(real),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    return found[library.KEY_METRIC_KID_MEAN], found[library.KEY_METRIC_KID_STD]


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS, batch_size: int = ROWS
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991, Eq. 1 and 2), both in [0, 1].

    Precision is the share of generated features (M, D) that lie within the distance of some real feature (N, D) to its
    k-th nearest real neighbour; recall the same with the roles exchanged.

    Raises:
        ValueError: too few images for k neighbours, or no torch-fidelity.
    """
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(
            f"precision and recall need more than k = {neighbours} images of each kind, but there are {len(real)} real "
            f"and {len(generated)} generated ones; take more images"
        )
    library = _torch_fidelity("metric_prc")
    found = library.prc_features_to_metric(
        _double(generated), _double(real), prc_neighborhood=neighbours, prc_batch_size=batch_size, save_cpu_ram=True,
        verbose=False,
    )  # fmt: skip
    return found[library.KEY_METRIC_PRECISION], found[library.KEY_METRIC_RECALL]


def inception_score(logits: np.ndarray, seed: int = 0, splits: int = IS_SPLITS) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) (Salimans et al., arXiv 1606.03498), between 1 and the number of classes.

    Args:
        logits: of generated images, (N, C).
        splits: number of parts into which the shuffled images are divided.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        ValueError: fewer images than parts, or no torch-fidelity.
    """
    if len(logits) < splits:
        raise ValueError(
            f"the inception score divides the images into {splits} parts, but there are {len(logits)}; take more images"
        )
    library = _torch_fidelity("metric_isc")
    found = library.isc_features_to_metric(_double(logits), splits=splits, shuffle=True, rng_seed=seed)
    return found[library.KEY_METRIC_ISC_MEAN], found[library.KEY_METRIC_ISC_STD]


def path_lengths(
    generator: Generator,
    distance: Callable[[Tensor, Tensor], Tensor],
    z: tuple[Tensor, Tensor],
    c: Tensor | None = None,
    t: Tensor | None = None,
    *,
    epsilon: float = PPL_EPSILON,
    truncation_psi: float = 1,
    largest: int | None = PPL_RESOLUTION,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> np.ndarray:
    """d(G(w_t), G(w_(t + epsilon))) / epsilon^2 on straight paths in W (StyleGAN, arXiv 1812.04948, Sec. 4.1).

    The images of a pair share stored noise and are not rounded to 8 bits, which would hide so small a step. (The
    packages torchmetrics and torch-fidelity offer paths in Z alone.)

    Args:
        distance: images a, b (B, 3, H, W) in [-1, 1] -> (B,), of second order in small differences.
        z: latents of both ends, each (N, z_dim).
        c: conditions (N, c_dim), the same along a path.
        t: places on the paths, (N,) in [0, 1]; None means the first end, t = 0, everywhere.
        largest: side in pixels that larger images are averaged down to.

    Returns:
        (N,) float64; `trimmed_mean` of them is the perceptual path length.
    """

    def measured(start: int) -> np.ndarray:
        part = slice(start, start + batch_size)
        condition = None if c is None else c[part].to(device)
        first, last = (generator.mapping(end[part].to(device), condition, truncation_psi) for end in z)
        place = torch.zeros(len(first)) if t is None else t[part]
        place = place.to(first).view(-1, 1, 1)
        ws = torch.cat([first.lerp(last, place), first.lerp(last, place + epsilon)])
        a, b = _at_most(generator.synthesis(ws, noise_mode="const").float(), largest).chunk(2)
        return distance(a, b).cpu().double().numpy() / epsilon**2

    hidden = None if turn()[0] == 0 else True
    starts = tqdm(own(range(0, len(z[0]), batch_size)), "path length", unit="batch", leave=False, disable=hidden)
    return np.concatenate(collect(measured(start) for start in starts))


def trimmed_mean(values: np.ndarray, trim: float = PPL_TRIM) -> float:
    """Mean of values (N,) without the lowest and the highest share `trim`, as the public StyleGAN code reports PPL."""
    low, high = np.quantile(values, trim, method="lower"), np.quantile(values, 1 - trim, method="higher")
    return float(values[(values >= low) & (values <= high)].mean())


class InceptionFeatures(nn.Module):
    """Pooled features (2048) and class logits (1008) of the Inception network of 2015, with which FID is published.

    Args:
        weights: file of torch-fidelity's conversion of the original weights; see `inception_weights`.

    Raises:
        ValueError: not that file, or no torch-fidelity.
    """

    name = "inception"
    resize = "bilinear to 299 px as TensorFlow 1 does (torch-fidelity), from 8 bit"
    has_classes = True

    def __init__(self, weights: Path) -> None:
        super().__init__()
        library = _torch_fidelity("feature_extractor_inceptionv3")
        try:
            read_tensor_file(weights)  # torch-fidelity lets pickles run code; what is read here has none
            self.model = library.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # damaged bytes may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise ValueError(f"{weights} does not hold the Inception weights {INCEPTION_FILE}: {reason}") from error

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) -> features (B, 2048) and logits (B, 1008)."""
        return self.model(pixels)


def inception_weights(given: Path | None = None, download: bool = False) -> Path | None:
    """The file of the Inception weights, or None where it is not on disk and may not be downloaded.

    Args:
        given: look there alone; by default in torch's hub folder.

    Raises:
        ValueError: the given file does not exist, or the download failed.
    """
    if given is not None:
        if not given.is_file():
            raise ValueError(f"there is no file {given} of Inception weights; they are published at {INCEPTION_URL}")
        return given
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if path.is_file():
        return path
    if not download:
        return None
    logger.info("downloading Inception weights (%s) to %s", INCEPTION_SIZE, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"the Inception weights ({INCEPTION_SIZE}) could not be downloaded from {INCEPTION_URL} ({reason}); "
            f"put the file into {path.parent}, or use features of a classifier"
        ) from error
    return path


def _torch_fidelity(module: str) -> Any:
    try:
        return import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise ValueError(
            f"this measure needs the package torch-fidelity ({error}); install it with: pip install viscoin[metrics]"
        ) from error


def _double(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def _at_most(images: Tensor, resolution: int | None) -> Tensor:
    factor = 1 if resolution is None else math.ceil(images.shape[-1] / resolution)
    return F.avg_pool2d(images, factor) if factor > 1 else images


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
