"""Which scores of which images are explained: classes by name, number or rank, one against another, or concepts."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.attribution.targets import ClassifierLogit, ConceptActivation, ExplainerLogit, Target
from viscoin.datasets import to_pixels
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.inference.loading import Pictures

OF = ("f", "g", "concepts")
RANKS = {"predicted": "the predicted class", "true": "the true class", "runner-up": "the runner-up"}


@dataclass(frozen=True)
class Asked:
    """What is to be explained of each image.

    Attributes:
        targets: classes by name, number, or as one of `RANKS`; every image is shown with each of them.
        against: the same for the class whose logit is subtracted.
        concepts: indices; where the scores are activations of concepts. None: the most relevant one of each image.
    """

    targets: Sequence[str] = ("predicted",)
    against: str | None = None
    concepts: Sequence[int] | None = None


@dataclass(frozen=True)
class Views:
    """N pairs of an image and the score of it that is explained.

    Attributes:
        images: (N, H, W, 3) uint8.
        names: (N,) of the images, those of an image with several scores alike.
        indices: (N,) that stand for the images in seeds.
        labels: (N,) true classes, None where they are not known.
        class_names: (C,).
        logits: (N, C) of the model whose predictions are shown.
        targets: (N,) the explained class or concept.
        against: (N,) the class whose logit is subtracted, or None.
        score_names: (S,) of classes or concepts.
        question: what is explained, for people: "the predicted class against the runner-up".
    """

    images: np.ndarray
    names: list[str]
    indices: list[int]
    labels: np.ndarray | None
    class_names: Sequence[str]
    logits: np.ndarray
    targets: np.ndarray
    against: np.ndarray | None
    score_names: Sequence[str]
    question: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def of_classes(self) -> bool:
        """Whether the explained scores are logits of classes."""
        return self.score_names is self.class_names

    @property
    def predicted(self) -> np.ndarray:
        """(N,)."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> np.ndarray:
        """(N, C)."""
        odds = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return np.asarray(odds / odds.sum(1, keepdims=True))

    def to_dict(self) -> list[dict[str, Any]]:
        """For each view its image, classes, probabilities and the explained score."""
        return [self._row(view) for view in range(len(self))]

    def _row(self, view: int) -> dict[str, Any]:
        probability = self.probabilities[view]
        row = {"image": self.names[view], **self._class("predicted", int(self.predicted[view]), probability)}
        if self.labels is not None:
            row |= self._class("true", int(self.labels[view]), probability)
        if not self.of_classes:
            return row | {"target": self.score_names[self.targets[view]]}
        row |= self._class("target", int(self.targets[view]), probability)
        if self.against is not None:
            row |= self._class("against", int(self.against[view]), probability)
        return row

    def _class(self, key: str, index: int, probability: np.ndarray) -> dict[str, Any]:
        return {key: self.class_names[index], f"{key}_probability": float(probability[index])}


def target_of(model: Any, of: str = "f") -> Target:
    """The scores of a classifier, or of an ensemble: logits of f or g, or activations of concepts.

    Raises:
        Refused: unknown scores, or those of an ensemble where there is only a classifier.
    """
    if of not in OF:
        raise Refused("of", of, "unknown scores", f"choose one of: {', '.join(OF)}")
    if of == "f":
        return ClassifierLogit(getattr(model, "classifier", model))
    if not hasattr(model, "concept_extractor"):
        raise Refused("of", of, "a classifier has logits of f alone", "give an ensemble, or choose f")
    return ExplainerLogit(model) if of == "g" else ConceptActivation(model)


