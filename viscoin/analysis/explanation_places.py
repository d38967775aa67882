"""Where a classifier looks in one image: three methods by what was measured of them, and how true they are here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, zoom
from scipy.stats import spearmanr
from torch import Tensor

from viscoin.analysis.attribution import Settings, run_method, scale_end
from viscoin.analysis.questions import Asked, Views, ask
from viscoin.attribution import METHODS
from viscoin.attribution.explained import SMOOTHING, blurred
from viscoin.attribution.measured import Measured
from viscoin.attribution.targets import Target
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.inference.loading import Pictures

METHODS_SHOWN = 3
HIDDEN = 0.1  # share of the pixels that are hidden to try a map
DRAWS = 8  # random places of the same size
GRID = 16  # places on a side on which maps are compared
FINE = 128  # side up to which single pixels of a map are drawn, pixels


@dataclass(frozen=True)
class Place:
    """One map of the predicted class, or of it against the runner-up.

    Attributes:
        method: its name in `METHODS`.
        heat: (H, W) as the method gives it, smoothed where `smoothed`.
        signed: whether places that speak against are below zero.
        kept: probability of the predicted class, as a share of what it was, with the strongest tenth of the pixels
            blurred; NaN for a contrastive map.
        kept_at_random: the same with random places of the same size, mean of 8.
        seconds: that the method took.
    """

    method: str
    heat: np.ndarray
    signed: bool
    smoothed: bool
    kept: float = float("nan")
    kept_at_random: float = float("nan")
    seconds: float = 0.0

    @property
    def title(self) -> str:
        return METHODS[self.method].title

    @property
    def limit(self) -> float:
        """End of the colour scale."""
        return scale_end(self.heat)

    @property
    def point(self) -> tuple[int, int] | None:
        """(x, y) of the highest value, pixels; None for a map that is the same everywhere."""
        y, x = np.unravel_index(int(self.heat.argmax()), self.heat.shape)
        return (int(x), int(y)) if self.heat.max() > self.heat.min() else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, without the map."""
        numbers = {"method": self.method, "title": self.title, "signed": self.signed, "highest_point": self.point}
        if not np.isnan(self.kept):
            numbers |= {"kept_without_strongest_tenth": self.kept, "kept_without_random_tenth": self.kept_at_random}
        return numbers


