"""Penalties of an ensemble: a class that a concept must not speak for, and a region in which it must not fire."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from viscoin.config import ViscoinConfig
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.models.class_maps import TINY, on_grid
from viscoin.models.ensemble import Encoding, VisCoIN
from viscoin.models.explainer import activations
from viscoin.runs.run import Run
from viscoin.training.penalties import Active, Penalties, class_index


class OfConcepts(Penalties):
    """Penalties of Psi and Theta.

    Args:
        ensemble: that is trained.
        config: its settings, which say whether its concepts are trained at all.
    """

    def __init__(
        self, ensemble: VisCoIN, config: ViscoinConfig, train: ImageDataset, validation: ImageDataset, seed: int,
        run: Run,
    ) -> None:  # fmt: skip
        self.ensemble, self.config = ensemble, config
        super().__init__("viscoin", config.penalties, train, validation, seed, run)

    def check_one(self, penalty: Any) -> None:
        if self.config.hold_concepts == 1:
            raise Refused(
                "penalty", penalty.penalty, "concepts and Theta stay as they are for the whole training",
                "train with `viscoin.hold_concepts` below 1",
            )  # fmt: skip
        if penalty.concept >= self.ensemble.n_concepts:
            last = self.ensemble.n_concepts - 1
            raise Refused("concept", penalty.concept, "there is no such concept", f"choose one from 0 to {last}")
        if penalty.penalty == "not_for":
            self._class(penalty)

    def _class(self, penalty: Any) -> int:
        """Index of the class of a penalty."""
        return class_index("label", penalty.label, self.ensemble.class_names)

    def terms(self, code: Encoding, regions: Tensor, generated: int) -> dict[str, Tensor]:
        """The weighted term of each penalty, a mean over the images of this process.

        Args:
            code: of images of which the first `generated` are samples, which have no region.
            regions: (B, R, H, W) of the others, a channel for each of `regional`.
        """
        order = [penalty.name for penalty, _ in self.regional()]
        found = {}
        for active in self.active:
            penalty = active.penalty
            if not active.strength:
                continue
            if penalty.penalty == "not_for":
                value = self._votes(penalty, code.concept_maps).mean()
            else:
                places = self._places(penalty, code.latent[generated:])
                value = mean_inside(places, regions[:, order.index(penalty.name)]).mean()
            found[f"penalties.{penalty.name}"] = penalty.weight * value
        return found

    def _votes(self, penalty: Any, concept_maps: Tensor) -> Tensor:
        """relu(phi_k Theta[c, k]), (B,): how loudly the concept speaks for the class."""
        k, weight = penalty.concept, self.ensemble.explainer.weight.float()
        return (activations(concept_maps[:, k : k + 1].float())[:, 0] * weight[self._class(penalty), k]).relu()

    def _places(self, penalty: Any, latent: Tensor) -> Tensor:
        """Where the concept fires, (B, h, w) >= 0."""
        return self.ensemble.concept_extractor.places(latent)[:, penalty.concept].float()

    def measure(self, fabric: Fabric) -> dict[str, float]:
        """Behaviour of g and of the concept, for each penalty."""
        found: dict[str, float] = {}
        for active in self.active:
            look = self._looks(active, fabric)
            values = self.sums(active.region, look, fabric.device)
            found |= {f"penalties.{active.penalty.name}.{key}": value for key, value in values.items()}
        return found

    def _looks(self, active: Active, fabric: Fabric) -> Any:
        """What is measured of images: the vote and how often g says the class, or place and accuracy."""
        penalty, ensemble = active.penalty, self.ensemble

        def encode(images: Tensor) -> tuple[Encoding, Tensor]:
            with fabric.autocast():
                code = ensemble.encode(images, supported=0)
                return code, ensemble.explain(code.concept_maps).argmax(1)

        def vote(images: Tensor, labels: Tensor, regions: Tensor, changed: Tensor | None) -> Mapping[str, Tensor]:
            code, answers = encode(images)
            return {"vote": self._votes(penalty, code.concept_maps), "predicted": answers == self._class(penalty)}

        def place(images: Tensor, labels: Tensor, regions: Tensor, changed: Tensor | None) -> Mapping[str, Tensor]:
            code, answers = encode(images)
            places = self._places(penalty, code.latent)
            inside = (places * on_grid(regions, places.shape[-2:])).sum((1, 2))
            values = {"map_share": inside / places.sum((1, 2)).clamp_min(TINY)}
            if self.validation.labelled:
                values["accuracy"] = answers == labels
                if changed is not None:
                    values["accuracy_swapped"] = encode(changed)[1] == labels
            return values | {"activation": mean_inside(places, regions)}

        return vote if active.region is None else place


def mean_inside(places: Tensor, region: Tensor) -> Tensor:
    """Mean (B,) of maps (B, h, w) within regions (B, H, W); 0 where a region is empty."""
    cells = on_grid(region, places.shape[-2:])
    return (places * cells).sum((1, 2)) / torch.clamp_min(cells.sum((1, 2)), TINY)