def ask(
    target: Target,
    pictures: Pictures,
    class_names: Sequence[str],
    asked: Asked,
    device: torch.device | str,
    batch_size: int,
) -> Views:
    """The views of some images: each image with each of the scores that are asked for.

    Raises:
        Refused: a class or concept that is not there, `true` without labels, a class against itself.
    """
    logits = scores = scores_of(predictor(target), pictures.images, device, batch_size)
    names, labels, against = list(class_names), pictures.labels, None
    if isinstance(target, ConceptActivation):
        scores = scores_of(target, pictures.images, device, batch_size)
        chosen = _concepts(target, scores, logits.argmax(1), asked)
        score_names: Sequence[str] = [f"concept {k}" for k in range(target.n_scores)]
        question = "the concept"
    else:
        chosen = torch.stack([_chosen("target", text, scores, labels, names) for text in asked.targets], 1)
        score_names, question = names, " and ".join(_worded(text, names) for text in asked.targets)
    each = chosen.shape[1]
    rows = np.repeat(np.arange(len(pictures.images)), each)
    if asked.against is not None and score_names is names:
        rival = _chosen("against", asked.against, scores, labels, names)
        _check_rival(chosen, rival, asked.against, pictures.names)
        against, question = rival[rows].numpy(), f"{question} against {_worded(asked.against, names)}"
    indices = pictures.indices or range(len(pictures.images))
    return Views(
        images=to_pixels(pictures.images)[rows], names=[pictures.names[row] for row in rows],
        indices=[indices[row] for row in rows], labels=None if labels is None else labels[rows], class_names=names,
        logits=logits.numpy()[rows], targets=chosen.flatten().numpy(), against=against, score_names=score_names,
        question=question,
    )  # fmt: skip


def predictor(target: Target) -> Target:
    """The logits that say which class is predicted: the scores themselves, or those of g where they are of concepts."""
    return ExplainerLogit(target.ensemble) if isinstance(target, ConceptActivation) else target


def scores_of(target: Target, images: Tensor, device: torch.device | str, batch_size: int) -> Tensor:
    """All scores (B, S) of images (B, 3, H, W), on the CPU."""
    with evaluation(target.model, device):
        return torch.cat([target.scores(part.to(device)).float().cpu() for part in images.split(batch_size)])


def _concepts(target: ConceptActivation, phi: Tensor, predicted: Tensor, asked: Asked) -> Tensor:
    if asked.concepts is None:
        weight = target.ensemble.explainer.weight.detach().cpu()
        return (phi * weight[predicted]).argmax(1, keepdim=True)
    wrong = [k for k in asked.concepts if not 0 <= k < target.n_scores]
    if wrong:
        raise Refused(
            "concept_indices", wrong[0], f"out of range; there are {target.n_scores} concepts, counted from 0"
        )
    return torch.tensor([list(asked.concepts)] * len(phi))


def _chosen(parameter: str, text: str, logits: Tensor, labels: np.ndarray | None, names: Sequence[str]) -> Tensor:
    """The class (B,) that a word means for each image."""
    if text == "predicted":
        return logits.argmax(1)
    if text == "runner-up":
        return logits.topk(2).indices[:, 1]
    if text == "true":
        if labels is None:
            raise Refused(parameter, text, "the true classes of these images are not known", "name a class")
        return torch.from_numpy(labels).long()
    return torch.full((len(logits),), _class(parameter, text, names))


def _class(parameter: str, text: str, names: Sequence[str]) -> int:
    """A class by its name, or by its number where no class is called so."""
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    if text.lstrip("-").isdecimal():
        raise Refused(parameter, text, f"out of range; there are {len(names)} classes, counted from 0")
    near = difflib.get_close_matches(text, names, n=3) or names[:3]
    raise Refused(
        parameter, text, "there is no such class", f"choose {', '.join(RANKS)}, a number, or a name such as {near[0]!r}"
    )


def _worded(text: str, names: Sequence[str]) -> str:
    return RANKS.get(text) or names[_class("target", text, names)]


def _check_rival(chosen: Tensor, rival: Tensor, text: str, names: Sequence[str]) -> None:
    same = (chosen == rival[:, None]).any(1)
    if same.any():
        image = names[int(same.nonzero()[0, 0])]
        remedy = "choose another" if text == "runner-up" else "choose another, such as runner-up"
        raise Refused("against", text, f"of {image} that is the explained class itself", remedy)
