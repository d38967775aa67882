"""What is cut away where pictures of any shape become squares: of the object, or of all of the picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from viscoin.datasets.base import ImageDataset
from viscoin.datasets.files import in_threads
from viscoin.datasets.masks import MaskedDataset
from viscoin.datasets.reading import Fit

QUARTER = 0.25  # a loss that is worth a word


@dataclass(frozen=True)
class FitLoss:
    """Shares that a fit cuts away.

    Attributes:
        fit: how pictures become squares.
        of_objects: whether shares are of what is opaque or masked, not of whole pictures.
        files: the N files, as text.
        shares: (N,) in [0, 1].
    """

    fit: Fit
    of_objects: bool
    files: list[str]
    shares: np.ndarray

    @property
    def many(self) -> int:
        """How many lose more than a quarter."""
        return int((self.shares > QUARTER).sum())

    @property
    def advice(self) -> str | None:
        """What to do where objects lose more than a quarter, else None: photographs have borders to spare."""
        if not self.of_objects or not self.many:
            return None
        return (
            f"{self.many} of {len(self.files)} images lose more than a quarter of their object by fit {self.fit.mode}: "
            "set `dataset.fit` to object, which loses nothing, or to pad"
        )

    def describe(self) -> str:
        """One line of text."""
        worst = int(self.shares.argmax())
        what = "what is opaque or masked" if self.of_objects else "the picture"
        return (
            f"median {np.median(self.shares):.0%} of {what}, at most {self.shares[worst]:.0%} ({self.files[worst]}); "
            f"more than a quarter of {self.many} of {len(self.files)} images"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it but the single shares, as plain values."""
        worst = int(self.shares.argmax())
        return {
            "fit": self.fit.mode,
            "crop_share": self.fit.crop_share,
            "of": "objects" if self.of_objects else "pictures",
            "median": float(np.median(self.shares)),
            "largest": float(self.shares[worst]),
            "file": self.files[worst],
            "more_than_a_quarter": self.many,
            "images": len(self.files),
            "advice": self.advice,
        }


def measure_fit(parts: Mapping[str, ImageDataset], sizes: np.ndarray | None) -> FitLoss | None:
    """What the fit of a dataset cuts away from its images.

    Args:
        parts: the splits of a dataset.
        sizes: width and height of each file, pixels (N, 2), in the order of the splits; None for images without files.

    Returns:
        None for images without files. Of objects where all images have masks, else of whole pictures.
    """
    if sizes is None or not len(sizes):
        return None
    first = next(iter(parts.values()))
    fit, side = first.fit, first.resolution
    files = [file for part in parts.values() for file in part.files or ()]
    masked = [part for part in parts.values() if isinstance(part, MaskedDataset)]
    if len(masked) == len(parts):
        try:
            jobs = [(part, index) for part in masked for index in range(len(part))]
            bar = tqdm(jobs, desc="reading masks", unit="image", leave=False, disable=None)
            shares = np.array(list(in_threads(lambda job: job[0].lost_share(job[1]), bar)))
            return FitLoss(fit, True, files, shares)
        except ValueError:  # masks that do not fit, which whoever needs them will report
            pass
    return FitLoss(fit, False, files, np.array([_lost_of_picture(fit, size, side) for size in sizes.tolist()]))


def _lost_of_picture(fit: Fit, size: tuple[int, int], side: int) -> float:
    if fit.mode == "object":  # nothing is masked
        return 0.0
    left, top, right, bottom = fit.visible((size[0], size[1]), side)
    return 1 - (right - left) * (bottom - top) / (size[0] * size[1])
