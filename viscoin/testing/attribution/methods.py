"""The methods of `viscoin.attribution` as what scores are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.attribution import METHODS, AttributionResult, attribute
from viscoin.attribution.question import BASELINES
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.models.classifier import Classifier
from viscoin.models.diffmask import DiffMask
from viscoin.models.tokens import PatchTokens
from viscoin.testing.attribution.faithfulness import completeness_gap
from viscoin.testing.attribution.types import BadMaps, Explain

SLOW = ("scorecam", "sscam", "rise", "kernel-shap")  # hundreds of passes an image; only where they are named


@dataclass(frozen=True)
class Named:
    """A method by its name in `METHODS`, with its default options."""

    name: str
    batch_size: int = 32
    device: torch.device | str = "cpu"
    baseline: str = "blur"
    seed: int = 0

    def __call__(self, classifier: nn.Module, images: Tensor, targets: Tensor, indices: Sequence[int]) -> np.ndarray:
        return self._attribute(classifier, images, targets, indices).maps.numpy()

    def gaps(self, classifier: nn.Module, images: Tensor, targets: Tensor, indices: Sequence[int]) -> np.ndarray | None:
        """Completeness gaps (B,); None for a method whose maps need not add up to anything."""
        if not METHODS[self.name].complete:
            return None
        found = self._attribute(classifier, images, targets, indices)
        if found.gap is None:
            return None
        sums = found.native.flatten(1).sum(1).double().numpy()
        return completeness_gap(sums, sums - found.gap.double().numpy())

    def _attribute(
        self, classifier: nn.Module, images: Tensor, targets: Tensor, indices: Sequence[int]
    ) -> AttributionResult:
        return attribute(
            classifier, images, self.name, targets, baseline=self.baseline, seed=self.seed,
            batch_size=self.batch_size, device=self.device, indices=indices,
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The masks of a DiffMask of the classifier, which is not checked; one number on all pixels of a patch."""

    mask_model: DiffMask
    batch_size: int = 32
    device: torch.device | str = "cpu"
    of_one_classifier = True

    def __call__(self, classifier: nn.Module, images: Tensor, targets: Tensor, indices: Sequence[int]) -> np.ndarray:
        if not isinstance(classifier, Classifier):
            raise BadMaps(f"DiffMask masks the patches of a Classifier, not of a {type(classifier).__name__}")
        tokens = PatchTokens(classifier)
        with evaluation(classifier, self.device), evaluation(self.mask_model, self.device):
            masks = [
                self.mask_model.mask(tokens.states(some.to(self.device))[1]) for some in images.split(self.batch_size)
            ]
            return tokens.enlarge(torch.cat(masks).float(), images.shape[-1]).cpu().numpy()


def named_methods(
    names: Sequence[str] | None = None, trained: Mapping[str, Explain] | None = None, **options: object
) -> dict[str, Explain]:
    """Methods by name, and the controls; without names all but those that take hundreds of passes an image.

    Args:
        trained: methods that need a training, by name, of which all are measured.
        options: `batch_size`, `device`, `baseline` and `seed` of `Named`.

    Raises:
        Refused: an unknown name or baseline, or the name of a method that needs a training and has had none.
    """
    trained = trained or {}
    baseline = options.get("baseline", BASELINES[0])
    if baseline not in BASELINES:
        raise Refused("baseline", baseline, "unknown baseline", f"choose {', '.join(BASELINES)}")
    for name in names or ():
        if name not in METHODS:
            raise Refused("methods", name, "unknown method", f"choose some of: {', '.join(METHODS)}")
        if "training" in METHODS[name].needs and name not in trained:
            reason = "it has to be trained for this classifier, and none is given"
            raise Refused("methods", name, reason, f"train one with `train {name}`, and give its file (`{name}`)")
    controls = [name for name, method in METHODS.items() if method.family == "control"]
    usual = [name for name, method in METHODS.items() if name not in SLOW and "training" not in method.needs]
    chosen = usual if names is None else list(names)
    every = dict.fromkeys([*trained, *(name for name in chosen if name not in controls), *controls])
    return {name: trained.get(name) or Named(name, **options) for name in every}  # type: ignore[arg-type]
