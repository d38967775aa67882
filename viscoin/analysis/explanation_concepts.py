"""Which concepts vote for the predicted class of one image, and against the runner-up."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from viscoin.analysis.concepts import ConceptTable, collect_concepts
from viscoin.analysis.explanation_places import DRAWS, strongest
from viscoin.analysis.gallery import examples_of
from viscoin.attribution.explained import SMOOTHING, blurred
from viscoin.attribution.heatmaps import concept_heatmaps
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets.walking import composed
from viscoin.errors import reason_of
from viscoin.inference.batches import evaluation
from viscoin.inference.loading import Subject, SubjectWithImages
from viscoin.models.ensemble import VisCoIN
from viscoin.statistics.measures import auroc

FOR, BETWEEN = 5, 3  # concepts that are shown: for the class, and for it or the runner-up
CROPS = 4
SPLITS = ("validation", "train")
IMAGES = 1000  # that are searched for crops
NAMED = 0.9  # AUROC with which a concept must detect an attribute of the data to be called by it
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crop:
    """Where a concept fires in another image: (s, s, 3) uint8, and what that image is called."""

    pixels: np.ndarray
    name: str


@dataclass(frozen=True)
class Library:
    """Other images of the data that an ensemble was made for, and its concepts in them.

    Attributes:
        images, table: None where these images are not here; then `missing` says why.
        names: of concepts; `named_by` says where they come from, "" without any.
    """

    images: ImageDataset | None = None
    table: ConceptTable | None = None
    missing: str = ""
    names: Mapping[int, str] = field(default_factory=dict)
    named_by: str = ""

    def crops(
        self, ensemble: VisCoIN, concepts: Sequence[int], device: torch.device | str, batch_size: int
    ) -> dict[int, list[Crop]]:
        """Of the images that activate each concept most."""
        if self.images is None or self.table is None:
            return {k: [] for k in concepts}
        found = examples_of(ensemble, self.images, self.table, concepts, CROPS, device, batch_size)
        return {k: [self._crop(example.row, example.crop) for example in examples] for k, examples in found.items()}

    def _crop(self, row: int, place: tuple[int, int, int]) -> Crop:
        if self.images is None or self.table is None:
            raise ValueError("no images")
        x, y, side = place
        index = int(self.table.indices[row])
        predicted = int(self.table.f_probabilities[row].argmax())
        label = self.images.class_names[self.images.labels[index] if self.images.labelled else predicted]
        return Crop(np.asarray(self.images.pixels[index][y : y + side, x : x + side]), label)


def open_library(
    subject: Subject, names: Mapping[int, str] | None = None, batch_size: int = 64, seed: int = 0
) -> Library:
    """Images to search for crops, and what the concepts of an ensemble are called.

    The images are validation images of the ensemble's data, else training images; where neither are here, or they have
    other classes than the ensemble, those that the subject comes with.

    Args:
        names: of concepts; by default they are called by the attributes of the data that they detect, where it has any.
    """
    given = dict(names or {})
    by = "names that were given" if given else ""
    try:
        images = _images(subject)
        table = collect_concepts(subject.model, images, subject.device, batch_size, seed, IMAGES)
    except (ValueError, OSError) as error:
        return Library(missing=reason_of(error), names=given, named_by=by)
    if names is None and len(images.attribute_names):
        given = _names(table, images)
        by = f"the attribute of dataset {images.name!r} that each detects best, with an AUROC of {NAMED} or more"
    return Library(images, table, "", given, by)


def _images(subject: Subject) -> ImageDataset:
    known, failed = [composed(name) for name in subject.class_names], list[Exception]()
    for split in SPLITS:
        try:
            images = load_dataset(subject.config.name, split, subject.config)
        except (ValueError, OSError) as error:
            failed.append(error)
            continue
        if [composed(name) for name in images.class_names] == known:
            return images
    if isinstance(subject, SubjectWithImages):
        return subject.images
    raise failed[0] if failed else ValueError("the images that are here have other classes")


def _names(table: ConceptTable, images: ImageDataset) -> dict[int, str]:
    areas = np.nan_to_num(auroc(table.activations, images.attributes[table.indices]))
    best = areas.argmax(0)
    return {k: str(images.attribute_names[best[k]]) for k in range(areas.shape[1]) if areas[best[k], k] >= NAMED}


@dataclass(frozen=True)
class Vote:
    """One concept in one image.

    Attributes:
        activation: phi_k; `usual`: its 90 % quantile over other images, NaN where these are not known.
        vote: phi_k Theta[c, k] for the predicted class c, in units of g's logits; `against`: for the runner-up.
        heat: (H, W) in [0, 1], where it is.
        crops: of other images that have it most.
        kept: its activation, as a share of what it was, with the tenth of the image where the map says it is blurred;
            `kept_at_random`: with random places of the same size. NaN for a concept that is not active.
    """

    concept: int
    name: str | None
    activation: float
    usual: float
    vote: float
    against: float
    heat: np.ndarray
    crops: Sequence[Crop]
    kept: float
    kept_at_random: float

    @property
    def difference(self) -> float:
        """What it adds to the logit of the predicted class above that of the runner-up."""
        return self.vote - self.against

    @property
    def title(self) -> str:
        return f"{self.name} (concept {self.concept})" if self.name else f"concept {self.concept}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, without pictures."""
        return {
            "concept": self.concept, "name": self.name, "activation": self.activation, "usual": self.usual,
            "vote": self.vote, "vote_for_runner_up": self.against, "difference": self.difference,
            "kept_where_it_is_hidden": self.kept, "kept_where_others_are_hidden": self.kept_at_random,
            "seen_in": [crop.name for crop in self.crops],
        }  # fmt: skip


