"""Maps that know nothing of f, and one that knows all: what every score is read against."""

from zlib import crc32

import numpy as np
from torch import Tensor

from viscoin.testing.attribution.scenes import Sample

CONTROLS = ("random", "centre", "edges")
ORACLE = "oracle"
SPREAD = 1 / 4  # standard deviation of the blob in the middle, of the image's side


def random(images: Tensor, targets: Tensor, seed: int = 0) -> np.ndarray:
    """Uniform noise (B, H, W), which depends on the seed and the image alone."""
    generators = (np.random.default_rng([seed, crc32(image.cpu().numpy().tobytes())]) for image in images)
    return np.stack([generator.random(tuple(images.shape[2:])) for generator in generators])


def centre(images: Tensor, targets: Tensor) -> np.ndarray:
    """A Gaussian blob (B, H, W) in the middle of every image."""
    y, x = (np.linspace(-0.5, 0.5, side) for side in images.shape[2:])
    blob = np.exp(-(y[:, None] ** 2 + x**2) / (2 * SPREAD**2))
    return np.broadcast_to(blob, (len(images), *blob.shape)).copy()


def edges(images: Tensor, targets: Tensor) -> np.ndarray:
    """Size of the image's gradient (B, H, W), over the three colours."""
    pixels = images.cpu().double().numpy()
    down, across = np.gradient(pixels, axis=(2, 3))
    return np.sqrt((down**2 + across**2).sum(1))


def oracle(found: Sample, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What each part and object really does (n, H, W): the class's logit that goes with it, spread over its mask.

    Args:
        rows: (n,) of scenes in the sample.
        targets: (n,) classes; their logits count from the mean of all.
    """
    if found.parts is None:
        raise ValueError("an oracle needs scenes of which parts can be deleted")
    truth, masks = found.parts.truth, found.parts.masks[rows]
    single = np.concatenate([truth.logits[rows][:, truth.bits], truth.without_object[rows]], 1)
    centred = [logits - logits.mean(-1, keepdims=True) for logits in (truth.logits[rows, :1], single)]
    before, after = (logits[np.arange(len(rows)), :, targets] for logits in centred)
    drops = np.nan_to_num(before - after)
    maps = np.zeros((len(rows), *masks.shape[2:]))
    for owner in range(drops.shape[1]):
        pieces = masks[:, np.array(found.parts.owners) == owner].any(1)
        maps += pieces * (drops[:, owner] / np.maximum(pieces.sum((1, 2)), 1))[:, None, None]
    return maps