@dataclass(frozen=True)
class Places:
    """All maps of one image.

    Attributes:
        maps: of the predicted class, by the best measured methods that hold for the network.
        contrast: of the predicted class against the runner-up; None where no signed method holds.
        agreement: mean rank correlation of the maps with one another, on a grid of 16 x 16; NaN for fewer than two.
        measured: what the choice rests on, and whether that was measured on this very network.
        left_out: methods that do not hold for the network, and why.
    """

    maps: Sequence[Place]
    contrast: Place | None
    agreement: float
    measured: Measured
    same_network: bool
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, without the maps."""
        return {
            "maps": [place.to_dict() for place in self.maps],
            "contrast": None if self.contrast is None else self.contrast.to_dict(),
            "agreement": self.agreement,
            "chosen_by": {
                "network": self.measured.network, "same_network": self.same_network, "images": self.measured.images,
                "compared": self.measured.compared,
                "methods": {place.method: vars(self.measured.methods[place.method]) for place in self.maps},
            },
            "left_out": dict(self.left_out),
        }  # fmt: skip


def find_places(
    target: Target,
    pictures: Pictures,
    class_names: Sequence[str],
    measured: Measured,
    same_network: bool,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    seed: int = 0,
) -> Places:
    """Maps of the predicted class of one image.

    Args:
        target: logits of f.
        pictures: one image.
        measured: the methods to choose from are those, the best one first; what does not hold is left out.

    Raises:
        Refused: none of the methods holds for the network.
    """
    settings = Settings(seed=seed, batch_size=batch_size)
    views = ask(target, pictures, class_names, Asked(), device, batch_size)
    rivals = ask(target, pictures, class_names, Asked(against="runner-up"), device, batch_size)
    tested = _Hiding(target, pictures.images, int(views.targets[0]), device, batch_size, seed)
    found, left_out, contrast = list[Place](), dict[str, str](), None
    for method in measured.order:
        signed = METHODS[method].signed
        if len(found) == METHODS_SHOWN and (contrast is not None or not signed):
            continue
        try:
            if len(found) < METHODS_SHOWN:
                found.append(tested.try_out(_map(target, pictures.images, views, method, settings, device)))
            if contrast is None and signed:
                contrast = _map(target, pictures.images, rivals, method, settings, device)
        except Refused as error:
            left_out[method] = error.reason
    if not found:
        raise Refused("method", None, "none of the measured methods holds for this network", "see `attribute`")
    return Places(found, contrast, _agreement(found), measured, same_network, left_out)


def _map(
    target: Target, images: Tensor, views: Views, method: str, settings: Settings, device: torch.device | str
) -> Place:
    result = run_method(target, images, views, method, settings, device)
    heat, side = result.maps[0].numpy(), images.shape[-1]
    fine = METHODS[method].family == "gradient" and side > FINE  # dots of single pixels, which nobody can read
    if fine:
        heat = gaussian_filter(heat, SMOOTHING * side)
    return Place(method, heat, result.signed, fine, seconds=result.seconds)


class _Hiding:
    """Blurs the strongest places of a map, and random ones, and asks f again."""

    def __init__(
        self, target: Target, images: Tensor, predicted: int, device: torch.device | str, batch_size: int, seed: int
    ) -> None:
        self.target, self.images, self.predicted = target, images, predicted
        self.device, self.batch_size = device, batch_size
        self.hidden = blurred(images)
        random, side = np.random.default_rng(seed), images.shape[-1]
        noise = random.standard_normal((DRAWS, side, side))
        self.random = [strongest(gaussian_filter(one, SMOOTHING * side)) for one in noise]
        first, *others = self._probabilities([np.zeros_like(self.random[0]), *self.random])
        self.whole, self.at_random = first, float(np.mean(others) / max(first, 1e-12))

    def try_out(self, place: Place) -> Place:
        side = self.images.shape[-1]
        smooth = gaussian_filter(place.heat, SMOOTHING * side)
        kept = self._probabilities([strongest(smooth)])[0] / max(self.whole, 1e-12)
        return Place(place.method, place.heat, place.signed, place.smoothed, float(kept), self.at_random, place.seconds)

    def _probabilities(self, masks: Sequence[np.ndarray]) -> list[float]:
        some = torch.from_numpy(np.stack(masks))[:, None]
        batch = torch.where(some, self.hidden.cpu(), self.images.cpu())
        return probabilities(self.target, batch, self.device, self.batch_size)[:, self.predicted].tolist()


def strongest(heat: np.ndarray, share: float = HIDDEN) -> np.ndarray:
    """The strongest pixels of a map (H, W), bool; that share of all of them."""
    count = max(1, round(share * heat.size))
    found = np.zeros(heat.size, dtype=bool)
    found[np.argsort(-heat, axis=None, kind="stable")[:count]] = True
    return found.reshape(heat.shape)


def probabilities(target: Target, images: Tensor, device: torch.device | str, batch_size: int) -> np.ndarray:
    """Softmax (B, S) of the scores of images (B, 3, H, W)."""
    with evaluation(target.model, device):
        parts = [target.scores(part.to(device)).float().softmax(1).cpu() for part in images.split(batch_size)]
    return torch.cat(parts).numpy()


def _agreement(places: Sequence[Place]) -> float:
    """Mean rank correlation of what speaks for the class, pooled to a coarse grid."""
    if len(places) < 2:
        return float("nan")
    side = places[0].heat.shape[0]
    coarse = [
        zoom(gaussian_filter(place.heat.clip(min=0), SMOOTHING * side), GRID / side, order=1).ravel()
        for place in places
    ]
    varied = [one for one in coarse if np.ptp(one) > 0]
    found = [spearmanr(one, other).statistic for one, other in combinations(varied, 2)]
    return float(np.mean(found)) if found else float("nan")
