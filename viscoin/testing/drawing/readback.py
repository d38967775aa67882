"""Is a concept drawn as it is asked for? What f and Psi read from images in which one concept was multiplied."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stylegan2_ada.together import collect, own
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages, batches, evaluation, progress, random_ranks
from viscoin.models.directions import ConceptDirections
from viscoin.models.editing import drawn_images, found_activations
from viscoin.models.ensemble import Encoding, VisCoIN, amplify
from viscoin.statistics.bootstrap import Estimate, bootstrap

MULTIPLIERS = (0.0, 0.5, 1.0, 1.5, 2.0)
FIRST, ONE, LAST = 0, 2, 4  # where 0, 1 and 2 stand among them
ACTIVE = 0.3  # of the largest activations: a concept that is there
ALIKE = 0.5  # correlation of activations above which a concept may follow another one


@dataclass(frozen=True)
class Pairs:
    """P pairs of an image and a concept that is active in it, at most one for each image.

    Attributes:
        indices: (P,) of the images in their dataset.
        concepts: (P,).
        others: (P,) another active concept of the same image that has nothing to do with it; -1 where there is none.
        asked: (P,) activation of the concept in the image.
    """

    indices: np.ndarray
    concepts: np.ndarray
    others: np.ndarray
    asked: np.ndarray


@dataclass(frozen=True)
class ReadBack:
    """What is read back of P pairs at the five multipliers.

    Attributes:
        asked: (P,) activation of the concept in the image: what multiplier 1 asks for.
        scale: (P,) 97.5 % quantile of the concept's activations.
        read: (P, 5) its activation in the images that are drawn.
        control: (P, 5) the same where the other concept is multiplied instead; NaN where there is none.
        off_target: (P,) mean absolute change of unrelated concepts from x0 to x2, in units of their scales.
    """

    asked: np.ndarray
    scale: np.ndarray
    read: np.ndarray
    control: np.ndarray
    off_target: np.ndarray

    def estimates(self, seed: int = 0) -> dict[str, Estimate]:
        """All measures with intervals over images, by name; those of the control end in `_control`."""
        controlled = ~np.isnan(self.control).any(1)
        found = self._of(self.read, np.full(len(self.read), True), seed) | {
            "off_target": bootstrap(self.off_target, seed=seed, unit="pairs")
        }
        if controlled.any():
            found |= {f"{key}_control": value for key, value in self._of(self.control, controlled, seed).items()}
        return found

    def _of(self, read: np.ndarray, rows: np.ndarray, seed: int) -> dict[str, Estimate]:
        read, asked, scale = read[rows], self.asked[rows], self.scale[rows]
        values = {f"x{factor:g}": read[:, i] / asked for i, factor in enumerate(MULTIPLIERS)} | {
            "slope": slopes(read) / asked,
            "slope_to_one": slopes(read, ONE) / asked,
            "rise": (read[:, LAST] - read[:, FIRST]) / scale,
            "monotone_to_one": rising(read, ONE),
            "monotone": rising(read),
        }
        return {key: bootstrap(value, seed=seed, unit="pairs") for key, value in values.items()}


def related_concepts(usual: ConceptDirections, opposites: Sequence[int | None]) -> np.ndarray:
    """(K, K) bool, row k: concept k itself, those that go with it, and its opposite, which may all change with it."""
    found = usual.correlation.cpu().numpy() > ALIKE
    np.fill_diagonal(found, True)
    for concept, opposite in enumerate(opposites):
        if opposite is not None:
            found[concept, opposite] = True
    return found


def slopes(values: np.ndarray, last: int = LAST) -> np.ndarray:
    """Slopes (...) of regressions of values (..., 5) on the multipliers up to that position."""
    multipliers = np.array(MULTIPLIERS[: last + 1])
    centred = multipliers - multipliers.mean()
    return values[..., : last + 1] @ centred / np.square(centred).sum()


def rising(values: np.ndarray, last: int = LAST) -> np.ndarray:
    """Whether (...) values (..., 5) rise at every step between multipliers up to that position."""
    return np.asarray((np.diff(values[..., : last + 1]) > 0).all(-1))


def choose_pairs(
    activations: np.ndarray, indices: np.ndarray, scale: np.ndarray, related: np.ndarray, seed: int
) -> Pairs:
    """A random active concept of each image, and an unrelated one; they depend on the seed and the image alone.

    Args:
        activations: (N, K) of the images with these indices (N,).
        scale: (K,).
        related: (K, K) bool, from `related_concepts`.

    Raises:
        TooFewImages: no concept is active in any of them.
    """
    rows = []
    for index, phi in zip(indices, activations, strict=True):
        order = random_ranks(seed, int(index), len(phi))
        active = order[phi[order] > ACTIVE * scale[order]]
        if len(active):
            free = active[~related[active[0], active]]
            rows.append((index, active[0], free[0] if len(free) else -1, phi[active[0]]))
    if not rows:
        raise TooFewImages(f"no concept is active in {len(indices)} images; take more images")
    columns = [np.array(column) for column in zip(*rows)]
    return Pairs(*columns)


def read_back(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    pairs: Pairs,
    scale: np.ndarray,
    related: np.ndarray,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> ReadBack:
    """Draw every pair at all multipliers of its concept, and of the other one, and read all concepts back."""

    def measured(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        concepts, others, rows = pairs.concepts[part], pairs.others[part], np.arange(len(part))
        code = ensemble.encode(dataset.batch(pairs.indices[part])[0].to(device, memory_format=torch.channels_last))
        read = _read_all(ensemble, code, concepts)
        control = np.full((len(part), len(MULTIPLIERS)), np.nan, np.float32)
        some = np.flatnonzero(others >= 0)
        if len(some):
            other = _read_all(ensemble, chosen(code, some), others[some])
            control[some] = other[np.arange(len(some)), :, concepts[some]]
        change = np.abs(read[:, LAST] - read[:, FIRST]) / scale
        unrelated = ~related[concepts]
        off = np.where(unrelated, change, 0).sum(1) / np.maximum(unrelated.sum(1), 1)
        bar.update(len(part))
        return read[rows, :, concepts], control, off

    mine = own(batches(np.arange(len(pairs.indices)), batch_size))
    with evaluation(ensemble, device), progress(sum(map(len, mine)), "read-back", "image") as bar:
        columns = zip(*collect(measured(part) for part in mine), strict=True)
        read, control, off = (np.concatenate(column) for column in columns)
    return ReadBack(pairs.asked, scale[pairs.concepts], read, control, off)


def chosen(code: Encoding, rows: np.ndarray) -> Encoding:
    """The code of some of the images."""
    keep = torch.from_numpy(rows).to(code.support.device)
    return Encoding(
        code.logits[keep], tuple(part[keep] for part in code.maps), code.concept_maps[keep], code.support[keep],
        code.latent[keep],
    )  # fmt: skip


def draw_multiplied(ensemble: VisCoIN, code: Encoding, concepts: np.ndarray, factor: float) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of a code whose concepts (B,), one of each image, are multiplied."""
    device = code.concept_maps.device
    only = torch.nn.functional.one_hot(torch.from_numpy(concepts).to(device), ensemble.n_concepts).bool()
    return drawn_images(ensemble, code, amplify(code.concept_maps, only, factor))


def _read_all(ensemble: VisCoIN, code: Encoding, concepts: np.ndarray) -> np.ndarray:
    """Activations (B, 5, K) that are read back at each multiplier."""
    images = (draw_multiplied(ensemble, code, concepts, factor) for factor in MULTIPLIERS)
    return torch.stack([found_activations(ensemble, drawn) for drawn in images], 1).cpu().numpy()
