"""How near the samples of a generator come to real images, every number with the protocol that it was measured by."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional as F

from stylegan2_ada import metrics
from stylegan2_ada.metrics import FeatureMoments, frechet_distance
from stylegan2_ada.networks import Generator, draw_noise
from stylegan2_ada.together import collect, once, own, together
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import choose_images, evaluation, own_batches, progress
from viscoin.inference.execution import exact
from viscoin.models.classifier import Classifier
from viscoin.testing.image_features import (
    ClassifierFeatures,
    Distance,
    FeatureNetwork,
    network_digest,
    real_features,
    to_uint8,
)

logger = logging.getLogger(__name__)

PLANE_POINTS = 2000  # points of each kind in the figure of the feature plane


@dataclass(frozen=True)
class GanResult:
    """Frechet distance between real and generated images in pooled last-stage features of f.

    It is not comparable with FIDs on Inception features, nor between classifiers, nor between counts n.
    """

    fid: float
    n: int
    n_real: int

    def to_dict(self) -> dict[str, Any]:
        return {"fid": self.fid, "fid_features": "pooled last stage of f", "n": self.n, "n_real": self.n_real}


@dataclass(frozen=True)
class GanMeasures:
    """Numbers whose names say samples and features (`fid2000_classifier`), and the rest of their protocol.

    `left_out` gives the reason for each unavailable measure that was not asked for by name. `plane` holds real and
    generated features on the two main axes of the real ones, (N, 2) each.
    """

    values: dict[str, float]
    protocol: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)
    plane: tuple[np.ndarray, np.ndarray] | None = None

    def to_dict(self) -> dict[str, Any]:
        left_out = {"left_out": self.left_out} if self.left_out else {}
        return {**self.values, "protocol": self.protocol, **left_out}


def test_gan(
    generator: Generator,
    classifier: Classifier,
    dataset: ImageDataset,
    n: int = 2000,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> GanResult:
    """The Frechet distance alone, of n samples and n real images, or all if there are fewer.

    Processes that train together call this all at once and share the images.
    """
    network, indices = ClassifierFeatures(classifier), choose_images(len(dataset), n, seed)
    check_generator(generator, dataset)
    with together(), evaluation(network, device), evaluation(generator, device):
        real = collect(
            network(to_uint8(images))[0].cpu().numpy()
            for images, _ in own_batches(dataset, indices, batch_size, device, "features of real images")
        )
        generated = collect(
            network(to_uint8(images))[0].cpu().numpy()
            for images in own_samples(generator, dataset, n, seed, device, batch_size)
        )
        distance = once(lambda: frechet_distance(_moments(real), _moments(generated)))
    return GanResult(distance, n, len(indices))


def _moments(batches: list[np.ndarray]) -> FeatureMoments:
    moments = FeatureMoments()
    for batch in batches:
        moments.add(batch)
    return moments


@dataclass(frozen=True)
class Comparison:
    """Features (N, D) of real and generated images, logits (N, C) of the generated ones."""

    real: np.ndarray
    generated: np.ndarray
    logits: np.ndarray
    seed: int
    kid_subset: int

    def fid(self) -> dict[str, float]:
        return {"fid": frechet_distance(FeatureMoments.of(self.real), FeatureMoments.of(self.generated))}

    def kid(self) -> dict[str, float]:
        mean, sd = metrics.kernel_distance(self.real, self.generated, self.seed, subset_size=self.kid_subset)
        alike = self.kid_subset == len(self.real) == len(self.generated)  # all subsets are the whole
        return {"kid": mean} if alike else {"kid": mean, "kid_sd": sd}

    def pr(self) -> dict[str, float]:
        return dict(zip(("precision", "recall"), metrics.precision_recall(self.real, self.generated)))

    def inception_score(self) -> dict[str, float]:
        return dict(zip(("is", "is_sd"), metrics.inception_score(self.logits, self.seed)))

    def plane(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Real and generated features (at most PLANE_POINTS, 2) on the two main axes of the real ones."""
        moments, width = FeatureMoments.of(self.real), self.real.shape[1]
        if width < 2:
            return None
        _, axes = eigh(moments.covariance, subset_by_index=[width - 2, width - 1])
        real, generated = ((part[:PLANE_POINTS] - moments.mean) @ axes[:, ::-1] for part in (self.real, self.generated))
        return real, generated


COMPARISONS = {
    "fid": Comparison.fid, "kid": Comparison.kid, "pr": Comparison.pr, "is": Comparison.inception_score,
}  # fmt: skip
PATHS = {"ppl": "w_end", "ppl-full": "w_full"}
MEASURES = (*COMPARISONS, *PATHS)


