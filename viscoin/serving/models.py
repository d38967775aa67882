"""The models that a service holds, each with its data, its concepts and what is usual of it."""

import hashlib
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from viscoin.analysis.concepts import concept_name
from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets.base import SPLITS
from viscoin.datasets.reading import Fit
from viscoin.errors import Refused
from viscoin.inference.devices import resolve_device
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import find_model, load_model
from viscoin.naming.names import read_grades, read_names
from viscoin.serving.problems import Problem

MOST_MODELS = 3
KEPT = 256  # images of which the code is kept
CONCEPT_IMAGES = 400  # test images that the page of concepts is about

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ServedModel:
    """A model in memory.

    Attributes:
        id: by which requests name it.
        names, grades: of concepts that have a name, and the AUROC with which that proves true, where it is known.
        ensemble: None where there is a classifier alone.
        config: of the images that it was made for.
    """

    def __init__(self, path: Path, kind: str, device: str) -> None:
        loaded = load_model(path, kind)
        self.path, self.kind, self.metadata = path, kind, loaded.metadata
        self.device = resolve_device(device)
        model = loaded.model.to(self.device).eval().requires_grad_(False)
        self.ensemble: VisCoIN | None = model if kind == "viscoin" else None
        self.classifier: Classifier = model.classifier if kind == "viscoin" else model
        self.class_names = list(loaded.class_names)
        self.config = DatasetConfig.model_validate(loaded.recipe["dataset"])
        self.fit = Fit.of(self.config)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.id = _identifier(path, self.sha256)
        self.names: dict[int, str] = {}
        self.grades: dict[int, float] = {}
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._once = threading.RLock()
        self._splits: dict[str, ImageDataset] = {}
        self._reading = {split: threading.Lock() for split in SPLITS}  # so that none waits for the images of another

    @property
    def resolution(self) -> int:
        """Side of its images, pixels."""
        return self.classifier.resolution

    @property
    def draws(self) -> bool:
        """Whether it has a generator."""
        return self.ensemble is not None and self.ensemble.draws

    @property
    def dataset_name(self) -> str:
        """Of its images, without the folders they lie in."""
        return Path(self.config.name).name

    def needed_ensemble(self) -> VisCoIN:
        """The ensemble.

        Raises:
            Problem: 409, the model is a classifier alone.
        """
        if self.ensemble is None:
            raise Problem(409, f"model {self.id} is a classifier alone, without concepts", "choose an ensemble")
        return self.ensemble

    def drawing_ensemble(self) -> VisCoIN:
        """The ensemble, which has a generator.

        Raises:
            Problem: 409, nothing can be drawn.
        """
        ensemble = self.needed_ensemble()
        if not ensemble.draws:
            raise Problem(
                409, f"model {self.id} has no generator, so nothing can be drawn", "train one with a generator"
            )
        return ensemble

    def read_names(self, path: Path) -> None:
        """Take the names of a names.csv.

        Raises:
            Refused: it is none, or one of another ensemble.
        """
        self.names = read_names(path, self.needed_ensemble().n_concepts)
        self.grades = read_grades(path)

    def name_of(self, concept: int) -> str:
        """Of a concept, for people."""
        return concept_name(concept, self.names)

    def images(self, split: str) -> ImageDataset:
        """A split of its dataset.

        Raises:
            Problem: 404, its images are not on this machine.
        """
        with self._reading[split]:
            if split not in self._splits:
                try:
                    self._splits[split] = load_dataset(self.config.name, split, self.config)
                except (Refused, ValueError) as error:
                    raise Problem(
                        404, f"the {split} images of {self.dataset_name} are not to be had: {error}"
                    ) from error
            return self._splits[split]

    def kept(self, number: str) -> Any:
        """What was made of an image; for the engine's thread alone."""
        if number in self._kept:
            self._kept.move_to_end(number)
        return self._kept.get(number)

    def keep(self, number: str, made: Any) -> None:
        """Keep what was made of an image, instead of the one that was asked for longest ago; as `kept`."""
        self._kept[number] = made
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    @cached_property
    def opposites(self) -> list[int | None]:
        """Of each concept the one that is its opposite, where there is one."""
        return list(self.needed_ensemble().concept_extractor.opposites())

    @cached_property
    def directions(self) -> Any:
        """What is usual of concepts, from the ensemble's directions; None where it has none."""
        return self.drawing_ensemble().generator.directions

    def about(self) -> dict[str, Any]:
        """What the service says of it."""
        architecture = self.metadata.get("architecture", {})
        return {
            "id": self.id, "kind": self.kind, "file": self.path.name, "dataset": self.dataset_name,
            "classes": len(self.class_names), "resolution": self.resolution,
            "concepts": self.ensemble.n_concepts if self.ensemble is not None else None, "draws": self.draws,
            "backbone": architecture.get("backbone", architecture.get("classifier", {}).get("backbone")),
            "scores": self.metadata.get("scores"), "commands": self.metadata.get("commands") or [],
            "named": len(self.names), "sha256": self.sha256, "loaded": True,
        }  # fmt: skip


class Models:
    """All models of a service; the first one is what requests mean that name none."""

    def __init__(self, device: str) -> None:
        self.device, self.ready = device, threading.Event()
        self.failed: str | None = None
        self._models: dict[str, ServedModel] = {}

    def load(self, paths: Sequence[tuple[str, Path | None]], names: Sequence[Path] = ()) -> None:
        """Load models by kind and path; None: the newest or the shipped one.

        Args:
            names: names.csv of the ensembles among them, in their order.

        Raises:
            Refused: more than are held in memory, one that cannot be loaded, or names that are not of it.
        """
        left = list(names)
        if len(paths) > MOST_MODELS:
            raise Refused("viscoin", None, f"{len(paths)} models, and at most {MOST_MODELS} are kept in memory")
        for kind, path in paths:
            model = ServedModel(find_model(kind, path, "birds"), kind, self.device)
            if left and model.ensemble is not None:
                model.read_names(left.pop(0))
            self._models[model.id] = model
            logger.info("model %s: %s of %s, %d px", model.id, kind, model.dataset_name, model.resolution)
        self.ready.set()

    def __iter__(self) -> Any:
        return iter(list(self._models.values()))

    def get(self, number: str | None = None) -> ServedModel:
        """A model by its id, the first one without.

        Raises:
            Problem: 503 while models are loaded, 404 for one that is not served.
        """
        if not self.ready.is_set():
            detail = self.failed or "the models are still being loaded"
            raise Problem(503, detail, "try again in a moment", {"Retry-After": "2"})
        if number is None:
            return next(iter(self._models.values()))
        if number not in self._models:
            raise Problem(404, f"there is no model {number!r}", f"those served: {', '.join(self._models)}")
        return self._models[number]


def once(model: ServedModel, name: str, make: Callable[[], T]) -> T:
    """What is made of a model at most once, whoever asks first; the others wait for it."""
    with model._once:
        found: T | None = model.__dict__.get(f"_made_{name}")
        if found is None:
            found = model.__dict__[f"_made_{name}"] = make()
        return found


def _identifier(path: Path, digest: str) -> str:
    """A short id: the name of the file or of its folder, where that says more, and some of the digest."""
    name = path.parent.name if path.stem in ("model", "viscoin", "classifier") else path.stem
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-").lower()[:40]
    return f"{plain or 'model'}-{digest[:8]}"


def top(probabilities: np.ndarray, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The most probable classes of one image (C,)."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"class": int(c), "name": names[c], "p": float(probabilities[c])} for c in order]
