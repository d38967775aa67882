"""The lambda curve: what an amplification does to an image, and up to which multiplier it explains anything."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from viscoin.analysis.amplification import FACTORS, check_factors, generate
from viscoin.analysis.concepts import fingerprint
from viscoin.datasets import ImageDataset
from viscoin.datasets.cache import cache_folder, is_cached, keep
from viscoin.inference.batches import TooFewImages, choose_images, evaluation, image_batches
from viscoin.models.ensemble import Encoding, VisCoIN, amplify

STEPS = 16  # multipliers of a curve, besides 0
REFERENCE, FEWEST = 256, 20  # validation images whose reconstructions define what is usual; the fewest allowed
QUANTILE = 0.95
MOST = 0.5  # share of images for which a multiplier must be reliable


@dataclass(frozen=True)
class Reference:
    """What is usual among reconstructions of images that the ensemble was not trained on.

    Attributes:
        scale: (K,) largest activation of each concept in the reconstructions; 0 for concepts that never are active.
        spread: root mean square over images and styles of the distance between w+ and the mean style.
        largest_distance: 95 % of the images have a style distance below it, in units of `spread`.
        images: how many there were.
    """

    scale: np.ndarray
    spread: float
    largest_distance: float
    images: int


@dataclass(frozen=True)
class LambdaCurve:
    """B amplifications followed over L multipliers. The generated images pass through the whole ensemble again.

    Attributes:
        factors: (L,) ascending multipliers lambda; 1, the reconstruction, is one of them.
        rows: (B,) rows of the selection that name a concept; the others are left out.
        f_target, g_target: (B, L) probability of the class that g predicts for the original.
        on_target, off_target: (B, L) change of the activations, |phi_j(x~_lambda) - phi_j(x~_1)| in units of the
            largest usual phi_j, averaged over the concepts that were amplified, and over those that were not.
        style_distance: (B, L) root mean square over styles of the distance of w+ to the mean style; 1 is usual.
        reference: what that is measured in.
    """

    factors: np.ndarray
    rows: np.ndarray
    f_target: np.ndarray
    g_target: np.ndarray
    on_target: np.ndarray
    off_target: np.ndarray
    style_distance: np.ndarray
    reference: Reference

    @property
    def reliable(self) -> np.ndarray:
        """(B, L) bool: what the image shows can be put down to the chosen concepts.

        Two things must hold. The ensemble, when it looks at the generated image, finds the chosen concepts
        changed at least as much as the others on average (else the picture shows something else), and the styles are
        no farther from the mean style than those of 95 % of reconstructions (else Omega sends G where it was never
        trained to). So an image of an unusual reconstruction has no reliable multiplier, not even 1.
        """
        known = self.style_distance <= self.reference.largest_distance
        return (self.off_target <= self.on_target) & known

    @property
    def reliable_range(self) -> tuple[float, float] | None:
        """The multipliers around 1 that are all reliable for at least half of the images."""
        return self._around_one(self.reliable.mean(0) >= MOST)

    @property
    def reliable_ranges(self) -> list[tuple[float, float] | None]:
        """(B,) the multipliers around 1 that are all reliable for an image; None where not even 1 is."""
        return [self._around_one(row) for row in self.reliable]

    def _around_one(self, good: np.ndarray) -> tuple[float, float] | None:
        one = int(np.flatnonzero(self.factors == 1)[0])
        if not good[one]:
            return None
        bad = np.flatnonzero(~good)
        low = bad[bad < one].max(initial=-1) + 1
        high = bad[bad > one].min(initial=len(good)) - 1
        return float(self.factors[low]), float(self.factors[high])

    def to_dict(self) -> dict[str, Any]:
        """Medians over the images for each multiplier, the reliable range, and that of each image."""
        measures = ("f_target", "g_target", "on_target", "off_target", "style_distance")
        return {
            "multipliers": self.factors.tolist(),
            **{name: np.median(getattr(self, name), 0).tolist() for name in measures},
            "reliable_share": self.reliable.mean(0).tolist(),
            "reliable_range": self.reliable_range,
            "reliable_ranges": dict(zip(map(str, self.rows.tolist()), self.reliable_ranges, strict=True)),
            "largest_usual_style_distance": self.reference.largest_distance,
            "reference_images": self.reference.images,
        }


def curve_factors(largest: float, steps: int = STEPS) -> list[float]:
    """Multipliers from 0 to the largest one, at least 1, evenly; 1 is among them even if it lies between two."""
    return sorted({1.0, *np.linspace(0, max(largest, 1.0), steps + 1).tolist()})


def usual_reconstructions(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
    limit: int = REFERENCE,
) -> Reference:
    """Activations and styles of the reconstructions of random images, best of the validation split.

    Raises:
        TooFewImages: fewer than 20.
    """
    if len(dataset) < FEWEST:
        raise TooFewImages(f"a curve needs at least {FEWEST} {dataset.split} images, {dataset.name} has {len(dataset)}")
    largest: list[np.ndarray] = []
    squares: list[np.ndarray] = []
    with evaluation(ensemble, device):
        chosen = choose_images(len(dataset), limit, seed)
        for images, _ in image_batches(dataset, chosen, batch_size, device, "reconstructions"):
            code = ensemble.encode(images)
            rebuilt = ensemble.decode(code.concept_maps, code.support).float().clamp(-1, 1)
            largest.append(ensemble.activations(ensemble.encode(rebuilt).concept_maps).amax(0).cpu().numpy())
            squares.append(_squared_distance(ensemble, code, code.concept_maps).cpu().numpy())
    squared = np.concatenate(squares)
    spread = max(float(np.sqrt(squared.mean())), float(np.finfo(np.float32).tiny))
    limit_distance = float(np.quantile(np.sqrt(squared) / spread, QUANTILE))
    return Reference(np.stack(largest).max(0), spread, limit_distance, len(squared))


def kept_reconstructions(
    ensemble: VisCoIN, dataset: ImageDataset, device: torch.device | str = "cpu", batch_size: int = 64, seed: int = 0
) -> Reference:
    """`usual_reconstructions`, from the user's cache folder where these are known already."""
    chosen = choose_images(len(dataset), REFERENCE, seed)
    path = cache_folder() / "reconstructions" / f"{fingerprint(ensemble, dataset, chosen, left_out=())}.npz"
    if is_cached(path):
        with np.load(path, allow_pickle=False) as file:
            return Reference(file["scale"], *(file[name].item() for name in ("spread", "largest_distance", "images")))
    found = usual_reconstructions(ensemble, dataset, device, batch_size, seed)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **asdict(found))

    keep(path, write)
    return found