def measure_gan(
    generator: Generator,
    dataset: ImageDataset,
    network: FeatureNetwork,
    n: int,
    measures: Sequence[str] | None = None,
    *,
    perceptual: tuple[Distance, str] | None = None,
    truncation: float = 1,
    kid_subset: int = metrics.KID_SUBSET_SIZE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> GanMeasures:
    """Compare n samples (random noise) with n real images, or all if there are fewer. Memory holds features of all.

    Args:
        network: gives the features, and the logits of the inception score.
        measures: some of MEASURES; by default all available ones. "pr" is precision and recall, "ppl" the path
            length in W at the ends of paths, "ppl-full" along them.
        perceptual: distance of the path length, and its name ("lpips" or "classifier").
        truncation: psi of the mapping network; 1 is none.
        kid_subset: images in each of KID's subsets.

    Raises:
        ValueError: unknown measure, an unavailable one that was asked for, or a generator that does not fit.
    """
    check_generator(generator, dataset)
    indices = choose_images(len(dataset), n, seed)
    wanted, left_out = _possible(measures, network, perceptual, n, len(indices), kid_subset)
    psi = "" if truncation == 1 else f"_psi{truncation:g}"
    values: dict[str, float] = {}
    plane = None
    with evaluation(network, device), evaluation(generator, device):
        if set(wanted) & set(COMPARISONS):
            real = real_features(network, dataset, indices, batch_size, device)
            images = own_samples(generator, dataset, n, seed, device, batch_size, truncation)
            rows = collect(tuple(part.float().cpu().numpy() for part in network(to_uint8(batch))) for batch in images)
            suffix = re.sub(r"\W+", "_", network.name) + psi

            def compared() -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray] | None]:
                features, logits = (np.concatenate(parts) for parts in zip(*rows, strict=True))
                comparison = Comparison(real, features, logits, seed, kid_subset)
                names = [name for name in wanted if name in COMPARISONS]
                found = {key: value for name in names for key, value in COMPARISONS[name](comparison).items()}
                return {f"{key}{n}_{suffix}": value for key, value in found.items()}, comparison.plane()

            values, plane = once(compared)
        for name in (name for name in wanted if name in PATHS):
            distance, distance_name = cast(tuple[Distance, str], perceptual)
            largest = metrics.PPL_RESOLUTION if distance_name == "lpips" else None
            paths = _paths(generator, dataset, n, seed, full=name == "ppl-full")
            with exact():  # the images of a pair differ by less than bfloat16 can resolve
                lengths = metrics.path_lengths(
                    generator, distance, **paths, truncation_psi=truncation, largest=largest, device=device,
                    batch_size=-(-batch_size // 2),
                )  # fmt: skip
            values[f"ppl{n}_{PATHS[name]}_{distance_name}{psi}"] = metrics.trimmed_mean(lengths)
    protocol = {
        "dataset": dataset.name, "split": dataset.split, "resolution": dataset.resolution, "real_images": len(indices),
        "samples": n, "truncation": truncation, "noise": "random", "rounding": "8 bit", "seed": seed,
        "batch_size": batch_size, "features": network.name, "features_digest": network_digest(network)[:12],
        "resize": network.resize, **_details(wanted, kid_subset, perceptual[1] if perceptual else ""),
    }  # fmt: skip
    return GanMeasures(values, protocol, left_out, plane)


def check_generator(generator: Generator, dataset: ImageDataset) -> None:
    """Raise ValueError unless the generator makes RGB images of the dataset's size, for its classes if for any."""
    if generator.img_channels != 3:
        raise ValueError(f"the generator makes images of {generator.img_channels} channels; RGB images are needed")
    if generator.img_resolution != dataset.resolution:
        raise ValueError(
            f"the generator makes images of {generator.img_resolution} px, dataset {dataset.name!r} has "
            f"{dataset.resolution} px; prepare the dataset at {generator.img_resolution} px or take another generator"
        )
    if generator.c_dim not in (0, len(dataset.class_names)):
        raise ValueError(
            f"the generator is conditional on {generator.c_dim} classes, dataset {dataset.name!r} has "
            f"{len(dataset.class_names)}; use the dataset that the generator was trained on, with its labels"
        )


def samples(
    generator: Generator,
    dataset: ImageDataset,
    n: int,
    seed: int,
    device: torch.device | str,
    batch_size: int,
    truncation: float = 1,
) -> Iterator[Tensor]:
    """Batches of n generated images in [-1, 1]; the latents of all of them are sampled first, from the seed.

    A conditional generator gets labels sampled from those of the dataset.
    """
    return _samples(generator, dataset, n, seed, device, batch_size, truncation, range(0, n, batch_size))


def own_samples(
    generator: Generator,
    dataset: ImageDataset,
    n: int,
    seed: int,
    device: torch.device | str,
    batch_size: int,
    truncation: float = 1,
) -> Iterator[Tensor]:
    """Those of the batches of `samples` that it is this process's turn to generate, bit for bit the same images."""
    return _samples(generator, dataset, n, seed, device, batch_size, truncation, own(range(0, n, batch_size)))


def _samples(
    generator: Generator,
    dataset: ImageDataset,
    n: int,
    seed: int,
    device: torch.device | str,
    batch_size: int,
    truncation: float,
    starts: Sequence[int],
) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(n, generator.z_dim, generator=draw)
    c = _conditions(generator, dataset, n, draw)
    place, total = 0, sum(len(z[start : start + batch_size]) for start in starts)
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), progress(total, "generating", "image") as bar:
        torch.manual_seed(seed)  # of the noise inputs of the synthesis network
        for start in starts:
            for other in range(place, start, batch_size):  # that of the batches in between, which others generate
                draw_noise(generator, len(z[other : other + batch_size]))
            part, place = slice(start, start + batch_size), start + batch_size
            images = generator(z[part].to(device), None if c is None else c[part].to(device), truncation)
            yield images.float().clamp(-1, 1)
            bar.update(len(images))


