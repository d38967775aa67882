"""CIFAR-10, CIFAR-100 and MNIST in the files that torchvision keeps; a tenth of the training images validates."""

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.datasets.utils import check_integrity

from viscoin.config import DatasetConfig
from viscoin.datasets.base import ImageDataset, cached_pixels
from viscoin.datasets.download import Archive, dataset_root
from viscoin.datasets.files import check_every_class, draw, fingerprint
from viscoin.datasets.listing import stratified
from viscoin.datasets.reading import Fit, square
from viscoin.errors import reason_of

CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
MNIST_FILES = ("images-idx3-ubyte", "labels-idx1-ubyte")


def load_cifar10(split: str, config: DatasetConfig) -> ImageDataset:
    """CIFAR-10 (Krizhevsky 2009): 32 px photographs of animals and vehicles, ten classes.

    Raises:
        ValueError: the files cannot be got, or differ from the published ones.
    """
    return _load_cifar("cifar10", CIFAR10, "163 MB", split, config)


def load_cifar100(split: str, config: DatasetConfig) -> ImageDataset:
    """CIFAR-100 (Krizhevsky 2009): 32 px photographs of a hundred classes; errors as for `load_cifar10`."""
    return _load_cifar("cifar100", CIFAR100, "161 MB", split, config)


def load_mnist(split: str, config: DatasetConfig) -> ImageDataset:
    """MNIST (LeCun et al. 1998): 28 px handwritten digits, grey, as RGB.

    Raises:
        ValueError: the files cannot be got, or are not of the published format.
    """
    first, *others = MNIST.mirrors
    archives = [
        Archive(f"{first}{file}", md5=md5, mirrors=tuple(f"{mirror}{file}" for mirror in others))
        for file, md5 in MNIST.resources
    ]
    root = dataset_root("mnist", config, archives)
    images, labels = (_mnist_file(root, f"{'t10k' if split == 'test' else 'train'}-{kind}") for kind in MNIST_FILES)
    digits = read_idx(labels, 1)

    def read() -> np.ndarray:
        grey = read_idx(images, 3)
        if len(grey) != len(digits):
            raise ValueError(f"{images} has {len(grey)} images, {labels} has {len(digits)} labels; get both again")
        return np.repeat(grey[..., None], 3, axis=3)

    return _part("mnist", split, [images], read, digits, [str(digit) for digit in range(10)], config)


def _load_cifar(name: str, published: type[CIFAR10], size: str, split: str, config: DatasetConfig) -> ImageDataset:
    checksums = [*published.train_list, *published.test_list, (published.meta["filename"], published.meta["md5"])]
    archive = Archive(published.url, md5=published.tgz_md5, size=size, page=CIFAR_PAGE)
    root = dataset_root(name, config, archive, [file for file, _ in checksums])
    for file, md5 in checksums:  # torchvision unpickles these files, and says only that one of them is damaged
        if not check_integrity(root / file, md5):
            raise ValueError(f"{root / file} is not the published file (its md5 is not {md5}); get it again")

    class Found(published):  # type: ignore[valid-type, misc]
        base_folder = root.name

    found = Found(root.parent, train=split != "test")
    files = [root / file for file, _ in (published.test_list if split == "test" else published.train_list)]
    return _part(name, split, files, lambda: found.data, np.array(found.targets), found.classes, config)


def _part(
    name: str,
    split: str,
    files: Sequence[Path],
    read: Callable[[], np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    config: DatasetConfig,
) -> ImageDataset:
    """A split of what the files hold: labels (N,), and images (N, h, w, 3) uint8 when they have to be read."""
    items = [(position, int(label)) for position, label in enumerate(labels)]
    if split != "test":
        items = stratified(items, split, {"validation": 0.1}, config.seed)
    check_every_class(name, split, [label for _, label in items], class_names, files[0])
    limit = getattr(config, split)
    chosen = np.array([items[i][0] for i in draw(len(items), limit, config.seed)])
    side, fit = config.resolution, Fit.of(config)
    pixels = cached_pixels(
        f"{name}/{split}-{len(chosen)}x{side}px-seed{config.seed}-{fingerprint(files, f'{name}{fit}')}",
        len(chosen),
        side,
        lambda: (square(Image.fromarray(image), side, fit) for image in read()[chosen]),
        f"reading {name} {split}",
    )
    return ImageDataset(name, split, pixels, labels[chosen], class_names)


def _mnist_file(root: Path, name: str) -> Path:
    """A file of MNIST, packed or not, where torchvision keeps it, or in the given folder itself."""
    for folder in (root, root / "raw", root / "MNIST" / "raw"):
        for spelling in (name, name.replace("-idx", ".idx")):
            for path in (folder / spelling, folder / f"{spelling}.gz"):
                if path.is_file():
                    return path
    raise ValueError(f"{root} is not a folder of dataset mnist: there is no {name} or {name}.gz in it or in MNIST/raw")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """uint8 array of an IDX file, which may be packed by gzip: 0, 0, 8, number of dimensions, big-endian sizes, data.

    Raises:
        ValueError: damaged, or of another type or number of dimensions.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({reason_of(error)}); get it again") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise ValueError(f"{path} is not an IDX file of {dimensions} dimensions of bytes; get it again")
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path} should hold {math.prod(shape)} bytes, not {len(content) - start}; get it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
