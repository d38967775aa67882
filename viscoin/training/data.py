"""Batches that depend on (seed, step) alone, augmentation included."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viscoin.datasets import ImageDataset
from viscoin.training.penalties import Penalties
from viscoin.training.transforms import Transforms, mix


class StepBatches:
    """Endless shuffled batches; the batch of a step is the same however the run got there.

    Step t takes positions t*B ... t*B+B-1 of an endless sequence of epochs, each a permutation sampled from
    (seed, epoch). Flips, crops and transforms of position p are sampled from (seed, p).

    Args:
        dataset: where images and labels come from.
        batch_size: images of a step, over all processes.
        seed: of the shuffling and of the augmentation.
        horizontal_flip: mirror every image with probability 1/2.
        padding: random crop after reflecting this number of pixels at each border.
        rank, world_size: this process takes every `world_size`-th position.
        transforms: further changes, after flips and crops.
        workers: threads that prepare the next batches meanwhile; the batches are the same with any number.
        penalties: what retouches images before they are flipped, and gives regions as channels after the third.

    Raises:
        ValueError: a batch that does not divide over the processes, or images too small for padding or transforms.
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
        transforms: Transforms | None = None,
        workers: int = 0,
        penalties: Penalties | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch size {batch_size} does not divide over {world_size} processes")
        if padding and padding >= dataset.resolution:
            raise ValueError(
                f"classifier.padding = {padding}: reflection can add less than the {dataset.resolution} px of an "
                f"image (dataset.resolution); choose at most {dataset.resolution - 1}"
            )
        if transforms:
            transforms.check(dataset.resolution)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.horizontal_flip, self.padding, self.transforms = horizontal_flip, padding, transforms
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self._order = lru_cache(maxsize=2)(self._permutation)  # a batch may lie across two epochs
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None
        self._ahead: dict[int, Future[tuple[Tensor, Tensor]]] = {}
        self.penalties, self._version = penalties, 0

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] of `step`, and labels (B,), or with mixup their probabilities (B, classes).

        Images have more channels where penalties ask for regions.
        """
        if self._pool is None:
            return self._batch(step)
        if self.penalties is not None and self._version != self.penalties.version:
            self._ahead, self._version = {}, self.penalties.version  # what was prepared knows nothing of the change
        steps = range(step, step + self.workers + 1)
        self._ahead = {t: self._ahead.get(t) or self._pool.submit(self._batch, t) for t in steps}
        return self._ahead[step].result()

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        start, mine = step * self.batch_size, slice(self.rank, None, self.world_size)
        positions = range(start, start + self.batch_size)[mine]
        indices = np.array([self._index(p) for p in positions])
        if self.penalties is not None:
            indices = self.penalties.choose(indices, step, self.batch_size, mine)
        images, labels = self.dataset.batch(indices)
        if self.penalties is not None:
            images = self.penalties.retouch(images, indices, step, self.batch_size, mine)
        stream = np.random.Generator(np.random.Philox(key=self.seed, counter=start))  # a position is one of its blocks
        draws = stream.random((self.batch_size, 4))[mine]
        if self.horizontal_flip:
            for i in np.flatnonzero(draws[:, 0] < 0.5):  # one by one they stay in the cache
                images[i] = images[i].flip(2)
        if self.padding:
            images = _crop(images, draws[:, 1:3], self.padding)
        if self.transforms is None:
            return images, labels
        generators = [np.random.Generator(np.random.Philox(key=[self.seed, p + 1])) for p in positions]
        if self.transforms.changes_images:
            changed = torch.stack([self.transforms(x[:3], generator) for x, generator in zip(images, generators)])
            images = changed if images.shape[1] == 3 else torch.cat([changed, images[:, 3:]], 1)
        if alpha := self.transforms.mixup:
            weights = torch.tensor([generator.beta(alpha, alpha) for generator in generators])
            return mix(images, labels, weights, len(self.dataset.class_names))
        return images, labels

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.dataset))
        return int(self._order(epoch)[offset])

    def _permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
        return generator.permutation(len(self.dataset))


def batch_workers(device: torch.device) -> int:
    """Threads that prepare batches for a training on `device`: none on a CPU, which has no core to spare for them."""
    return 0 if device.type == "cpu" else 2


def _crop(images: Tensor, draws: np.ndarray, padding: int) -> Tensor:
    size = images.shape[-1]
    padded = F.pad(images, [padding] * 4, mode="reflect")
    corners = np.floor(draws * (2 * padding + 1)).astype(int)
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, corners, strict=True)])