@dataclass(frozen=True)
class SwitchedOff:
    """The fewest concepts without which g says something else.

    Attributes:
        concepts: in the order of their weight; all active ones where nothing changes g.
        becomes: what g says then; its probability is `probability`.
        changes: whether that is another class.
    """

    concepts: Sequence[int]
    becomes: int
    probability: float
    changes: bool


@dataclass(frozen=True)
class Votes:
    """What concepts say about one image.

    Attributes:
        predicted, runner_up: the two most probable classes of f, of those that g knows; `vote` and `against` are
            about them.
        g_predicted, g_probability: what the explainer says, and its probability of f's class.
        leading: the strongest votes for the predicted class.
        between: those that tell it from the runner-up: first for the predicted class, then for the other.
        active, total: number of active concepts, and of all.
        share: of the sum of all positive votes, what the leading ones are.
        switched_off: see there.
        chosen: classes that g knows, where it was trained on some of those of f.
    """

    predicted: int
    runner_up: int
    g_predicted: int
    g_probability: float
    leading: Sequence[Vote]
    between: Sequence[Vote]
    active: int
    total: int
    share: float
    switched_off: SwitchedOff
    chosen: Sequence[int] | None = None

    def to_dict(self, class_names: Sequence[str], names: Mapping[int, str]) -> dict[str, Any]:
        """Plain numbers."""
        off = self.switched_off
        return {
            "g": {
                "predicted": class_names[self.g_predicted], "probability_of_predicted": self.g_probability,
                "among": None if self.chosen is None else [class_names[c] for c in self.chosen],
            },
            "active": self.active, "total": self.total, "share_of_leading": self.share,
            "leading": [vote.to_dict() for vote in self.leading],
            "between": [vote.to_dict() for vote in self.between],
            "switched_off": {
                "concepts": list(off.concepts), "names": [names.get(k) for k in off.concepts], "changes": off.changes,
                "becomes": class_names[off.becomes], "probability": off.probability,
            },
        }  # fmt: skip


def _rivals(logits: Tensor, chosen: Tensor | None) -> list[int]:
    """The two classes with the largest logits (n_classes,), of those that g knows: about others it has no votes."""
    if chosen is None:
        return logits.topk(2).indices.tolist()
    return chosen[logits[chosen].topk(2).indices].tolist()


def count_votes(
    ensemble: VisCoIN,
    image: Tensor,
    library: Library,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    seed: int = 0,
) -> Votes:
    """The concepts of one image (3, H, W) in [-1, 1]."""
    with evaluation(ensemble, device):
        logits, maps = ensemble.concept_maps(image[None].to(device))
        phi = ensemble.activations(maps)[0].float().cpu().clone()
        answer = ensemble.explain(maps)[0].float().softmax(0).cpu().clone()
        weight = ensemble.explainer.weight.float().cpu().clone()
        offset = ensemble.explainer.bias.float().cpu().clone()
        c, r = _rivals(logits[0], ensemble.explainer.chosen)
    votes, chosen = phi * weight[[c, r]], ensemble.explainer.chosen
    leading, between = _chosen(votes)
    shown = _show(
        ensemble, image, phi, votes, list(dict.fromkeys(leading + between)), library, device, batch_size, seed
    )
    positive = votes[0].clamp(min=0)
    return Votes(
        c, r, int(answer.argmax()), float(answer[c]), [shown[k] for k in leading], [shown[k] for k in between],
        int((phi > 0).sum()), len(phi), float(positive[leading].sum() / positive.sum().clamp_min(1e-12)),
        fewest_concepts(phi, weight, offset), None if chosen is None else chosen.tolist(),
    )  # fmt: skip


