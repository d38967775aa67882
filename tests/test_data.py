"""Datasets hand out images in one format; the batch of a step depends on seed and step alone."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import SPLITS, ImageDataset, dataset_names, files, load_dataset, to_images, to_pixels
from viscoin.datasets import cache as cache_module
from viscoin.datasets.base import cache_folder, cached_pixels
from viscoin.datasets.files import in_threads
from viscoin.datasets.reading import read_region, read_rgb, square
from viscoin.training.data import StepBatches, batch_workers

SIZE = 8


def numbered(n: int) -> ImageDataset:
    """Item i has label i, a red channel that grows to the right, a green one that grows downwards, and blue i."""
    ramp = np.arange(SIZE, dtype=np.uint8)
    pixels = np.zeros((n, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None, None, :], ramp[None, :, None]
    pixels[..., 2] = np.arange(n)[:, None, None]
    return ImageDataset("numbered", "train", pixels, np.arange(n), [str(i) for i in range(n)])


# --- images and pixels -------------------------------------------------------------------------------------------


def test_images_and_pixels_are_inverse():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    images = to_images(pixels)
    assert images.dtype == torch.float32 and images.shape == (1, 3, 16, 16)
    assert images.min() == -1 and images.max() == 1
    assert images[0, 0, 0, 1] == pytest.approx(1 / 127.5 - 1)
    assert (to_pixels(images) == pixels).all()
    assert to_pixels(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1)).tolist() == [[[[0, 128, 255]]]]


def test_items_and_batches(tmp_path):
    np.save(tmp_path / "pixels.npy", numbered(10).pixels)
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")  # read-only, as real datasets are
    dataset = ImageDataset("x", "test", pixels, list(range(10)), list("abcdefghij"))
    assert (len(dataset), dataset.resolution, dataset.split, dataset.has_truth) == (10, SIZE, "test", False)
    image, label = dataset[7]
    assert image.shape == (3, SIZE, SIZE) and image.dtype == torch.float32 and type(label) is int and label == 7
    images, labels = dataset.batch([7, 0, 7])
    assert images.shape == (3, 3, SIZE, SIZE) and images.dtype == torch.float32 and labels.tolist() == [7, 0, 7]
    assert torch.equal(images[0], image) and torch.equal(images[2], image)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = torch.from_numpy(pixels[7].astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
    with pytest.raises(IndexError):
        dataset[10]


def test_batches_cover_all_or_the_chosen_items():
    dataset = numbered(10)
    assert [labels.tolist() for _, labels in dataset.batches(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    chosen = np.array([1, 5, 9])
    assert [labels.tolist() for _, labels in dataset.batches(2, chosen)] == [[1, 5], [9]]
    assert torch.equal(next(dataset.batches(2, chosen))[0], dataset.batch([1, 5])[0])


def test_unknown_splits_and_names():
    with pytest.raises(ValueError, match=r"unknown split 'val'; there are train, validation, test"):
        load_dataset("birds", "val", DatasetConfig())
    with pytest.raises(ValueError, match=r"unknown dataset 'dogs'; known are .*birds.*folder"):
        load_dataset("dogs", "train", DatasetConfig())
    assert "birds" in dataset_names()


# --- pixels on disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_pixels_are_made_once_and_read_only(cache):
    calls = []

    def rows():
        calls.append(1)
        yield from numbered(5).pixels

    first, second = (cached_pixels("some/key", 5, SIZE, rows, "making") for _ in range(2))
    assert len(calls) == 1
    assert (first == numbered(5).pixels).all() and (second == first).all() and first.dtype == np.uint8
    assert isinstance(first, np.memmap) and not first.flags.writeable
    assert cache_folder().is_relative_to(cache)
    assert [path.name for path in sorted(cache.rglob("*")) if path.is_file()] == ["key.npy", "key.npy.sum"]


def test_interrupted_pixels_leave_nothing(cache):
    def rows():
        yield numbered(1).pixels[0]
        assert not list(cache.rglob("key.npy"))  # not there under its name before it is complete
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cached_pixels("key", 5, SIZE, rows, "making")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_two_makers_at_once_do_not_disturb_each_other(cache):
    """One process starts and finishes while another one is in the middle."""

    def slow():
        for i, row in enumerate(numbered(5).pixels):
            if i == 3:
                torch.manual_seed(0)
                assert (
                    cached_pixels("key", 5, SIZE, lambda: iter(numbered(5).pixels), "b") == numbered(5).pixels
                ).all()
            yield row

    torch.manual_seed(0)
    assert (cached_pixels("key", 5, SIZE, slow, "a") == numbered(5).pixels).all()
    assert [path.name for path in sorted(cache.rglob("*")) if path.is_file()] == ["key.npy", "key.npy.sum"]


def test_cache_folder_is_the_users(monkeypatch):
    monkeypatch.setattr(cache_module, "user_cache_dir", lambda name: f"/somewhere/{name}")
    assert str(cache_folder()) == "/somewhere/viscoin"


# --- files read in one pass --------------------------------------------------------------------------------------


@pytest.fixture
def folder(cache):
    """Two classes of ten numbered images, 24 px a side."""
    for number in range(20):
        path = cache / "data" / ("cat" if number < 10 else "dog") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (number, number, number)).save(path)
    return cache / "data"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    names: list[str] = []

    def read(file, *arguments):
        names.append(file.name)
        return read_region(file, *arguments)

    monkeypatch.setattr(files, "read_region", read)
    return names


def load_all(folder, **settings) -> list[ImageDataset]:
    return [load_dataset(str(folder), split, DatasetConfig(resolution=16, **settings)) for split in SPLITS]


def numbers(dataset: ImageDataset) -> list[int]:
    return [int(row[0, 0, 0]) for row in dataset.pixels]


def test_files_are_decoded_once_for_all_splits(folder, decoded):
    for _ in range(2):
        parts = load_all(folder)
        assert sorted(decoded) == [f"{number:02}.png" for number in range(20)]
    assert sorted(number for part in parts for number in numbers(part)) == list(range(20))
    for part in parts:
        assert isinstance(part.pixels, np.memmap)
        assert [f"{number:02}.png" for number in numbers(part)] == [Path(file).name for file in part.files]
        assert [number // 10 for number in numbers(part)] == part.labels.tolist()


def test_a_limit_spares_the_files_that_are_not_drawn(folder, decoded):
    limits = {"train": 5, "validation": 1, "test": 2}
    assert [len(part) for part in load_all(folder, **limits)] == [5, 1, 2] and len(decoded) == 8


def test_files_that_are_left_out_are_decoded_once_too(folder, decoded):
    whole = load_all(folder)[0]
    bad = Path(whole.files[3])
    bad.write_text("no image")
    decoded.clear()
    with pytest.raises(ValueError, match=rf"1 of 20 files .*{bad.name}"):
        load_all(folder)
    parts = load_all(folder, skip_bad_files=True)
    assert len(decoded) == 20
    assert numbers(parts[0]) == [number for i, number in enumerate(numbers(whole)) if i != 3]
    assert all(isinstance(part.pixels, np.memmap) for part in parts)


def test_copies_without_the_bad_files_are_kept_apart(folder):
    """By size, and by what is cut out."""
    paths = sorted(folder.rglob("*.png"))
    paths[4].write_text("no image")
    box = Image.new("RGB", (24, 24), (200, 0, 0))
    box.paste((0, 200, 0), (0, 0, 8, 8))
    box.save(paths[5])
    for size in (16, 32):
        config = DatasetConfig(resolution=size, skip_bad_files=True)
        whole = files.prepare_files("x", "train", paths, config, folder)
        cut = files.prepare_files("x", "train", paths, config, folder, [(0, 0, 8, 8)] * 20)
        assert whole.kept.tolist() == cut.kept.tolist() == [i for i in range(20) if i != 4]
        assert whole.pixels.shape == cut.pixels.shape == (19, size, size, 3)
        assert (cut.pixels[4] == [0, 200, 0]).all() and not (whole.pixels[4] == [0, 200, 0]).all()


def test_results_of_threads_come_in_order_and_few_are_held(monkeypatch):
    monkeypatch.setattr(files, "cores", lambda: 2)
    asked, most = [], 0

    def items():
        for i in range(100):
            asked.append(i)
            yield i

    def work(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        return i * i

    for done, result in enumerate(in_threads(work, items())):
        assert result == done**2
        most = max(most, len(asked) - done)
    assert most <= 10


def test_threads_pass_errors_on_and_stop(monkeypatch):
    seen = []

    def work(i: int) -> int:
        seen.append(i)
        return 1 // (i - 3)

    with pytest.raises(ZeroDivisionError):
        list(in_threads(work, range(10_000)))
    assert len(seen) < 1000


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    full, small = read_rgb(tmp_path / "a.jpg"), read_region(tmp_path / "a.jpg", 64)
    assert full.size == (800, 600) and small.size == (200, 150)  # the smallest of 1/1, 1/2, 1/4, 1/8 above 128 px
    difference = np.abs(square(full, 64).astype(int) - square(small, 64))
    assert difference.mean() < 0.5 and difference.max() <= 6
    assert read_region(tmp_path / "a.jpg", 64, (0, 0, 300, 300)).size == (300, 300)  # boxes are in pixels of the file
    assert read_rgb(tmp_path / "a.jpg", 1000).size == (800, 600)


# --- batches of steps --------------------------------------------------------------------------------------------


def labels_of(batches: StepBatches, steps) -> list[int]:
    return [int(label) for step in steps for label in batches(step)[1]]


def test_each_epoch_sees_every_item_once():
    batches = StepBatches(numbered(12), 5, seed=3)
    drawn = labels_of(batches, range(12))  # five epochs of 12; 5 does not divide 12
    epochs = [drawn[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5  # each in another order
    assert list(range(12)) not in epochs


def test_order_depends_on_the_seed():
    one, same, other = (labels_of(StepBatches(numbered(12), 4, seed), range(6)) for seed in (0, 0, 1))
    assert one == same != other


def test_batch_does_not_depend_on_history():
    def fresh():
        return StepBatches(numbered(12), 5, seed=0, horizontal_flip=True, padding=2)

    walked = fresh()
    in_order = [walked(step) for step in range(9)]
    jumping = fresh()
    for step in (8, 0, 3, 3, 7):
        for batches in (jumping, fresh()):
            images, labels = batches(step)
            assert torch.equal(images, in_order[step][0]) and torch.equal(labels, in_order[step][1])


def test_batch_does_not_depend_on_global_random_state():
    batches = StepBatches(numbered(12), 5, seed=0, horizontal_flip=True, padding=2)
    before = batches(2)[0]
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state()
    assert torch.equal(batches(2)[0], before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_see_what_one_sees(world_size):
    settings = {"seed": 1, "horizontal_flip": True, "padding": 2}
    alone = StepBatches(numbered(14), 6, **settings)
    ranks = [StepBatches(numbered(14), 6, rank=rank, world_size=world_size, **settings) for rank in range(world_size)]
    for step in range(5):
        images, labels = alone(step)
        parts = [batches(step) for batches in ranks]
        assert all(len(part[1]) == 6 // world_size for part in parts)
        assert torch.equal(torch.stack([part[0] for part in parts], 1).flatten(0, 1), images)
        assert torch.equal(torch.stack([part[1] for part in parts], 1).flatten(), labels)


@pytest.mark.parametrize(("device", "workers"), [("cpu", 0), ("cuda", 2)])
def test_threads_prepare_batches_where_a_gpu_trains(device, workers):
    assert batch_workers(torch.device(device)) == workers


def test_batch_must_divide_over_processes():
    with pytest.raises(ValueError, match=r"batch size 5 does not divide over 2 processes"):
        StepBatches(numbered(8), 5, seed=0, world_size=2)


def test_batch_may_be_larger_than_the_dataset():
    assert sorted(labels_of(StepBatches(numbered(3), 6, seed=0), [0])) == [0, 0, 1, 1, 2, 2]


def test_without_augmentation_images_are_those_of_the_dataset():
    dataset = numbered(12)
    batches = StepBatches(dataset, 5, seed=0)
    for step in range(6):
        images, labels = batches(step)
        assert torch.equal(images, dataset.batch(labels.numpy())[0])


def test_flips_are_drawn_anew_in_each_epoch():
    dataset = numbered(16)
    before = dataset.pixels.copy()
    batches = StepBatches(dataset, 16, seed=0, horizontal_flip=True)
    flipped = np.zeros((40, 16), dtype=bool)
    for epoch in range(40):
        for image, label in zip(*batches(epoch)):
            original = dataset[int(label)][0]
            flipped[epoch, label] = not torch.equal(image, original)
            assert torch.equal(image, original.flip(2) if flipped[epoch, label] else original)
    assert 0.4 < flipped.mean() < 0.6
    assert (flipped.any(0) & ~flipped.all(0)).all()  # every image is now flipped, now not
    assert (dataset.pixels == before).all()


def test_crops_are_windows_of_the_reflected_image_and_drawn_anew():
    dataset = numbered(4)
    batches = StepBatches(dataset, 4, seed=0, padding=2)
    corners: dict[int, set[tuple[int, int]]] = {i: set() for i in range(4)}
    for epoch in range(60):
        for image, label in zip(*batches(epoch)):
            padded = torch.nn.functional.pad(dataset[int(label)][0][None], [2] * 4, mode="reflect")[0]
            windows = {(y, x): padded[:, y : y + SIZE, x : x + SIZE] for y in range(5) for x in range(5)}
            found = [corner for corner, window in windows.items() if torch.equal(window, image)]
            assert len(found) == 1
            corners[int(label)].add(found[0])
    assert all(len(seen) > 15 for seen in corners.values())
    assert {y for seen in corners.values() for y, _ in seen} == set(range(5))
    assert {x for seen in corners.values() for _, x in seen} == set(range(5))


def test_progress_of_small_caches_is_quiet(cache, capfd, caplog):
    with caplog.at_level(logging.DEBUG, "viscoin"):
        cached_pixels("key", 5, SIZE, lambda: iter(numbered(5).pixels), "making")
    assert capfd.readouterr().err == "" and caplog.text == ""  # no bar where no terminal is
