"""How pictures of any shape become squares: as timm, torchvision and Pillow do it, and masks as their images."""

import json
import math
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data.transforms_factory import transforms_imagenet_eval
from tiny_models import Answer, tiny_recipe, write_models
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from viscoin.config import DatasetConfig, load_recipe
from viscoin.datasets import SPLITS, load_dataset
from viscoin.datasets.fit_loss import measure_fit
from viscoin.datasets.masks import object_box
from viscoin.datasets.originals import original
from viscoin.datasets.reading import BadImage, Fit, image_size, read_square, square
from viscoin.errors import Refused
from viscoin.inference.loading import load_classifier, read_pictures

SIZES = [(40, 64), (97, 61), (33, 33), (61, 20), (300, 211), (500, 333), (257, 1024)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photograph(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise with structure of every size."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def stamp(path: Path, size: tuple[int, int] = (60, 100), box: tuple[int, int, int, int] = (10, 70, 30, 90)) -> Path:
    """A red rectangle, all around it clear."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(path)
    return path


def is_red(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 127) & (pixels[..., 1] < 128)


@pytest.mark.parametrize("size", SIZES)
def test_by_default_the_pixels_are_those_of_pillow(size):
    image = photograph(size)
    expected = np.asarray(ImageOps.fit(image, (32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(square(image, 32), expected)
    image.save("a.png")
    assert np.array_equal(read_square(Path("a.png"), 32), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("share", [1.0, 0.875, 0.9, 0.95, 0.33])
@pytest.mark.parametrize("size", SIZES)
def test_a_crop_share_gives_the_pixels_of_torchvision(size, share, interpolation):
    image, side = photograph(size), 31
    expected = transforms.Compose(
        [transforms.Resize(math.floor(side / share), InterpolationMode(interpolation)), transforms.CenterCrop(side)]
    )(image)
    assert np.array_equal(square(image, side, Fit("crop", share, interpolation)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_files_with_a_crop_share_are_read_as_timm_reads_them(mode):
    theirs = transforms_imagenet_eval(
        (48, 48), crop_pct=0.875, crop_mode="center" if mode == "crop" else "squash", interpolation="bicubic",
        normalize=False,
    )  # fmt: skip
    for seed, size in enumerate([*SIZES, (2200, 2001)]):  # so large that a JPEG could be decoded at a part of its size
        name = f"{seed}.{'jpg' if seed % 2 else 'png'}"
        photograph(size, seed).save(name)
        with Image.open(name) as image:
            expected = theirs(image.convert("RGB")).permute(1, 2, 0).numpy()
        found = read_square(Path(name), 48, fit=Fit(mode, 0.875))
        assert np.array_equal(found, expected), name


def test_pad_shows_all_and_keeps_the_aspect_ratio():
    whole = Image.new("RGB", (40, 20), "black")
    found = square(whole, 16, Fit("pad"))
    assert found.shape == (16, 16, 3)
    assert (found[4:12] == 0).all() and (found[:4] == 255).all() and (found[12:] == 255).all()
    assert (square(whole.rotate(90, expand=True), 16, Fit("pad"))[:, 4:12] == 0).all()
    assert (square(Image.new("RGB", (1000, 8), "black"), 16, Fit("pad"))[7:9] == 0).any(), "a line is still there"


def test_squash_shows_all_of_it():
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (0, 0, 20, 20))
    found = square(image, 16, Fit("squash"))
    assert (found[:, :7] == 255).all() and (found[:, 9:] == 0).all()


def test_object_cuts_out_what_is_opaque():
    path = stamp(Path("a.png"))
    left, top, right, bottom = object_box(path)
    assert (left, top, right, bottom) == (9, 69, 31, 91)  # a margin of a twentieth
    found = is_red(read_square(path, 22, object_box(path), fit=Fit("object")))
    assert found[1:21, 1:21].all() and found.sum() == 400


def test_an_object_as_high_as_its_picture_gets_borders():
    path = stamp(Path("a.png"), (20, 80), (0, 0, 20, 80))
    found = is_red(read_square(path, 40, object_box(path), fit=Fit("object")))
    assert found[:, 15:25].all() and found.sum() == 400, "nothing is cut away, the aspect ratio is kept"


def test_nothing_masked_means_the_whole_picture():
    Image.new("RGB", (40, 20), "black").save("opaque.png")
    Image.new("RGBA", (40, 20), (0, 0, 0, 0)).save("clear.png")
    assert object_box(Path("opaque.png")) is None and object_box(Path("clear.png")) is None


@pytest.mark.parametrize("fit", ["crop", "pad", "squash", "object"])
@pytest.mark.parametrize("share", [None, 0.7])
def test_a_mask_goes_the_way_of_its_image(fit, share):
    for i in range(24):
        stamp(Path(f"data/{'ab'[i % 2]}/{i}.png"), (60 + i, 100 - i), (10 + i // 4, 20, 50, 80 - i))
    config = DatasetConfig(name="data", resolution=32, fit=fit, crop_share=share)
    data = load_dataset("data", "train", config)
    shares = []
    for i in range(len(data)):
        mask, red = data.part_masks(i)[0], is_red(data.pixels[i])
        shares.append(mask.mean())
        assert (mask & red).sum() > 0.8 * (mask | red).sum() > 0  # half covered pixels may be either
    assert np.mean(shares) > (0.5 if fit == "object" else 0.1)


def test_masks_beside_the_images_decide_in_folders_and_zips(here):
    box = (30, 50, 50, 70)
    for i in range(24):
        name = f"{'ab'[i % 2]}/{i}"
        for path in (here / f"data/{name}.jpg", here / f"data/masks/{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((100, 60, 3), np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
        Image.fromarray(pixels).save(here / f"data/{name}.jpg", quality=95)
        Image.fromarray(pixels.max(2)).save(here / f"data/masks/{name}.png")
    with ZipFile("data.zip", "w") as archive:
        for path in sorted((here / "data").rglob("*.*")):
            archive.write(path, path.relative_to(here / "data"))
    for source in ("data", "data.zip"):
        data = load_dataset(source, "test", DatasetConfig(name=source, resolution=22, fit="object"))
        assert is_red(data.pixels[0])[2:20, 2:20].all() and data.part_masks(0).sum() == 400
    fine = original(load_dataset("data", "test", DatasetConfig(name="data", resolution=16, fit="object")), 0, 64)
    assert fine.shape == (22, 22, 3) and is_red(fine)[2:20, 2:20].all()


def test_the_cache_knows_the_fit():
    for i in range(24):
        stamp(Path(f"data/{'ab'[i % 2]}/{i}.png"))
    config = DatasetConfig(name="data", resolution=16)
    found = [
        load_dataset("data", "test", config.model_copy(update=changes)).pixels
        for changes in ({}, {"fit": "pad"}, {"fit": "squash"}, {"fit": "object"}, {"crop_share": 0.5}, {})
    ]
    different = {pixels.tobytes() for pixels in found}
    assert len(different) == 5 and np.array_equal(found[0], found[-1])


def test_images_without_an_object_are_counted(caplog):
    for i in range(24):
        stamp(Path(f"data/{'ab'[i % 2]}/{i:02}.png"))
    Image.new("RGB", (40, 20), "red").save("data/a/99.png")
    load_dataset("data", "test", DatasetConfig(name="data", resolution=16, fit="object"))
    assert "1 of 25 images have no mask or alpha channel" in caplog.text and "99.png" in caplog.text


def test_a_mask_of_another_size_is_a_bad_file():
    stamp(Path("a.png"))
    Image.new("L", (3, 3), 255).save("mask.png")
    with pytest.raises(BadImage, match=r"60x100 px, but its mask mask\.png is 3x3 px"):
        object_box(Path("a.png"), Path("mask.png"))


def test_a_palette_with_a_clear_colour_is_a_mask():
    with Image.open(stamp(Path("a.png"))) as image:
        palette = image.convert("RGB").quantize(4)
    palette.save("b.png", transparency=palette.getpixel((0, 0)))
    assert object_box(Path("b.png")) == object_box(Path("a.png"))


def test_image_files_are_fitted_as_the_model_wants(caplog):
    caplog.set_level("INFO")
    found = read_pictures([stamp(Path("a.png"))], 22, fit=Fit("object"))
    assert (found.images[0, 1, 2:20, 2:20] < -0.9).all() and "cut to its object" in caplog.text
    Image.new("RGB", (40, 20), "black").save("b.png")
    found = read_pictures([Path("b.png")], 16, fit=Fit("object"))
    assert (found.images[0, :, 5:11] == -1).all() and (found.images[0, :, :4] == 1).all()
    assert "b.png has no alpha channel with an object" in caplog.text


def test_it_is_said_how_little_of_a_file_is_seen():
    for name, size in (("wide.png", (800, 8)), ("nearly.png", (41, 40)), ("tiny.png", (8, 8)), ("fits.png", (24, 24))):
        Image.new("RGB", size).save(name)
    done = "centre-cropped and resized to 24 px"
    assert read_pictures([Path(name) for name in ("wide.png", "nearly.png", "tiny.png", "fits.png")], 24).prepared == (
        f"800x8 px: {done}, 1 % of it is seen, 3.0 times as large", f"41x40 px: {done}",
        f"8x8 px: {done}, 3.0 times as large", "",
    )  # fmt: skip
    (padded,) = read_pictures([Path("wide.png")], 16, fit=Fit("pad")).prepared
    assert padded == "800x8 px: padded and resized to 16 px"
    with pytest.raises(ValueError, match=r"nowhere\.png cannot be used as an image .*; correct the path"):
        read_pictures([Path("nowhere.png")], 16)


def test_datasets_that_cannot_be_fitted_say_so():
    for name in ("cub", "celeba_hq", "birds"):
        with pytest.raises(Refused, match="no masks or alpha channels"):
            load_dataset(name, "test", DatasetConfig(name=name, fit="object"))
    for name in ("birds", "toy-count", "cifar10-qa"):
        with pytest.raises(Refused, match="no part may be cut away"):
            load_dataset(name, "test", DatasetConfig(name=name, crop_share=0.5))
    kept = load_dataset("birds", "test", DatasetConfig(name="birds", resolution=16, test=2, fit="pad"))
    assert len(kept) == 2


def test_bad_values_are_named():
    with pytest.raises(Refused, match=r"fit zoom: unknown; choose crop, pad, squash, object"):
        Fit("zoom")
    with pytest.raises(Refused, match=r"crop_share 1\.5: out of range"):
        Fit("crop", 1.5)
    for key, value in {"fit": "zoom", "crop_share": 0, "interpolation": "magic"}.items():
        with pytest.raises(Refused, match=rf"dataset\.{key} = "):
            load_recipe("folder", {f"dataset.{key}": value})
    assert load_recipe("folder", {"dataset.crop_share": "0.875"}).dataset.crop_share == 0.875


def test_a_picture_too_narrow_to_be_cropped_is_refused():
    with pytest.raises(BadImage, match="300000x8 px, too narrow"):
        Fit("crop", 0.9).apply(Image.new("L", (300_000, 8)), 256)


def test_data_info_says_what_a_fit_cuts_away():
    for i in range(24):
        height = 72 if i % 3 else 300
        stamp(Path(f"data/{'ab'[i % 2]}/{i:02}.png"), (60, height), (0, 0, 60, height))
    answer = Answer("data", "data", "info", "--out", "info")
    assert answer.code == 0, answer.out
    assert "cut away by fit crop    median 17% of what is opaque or masked, at most 80%" in answer.out + answer.err
    assert (
        "more than a quarter of 8 of 24 images" in answer.out + answer.err
        and "set --fit to object" in answer.out + answer.err
    )
    answer = Answer("data", "data", "info", "--fit", "object", "--json")
    found = json.loads(answer.out)["cut_away"]
    assert found["largest"] == 0 and found["advice"] is None and found["of"] == "objects"
    answer = Answer("data", "data", "info", "--crop-share", "0.5", "--json")
    assert json.loads(answer.out)["cut_away"]["more_than_a_quarter"] == 24


def test_of_pictures_without_masks_the_area_counts():
    for i in range(24):
        path = Path(f"data/{'ab'[i % 2]}/{i:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph((60, 40 if i else 20), i).save(path)
    parts = {split: load_dataset("data", split, DatasetConfig(name="data", resolution=16)) for split in SPLITS}
    sizes = np.array([image_size(Path(file)) for part in parts.values() for file in part.files])
    loss = measure_fit(parts, sizes)
    assert np.isclose(np.median(loss.shares), 1 / 3) and np.isclose(loss.shares.max(), 2 / 3)
    assert not loss.of_objects and loss.advice is None and loss.files[int(loss.shares.argmax())] == "data/a/00.png"
    for part in parts.values():
        part.fit = Fit("pad")
    assert measure_fit(parts, sizes).shares.max() == 0


def test_options_of_data_refuse_bad_fits():
    for option, value in {"--fit": "zoom", "--crop-share": "1.5", "--interpolation": "magic"}.items():
        answer = Answer("data", "birds", "info", option, value)
        assert answer.code == 2 and option.strip("-").replace("-", "_") in answer.out + answer.err, (
            answer.out + answer.err
        )
    answer = Answer("data", "birds", "split", "--fit", "pad")
    assert answer.code == 2 and "--fit belongs to data birds info, show or export" in answer.out + answer.err


def test_a_classifier_whose_images_were_fitted_otherwise_is_a_warning(here, caplog):
    model = write_models(here, tiny_recipe(dataset__fit="pad"))["classifier"]
    config = tiny_recipe().dataset.model_copy(update={"name": "photos"})
    load_classifier(model, config.model_copy(update={"fit": "pad"}))
    assert "saw its images" not in caplog.text
    load_classifier(model, config)
    assert "f saw its images by fit pad" in caplog.text and "these are by fit crop" in caplog.text
