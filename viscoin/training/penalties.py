"""What penalties do to a training: they retouch its batches, add terms to its loss, and are measured at evaluations.

A task asks its `Penalties` at each step; without any, nothing is computed and no bit differs. What is drawn depends on
(seed, name of the penalty, step) alone, as batches do.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stylegan2_ada.distributed import gather_objects, mean_over_processes, rank, world_size
from viscoin.config import ClassifierConfig
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import choose_images
from viscoin.models.class_maps import TINY, check_class_maps, share_inside
from viscoin.models.classifier import Classifier
from viscoin.penalties import KINDS
from viscoin.runs.run import Run
from viscoin.training.checkpoints import read_once
from viscoin.training.regions import Masks, Region, find_region, region_names

MEASURED = 1000  # images at an evaluation
MARKED_SHARE = 0.25  # of a batch that marked images are drawn for, where a penalty looks at these alone
CHUNK = 125


class Active(NamedTuple):
    """A penalty in force, with its region where it has one."""

    penalty: Any
    region: Region | None
    masks: Masks | None  # of training images

    @property
    def strength(self) -> float:
        """0 where it is measured only."""
        return self.penalty.share if self.penalty.penalty == "swap" else self.penalty.weight


class Penalties:
    """The penalties in force in one training.

    Args:
        kind: of the training.
        wanted: the penalties of its recipe.
        train, validation: its images.
        seed: of its draws.
        run: keeps the files that regions name.

    Attributes:
        kind: of the training.
        wanted: what is in force.
        version: how often that has changed.
    """

    def __init__(
        self, kind: str, wanted: Sequence[Any], train: ImageDataset, validation: ImageDataset, seed: int, run: Run
    ) -> None:
        self.kind, self.train, self.validation, self.seed, self.run = kind, train, validation, seed, run
        self.wanted: list[Any] = []
        self.active: list[Active] = []
        self.version = 0
        self._known: dict[tuple[str, str], Masks] = {}
        self._starts = True  # so files that the recipe names are copied into the run
        if wanted:
            self.use(wanted)
        self._starts = False

    def facts(self) -> dict[str, Any]:
        """What is in force and what there is to choose from, for status.json."""
        found = [one.model_dump() for one in self.wanted]
        return {"active": found, "kinds": list(KINDS[self.kind]), "regions": region_names(self.train)}

    def check(self, wanted: Sequence[Any]) -> list[Region | None]:
        """The regions of penalties; asked by one process alone.

        Raises:
            Refused: one of them is not possible in this training.
        """
        for penalty in wanted:
            self.check_one(penalty)
        return [self._region(penalty) for penalty in wanted]

    def check_one(self, penalty: Any) -> None:
        """Raise Refused for what speaks against one of them, beside its region."""

    def use(self, wanted: Sequence[Any]) -> None:
        """Have these in force from now on, in all processes.

        Raises:
            Refused: as `check`.
        """
        regions = read_once(lambda: self.check(wanted))
        self.active = [
            Active(penalty, region, None if region is None else self._masks(region, self.train))
            for penalty, region in zip(wanted, regions, strict=True)
        ]
        self.wanted, self.version = list(wanted), self.version + 1

    def _region(self, penalty: Any) -> Region | None:
        if not hasattr(penalty, "region"):
            return None
        return find_region(penalty.region, self.train, self.run, self._starts)

    def _masks(self, region: Region, dataset: ImageDataset) -> Masks:
        key = (region.text, dataset.split)
        self._known[key] = self._known.get(key) or Masks(region, dataset)
        return self._known[key]

    # --- batches

    def choose(self, indices: np.ndarray, step: int, size: int, mine: slice) -> np.ndarray:
        """The training images of a batch, some of which are drawn from the marked ones.

        Args:
            indices: of this process's images.
            size: of the batch of all processes, of which this one has `mine`.
        """
        for active in self.active:
            marked = None if active.region is None or not active.strength else active.region.marked_of(self.train)
            if marked is not None:
                draws = self._draws(f"{active.penalty.name} marked", step, size)[mine]
                drawn = marked[(draws[:, 1] * len(marked)).astype(np.int64)]
                indices = np.where(draws[:, 0] < MARKED_SHARE, drawn, indices)
        return indices

    def retouch(self, images: Tensor, indices: np.ndarray, step: int, size: int, mine: slice) -> Tensor:
        """Images (B, 3, H, W) of a batch with regions swapped; then a channel for each region that the loss asks for.

        Args:
            images: are changed in place.
            indices, size, mine: as of `choose`.
        """
        for active in self.active:
            if active.penalty.penalty == "swap" and active.masks is not None and active.strength:
                draws = self._draws(active.penalty.name, step, size)[mine]
                rows = np.flatnonzero(draws[:, 0] < active.penalty.share)
                if len(rows):
                    donors = (draws[rows, 1] * (len(self.train) - 1)).astype(np.int64)
                    donors += donors >= indices[rows]  # never itself
                    images[rows] = swapped(images[rows], self.train.batch(donors)[0], active.masks(indices[rows]))
        channels = [torch.tensor(masks(indices)[:, None], dtype=images.dtype) for _, masks in self.regional()]
        return torch.cat([images, *channels], 1) if channels else images

    def regional(self) -> list[tuple[Any, Masks]]:
        """Penalties whose term needs the region of each image, in the order of the channels after the third."""
        return [
            (active.penalty, active.masks)
            for active in self.active
            if active.masks is not None and active.penalty.penalty != "swap" and active.strength
        ]

    def _draws(self, name: str, step: int, size: int) -> np.ndarray:
        """(size, 2) in [0, 1), of the whole batch of a step."""
        words = [self.seed, zlib.crc32(name.encode()), step]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(words))).random((size, 2))

    # --- evaluations

    def measured_images(self, region: Region | None) -> tuple[ImageDataset, np.ndarray]:
        """Where a penalty is measured: validation images; of marked ones those, or the training images of them."""
        if region is not None and region.marked:
            for dataset in (self.validation, self.train):
                marked = region.marked_of(dataset)
                if marked is not None and len(marked := marked[marked < len(dataset)]):
                    return dataset, marked[:MEASURED]
        return self.validation, choose_images(len(self.validation), MEASURED, seed=0)

    def sums(self, region: Region | None, look: Callable[[Tensor, Tensor, Tensor, Tensor | None], Mapping[str, Tensor]],
             device: torch.device, of: tuple[ImageDataset, np.ndarray] | None = None) -> dict[str, float]:  # fmt: skip
        """Means over the measured images of what `look` gives for each, of all processes.

        Args:
            look: (images, labels, regions (B, H, W), the same images with these from another class, None where there
                is one class alone) -> values (B,).
            of: these images, instead of those of `measured_images`.
        """
        dataset, indices = of or self.measured_images(region)
        donors = None if region is None else of_another_class(dataset.labels, indices, self.seed)
        masks = None if region is None else self._masks(region, dataset)
        totals: dict[str, float] = {}
        mine = slice(rank(), None, world_size())
        for start in range(0, len(indices[mine]), CHUNK):
            some = slice(start, start + CHUNK)
            images, labels = dataset.batch(indices[mine][some])
            shape = (len(images), *images.shape[2:])
            inside = np.zeros(shape, dtype=bool) if masks is None else masks(indices[mine][some])
            others = None if donors is None else dataset.batch(donors[mine][some])[0]
            changed = None if others is None else swapped(images, others, inside).to(device)
            found = look(images.to(device), labels.to(device), torch.tensor(inside, device=device), changed)
            for key, values in found.items():
                totals[key] = totals.get(key, 0.0) + float(values.double().sum())
        shares = gather_objects(totals)
        keys = dict.fromkeys(key for share in shares for key in share)
        return {key: sum(share.get(key, 0.0) for share in shares) / len(indices) for key in keys}


def swapped(images: Tensor, others: Tensor, inside: np.ndarray) -> Tensor:
    """Images (B, 3, H, W) that show others within a region (B, H, W)."""
    return torch.where(torch.from_numpy(np.ascontiguousarray(inside))[:, None], others, images)


def of_another_class(labels: np.ndarray, indices: np.ndarray, seed: int) -> np.ndarray | None:
    """For each of some images one of another class, always the same ones; None where there is one class alone."""
    draws = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 1]))).random(len(indices))
    found = np.zeros(len(indices), dtype=np.int64)
    for label in np.unique(labels[indices]):
        rows, others = np.flatnonzero(labels[indices] == label), np.flatnonzero(labels != label)
        if not len(others):
            return None
        found[rows] = others[(draws[rows] * len(others)).astype(np.int64)]
    return found


def class_index(parameter: str, label: str, names: Sequence[str]) -> int:
    """Index of a class by its name, or by its number.

    Raises:
        Refused: there is no such class.
    """
    if label in names:
        return list(names).index(label)
    if label.isdecimal() and len(label) < 10 and int(label) < len(names):
        return int(label)
    some = f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    raise Refused(parameter, label, "there is no such class", f"choose 0 to {len(names) - 1}, or {some}")


class OfClassifier(Penalties):
    """Penalties of a classifier: what it may not look at, and with what it may not confuse a class.

    Args:
        model: the network.
        config: its settings, which say how images are changed.
        body_runs: whether the network sees images in each step, and not their features alone.
    """

    def __init__(
        self, model: Classifier, config: ClassifierConfig, train: ImageDataset, validation: ImageDataset, seed: int,
        run: Run, body_runs: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.config, self.body_runs = model, config, body_runs
        super().__init__("classifier", config.penalties, train, validation, seed, run)

    def check_one(self, penalty: Any) -> None:
        if penalty.penalty == "confusion":
            label, predicted = self._pair(penalty)
            if label == predicted:
                raise Refused("predicted", penalty.predicted, "it is the true class itself", "give two classes")
            if not (self.train.labels == label).any():
                raise Refused("label", penalty.label, "no training image is of this class", "choose another one")
            return
        if not self.body_runs:
            raise Refused(
                "penalty", penalty.penalty,
                "this training has computed the features of its images once and trains the last layer on them",
                "name the penalty when the training starts",
            )  # fmt: skip
        if penalty.penalty == "swap":
            if len(self.train) < 2:
                raise Refused("penalty", "swap", "there is no other training image to swap with", "add images")
            return
        check_class_maps(self.model)
        moving = [key for key in ("rotation", "rand_augment", "mixup") if getattr(self.config, key)]
        if moving:
            raise Refused(
                "penalty", "attention", f"the region of an image cannot follow `classifier.{moving[0]}`",
                "use swap, or train without",
            )  # fmt: skip

    def _pair(self, penalty: Any) -> tuple[int, int]:
        """Indices of the true class and of the one that it must not be called."""
        names = self.train.class_names
        return class_index("label", penalty.label, names), class_index("predicted", penalty.predicted, names)

    @property
    def looks(self) -> bool:
        """Whether the loss asks for class activation maps."""
        return bool(self.regional())

    def terms(self, last: Tensor, weight: Tensor, labels: Tensor, regions: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight, and sum over the images, of each term.

        Args:
            last: map (B, C, h, w) whose mean the last layer reads, weight (n_classes, C).
            regions: (B, R, H, W), a channel for each of `regional`.
        """
        return {
            f"penalties.{penalty.name}.cam_share": (
                penalty.weight, share_inside(last, weight, labels, regions[:, i]).sum()
            )
            for i, (penalty, _) in enumerate(self.regional())
        }  # fmt: skip

    def costs(self, labels: Tensor) -> "Costs":
        """The costs of confused classes in one step; asked by all processes.

        Args:
            labels: of all images that this process sees in it, (B,) indices, or (B, n_classes) probabilities.
        """
        found = [active.penalty for active in self.active if active.penalty.penalty == "confusion" and active.strength]
        return Costs([(penalty.name, penalty.weight, *self._pair(penalty)) for penalty in found], labels)

    def measure(self, look: Callable[[Tensor], tuple[Tensor, Tensor | None]], device: torch.device) -> dict[str, float]:
        """Behaviour and map, for each penalty: accuracy as is, with the region of another class, share of the map.

        Of confused classes: how often images of the one are called the other.

        Args:
            look: images -> logits, and the map that the last layer reads where there is a class activation map.
        """
        weight, found, known = self._weight(), dict[str, float](), dict[str, dict[str, float]]()

        def values(images: Tensor, labels: Tensor, regions: Tensor, changed: Tensor | None) -> dict[str, Tensor]:
            logits, last = look(images)
            values = {"accuracy": logits.argmax(1) == labels}
            if changed is not None:
                values["accuracy_swapped"] = look(changed)[0].argmax(1) == labels
            if last is not None and weight is not None:
                values["cam_share"] = share_inside(last, weight, labels, regions)
            return values

        for active in self.active:
            if active.penalty.penalty == "confusion":
                values_of_pair = self._confused(active.penalty, look, device)
                found |= {f"penalties.{active.penalty.name}.{name}": value for name, value in values_of_pair.items()}
                continue
            key = active.penalty.region
            known[key] = known.get(key) or self.sums(active.region, values, device)
            found |= {f"penalties.{active.penalty.name}.{name}": value for name, value in known[key].items()}
        return found

    def _confused(
        self, penalty: Any, look: Callable[[Tensor], tuple[Tensor, Tensor | None]], device: torch.device
    ) -> dict[str, float]:
        """Shares of the validation images of two classes, each called the other; those without images are left out."""
        found: dict[str, float] = {}
        label, predicted = self._pair(penalty)
        for true, other, back in ((label, predicted, False), (predicted, label, True)):
            of_class = np.flatnonzero(self.validation.labels == true)
            if not len(of_class):
                continue

            def values(
                images: Tensor, labels: Tensor, regions: Tensor, changed: Tensor | None, other: int = other,
                back: bool = back,
            ) -> dict[str, Tensor]:  # fmt: skip
                logits = look(images)[0]
                answers = logits.argmax(1)
                if back:
                    return {"confused_back": answers == other}
                probability = logits.softmax(1)[:, other]
                return {"confused": answers == other, "recall": answers == labels, "probability": probability}

            some = of_class[choose_images(len(of_class), MEASURED, seed=0)]
            found |= self.sums(None, values, device, (self.validation, some))
        return found

    def _weight(self) -> Tensor | None:
        """Of the last layer; None where the network has no class activation map."""
        try:
            check_class_maps(self.model)
        except Refused:
            return None
        return self.model.last_layer.weight


