"""Figures that several commands and reports show: samples of G, and reconstructions."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from stylegan2_ada.networks import Generator
from viscoin.datasets import ImageDataset, to_pixels
from viscoin.inference.batches import choose_images, evaluation
from viscoin.models.ensemble import VisCoIN
from viscoin.plotting.data import real_and_generated, reconstructions
from viscoin.testing.gan import samples


def draw_samples(generator: Generator, images: ImageDataset, count: int, seed: int) -> Figure:
    """Random real images beside the same number of samples of a generator."""
    device = next(generator.parameters()).device
    real = images.pixels[choose_images(len(images), count, seed)]
    with evaluation(generator, device):
        drawn = np.concatenate([to_pixels(part) for part in samples(generator, images, len(real), seed, device, 64)])
    return real_and_generated(real, drawn)


def draw_reconstructions(
    ensemble: VisCoIN, images: ImageDataset, indices: Sequence[int], device: torch.device
) -> Figure:
    """Images above their reconstructions."""
    batch, _ = images.batch(indices)
    with evaluation(ensemble, device):
        code = ensemble.encode(batch.to(device))
        rebuilt = to_pixels(ensemble.decode(code.concept_maps, code.support))
    return reconstructions(images.pixels[np.asarray(indices)], rebuilt)
