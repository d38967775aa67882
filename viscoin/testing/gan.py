"""How near the samples of a generator come to real images, in features of the classifier."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from stylegan2_ada.networks import Generator
from viscoin.datasets import ImageDataset
from viscoin.models.classifier import Classifier
from viscoin.testing.inference import choose_images, evaluation, image_batches, pooled
from viscoin.testing.measures import FeatureMoments, frechet_distance


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


def test_gan(
    generator: Generator,
    classifier: Classifier,
    dataset: ImageDataset,
    n: int = 2000,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> GanResult:
    """Compare n samples (random noise, no truncation) with n real images, or all if there are fewer."""
    indices = choose_images(len(dataset), n, seed)
    real, generated = FeatureMoments(), FeatureMoments()
    with evaluation(classifier, device), evaluation(generator, device):
        for images, _ in image_batches(dataset, indices, batch_size, device, "features of real images"):
            real.add(pooled(classifier.features(images).maps[-1]))
        for images in samples(generator, dataset, n, seed, device, batch_size):
            generated.add(pooled(classifier.features(images).maps[-1]))
    return GanResult(frechet_distance(real, generated), n, len(indices))


def samples(
    generator: Generator, dataset: ImageDataset, n: int, seed: int, device: torch.device | str, batch_size: int
) -> Iterator[Tensor]:
    """Batches of n generated images in [-1, 1]; the latents of all of them are drawn first, from the seed."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(n, generator.z_dim, generator=draw)
    classes = torch.from_numpy(dataset.labels)[torch.randint(len(dataset), (n,), generator=draw)]
    with torch.random.fork_rng(), tqdm(total=n, desc="generating", unit="image", leave=False, disable=None) as bar:
        torch.manual_seed(seed)  # of the noise inputs of the synthesis network
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            images = generator(z[part].to(device), _conditions(generator, classes[part], device))
            yield images.float().clamp(-1, 1)
            bar.update(len(images))


def _conditions(generator: Generator, classes: Tensor, device: torch.device | str) -> Tensor | None:
    return F.one_hot(classes, generator.c_dim).float().to(device) if generator.c_dim else None
