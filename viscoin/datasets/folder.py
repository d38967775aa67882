"""A folder of images: `root/train/<class>/*.png|jpg` with `root/test/...`, or `root/<class>/*` split by seed."""

import hashlib
import json
import logging
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset, cache_folder, cached_pixels
from viscoin.runs import atomic_path

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
MINIMUM_SIDE = 8  # pixels; less shows nothing, whatever the magnification
SHARES = {"validation": 0.1, "test": 0.2}
logger = logging.getLogger(__name__)


def load_folder(root: Path, split: str, config: DatasetConfig) -> ImageDataset:
    """One split of a folder of images, centre-cropped to squares of `config.resolution` pixels.

    Without `validation` images a tenth of the training images is kept aside for them; without `train` and `test`
    folders the classes are split 70:10:20. Both splits are stratified and depend on `config.seed` alone.

    Raises:
        ValueError: no or one class, an empty class, or files that are no images (unless `config.skip_bad_files`).
    """
    files, names = _list_split(root, split, config.seed)
    bad = _bad_files(root, names, config.skip_bad_files)
    files = [item for item in files if item[0] not in bad]
    for index, empty in enumerate(names):
        if not any(label == index for _, label in files):
            where = root / split / empty if (root / split).is_dir() else root / empty
            raise ValueError(
                f"class {empty!r} of {root} has no readable images left for split {split!r}; add images to {where} "
                "(an automatic split needs at least three a class) or remove the class"
            )
    name = root.resolve().name
    limit = getattr(config, split)
    if limit is not None and limit < len(files):
        order = np.random.Generator(np.random.Philox(config.seed)).permutation(len(files))[:limit]
        files = [files[i] for i in sorted(order)]
    small = sum(min(_size(path)) < config.resolution for path, _ in files)
    if small:
        counts = f"{small} of {len(files)} images are smaller than {config.resolution} px"
        _warn_once(f"{root} ({split}): {counts} and are enlarged")
    pixels = cached_pixels(
        f"folder/{_fingerprint(files, config.resolution)}",
        len(files),
        config.resolution,
        lambda: (read_square(path, config.resolution) for path, _ in files),
        f"reading {name} {split}",
    )
    return ImageDataset(name, split, pixels, np.array([label for _, label in files]), names)


def read_square(path: Path, resolution: int) -> np.ndarray:
    """uint8 RGB (resolution, resolution, 3): upright, on white where transparent, centre-cropped, resampled."""
    with Image.open(path) as image:
        rgb = to_rgb(ImageOps.exif_transpose(image))
    return np.asarray(ImageOps.fit(rgb, (resolution, resolution), Image.Resampling.LANCZOS))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a grey, palette, transparent, CMYK or 16-bit image."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if image.mode.startswith("I"):
            values = values / 257  # 16 bit to 8 bit
        image = Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _list_split(root: Path, split: str, seed: int) -> tuple[list[tuple[Path, int]], list[str]]:
    fixed = (root / "train").is_dir()
    if fixed and not (root / "test").is_dir():
        raise ValueError(f"{root} has a folder 'train' but no folder 'test'; add it, or put the classes directly in it")
    base = root / "train" if fixed else root
    names = _classes(base)
    if not names:
        raise ValueError(f"{base} holds no class folders; expected {base}/<class>/*.png or *.jpg")
    if len(names) == 1:
        raise ValueError(f"{base} holds one class only ({names[0]!r}); a classifier needs at least two")
    if fixed:
        for name in SPLITS:
            extra = [found for found in _classes(root / name) if found not in names]
            if extra:
                raise ValueError(f"{root / name} holds classes that {base} has not: {', '.join(extra)}")
    if fixed and (split == "test" or (root / "validation").is_dir()):
        return _images(root / split, names), names
    shares = {"validation": SHARES["validation"]} if fixed else SHARES
    return _stratified(_images(base, names), split, shares, seed), names


def _classes(base: Path) -> list[str]:
    return sorted(path.name for path in base.glob("*") if path.is_dir() and not path.name.startswith("."))


def _images(base: Path, names: list[str]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((base / name).rglob("*"))
        if path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in path.relative_to(base).parts)
    ]


def _stratified(
    files: list[tuple[Path, int]], split: str, shares: dict[str, float], seed: int
) -> list[tuple[Path, int]]:
    kept = []
    for label in sorted({label for _, label in files}):
        of_class = [item for item in files if item[1] == label]
        order = np.random.Generator(np.random.Philox(key=[seed, label])).permutation(len(of_class))
        start = 0
        parts = {}
        for name, share in shares.items():
            count = max(1, round(share * len(of_class)))
            parts[name] = order[start : start + count]
            start += count
        parts["train"] = order[start:]
        kept += [of_class[i] for i in sorted(parts[split])]
    return kept


def _bad_files(root: Path, names: list[str], skip: bool) -> set[Path]:
    """Files of any split that cannot be used: better known before the training than at its test."""
    parts = [root / split for split in SPLITS if (root / split).is_dir()] if (root / "train").is_dir() else [root]
    files = [item for part in parts for item in _images(part, names)]
    bad = {path: reason for (path, _), reason in zip(files, _defects(files), strict=True) if reason}
    if bad and not skip:
        listed = "; ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:5])
        raise ValueError(
            f"{len(bad)} of {len(files)} files in {root} cannot be used: {listed}"
            f"{' …' if len(bad) > 5 else ''}. Repair or remove them, or pass --skip-bad-files"
        )
    if bad:
        _warn_once(f"left out {len(bad)} of {len(files)} files that cannot be used (first: {next(iter(bad))})")
    return set(bad)


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def _defects(files: list[tuple[Path, int]]) -> list[str | None]:
    """What is wrong with each file; remembered in the cache, since finding out means decoding all images."""
    cached = cache_folder() / "folder" / f"{_fingerprint(files, 0)}.json"
    if not cached.is_file():
        bar = tqdm(files, desc="checking images", unit="image", leave=False, disable=None)
        reasons = [_defect(path) for path, _ in bar]
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cached) as partial:
            partial.write_text(json.dumps(reasons))
    return json.loads(cached.read_text())


def _defect(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            to_rgb(ImageOps.exif_transpose(image))
            if min(image.size) < MINIMUM_SIDE:
                return f"{image.size[0]}x{image.size[1]} px, at least {MINIMUM_SIDE} px a side are needed"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).split(str(path))[0].strip() or type(error).__name__
    return None


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _fingerprint(files: list[tuple[Path, int]], resolution: int) -> str:
    """Digest of the files and of the code that reads them."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + str(resolution).encode())
    for path, _ in files:
        stat = path.stat()
        digest.update(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]
