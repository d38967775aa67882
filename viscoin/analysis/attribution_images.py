"""Which images are explained: files, test images, or test images that a model predicts rightly and wrongly."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from viscoin.analysis.questions import predictor, scores_of, target_of
from viscoin.attribution.targets import Target
from viscoin.errors import Refused
from viscoin.inference.batches import batches, progress
from viscoin.inference.loading import Pictures, Subject, SubjectWithImages, choose_pictures, load_pictures, load_subject

logger = logging.getLogger(__name__)
GROUPS = ("right", "wrong")


@dataclass(frozen=True)
class ImageChoice:
    """Files, test images by their indices, or `right_and_wrong` test images predicted rightly and as many wrongly."""

    files: Sequence[Path] | None = None
    dataset: str | None = None
    dataset_path: str | None = None
    indices: Sequence[int] | None = None
    right_and_wrong: int | None = None
    device: str = "auto"
    seed: int = 0
    skip_bad_files: bool = False
    batch_size: int = 64
    class_map: Path | None = None

    def load(
        self, kind: str, model: Path | None, count: int, of: str = "f", parameter: str | None = None
    ) -> tuple[Subject, Pictures, dict[str, int]]:
        """A model and the images, and how many of them are in each of `GROUPS`, where there are groups.

        Args:
            count: of random test images, where nothing else is said.
            of: whose predictions are right or wrong, as `target_of`.
        """
        if self.right_and_wrong is None:
            subject, pictures = load_pictures(
                kind, model, self.files, self.dataset, self.dataset_path, self.indices, count, device=self.device,
                seed=self.seed, skip_bad_files=self.skip_bad_files, parameter=parameter, class_map=self.class_map,
            )  # fmt: skip
            return subject, pictures, {}
        if self.files or self.indices is not None:
            raise Refused("right_and_wrong", None, "chooses the images", "leave out `image` and `image_indices`")
        found = load_subject(
            kind, model, self.dataset, self.dataset_path, device=self.device, skip_bad_files=self.skip_bad_files,
            parameter=parameter, class_map=self.class_map,
        )  # fmt: skip
        target = target_of(found.model, of)
        return found, *right_and_wrong(found, target, self.right_and_wrong, self.seed, self.batch_size)


def right_and_wrong(
    subject: SubjectWithImages, target: Target, count: int, seed: int = 0, batch_size: int = 64
) -> tuple[Pictures, dict[str, int]]:
    """A random sample of test images that are predicted rightly, and one of those that are not.

    Returns:
        The images, right ones first, and how many there are of each of `GROUPS`: `count`, or fewer where there are no
        more, which is logged.
    """
    data = subject.images
    found: dict[str, list[int]] = {group: [] for group in GROUPS}
    with progress(len(data), "predictions", "image") as bar:
        for part in batches(np.random.default_rng(seed).permutation(len(data)), batch_size):
            images, labels = data.batch(part)
            predicted = scores_of(predictor(target), images, subject.device, batch_size).argmax(1)
            hits = (predicted == labels).numpy()
            for group, members in (("right", part[hits]), ("wrong", part[~hits])):
                found[group] += members.tolist()
            if all(len(members) >= count for members in found.values()):
                break
            bar.update(len(part))
    chosen = {group: sorted(members[:count]) for group, members in found.items()}
    for group, members in chosen.items():
        if len(members) < count:
            logger.warning("of %d test images, %d predictions are %s", len(data), len(members), group)
    indices = [index for members in chosen.values() for index in members]
    return choose_pictures(subject, indices, len(indices), seed), {name: len(one) for name, one in chosen.items()}