def _chosen(votes: Tensor) -> tuple[list[int], list[int]]:
    """Concepts with the largest votes (2, K), and those that tell both classes apart."""
    difference = votes[0] - votes[1]
    leading = [int(k) for k in votes[0].argsort(descending=True)[:FOR] if votes[0, k] > 0]
    order = difference.argsort(descending=True, stable=True).tolist()
    between = [k for k in order[:BETWEEN] if difference[k] > 0]
    return leading, between + [k for k in order[::-1][:BETWEEN] if difference[k] < 0]


def _show(
    ensemble: VisCoIN, image: Tensor, phi: Tensor, votes: Tensor, concepts: list[int], library: Library,
    device: torch.device | str, batch_size: int, seed: int,
) -> dict[int, Vote]:  # fmt: skip
    if not concepts:
        return {}
    heats = concept_heatmaps(ensemble, image[None], torch.tensor([concepts]), device=device).heatmaps[0]
    kept = _kept(ensemble, image, phi, concepts, heats, device, batch_size, seed)
    crops = library.crops(ensemble, concepts, device, batch_size)
    usual = np.full(len(phi), np.nan)
    if library.table is not None:
        usual = np.quantile(library.table.activations, 0.9, axis=0)
    return {
        k: Vote(
            k, library.names.get(k), float(phi[k]), float(usual[k]), float(votes[0, k]), float(votes[1, k]), heats[i],
            crops[k], *kept[i],
        )
        for i, k in enumerate(concepts)
    }  # fmt: skip


def _kept(
    ensemble: VisCoIN, image: Tensor, phi: Tensor, concepts: Sequence[int], heats: np.ndarray,
    device: torch.device | str, batch_size: int, seed: int,
) -> list[tuple[float, float]]:  # fmt: skip
    """Of each concept what is left of it where its map is hidden, and where random places are."""
    side, random = image.shape[-1], np.random.default_rng(seed)
    places = [strongest(gaussian_filter(heat, SMOOTHING * side)) for heat in heats]
    places += [strongest(gaussian_filter(random.standard_normal((side, side)), SMOOTHING * side)) for _ in range(DRAWS)]
    masks = torch.from_numpy(np.stack(places))[:, None]
    batch = torch.where(masks, blurred(image[None].cpu()), image[None].cpu())
    with evaluation(ensemble, device):
        found = torch.cat([
            ensemble.activations(ensemble.concept_maps(part.to(device))[1]).float().cpu()
            for part in batch.split(batch_size)
        ])  # fmt: skip
    rows = []
    for i, k in enumerate(concepts):
        if not phi[k] > 0:
            rows.append((float("nan"), float("nan")))
            continue
        left = found[:, k] / phi[k]
        rows.append((float(left[i]), float(left[len(concepts) :].mean())))
    return rows


def fewest_concepts(phi: Tensor, weight: Tensor, bias: Tensor) -> SwitchedOff:
    """Concepts (K,) that are set to 0, one by one, the one that costs g's prediction most first, until it changes.

    Then those are turned on again that need not be off. No concept of the set can be spared; that there is no smaller
    one is not proved.

    Args:
        phi: (K,); weight: (C, K); bias: (C,).
    """
    logits = weight @ phi + bias
    own, off, left = int(logits.argmax()), list[int](), phi.clone()
    while int((weight @ left + bias).argmax()) == own and bool((left > 0).any()):
        active = (left > 0).nonzero()[:, 0]
        without = weight @ left + bias - weight[:, active].T * left[active, None]  # (A, C)
        best = int(active[_margins(without, own).argmin()])
        off.append(best)
        left[best] = 0
    for k in list(off[::-1]):
        again = left.clone()
        again[k] = phi[k]
        if len(off) > 1 and int((weight @ again + bias).argmax()) != own:
            left = again
            off.remove(k)
    answer = (weight @ left + bias).softmax(0)
    becomes = int(answer.argmax())
    return SwitchedOff(off, becomes, float(answer[becomes]), becomes != own)


def _margins(logits: Tensor, own: int) -> Tensor:
    """(N,) of logits (N, C): how far a class is above the best other one."""
    others = logits.clone()
    others[:, own] = -torch.inf
    return logits[:, own] - others.amax(1)