def lambda_curve(
    ensemble: VisCoIN,
    images: Tensor,
    selection: Tensor,
    reference: Reference,
    factors: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> LambdaCurve:
    """Follow amplifications from removal to the largest multiplier.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        selection: (B, K) bool; images without a chosen concept are left out.
        factors: multipliers, in any order; 1 is added; default: 0 to 2.

    Raises:
        ValueError: a negative multiplier, or no concept chosen in any image.
    """
    factors = curve_factors(max(FACTORS)) if factors is None else factors
    check_factors(factors)
    factors = sorted({1.0, *map(float, factors)})
    rows = selection.any(1).nonzero().squeeze(1).cpu()
    if not len(rows):
        raise ValueError("no concept is chosen in any image, so there is no curve; choose by a lower threshold")
    batches = []
    with tqdm(total=len(rows) * len(factors), desc="lambda curve", unit="image", leave=False, disable=None) as bar:
        for part in rows.split(batch_size):
            batches.append(_follow(ensemble, images[part], selection[part], reference, factors, device, bar))
    values = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return LambdaCurve(np.array(factors), rows.numpy(), **values, reference=reference)


def _follow(
    ensemble: VisCoIN,
    images: Tensor,
    selection: Tensor,
    reference: Reference,
    factors: Sequence[float],
    device: torch.device | str,
    bar: tqdm,
) -> dict[str, np.ndarray]:
    columns = []
    with evaluation(ensemble, device):
        code = ensemble.encode(images.to(device, memory_format=torch.channels_last))
        classes = ensemble.explain(code.concept_maps).argmax(1)
        selection = selection.to(classes.device)
        scale = torch.from_numpy(reference.scale).to(classes.device)
        before = _phi(ensemble, code, selection, 1.0)[0]
        for factor in factors:
            phi, new = _phi(ensemble, code, selection, factor)
            change = (phi - before).abs() / scale.clamp_min(torch.finfo(phi.dtype).tiny)
            maps = amplify(code.concept_maps, selection, factor)
            distance = _squared_distance(ensemble, code, maps).sqrt() / reference.spread
            columns.append(
                {
                    "f_target": _of_class(new.logits, classes),
                    "g_target": _of_class(ensemble.explain(new.concept_maps), classes),
                    "on_target": _mean_over(change, selection & (scale > 0)),
                    "off_target": _mean_over(change, ~selection & (scale > 0)),
                    "style_distance": distance,
                }
            )
            bar.update(len(images))
        return {key: torch.stack([column[key] for column in columns], 1).cpu().numpy() for key in columns[0]}


@torch.no_grad()
def edits_reliable(
    ensemble: VisCoIN,
    code: Encoding,
    concept_maps: Tensor,
    before: Tensor,
    after: Tensor,
    changed: Tensor,
    reference: Reference,
) -> Tensor:
    """Whether what B edited images show can be put down to the changed concepts, as `LambdaCurve.reliable` says.

    Args:
        concept_maps: (B, K, 3, 3) of the edit.
        before, after: activations (B, K) read from the images without and with the edit.
        changed: (B, K) bool.

    Returns:
        (B,) bool.
    """
    scale = torch.from_numpy(reference.scale).to(before)
    change = (after - before).abs() / scale.clamp_min(torch.finfo(before.dtype).tiny)
    on, off = (_mean_over(change, chosen & (scale > 0)) for chosen in (changed, ~changed))
    distance = _squared_distance(ensemble, code, concept_maps).sqrt() / reference.spread
    return (off <= on) & (distance <= reference.largest_distance)


def _phi(ensemble: VisCoIN, code: Encoding, selection: Tensor, factor: float) -> tuple[Tensor, Encoding]:
    """Activations (B, K) of the generated images, and all that the ensemble finds in them."""
    new = ensemble.encode(generate(ensemble, code, selection, factor))
    return ensemble.activations(new.concept_maps), new


def _squared_distance(ensemble: VisCoIN, code: Encoding, concept_maps: Tensor) -> Tensor:
    """Mean over styles of the squared distance between the mean style and w+ of an edit, (B,)."""
    generator = ensemble.generator
    offset = generator.styles(concept_maps, code.support, code.concept_maps) - generator.mapping.fixed_w_avg
    return offset.square().sum(2).mean(1)


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) of the masked values (B, K); 0 where the mask is empty."""
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Softmax probability (B,) of one class per row."""
    return logits.float().softmax(1).gather(1, classes[:, None]).squeeze(1)
