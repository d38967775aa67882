"""Batches that depend on (seed, step) alone, augmentation included."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viscoin.datasets import ImageDataset


class StepBatches:
    """Endless shuffled batches; the batch of a step is the same however the run got there.

    Step t takes positions t*B ... t*B+B-1 of an endless sequence of epochs, each a permutation drawn from
    (seed, epoch). Flips and crops of position p are drawn from (seed, p).

    Args:
        dataset: where images and labels come from.
        batch_size: images of a step, over all processes.
        seed: of the shuffling and of the augmentation.
        horizontal_flip: mirror every image with probability 1/2.
        padding: random crop after reflecting so many pixels at each border.
        rank, world_size: this process takes every `world_size`-th position.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        horizontal_flip: bool = False,
        padding: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch size {batch_size} does not divide over {world_size} processes")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.horizontal_flip, self.padding = horizontal_flip, padding
        self.rank, self.world_size = rank, world_size
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] and labels (B,) of `step`."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.rank :: self.world_size]
        images, labels = self.dataset.batch(np.array([self._index(p) for p in positions]))
        draws = np.stack([self._draw(int(p)) for p in positions])
        if self.horizontal_flip:
            flip = torch.from_numpy(draws[:, 0] < 0.5)
            images[flip] = images[flip].flip(3)
        if self.padding:
            images = _crop(images, draws[:, 1:], self.padding)
        return images, labels

    def _index(self, position: int) -> int:
        epoch, offset = divmod(int(position), len(self.dataset))
        if self._epoch[0] != epoch:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
            self._epoch = (epoch, generator.permutation(len(self.dataset)))
        return int(self._epoch[1][offset])

    def _draw(self, position: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, position])).random(3)


def _crop(images: Tensor, draws: np.ndarray, padding: int) -> Tensor:
    size = images.shape[-1]
    padded = F.pad(images, [padding] * 4, mode="reflect")
    corners = np.floor(draws * (2 * padding + 1)).astype(int)
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, corners, strict=True)])