def _paths(generator: Generator, dataset: ImageDataset, n: int, seed: int, full: bool) -> dict[str, Any]:
    """Ends, conditions and places of n paths, as `path_lengths` takes them."""
    draw = torch.Generator().manual_seed(seed)
    first, last = torch.randn(2, n, generator.z_dim, generator=draw)
    c = _conditions(generator, dataset, n, draw)
    return {"z": (first, last), "c": c, "t": torch.rand(n, generator=draw) if full else None}


def _conditions(generator: Generator, dataset: ImageDataset, n: int, draw: torch.Generator) -> Tensor | None:
    if not generator.c_dim:
        return None
    classes = torch.from_numpy(dataset.labels)[torch.randint(len(dataset), (n,), generator=draw)]
    return F.one_hot(classes, generator.c_dim).float()


def _possible(
    measures: Sequence[str] | None,
    network: FeatureNetwork,
    perceptual: tuple[Distance, str] | None,
    n: int,
    n_real: int,
    kid_subset: int,
) -> tuple[list[str], dict[str, str]]:
    """The measures to take, and why the others are unavailable; ValueError if one of those was asked for by name."""
    unknown = [name for name in measures or () if name not in MEASURES]
    if unknown:
        raise ValueError(f"--metrics: there is no measure {unknown[0]!r}; choose some of {', '.join(MEASURES)}")
    counts = f"there are {n_real} real and {n} generated ones"
    few = min(n, n_real)
    reasons = {
        "fid": few < 2 and f"FID needs at least 2 images of each kind, {counts}",
        "kid": few < kid_subset and f"KID draws subsets of {kid_subset} images, {counts}; lower --kid-subset",
        "pr": few <= metrics.NEIGHBOURS
        and f"precision and recall need more than {metrics.NEIGHBOURS} images of each kind, {counts}",
        "is": (not network.has_classes and f"IS needs class probabilities, which {network.name} does not give")
        or (n < metrics.IS_SPLITS and f"IS needs at least {metrics.IS_SPLITS} samples, there are {n}"),
    }
    if perceptual is None:
        reasons |= dict.fromkeys(PATHS, "path lengths need the weights of LPIPS or a classifier f")
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if measures is None:
        for reason in left_out.values():
            logger.warning("left out: %s", reason)
        return [name for name in MEASURES if name not in left_out], left_out
    for name in measures:
        if name in left_out:
            raise ValueError(f"--metrics {name}: {left_out[name]}")
    return [name for name in MEASURES if name in measures], {}


def _details(wanted: Sequence[str], kid_subset: int, distance: str) -> dict[str, str]:
    """What else one must know to repeat a measure."""
    path = (
        f"epsilon {metrics.PPL_EPSILON:g}, distance {distance}, stored noise, no rounding, without the lowest "
        f"and highest {metrics.PPL_TRIM:.0%}"
    )
    details = {
        "kid": f"{metrics.KID_SUBSETS} subsets of {kid_subset}",
        "pr": f"{metrics.NEIGHBOURS} nearest neighbours",
        "is": f"{metrics.IS_SPLITS} splits",
        "ppl": f"at the ends of paths in W, {path}",
        "ppl-full": f"at random places of paths in W, {path}",
    }
    return {name: details[name] for name in wanted if name in details}
