"""Whether an imported classifier does what it did where it came from: its accuracy on labelled images."""

from pathlib import Path

import numpy as np

from viscoin.datasets import SPLITS
from viscoin.inference.loading import load_subject
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.testing.classifier import test_classifier


def accuracy_on_folder(
    model: Path, folder: str, class_map: Path | None = None, device: str = "auto", skip_bad_files: bool = False
) -> Estimate:
    """Accuracy of a classifier on the images of a folder or zip, with its 95 % interval.

    Args:
        folder: with a folder of images for each class, whose names are those of the model's classes, some of them, or
            others that `class_map` translates. Of one with a split of its own, the test images count, else all.
        class_map: see `viscoin.inference.classes.read_class_map`.

    Raises:
        ValueError: folders that are no classes of the model, or images that cannot be read.
    """
    splits = ("test",) if (Path(folder) / "test").is_dir() else SPLITS
    right: list[np.ndarray] = []
    for split in splits:
        subject = load_subject(
            "classifier", model, folder, split=split, device=device, skip_bad_files=skip_bad_files,
            parameter="check", class_map=class_map,
        )  # fmt: skip
        result = test_classifier(subject.model, subject.images, subject.device)
        right.append(result.predicted == result.labels)
    return bootstrap(np.concatenate(right))
