"""Running models over datasets: chosen images, batches, eval mode, float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from stylegan2_ada.together import own, turn
from viscoin.datasets import ImageDataset
from viscoin.estimates import Estimate

# Models within `evaluation`: how many callers are inside, and the mode of each module before the first came.
_MODES: dict[nn.Module, list[Any]] = {}
_MODES_LOCK = Lock()


class TooFewImages(ValueError):
    """A measure needs more images than there are; the message says which and how many."""


def choose_images(n: int, limit: int | None, seed: int) -> np.ndarray:
    """Indices, ascending, of all n images or of a random sample: never the head of a dataset sorted by class.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; at least 1 image is needed")
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:limit])


def image_batches(
    dataset: ImageDataset, indices: np.ndarray, batch_size: int, device: torch.device | str, title: str
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Images (B, 3, H, W) in [-1, 1] on the device and the dataset indices (B,) they have, with a progress bar."""
    return _images(dataset, batches(indices, batch_size), device, title)


def own_batches(
    dataset: ImageDataset, indices: np.ndarray, batch_size: int, device: torch.device | str, title: str
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Those of the batches that it is this process's turn to work on, for `stylegan2_ada.together.collect`.

    The batches are the same for any number of processes, so that results are, bit for bit.
    """
    return _images(dataset, own(batches(indices, batch_size)), device, title)


def batches(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """The indices in their order, `size` of them in each part and the rest in the last one."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


class _Bar(tqdm):
    """A progress bar which, where there is no terminal for it, says after the first steps how long the rest takes."""

    estimate: Estimate | None = None

    def update(self, n: float | None = 1) -> bool | None:
        if self.disable and self.estimate is not None:
            self.estimate.count(int(n or 0))
        return super().update(n)


def progress(total: int, title: str, unit: str) -> tqdm:
    """A progress bar, which only the first process shows."""
    first = turn()[0] == 0
    bar = _Bar(total=total, desc=title, unit=unit, leave=False, disable=None if first else True)
    bar.estimate = Estimate(title, total, unit) if first else None
    return bar


def _images(
    dataset: ImageDataset, parts: Sequence[np.ndarray], device: torch.device | str, title: str
) -> Iterator[tuple[Tensor, np.ndarray]]:
    with progress(sum(map(len, parts)), title, "image") as bar:
        for chosen in parts:
            images, _ = dataset.batch(chosen)
            yield images.to(device, memory_format=torch.channels_last), chosen
            bar.update(len(chosen))


@contextmanager
def evaluation(model: nn.Module, device: torch.device | str, gradients: bool = False) -> Iterator[None]:
    """The model on the device, in eval mode and float32, without gradients unless asked for; then in its old mode.

    Several threads may share a model: the first one in switches its mode, the last one out switches it back.
    """
    with _MODES_LOCK:
        if model not in _MODES:
            _MODES[model] = [0, {module: module.training for module in model.modules()}]
            model.to(device).eval()
        _MODES[model][0] += 1
    try:
        with torch.inference_mode(not gradients), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        with _MODES_LOCK:
            _MODES[model][0] -= 1
            if not _MODES[model][0]:
                for module, mode in _MODES.pop(model)[1].items():
                    module.training = mode


def check_classes(n_outputs: int, dataset: ImageDataset) -> None:
    """Raise ValueError unless the model has one output for each class of the dataset."""
    if n_outputs != len(dataset.class_names):
        raise ValueError(
            f"the model knows {n_outputs} classes, dataset {dataset.name!r} has {len(dataset.class_names)} "
            f"({', '.join(dataset.class_names[:5])}, ...); use the dataset that the model was trained on"
        )


def pooled(feature_map: Tensor) -> np.ndarray:
    """Mean over positions: (B, C, H, W) -> (B, C)."""
    return feature_map.mean((2, 3)).float().cpu().numpy()


def random_ranks(seed: int, index: int, n: int) -> np.ndarray:
    """Random ranks (n,) of things of one image, which depend on the seed and the image's index alone."""
    return np.random.Generator(np.random.Philox(key=[seed, index])).permutation(n)
