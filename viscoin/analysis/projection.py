"""Projection of images into a generator: targets, distances, measures, and latents as files."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stylegan2_ada.networks import Generator
from stylegan2_ada.projection import SPACES, Distance, Projection, project, reduced, render
from viscoin.datasets import to_pixels
from viscoin.errors import Refused
from viscoin.files import atomic_path
from viscoin.inference.batches import evaluation
from viscoin.inference.loading import Subject
from viscoin.models.classifier import Classifier
from viscoin.models.files import FORMAT, read_file, write_file
from viscoin.models.perceptual import ClassifierPerceptual, Perceptual, find_perceptual

logger = logging.getLogger(__name__)

NOISE = "noise."
GAP = 2  # pixels between the images of a pair


class NamedDistance(NamedTuple):
    """A distance between images, its name in files and in figures, and the pixel term that goes well with it."""

    function: Distance
    name: str
    title: str
    pixel_weight: float


@dataclass(frozen=True)
class Latent:
    """What makes one image again: styles (num_ws, w_dim), noise maps (H, W) by name, and how they were found."""

    ws: Tensor
    noises: dict[str, Tensor]
    metadata: dict[str, Any]

    def image(self, generator: Generator) -> Tensor:
        """The image (C, H, W), around [-1, 1], not clamped; on the same machine the same bits as when it was saved.

        Raises:
            ValueError: the generator has other weights than the one that the latent was found in.
        """
        if fingerprint(generator) != self.metadata.get("generator_fingerprint"):
            raise ValueError(
                f"this latent was found in {self.metadata.get('generator')}, and this is another generator"
            )
        device = next(generator.parameters()).device
        noises = {name: noise[None, None].to(device) for name, noise in self.noises.items()}
        return render(generator, self.ws[None].to(device), noises)[0]


@dataclass(frozen=True)
class ProjectedImage:
    """One image and what the generator made of it.

    Attributes:
        name: for files and figures.
        target, image: (H, W, 3) uint8.
        snapshots: (S, H, W, 3) uint8, on the way from the mean style to the result.
        snapshot_steps, snapshot_distances: (S,).
        distances: (steps,) in each step, with noise on the style.
        distance_title: which distance that is, for people.
        scores: see `measure`.
        latent: styles and noise maps of `image`.
    """

    name: str
    target: np.ndarray
    image: np.ndarray
    snapshots: np.ndarray
    snapshot_steps: tuple[int, ...]
    snapshot_distances: np.ndarray
    distances: np.ndarray
    distance_title: str
    scores: dict[str, float]
    latent: Latent


@dataclass(frozen=True)
class Search:
    """How to search: arguments of `stylegan2_ada.projection.project`; `pixel_weight` None is that of the distance."""

    space: str = "w"
    steps: int = 500
    learning_rate: float = 0.05
    pixel_weight: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise Refused("space", self.space, "unknown", f"choose {' or '.join(SPACES)}")


def choose_distance(kind: str, find_classifier: Callable[[], Classifier], device: torch.device | str) -> NamedDistance:
    """The distance that `kind` means; logs which one is used.

    Args:
        kind: "lpips", "classifier", or "auto": LPIPS where VGG-16 weights lie in the cache or can be downloaded.
        find_classifier: gives f, called only where f is needed.

    Raises:
        ValueError: unknown kind, "lpips" without weights, or no classifier where one is needed.
    """
    distance = (
        None if kind == "classifier" else find_perceptual(kind, None, device, download=True, parameter="distance")
    )
    if distance is not None:
        logger.info("distance: LPIPS on VGG-16")
        return lpips_distance(distance[0])
    logger.info("distance: feature maps of the classifier")
    try:
        return classifier_distance(find_classifier().to(device))
    except ValueError as error:
        raise Refused(None, None, str(error), "or name one by `classifier`") from error


def lpips_distance(perceptual: Perceptual) -> NamedDistance:
    """LPIPS at no more than 256 px, alone, as in the StyleGAN2 paper."""
    return NamedDistance(lambda images, targets: perceptual(reduced(images), reduced(targets)), "lpips", "LPIPS", 0.0)


def classifier_distance(classifier: Classifier) -> NamedDistance:
    """`ClassifierPerceptual` of f with images resized to what f takes; the maps of the last targets are cached.

    The maps of a small f say little of places and shades, so this one goes with a pixel term. f stays as it is, and
    several threads may use one distance.
    """
    perceptual = ClassifierPerceptual(classifier)
    size = (classifier.resolution, classifier.resolution)
    kept: list[tuple[Tensor, Sequence[Tensor]]] = []

    def maps(images: Tensor) -> Sequence[Tensor]:
        if images.shape[-1] != classifier.resolution:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        graph = torch.is_grad_enabled()
        with evaluation(classifier, images.device, gradients=True), torch.set_grad_enabled(graph):
            return classifier.features(images).maps

    def distance(images: Tensor, targets: Tensor) -> Tensor:
        found = next((entry for entry in kept if entry[0] is targets), None)
        if found is None:
            with torch.no_grad():
                found = targets, maps(targets)
            kept[:] = [found]
        return perceptual.distance(maps(images), found[1])

    return NamedDistance(distance, "classifier", "classifier distance", 10.0)


def class_conditions(loaded: Subject, class_name: str | None, labels: Tensor | None, n: int) -> Tensor | None:
    """Conditions (n, c_dim) of a generator: the class of that name or index, else the labels (n,) of the images.

    Raises:
        ValueError: an unknown class, none for a conditional generator, or one for a generator without classes.
    """
    c_dim, names = loaded.model.c_dim, loaded.class_names
    if not c_dim:
        if class_name is not None:
            raise Refused("class_name", class_name, f"{loaded.path} is no conditional generator", "leave it out")
        return None
    known = f"an index from 0 to {c_dim - 1}" + (f" or one of {', '.join(names)}" if len(names) == c_dim else "")
    if class_name is None:
        if labels is None:
            reason = f"{loaded.path} is a conditional generator"
            raise Refused("class_name", None, reason, f"name the class of the images: {known}")
        return F.one_hot(labels, c_dim).float()
    if class_name in names[:c_dim]:
        index = names.index(class_name)
    elif class_name.isdecimal() and int(class_name) < c_dim:
        index = int(class_name)
    else:
        raise Refused("class_name", class_name, "unknown", f"give {known}")
    return F.one_hot(torch.full([n], index), c_dim).float()


def project_images(
    generator: Generator,
    images: Tensor,
    names: Sequence[str],
    distance: NamedDistance,
    search: Search,
    *,
    conditions: Tensor | None = None,
    generator_name: str = "a generator",
    batch_size: int = 8,
) -> list[ProjectedImage]:
    """Project images (B, 3, H, W) in [-1, 1], batch by batch, and measure how near they come.

    Args:
        conditions: (B, c_dim) of a conditional generator.
        generator_name: for the metadata of the latents.

    Raises:
        ValueError: as `stylegan2_ada.projection.project`.
    """
    weight = distance.pixel_weight if search.pixel_weight is None else search.pixel_weight
    made = {
        "generator": generator_name,
        "generator_fingerprint": fingerprint(generator),
        "distance": distance.name,
        **vars(search),
        "pixel_weight": weight,
        "torch": torch.__version__,
    }
    found = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        result = project(
            generator,
            images[part],
            distance.function,
            space=search.space,
            steps=search.steps,
            seed=search.seed,
            c=None if conditions is None else conditions[part],
            learning_rate=search.learning_rate,
            pixel_weight=weight,
        )
        found += [
            _projected(result, i, images[part][i], Latent(*_of_row(result, i), {"image": name, **made}), distance.title)
            for i, name in enumerate(names[part])
        ]
    return found


def measure(projection: Projection, target: Tensor, row: int) -> dict[str, float]:
    """Distance, where it started, L1 and PSNR (dB) of one projected image against its target (3, H, W) in [-1, 1].

    L1 is the mean absolute difference, of at most 2; `style_offset` is the root mean squared distance of the styles to
    the mean style, in units of that of random styles (1 is usual, far more is outside of what the generator knows).
    """
    image = projection.images[row].clamp(-1, 1).cpu()
    target = target.cpu()
    squared = float((image - target).square().mean())
    offset = (projection.ws[row] - projection.w_avg[row]).square().sum(1).mean().sqrt() / projection.w_std[row]
    return {
        "distance": float(projection.distance[row]),
        "distance_at_start": float(projection.snapshot_distances[row, 0]),
        "l1": float((image - target).abs().mean()),
        "psnr": 10 * math.log10(4 / max(squared, 1e-10)),  # at most 106 dB, not infinite
        "style_offset": float(offset),
    }


def save_latent(path: Path, latent: Latent) -> Path:
    """Write styles and noise maps with their metadata as .safetensors."""
    tensors = {"ws": latent.ws, **{NOISE + name: noise for name, noise in latent.noises.items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, tensors, {"format": FORMAT, "kind": "latent", **latent.metadata})
    return path


def load_latent(path: Path) -> Latent:
    """A latent that `save_latent` wrote.

    Raises:
        ValueError: missing or damaged file, or one that holds something else.
    """
    tensors, metadata = read_file(path)
    if metadata.get("kind") != "latent":
        raise ValueError(f"{path} holds a {metadata.get('kind')} model, not a latent; give a file of `project`")
    if "ws" not in tensors or tensors["ws"].ndim != 2:
        raise ValueError(f"{path} holds no styles (ws); give a file of `project`")
    noises = {name.removeprefix(NOISE): noise for name, noise in tensors.items() if name.startswith(NOISE)}
    return Latent(tensors["ws"], noises, {key: metadata[key] for key in metadata if key not in ("format", "kind")})


def fingerprint(generator: Generator) -> str:
    """Digest of the weights that make images from styles and noise maps."""
    digest = hashlib.sha256()
    for name, tensor in sorted(generator.synthesis.state_dict().items()):
        if not name.endswith("noise_const"):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def save_projections(folder: Path, found: Sequence[ProjectedImage]) -> list[Path]:
    """Write `<name>-pair.png` (target | projected), `<name>-latent.safetensors` of each image, and results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in found:
        paths.append(folder / f"{one.name}-pair.png")
        gap = np.full((len(one.target), GAP, 3), 255, np.uint8)
        Image.fromarray(np.hstack([one.target, gap, one.image])).save(paths[-1])
        paths.append(save_latent(folder / f"{one.name}-latent.safetensors", one.latent))
    paths.append(folder / "results.json")
    rows = [{"image": one.name, **one.scores} for one in found]
    keys = ("generator", "distance", "space", "steps", "learning_rate", "pixel_weight", "seed")
    header = {key: found[0].latent.metadata[key] for key in keys}
    with atomic_path(paths[-1]) as partial:
        partial.write_text(json.dumps({**header, "mean": mean_scores(found), "images": rows}, indent=2) + "\n")
    return paths


def mean_scores(found: Sequence[ProjectedImage]) -> dict[str, float]:
    """Each score, averaged over the images."""
    return {key: float(np.mean([one.scores[key] for one in found])) for key in found[0].scores}


def _of_row(result: Projection, row: int) -> tuple[Tensor, dict[str, Tensor]]:
    return result.ws[row].cpu(), {key: noise[row, 0].cpu() for key, noise in result.noises.items()}


def _projected(result: Projection, row: int, target: Tensor, latent: Latent, title: str) -> ProjectedImage:
    scores = measure(result, target, row)
    return ProjectedImage(
        name=latent.metadata["image"],
        target=to_pixels(target[None])[0],
        image=to_pixels(result.images[row : row + 1])[0],
        snapshots=to_pixels(result.snapshots[row]),
        snapshot_steps=result.snapshot_steps,
        snapshot_distances=result.snapshot_distances[row].cpu().numpy(),
        distances=result.distances[row].cpu().numpy(),
        distance_title=title,
        scores=scores,
        latent=replace(latent, metadata={**latent.metadata, "scores": scores}),
    )