class Costs:
    """Expected costs of confused classes in one step: weight times the mean of P(b | x) over the images x of class a.

    Args:
        pairs: name, weight, a and b of each.
        labels: of all images that this process sees in the step, (B,) indices, or (B, n_classes) probabilities, as
            mixup gives them, by which an image counts as far as it is of class a.
    """

    def __init__(self, pairs: Sequence[tuple[str, float, int, int]], labels: Tensor) -> None:
        self.pairs = list(pairs)
        self.counts = [mean_over_processes(membership(labels, true).sum()) for _, _, true, _ in self.pairs]

    def terms(self, logits: Tensor, labels: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and mean of each pair, as far as some of the images (B, n_classes) add to it; 0 where there are none.

        The sum over all parts of the step, averaged over processes, is the mean over all images of the class.
        """
        found = {}
        for (name, weight, true, predicted), count in zip(self.pairs, self.counts, strict=True):
            shares = membership(labels, true) * logits.softmax(1)[:, predicted]
            found[f"penalties.{name}.probability"] = (weight, shares.sum() / count.clamp_min(TINY))
        return found

    def logged(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the whole step as they are logged: nan, which no mean counts, where no image is of the class."""
        names = [f"penalties.{name}.probability" for name, *_ in self.pairs]
        return dict(terms) | {key: terms[key].where(count > 0, torch.nan) for key, count in zip(names, self.counts)}


def membership(labels: Tensor, label: int) -> Tensor:
    """How far images are of a class, (B,): 0 or 1 of indices (B,), their probability of (B, n_classes)."""
    return (labels == label).float() if labels.ndim == 1 else labels[:, label].float()
