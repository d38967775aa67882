"""Dose-response and surgery of an ensemble, as f and Psi read them back and as a judge sees them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from stylegan2_ada.together import collect
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages, choose_images, evaluation, own_batches
from viscoin.models.editing import measured
from viscoin.models.ensemble import VisCoIN
from viscoin.models.judge import Judge
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.drawing.judged import Acuity, JudgedDoses, acuity, judge_doses
from viscoin.testing.drawing.readback import ReadBack, choose_pairs, read_back, related_concepts
from viscoin.testing.drawing.surgery import Surgery, operate, possible_swaps
from viscoin.testing.truth.attributes import attribute_scores

IMAGES, EDITS = 300, 400


@dataclass(frozen=True)
class DrawingResult:
    """What was measured on n images; None without attributes or judge, `left_out` says why."""

    read: ReadBack
    doses: JudgedDoses | None
    acuity: Acuity | None
    surgery: Surgery | None
    n: int
    seed: int
    left_out: Mapping[str, str]

    @cached_property
    def _estimates(self) -> dict[str, Estimate]:
        parts = {
            "dose_response": self.read, "dose_response.judge": self.doses, "judge": self.acuity,
            "surgery": self.surgery,
        }  # fmt: skip
        named = {prefix: part.estimates(self.seed) for prefix, part in parts.items() if part is not None}
        found = {f"{prefix}.{key}": value for prefix, part in named.items() for key, value in part.items()}
        return {f"dose_response.{key}" if key.startswith("judge.") else key: value for key, value in found.items()}

    def estimates(self) -> dict[str, Estimate]:
        """Every measure with its 95 % interval, by "dose_response.measure" and "surgery.measure"."""
        return dict(self._estimates)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers in these two sections, with a table of the attributes."""
        sections: dict[str, Any] = {"dose_response": {"n": self.n, "seed": self.seed}}
        if self.surgery is not None:
            sections["surgery"] = {"n": self.n, "seed": self.seed}
        for key, estimate in self._estimates.items():
            section, _, name = key.partition(".")
            sections[section][name] = asdict(estimate)
        if self.doses is not None:
            sections["dose_response"]["by_attribute"] = self.doses.table()
        return sections


def test_drawing(
    ensemble: VisCoIN,
    validation: ImageDataset,
    test: ImageDataset,
    activations: np.ndarray,
    indices: np.ndarray,
    judge: Judge | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
    limit: int | None = None,
    images: int = IMAGES,
    edits: int = EDITS,
) -> DrawingResult:
    """Draw single concepts weaker and stronger, and attributes swapped, and look at what is seen of that.

    What is usual of concepts, and which concept is matched to which attribute, is taken from validation images; where
    the ensemble has directions, what was usual in its training.

    Args:
        activations: (N, K) of the test images with these indices (N,).
        limit: size of a random sample of validation images, instead of all.
        images: size of a random sample of these test images to draw.
        edits: about so many pairs of image and attribute to multiply, and swaps.

    Raises:
        TooFewImages: no concept is active in any of the images.
    """
    rows = choose_images(len(indices), images, seed)
    phi, chosen = activations[rows], indices[rows]
    learned = choose_images(len(validation), limit, seed)
    maps = _concept_maps(ensemble, validation, learned, device, batch_size)
    usual = (ensemble.generator.directions or measured(maps)).to(device)
    scale, related = usual.scale.cpu().numpy(), related_concepts(usual, ensemble.concept_extractor.opposites())
    pairs = choose_pairs(phi, chosen, scale, related, seed)
    read = read_back(ensemble, test, pairs, scale, related, device, batch_size)
    left_out: dict[str, str] = {}
    if not test.attribute_names or judge is None:
        if test.attribute_names:
            left_out["judge"] = "there is no judge for these images; train one with `train judge`"
        return DrawingResult(read, None, None, None, len(chosen), seed, left_out)
    acute = acuity(ensemble, judge, test, chosen, device, batch_size)
    try:
        scores = attribute_scores(
            maps.amax((2, 3)).numpy(), validation.attributes[learned], phi, test.attributes[chosen],
            test.attribute_names,
        ).scores  # fmt: skip
    except TooFewImages as error:
        return DrawingResult(read, None, acute, None, len(chosen), seed, {"judge": str(error)})
    doses = judge_doses(ensemble, judge, test, chosen, phi, scores, scale, related, device, edits, seed)
    swaps, surgery = possible_swaps(scores), None
    if swaps:
        surgery = operate(ensemble, judge, test, chosen, swaps, usual, device, edits, seed)
    else:
        left_out["surgery"] = f"no group of attributes of dataset {test.name!r} has two values"
    return DrawingResult(read, doses, acute, surgery, len(chosen), seed, left_out)


def _concept_maps(
    ensemble: VisCoIN, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str, batch_size: int
) -> torch.Tensor:
    """(N, K, 3, 3) of the chosen images."""
    with evaluation(ensemble, device):
        batches = own_batches(dataset, indices, batch_size, device, "usual activations")
        rows = collect(ensemble.concept_maps(images)[1].float().cpu().numpy() for images, _ in batches)
    return torch.from_numpy(np.concatenate(rows))
