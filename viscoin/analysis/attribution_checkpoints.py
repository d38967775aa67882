"""How maps change over a training: the same images and methods for several states of a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viscoin.analysis.attribution import AttributionStudy, Settings, study_attribution
from viscoin.analysis.questions import Asked
from viscoin.attribution.targets import ClassifierLogit
from viscoin.errors import Refused
from viscoin.inference.loading import Pictures, Subject
from viscoin.models.files import LoadedModel, find_model, load_model
from viscoin.runs.metrics import run_names
from viscoin.runs.run import Run, kept_epochs


@dataclass(frozen=True)
class CheckpointStudy:
    """The same images explained for each of several states of a classifier.

    Attributes:
        names: of the states: "epoch 3", or the file.
        accuracies: on validation images, as the files say; None where one does not.
        studies: one for each, of the same images and methods.
    """

    names: list[str]
    accuracies: list[float | None]
    studies: list[AttributionStudy]

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.names, self.accuracies, self.studies, strict=True)
        return {"checkpoints": [{"name": name, "accuracy": score, **study.to_dict()} for name, score, study in rows]}


def expand_checkpoints(paths: Sequence[Path], epochs: Sequence[int] | None, dataset: str) -> dict[str, Path]:
    """Model files by a name for people: those that runs kept at the end of epochs, or all others as they are.

    Args:
        paths: model files, or folders of classifier runs.
        epochs: only these of the kept ones.

    Raises:
        Refused: an epoch that no run has kept; no model there.
    """
    found: dict[str, Path] = {}
    for path, name in zip(paths, run_names(paths), strict=True):
        kept = kept_epochs(Run(path)) if path.is_dir() else {}
        missing = [epoch for epoch in epochs or () if epoch not in kept]
        if missing:
            have = f"it has {', '.join(map(str, kept))}" if kept else "train it with classifier.keep_every=1"
            raise Refused("epochs", missing[0], f"{path} did not keep the model of that epoch", have)
        several = f"{name}, " if len(paths) > 1 else ""
        if kept:
            found |= {f"{several}epoch {epoch}": file for epoch, file in kept.items() if epoch in (epochs or kept)}
        else:
            found[name] = _one(path, dataset)
    return found


def _one(path: Path, dataset: str) -> Path:
    try:
        return find_model("classifier", path, dataset)
    except ValueError as error:
        raise Refused("checkpoints", None, str(error), "give model files, or folders of classifier runs") from error


def study_checkpoints(
    files: dict[str, Path],
    subject: Subject,
    pictures: Pictures,
    methods: Sequence[str],
    asked: Asked,
    settings: Settings,
) -> CheckpointStudy:
    """Explain the same images for each state of a classifier.

    Args:
        files: of the states, by name.
        subject: one of them, whose classes and resolution all must have.

    Raises:
        Refused: other classes, images of another size, or as `study_attribution`.
    """
    accuracies, studies = [], []
    for path in files.values():
        loaded = load_model(path, "classifier")
        _check_alike(loaded, subject)
        target = ClassifierLogit(loaded.model.to(subject.device))
        studies.append(
            study_attribution(target, pictures, subject.class_names, methods, asked, settings, subject.device)
        )
        accuracies.append(loaded.metadata.get("scores", {}).get("validation.accuracy"))
    return CheckpointStudy(list(files), accuracies, studies)


def _check_alike(loaded: LoadedModel, subject: Subject) -> None:
    if loaded.class_names != subject.class_names:
        raise Refused("checkpoints", loaded.path, "knows other classes than the first", "give states of one training")
    if loaded.model.resolution != subject.config.resolution:
        raise Refused("checkpoints", loaded.path, f"takes images of {loaded.model.resolution} px, the first of "
                      f"{subject.config.resolution} px", "give states of one training")  # fmt: skip
