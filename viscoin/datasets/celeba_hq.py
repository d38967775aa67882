"""CelebA-HQ (Karras et al. 2018) with the attributes and part masks of CelebAMask-HQ (Lee et al. 2020).

    CelebA-HQ-img/0.jpg ... 29999.jpg           faces, 1024 px
    CelebAMask-HQ-attribute-anno.txt            number of images; names of 40 attributes; "0.jpg  -1  1 ..." for each
    CelebA-HQ-to-CelebA-mapping.txt             "0  119613  119614.jpg": the image of CelebA that a face comes from
    CelebAMask-HQ-mask-anno/0/00000_hair.png    masks, 512 px, 2,000 faces to a folder; none for what is not visible
    list_eval_partition.txt or .csv             CelebA's own file: "000001.jpg 0", 0 train, 1 validation, 2 test

Mapping, masks and partition may be missing.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset
from viscoin.datasets.download import Kaggle, dataset_root
from viscoin.datasets.files import check_every_class, prepare_files, present_files, warn_about_duplicates
from viscoin.datasets.folder import read_folder
from viscoin.datasets.listing import stratified, warn_once
from viscoin.datasets.reading import UNREADABLE, Fit
from viscoin.errors import reason_of, regular

SOURCE = Kaggle("ipythonx/celebamaskhq", size="2.9 GB")
IMAGES = "CelebA-HQ-img"
ANNOTATION = "CelebAMask-HQ-attribute-anno.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
MASKS = "CelebAMask-HQ-mask-anno"
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
MASKS_IN_FOLDER = 2000
FIRST_VALIDATION, FIRST_TEST = 162_771, 182_638  # files of CelebA, whose published split is by number
SHARES = {"validation": 0.1, "test": 0.1}
YOUNG = "Young"
CLASSES = {YOUNG: ("old", "young"), "Male": ("female", "male"), "No_Beard": ("beard", "no beard")}
ADJECTIVES = ("Attractive", "Bald", "Blurry", "Chubby", "Mouth_Slightly_Open", "Smiling", "Wearing")
PARTS = {
    "skin": "skin", "nose": "nose", "eye_g": "eyeglasses", "l_eye": "left eye", "r_eye": "right eye",
    "l_brow": "left brow", "r_brow": "right brow", "l_ear": "left ear", "r_ear": "right ear", "mouth": "mouth",
    "u_lip": "upper lip", "l_lip": "lower lip", "hair": "hair", "hat": "hat", "ear_r": "earring",
    "neck_l": "necklace", "neck": "neck", "cloth": "clothes",
}  # fmt: skip


class CelebaHQDataset(ImageDataset):
    """Faces with 40 attributes, one of which is the class, and masks of their parts where those are on the disk."""

    has_truth = True

    def __init__(
        self, split: str, pixels: np.ndarray, faces: "Faces", kept: np.ndarray, attribute: int, root: Path
    ) -> None:
        self._truth = faces.attributes[kept]
        names = [faces.names[i] for i in kept]
        super().__init__(
            "celeba_hq",
            split,
            pixels,
            self._truth[:, attribute],
            class_names(faces.attribute_names[attribute]),
            [str(root / IMAGES / name) for name in names],
        )
        self.attribute_names = [name.replace("_", " ") for name in faces.attribute_names]
        self._masks, self._numbers = root / MASKS, [Path(name).stem for name in names]

    @property
    def attributes(self) -> np.ndarray:
        return self._truth

    @cached_property
    def part_names(self) -> list[str]:  # type: ignore[override]
        return [PARTS.get(suffix, suffix.replace("_", " ")) for suffix in mask_suffixes(self._masks)]

    def part_masks(self, index: int) -> np.ndarray:
        if not self.part_names:
            raise ValueError(
                f"dataset {self.name!r} has no part masks; put the folder {MASKS} into {self._masks.parent}"
            )
        number = int(self._numbers[index])
        folder = self._masks / str(number // MASKS_IN_FOLDER)
        paths = [folder / f"{number:05d}_{suffix}.png" for suffix in mask_suffixes(self._masks)]
        return np.stack([_read_mask(path, self.resolution, self.fit) for path in paths])


@dataclass(frozen=True)
class Faces:
    """What the annotation says: file names, and attributes (N, A) bool, columns by `attribute_names`."""

    names: list[str]
    attributes: np.ndarray
    attribute_names: list[str]

    def __getitem__(self, chosen: Sequence[int]) -> "Faces":
        return Faces([self.names[i] for i in chosen], self.attributes[chosen], self.attribute_names)


def load_celeba_hq(split: str, config: DatasetConfig) -> CelebaHQDataset:
    """One split of CelebA-HQ; the classes are the two values of `config.attribute`, "old" and "young" by default.

    The split is that of CelebA: by the partition file where there is one, else by the published numbers of its
    images. Without the mapping it is 80:10:10 by `config.seed`, with equal shares of young faces in each part; it does
    not depend on the attribute, so that no model of another attribute has seen the test images.

    Raises:
        ValueError: not the expected files, an unknown attribute, a malformed line, or missing or unusable images.
    """
    root = dataset_root("celeba_hq", config, SOURCE, (ANNOTATION, IMAGES))
    faces = read_annotation(root / ANNOTATION)
    attribute = attribute_number(config.attribute, faces.attribute_names)
    images = [root / IMAGES / name for name in faces.names]
    faces = faces[present_files(images, root / ANNOTATION, config.skip_bad_files)]
    parts = split_faces(root, faces, config.seed)
    names = class_names(faces.attribute_names[attribute])
    for part, rows in parts.items():
        check_every_class("celeba_hq", part, faces.attributes[rows, attribute], names, root / ANNOTATION)
    files = {part: [root / IMAGES / faces.names[i] for i in rows] for part, rows in parts.items()}
    warn_about_duplicates("celeba_hq", files)
    prepared = prepare_files("celeba_hq", split, files[split], config, root)
    kept = np.array(parts[split])[prepared.kept]
    return CelebaHQDataset(split, prepared.pixels, faces, kept, attribute, root)


def class_names(attribute: str) -> tuple[str, str]:
    """Names of the classes of an attribute: absent (0) and present (1)."""
    words = attribute.replace("_", " ").lower()
    no = "not" if attribute.startswith(ADJECTIVES) else "no"
    return CLASSES.get(attribute, (f"{no} {words}", words))


def attribute_number(wanted: str, names: Sequence[str]) -> int:
    """Column of an attribute, whose words may be separated by spaces and in any case.

    Raises:
        ValueError: there is none of that name; the nearest ones are named.
    """
    plain = [name.replace("_", " ").lower() for name in names]
    key = wanted.replace("_", " ").lower()
    if key not in plain:
        near = difflib.get_close_matches(key, plain, n=1)
        hint = f"did you mean {names[plain.index(near[0])]}?" if near else f"choose one of {', '.join(names)}"
        raise ValueError(f"dataset.attribute = {wanted!r} is no attribute of celeba_hq; {hint}")
    return plain.index(key)


def read_annotation(path: Path) -> Faces:
    """Content of the attribute file.

    Raises:
        ValueError: missing or malformed; the message names the line.
    """
    lines = _lines(path)
    if len(lines) < 2 or not lines[0].strip().isdigit():
        raise ValueError(f"{path}: line 1 must be the number of images and line 2 the names of the attributes")
    attribute_names = lines[1].split()
    rows = [(number, line.split()) for number, line in enumerate(lines[2:], 3) if line.strip()]
    if int(lines[0]) != len(rows):
        raise ValueError(f"{path} announces {int(lines[0])} images and has {len(rows)} rows; get the file again")
    for number, row in rows:
        if len(row) != 1 + len(attribute_names) or not {"1", "-1"}.issuperset(row[1:]):
            raise ValueError(
                f"{path}, line {number}: expected an image name and {len(attribute_names)} values of 1 or -1, "
                f"not {' '.join(row)!r:.60}; get the file again"
            )
    names = [row[0] for _, row in rows]
    for name in names:
        if not Path(name).stem.isdecimal():
            raise ValueError(f"{path}: {name!r} is no image name of CelebA-HQ, as 0.jpg is; get the file again")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{path} has two rows for {twice}; remove one")
    values = np.array([[value == "1" for value in row[1:]] for _, row in rows])
    return Faces(names, values, attribute_names)


def split_faces(root: Path, faces: Faces, seed: int) -> dict[str, list[int]]:
    """Rows of `faces` of each split; see `load_celeba_hq`."""
    partition = next((root / name for name in PARTITIONS if (root / name).is_file()), None)
    if (root / MAPPING).is_file():
        return _published_split(root / MAPPING, partition, faces)
    if partition is not None:
        raise ValueError(f"{partition} is of use only with {MAPPING}, which is missing in {root}; add it")
    warn_once(f"{root} has no {MAPPING}: the faces are split 80:10:10 by seed {seed}, not as published")
    young = attribute_number(YOUNG, faces.attribute_names)
    items = list(enumerate(faces.attributes[:, young].astype(int).tolist()))
    return {split: sorted(i for i, _ in stratified(items, split, SHARES, seed)) for split in SPLITS}


def _published_split(mapping: Path, partition: Path | None, faces: Faces) -> dict[str, list[int]]:
    originals = _read_mapping(mapping)
    numbers = _read_partition(partition) if partition is not None else None
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, name in enumerate(faces.names):
        original = originals.get(Path(name).stem)
        if original is None:
            raise ValueError(f"{mapping} has no line for {name}; get the file again")
        if numbers is not None and original not in numbers:
            raise ValueError(f"{partition} has no line for {original}, from which {name} comes; get the file again")
        part = _published_part(original) if numbers is None else numbers[original]
        parts[SPLITS[part]].append(row)
    return parts


def _published_part(original: str) -> int:
    """0 train, 1 validation, 2 test."""
    number = int(Path(original).stem)
    return (number >= FIRST_VALIDATION) + (number >= FIRST_TEST)


def _read_mapping(path: Path) -> dict[str, str]:
    """Number of a face, as text -> file name in CelebA."""
    originals = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if not fields or fields[0] == "idx":
            continue
        if len(fields) != 3 or not fields[0].isdecimal() or not Path(fields[2]).stem.isdecimal():
            raise ValueError(f"{path}, line {number}: expected '0 119613 119614.jpg', not {line!r:.60}")
        originals[fields[0]] = fields[2]
    return originals


def _read_partition(path: Path) -> dict[str, int]:
    """File name in CelebA -> 0, 1 or 2."""
    parts = {}
    for number, line in enumerate(_lines(path), 1):
        row = line.replace(",", " ").split()
        if not row or row[0] == "image_id":
            continue
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise ValueError(f"{path}, line {number}: expected an image and 0, 1 or 2, not {line!r:.60}")
        parts[row[0]] = int(row[1])
    return parts


def _lines(path: Path) -> list[str]:
    try:
        return regular(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; get it from {SOURCE.page}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({reason_of(error)}); get the file again") from error


@cache
def mask_suffixes(folder: Path) -> tuple[str, ...]:
    """Suffixes of the mask files, as in "00000_l_eye.png": the published ones in their order, then any others.

    Raises:
        ValueError: some of them cannot be opened, so that parts would be missing in silence.
    """
    if not folder.is_dir():
        return ()
    found = read_folder(folder)
    for name, reason in found.bad.items():
        raise ValueError(f"{folder / name} cannot be opened ({reason}); allow that, or get the masks again")
    stems = {path.stem.partition("_")[2] for path in found.files.values() if path.suffix == ".png"}
    known = [suffix for suffix in PARTS if suffix in stems]
    return (*known, *sorted(stems - set(known) - {""}))


def _read_mask(path: Path, resolution: int, fit: Fit) -> np.ndarray:
    """Pixels (H, W) bool, more than half of which a part covers; none where there is no file."""
    if not path.is_file():
        return np.zeros((resolution, resolution), dtype=bool)
    try:
        with Image.open(path) as image:
            cover = image.convert("L").point(lambda value: 255 if value else 0)
            square = fit.apply(cover, resolution, Image.Resampling.BOX, 0)
    except UNREADABLE as error:
        raise ValueError(f"{path} is no readable mask ({reason_of(error)}); get the file again") from error
    return np.asarray(square) > 127
