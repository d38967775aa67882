"""CIFAR-10, CIFAR-100 and MNIST from tiny files in the published formats."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100, MNIST

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets import torchvision_sets as module
from viscoin.datasets.torchvision_sets import read_idx

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    return tmp_path


def load(name: str, split: str, path: Path | None = None, **settings) -> ImageDataset:
    settings = {"resolution": 32, "path": str(path) if path else None, **settings}
    return load_dataset(name, split, DatasetConfig(name=name, **settings))


# --- CIFAR -------------------------------------------------------------------------------------------------------


def write_cifar(folder: Path, published: type[CIFAR10], key: str, names: list[str], monkeypatch) -> Path:
    """Batches as published: pickled dicts with rows of 1024 red, 1024 green and 1024 blue values; four a class."""
    folder.mkdir(parents=True)

    def write(file: str, content: dict) -> tuple[str, str]:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        return file, hashlib.md5((folder / file).read_bytes()).hexdigest()

    def batch(file: str, number: int) -> tuple[str, str]:
        labels = np.arange(4 * len(names)) % len(names)
        planes = np.stack([labels, np.full_like(labels, number), np.full_like(labels, 7)], axis=1).astype(np.uint8)
        return write(file, {"data": np.repeat(planes, 1024, axis=1), key: labels.tolist(), "batch_label": file})

    train = [batch(file, number) for number, (file, _) in enumerate(published.train_list)]
    test = [batch(file, 100) for file, _ in published.test_list]
    meta = write(published.meta["filename"], {published.meta["key"]: names})
    monkeypatch.setattr(published, "train_list", train)
    monkeypatch.setattr(published, "test_list", test)
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": meta[1]})
    return folder


@pytest.fixture
def cifar10(here, monkeypatch):
    names = ["airplane", "automobile", "bird"]
    return write_cifar(here / "data" / "cifar-10-batches-py", CIFAR10, "labels", names, monkeypatch)


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar10(here, cifar10, place):
    parts = {split: load("cifar10", split, cifar10.parent / place) for split in SPLITS}
    assert [np.bincount(part.labels).tolist() for part in parts.values()] == [[18] * 3, [2] * 3, [4] * 3]
    for split, part in parts.items():
        assert part.class_names == ["airplane", "automobile", "bird"] and part.files is None
        assert part.pixels.shape == (len(part), 32, 32, 3)
        assert (part.pixels[..., 0] == part.labels[:, None, None]).all() and (part.pixels[..., 2] == 7).all()
        assert (part.pixels[..., 1] == 100).all() == (split == "test")


def test_cifar_under_another_name_of_the_folder(here, cifar10):
    cifar10.rename(here / "mine")
    assert len(load("cifar10", "test", here / "mine")) == 12


def test_cifar_splits_depend_on_the_seed_and_counts_are_limits(cifar10):
    batches = [load("cifar10", "validation", cifar10, seed=seed).pixels[:, 0, 0, 1].tolist() for seed in (0, 0, 1, 2)]
    assert batches[0] == batches[1] and not batches[0] == batches[2] == batches[3]
    few = load("cifar10", "train", cifar10, train=10, resolution=16)
    assert few.pixels.shape == (10, 16, 16, 3) and (few.pixels[:, 0, 0, 0] == few.labels).all()


def test_cifar100(here, monkeypatch):
    names = [f"class{i}" for i in range(6)]
    folder = write_cifar(here / "cifar-100-python", CIFAR100, "fine_labels", names, monkeypatch)
    train = load("cifar100", "train", folder)
    assert train.class_names == names and np.bincount(train.labels).tolist() == [3] * 6
    assert (train.pixels[:, 0, 0, 0] == train.labels).all() and len(load("cifar100", "test", folder)) == 24


def test_damaged_cifar_is_never_unpickled(cifar10, monkeypatch):
    monkeypatch.setattr(pickle, "load", None)
    (cifar10 / "data_batch_2").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"data_batch_2 is not the published file"):
        load("cifar10", "test", cifar10)


def test_wrong_cifar_folder_is_refused(here):
    (here / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is not a folder of dataset cifar10, which holds data_batch_1, .*meta"):
        load("cifar10", "train", here / "empty")


def test_cifar_is_downloaded_and_checked(here, cifar10, monkeypatch):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(cifar10, "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(stream.getvalue()).hexdigest())
    asked = []

    def fetch(url: str, part: Path) -> None:
        asked.append(url)
        part.write_bytes(stream.getvalue())

    monkeypatch.setattr("viscoin.datasets.download._fetch", fetch)
    for split in SPLITS:
        assert len(load("cifar10", split)) > 0
    assert asked == [CIFAR10.url]
    assert (here / "kaggle" / "viscoin" / "cifar10" / "cifar-10-batches-py" / "batches.meta").is_file()


# --- MNIST -------------------------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def mnist_files() -> dict[str, bytes]:
    """Files as published: 40 images for training and 20 for the test, whose grey value is ten times the digit."""
    files = {}
    for stem, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count) % 10
        files[f"{stem}-images-idx3-ubyte"] = idx(np.broadcast_to(10 * labels[:, None, None], (count, 28, 28)))
        files[f"{stem}-labels-idx1-ubyte"] = idx(labels)
    return files


@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist(here, place, packed):
    (here / "data" / place).mkdir(parents=True, exist_ok=True)
    for name, content in mnist_files().items():
        path = here / "data" / place / name
        if packed:
            path.with_name(f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)
    parts = {split: load("mnist", split, here / "data") for split in SPLITS}
    assert [np.bincount(part.labels).tolist() for part in parts.values()] == [[3] * 10, [1] * 10, [2] * 10]
    for part in parts.values():
        assert part.class_names == list("0123456789") and part.pixels.shape == (len(part), 32, 32, 3)
        assert (part.pixels == 10 * part.labels[:, None, None, None]).all()


def test_mnist_is_downloaded_and_checked(here, monkeypatch):
    files = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    checked = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(MNIST, "resources", checked)
    asked = []

    def fetch(url: str, part: Path) -> None:
        asked.append(url)
        if url.startswith(MNIST.mirrors[0]):
            raise ValueError("HTTP 503")
        part.write_bytes(files[url.removeprefix(MNIST.mirrors[1])])

    monkeypatch.setattr("viscoin.datasets.download._fetch", fetch)
    assert len(load("mnist", "train")) == 30 and len(load("mnist", "test")) == 20
    assert len(asked) == 8


def test_bad_mnist_is_named(here):
    files = mnist_files()
    for name, content in files.items():
        (here / name).write_bytes(content)
    labels, images = here / "train-labels-idx1-ubyte", here / "train-images-idx3-ubyte"
    for path, content, reason in (
        (labels, files[images.name], "train-labels.* is not an IDX file of 1 dimensions"),
        (labels, files[labels.name][:-3], "train-labels.* should hold 40 bytes, not 37"),
        (labels, idx(np.arange(40) % 11), "train-images.*: class number 10 .* outside the list of 10 classes of mnist"),
        (labels, idx(np.arange(40) % 9), "mnist: class '9' has no images for split 'train'"),
        (labels, idx(np.arange(50) % 10), "has 40 images, .* has 50 labels"),
        (images, b"", "train-images.* is not an IDX file of 3 dimensions"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            load("mnist", "train", here)
        path.write_bytes(before)
    labels.unlink()
    with pytest.raises(ValueError, match=r"there is no train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz"):
        load("mnist", "train", here)
    (here / "bad.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"bad\.gz cannot be read"):
        read_idx(here / "bad.gz", 1)


def test_images_are_read_once(cifar10, monkeypatch):
    before = load("cifar10", "train", cifar10).pixels[:]
    monkeypatch.setattr(module, "square", None)
    assert (load("cifar10", "train", cifar10).pixels == before).all()
