"""Does an attribute come and go with its concept, as an independent judge sees it?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from stylegan2_ada.together import collect, own
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import evaluation, own_batches, progress
from viscoin.models.ensemble import VisCoIN
from viscoin.models.judge import Judge
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.statistics.measures import known_mean
from viscoin.testing.drawing.readback import ACTIVE, FIRST, LAST, MULTIPLIERS, ONE, chosen, draw_multiplied, rising
from viscoin.testing.truth.attributes import RESAMPLES, AttributeScore, PairedAreas, group_of

MOST_OF_EACH = 12  # images for each attribute
PRESENT = 0.05  # of the largest activations: less of a concept cannot be multiplied
SEEN = 0.5  # probability above which the judge sees an attribute


@dataclass(frozen=True)
class JudgedDoses:
    """What the judge sees of A attributes in N images when their concepts are multiplied; NaN where not looked at.

    Of an attribute whose concept is weaker where it is present (direction -1), its absence is what is looked for.

    Attributes:
        scores: the concept of each attribute.
        logits: (N, A, 5) of the attribute at each multiplier.
        off_target: (N, A) mean absolute change from x0 to x2 of the probabilities of attributes of other groups.
        control: (N, A, 5) as `logits`, at each multiplier of another concept of the same image.
    """

    scores: Sequence[AttributeScore]
    logits: np.ndarray
    off_target: np.ndarray
    control: np.ndarray

    def estimates(self, seed: int = 0) -> dict[str, Estimate]:
        """All measures over all pairs of image and attribute; intervals resample images."""
        z, looked = self.logits, ~np.isnan(self.logits[..., ONE])
        p, control = expit(z), expit(self.control)
        tables = {f"x{factor:g}": p[..., i] for i, factor in enumerate(MULTIPLIERS)} | {
            "rise": p[..., LAST] - p[..., FIRST],
            "gone": np.where(looked & (p[..., ONE] > SEEN), p[..., FIRST] < SEEN, np.nan),
            "monotone_to_one": np.where(looked, rising(z, ONE), np.nan),
            "monotone": np.where(looked, rising(z), np.nan),
            "off_target": self.off_target,
            "rise_control": control[..., LAST] - control[..., FIRST],
        }
        tables |= {f"x{factor:g}_control": control[..., i] for i, factor in enumerate(MULTIPLIERS)}
        found = {key: mean_of_pairs(table, seed) for key, table in tables.items()}
        return {key: estimate for key, estimate in found.items() if estimate is not None}

    def table(self) -> list[dict[str, Any]]:
        """Means of each attribute that was looked at: its probability at each multiplier."""
        rows = []
        for score, z in zip(self.scores, self.logits.swapaxes(0, 1), strict=True):
            looked = z[~np.isnan(z[:, ONE])]
            if len(looked):
                rows.append(vars(score) | {"n": len(looked), "probability": expit(looked).mean(0).tolist()})
        return rows


def mean_of_pairs(table: np.ndarray, seed: int) -> Estimate | None:
    """Mean of what is known of a table (N, A), with an interval over images; None where nothing is."""
    rows = table[~np.isnan(table).all(1)]
    if not len(rows):
        return None
    found = bootstrap(rows, known_mean, seed=seed, resamples=RESAMPLES)
    return replace(found, n=int((~np.isnan(rows)).sum()), unit="pairs")


@dataclass(frozen=True)
class Acuity:
    """How well the judge reads A attributes off real images and off their reconstructions: (N, A) logits and truth."""

    real: np.ndarray
    rebuilt: np.ndarray
    truth: np.ndarray

    def estimates(self, seed: int = 0) -> dict[str, Estimate]:
        """Mean AUROC over attributes with both values among the images, with intervals over these."""
        varied = self.truth.any(0) & ~self.truth.all(0)
        if not varied.any():
            return {}
        return {
            f"auroc_{name}": PairedAreas(values[:, varied], self.truth[:, varied]).estimate(known_mean, seed)
            for name, values in (("real", self.real), ("rebuilt", self.rebuilt))
        }


def acuity(
    ensemble: VisCoIN,
    judge: Judge,
    dataset: ImageDataset,
    indices: np.ndarray,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> Acuity:
    """What the judge reads off the chosen images and off what the ensemble makes of them."""

    def read(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        code = ensemble.encode(images)
        rebuilt = ensemble.decode(code.concept_maps, code.support).float().clamp(-1, 1)
        return judge(images).cpu().numpy(), judge(rebuilt).cpu().numpy()

    with evaluation(ensemble, device), evaluation(judge, device):
        rows = collect(
            read(images) for images, _ in own_batches(dataset, indices, batch_size, device, "testing the judge")
        )
    real, rebuilt = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Acuity(real, rebuilt, dataset.attributes[indices])


def judge_doses(
    ensemble: VisCoIN,
    judge: Judge,
    dataset: ImageDataset,
    indices: np.ndarray,
    activations: np.ndarray,
    scores: Sequence[AttributeScore],
    scale: np.ndarray,
    related: np.ndarray,
    device: torch.device | str = "cpu",
    pairs: int = 400,
    seed: int = 0,
) -> JudgedDoses:
    """Multiply the concept of each attribute in random images where that is there and the concept is not zero.

    Args:
        activations: (N, K) of the images with these indices (N,).
        scores: A attributes, with the concepts that were chosen on validation images.
        scale: (K,) 97.5 % quantiles of activations.
        related: (K, K) bool, from `related_concepts`.
        pairs: about so many of image and attribute, at most 12 images for each.
    """
    names = list(dataset.attribute_names)
    groups = np.array([group_of(name) for name in names])
    shown, n = dataset.attributes[indices], len(MULTIPLIERS)
    each = min(MOST_OF_EACH, max(1, pairs // len(scores)))

    def judged(score: AttributeScore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        column, k = names.index(score.name), score.concept
        rows = np.flatnonzero((shown[:, column] == (score.direction > 0)) & (activations[:, k] > PRESENT * scale[k]))
        rows = np.random.default_rng([seed, column]).permutation(rows)[:each]
        z, control = np.full((2, len(indices), n), np.nan)
        off = np.full(len(indices), np.nan)
        bar.update()
        if not len(rows):
            return z, off, control
        images = dataset.batch(indices[rows])[0].to(device, memory_format=torch.channels_last)
        code = ensemble.encode(images)

        def seen(some: np.ndarray, concepts: np.ndarray, factor: float) -> np.ndarray:
            drawn = draw_multiplied(ensemble, chosen(code, some), concepts, factor)
            return judge(drawn).cpu().numpy()

        everyone = np.arange(len(rows))
        found = np.stack([seen(everyone, np.full(len(rows), k), factor) for factor in MULTIPLIERS], 1)
        z[rows] = found[..., column] * score.direction
        outside = groups != groups[column]
        if outside.any():
            off[rows] = np.abs(expit(found[:, LAST]) - expit(found[:, FIRST]))[:, outside].mean(1)
        others = _others(activations[rows], k, scale, related, np.random.default_rng([seed, column, 1]))
        some = np.flatnonzero(others >= 0)
        if len(some):
            other = [seen(some, others[some], factor)[:, column] for factor in MULTIPLIERS]
            control[rows[some]] = np.stack(other, 1) * score.direction
        return z, off, control

    mine = own(list(scores))
    with evaluation(ensemble, device), evaluation(judge, device), progress(len(mine), "doses", "attribute") as bar:
        columns = zip(*collect(judged(score) for score in mine), strict=True)
        logits, off, control = (np.stack(column, 1) for column in columns)
    return JudgedDoses(scores, logits, off, control)


def _others(
    activations: np.ndarray, concept: int, scale: np.ndarray, related: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A random active concept (B,) of each image that is not related to that one; -1 where there is none."""
    free = (activations > ACTIVE * scale) & ~related[concept]
    return np.array([rng.choice(np.flatnonzero(row)) if row.any() else -1 for row in free])
