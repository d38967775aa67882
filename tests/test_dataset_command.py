"""`data SOURCE prepare`: what it writes, that others can read it, what it refuses; nothing is left half-written."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_models import Answer, write_images

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.datasets.prepare import prepare_dataset, sample_images


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(source: object, out: object, *options: object) -> Answer:
    return Answer("data", source, "prepare", "--out", out, *options)


def read_public(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images (N, H, W, 3) and labels of a zip, read by the rules of the public format and nothing else."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        images = [Image.open(io.BytesIO(archive.read(name))) for name in names]
        labels = json.loads(archive.read("dataset.json"))["labels"]
    assert {image.mode for image in images} == {"RGB"} and len({image.size for image in images}) == 1
    assert names == [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(names))]
    side = images[0].width
    assert images[0].height == side == 2 ** int(np.log2(side))
    return np.stack(images), None if labels is None else np.array([dict(labels)[name] for name in names])


def index_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def plain(width: int, height: int, value: int = 90) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def nothing_new(folder: Path, *known: str) -> None:
    """Assert that a folder holds these and no more, hidden files included."""
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == sorted(known)


# --- what is written ---------------------------------------------------------------------------------------------


def test_class_folders_to_zip(here):
    data = write_images(here / "data", {"ant": 3, "bee": 5}, size=32)
    answer = prepare(data, "out.zip").went_well()
    images, labels = read_public(here / "out.zip")
    originals = [np.asarray(Image.open(path)) for path in sorted(data.glob("*/*.png"))]
    assert np.array_equal(images, originals) and labels.tolist() == [0] * 3 + [1] * 5
    assert index_of(here / "out.zip")["class_names"] == ["ant", "bee"]
    rows = [line.split(maxsplit=1) for line in answer.out.splitlines()]
    assert rows[:4] == [["out.zip"], ["images", "8"], ["classes", "2"], ["resolution", "32x32"]]
    nothing_new(here, "data", "out.zip")


def test_named_dataset(here):
    prepare("birds", "b.zip", "--split", "test", "--max-images", 40, "--resolution", 16).went_well()
    images, labels = read_public(here / "b.zip")
    birds = load_dataset("birds", "test", DatasetConfig(resolution=16, test=40))
    assert np.array_equal(images, birds.pixels) and labels.tolist() == birds.labels.tolist()
    assert index_of(here / "b.zip")["class_names"] == birds.class_names


def test_folder_and_zip_hold_the_same(here):
    data = write_images(here / "data", {"ant": 3, "bee": 5}, size=32)
    for output in ("x.zip", "deep/x", "deep/y.zip"):
        prepare(data, output).went_well()
    assert (here / "x.zip").read_bytes() == (here / "deep" / "y.zip").read_bytes()
    with zipfile.ZipFile(here / "x.zip") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    folder = here / "deep" / "x"
    assert held == {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    prepare(folder, "again.zip").went_well()  # labels and class names survive
    prepare("x.zip", "twice.zip").went_well()
    assert (here / "again.zip").read_bytes() == (here / "twice.zip").read_bytes() == (here / "x.zip").read_bytes()


def test_flat_folder_has_no_labels(here):
    for i in range(12):
        save(here / "data" / ("more" if i % 2 else ".") / f"{i:02}.png", plain(16, 16, 10 * i))
    assert "none" in prepare("data", "out.zip").went_well().out
    images, labels = read_public(here / "out.zip")
    assert labels is None and sorted(images[:, 0, 0, 0].tolist()) == [10 * i for i in range(12)]
    assert index_of(here / "out.zip") == {"labels": None}


def test_zip_of_jpegs(here):
    data = write_images(here / "data", {"ant": 0, "bee": 0})
    for i, name in enumerate(("ant", "bee")):
        save(data / name / "x.JPG", plain(40, 32, 100 * (i + 1)), format="jpeg")
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in data.rglob("*.JPG"):
            archive.write(path, path.relative_to(here))
    prepare("photos.zip", "out.zip").went_well()
    images, labels = read_public(here / "out.zip")
    assert images.shape == (2, 32, 32, 3) and images.mean((1, 2, 3)).round().tolist() == [100, 200]
    assert labels.tolist() == [0, 1] and index_of(here / "out.zip")["class_names"] == ["ant", "bee"]


def test_labels_on_demand(here):
    data = write_images(here / "data", {"ant": 3, "bee": 3}, size=16)
    prepare(data, "none.zip", "--labels", "none").went_well()
    assert read_public(here / "none.zip")[1] is None
    labels = [[f"{name}/{i:02}.png", i % 2] for name in ("ant", "bee") for i in range(3)]
    (here / "l.json").write_text(json.dumps({"labels": labels, "class_names": ["even", "odd"]}))
    prepare(data, "file.zip", "--labels", "l.json").went_well()
    assert read_public(here / "file.zip")[1].tolist() == [0, 1, 0, 0, 1, 0]
    assert index_of(here / "file.zip")["class_names"] == ["even", "odd"]


def test_splits_are_those_of_load_dataset(here):
    data = write_images(here / "data", {"ant": 10, "bee": 10}, size=16)
    for split in ("train", "validation", "test"):
        prepare(data, f"{split}.zip", "--split", split, "--seed", 3).went_well()
        part = load_dataset("data", split, DatasetConfig(resolution=16, seed=3))
        images, labels = read_public(here / f"{split}.zip")
        assert np.array_equal(images, part.pixels) and labels.tolist() == part.labels.tolist()


def test_fewer_images_of_all_classes(here):
    data = write_images(here / "data", {"ant": 30, "bee": 30}, size=16)
    for seed in (0, 0, 1):
        prepare(data, f"{seed}.zip", "--max-images", 12, "--seed", seed, "--force").went_well()
    images, labels = read_public(here / "0.zip")
    assert len(images) == 12 and len(set(labels.tolist())) == 2
    assert not np.array_equal(images, read_public(here / "1.zip")[0])
    answer = prepare(data, "one.zip", "--max-images", 1).went_well()
    assert "1 classes have no images" in answer.err


def test_more_than_a_thousand_images(here):
    with zipfile.ZipFile("in.zip", "w") as archive:
        for i in range(1002):
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), (i % 256, i // 256, 0)).save(buffer, "png")
            archive.writestr(f"{i:04}.png", buffer.getvalue())
    prepare_dataset("in.zip", here / "out.zip")
    images, _ = read_public(here / "out.zip")
    assert (images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1].astype(int)).tolist() == list(range(1002))


@pytest.mark.parametrize("output", ["x.zip", "x"])
def test_the_older_command_does_the_same(here, output):
    data = write_images(here / "data", {"ant": 6, "bee": 6}, size=32)
    options = ["--resolution", 16, "--max-images", 7, "--seed", 3, "--crop", "none"]
    prepare(data, f"new-{output}", *options).went_well()
    answer = Answer("dataset", data, "--output", f"old-{output}", *options).went_well()
    assert answer.err == f"dataset is now: data {data} prepare --out old-{output}\n"
    new, old = (list(read_any(here / f"{name}-{output}").values()) for name in ("new", "old"))
    assert new == old
    Answer("dataset", data, "--output", f"old-{output}").refused(f"--output old-{output}: exists; pass --force")
    assert "\n  dataset " not in Answer("--help").went_well().out


# --- pictures ----------------------------------------------------------------------------------------------------


def wide_picture() -> np.ndarray:
    """(48, 128, 3): red | grey | blue, the grey 64 x 48 in the middle."""
    pixels = plain(128, 48)
    pixels[:, :32], pixels[:, 96:] = (255, 0, 0), (0, 0, 255)
    return pixels


@pytest.mark.parametrize("turned", [False, True])
def test_crops(here, turned):
    exif = Image.Exif()
    exif[274] = 6 if turned else 1  # stored lying on its side
    save(here / "data" / "x.png", np.rot90(wide_picture()) if turned else wide_picture(), exif=exif)
    prepare("data", "center.zip", "--resolution", 16).went_well()
    assert np.unique(read_public(here / "center.zip")[0]).tolist() == [90]
    prepare("data", "wide.zip", "--crop", "center-wide").went_well()
    (wide,) = read_public(here / "wide.zip")[0]
    assert wide.shape == (64, 64, 3)
    assert np.unique(wide[8:56]).tolist() == [90] and not wide[:8].any() and not wide[56:].any()
    prepare("data", "none.zip", "--crop", "none").refused("x.png", "128x48", "--crop none", "choose center")
    nothing_new(here, "data", "center.zip", "wide.zip")


def test_square_pictures_need_no_crop(here):
    save(here / "data" / "x.png", plain(32, 32))
    prepare("data", "x.zip", "--crop", "none", "--resolution", 16).went_well()
    assert read_public(here / "x.zip")[0].shape == (1, 16, 16, 3)


def test_all_kinds_of_pictures(here):
    value = plain(16, 16, 128)
    save(here / "data" / "grey.png", value[..., 0])
    save(here / "data" / "clear.png", np.dstack([plain(16, 16, 5), np.zeros((16, 16), np.uint8)]))
    save(here / "data" / "sixteen.png", value[..., 0].astype(np.uint16) * 257)
    prepare("data", "x.zip").went_well()
    assert read_public(here / "x.zip")[0].mean((1, 2, 3)).tolist() == [255, 128, 128]


def test_large_pictures_are_shrunk_smoothly(here):
    stripes = (np.arange(64) % 2 * 255).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    save(here / "data" / "x.png", stripes)
    prepare("data", "x.zip", "--resolution", 16).went_well()
    assert np.abs(read_public(here / "x.zip")[0][0, 2:-2, 2:-2].astype(int) - 127).max() < 12


def test_small_pictures_are_enlarged_and_counted(here):
    for i, side in enumerate((10, 16, 20)):
        save(here / "data" / f"{i}.png", plain(side, side))
    answer = prepare("data", "x.zip", "--resolution", 16).went_well()
    assert "1 of 3 images are smaller than 16 px and are enlarged" in answer.err


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolution", "nearest"), [(48, "32 or 64"), (300, "256 or 512"), (8, "16"), (5000, "4096"), (17, "16 or 32")]
)
def test_resolution_not_a_power_of_two(here, resolution, nearest):
    save(here / "data" / "x.png", plain(16, 16))
    answer = prepare("data", "x.zip", "--resolution", resolution)
    answer.refused(f"--resolution {resolution}", "power of two", f"nearest is {nearest}")
    nothing_new(here, "data")


def test_pictures_not_a_power_of_two(here):
    save(here / "data" / "x.png", plain(30, 40))
    prepare("data", "x.zip").refused("x.png", "30 px", "16 or 32", "--resolution")
    nothing_new(here, "data")


def test_pictures_of_different_sizes(here):
    for i, side in enumerate((32, 32, 64)):
        save(here / "data" / f"{i}.png", plain(side, side))
    prepare("data", "x.zip").refused("0.png", "32 px", "2.png", "64 px", "--resolution")
    nothing_new(here, "data")


@pytest.mark.parametrize("output", ["x.zip", "x"])
def test_bad_files(here, output):
    data = write_images(here / "data", {"ant": 5, "bee": 5}, size=16)
    (data / "ant" / "01.png").write_text("no picture")
    (data / "bee" / "02.png").write_bytes((data / "bee" / "02.png").read_bytes()[:200])
    call = [data, output]
    prepare(*call).refused("2 of 10 files", "ant/01.png", "bee/02.png", "--skip-bad-files")
    nothing_new(here, "data")
    answer = prepare(*call, "--skip-bad-files").went_well()
    assert "left out 2 of 10 files" in answer.err and "ant/01.png" in answer.err
    prepare(output, "again.zip").went_well()
    assert read_public(here / "again.zip")[1].tolist() == [0] * 4 + [1] * 4


def test_no_good_files(here):
    (here / "data").mkdir()
    prepare("data", "x.zip").refused("data", "no images")
    (here / "data" / "x.png").write_text("no picture")
    prepare("data", "x.zip", "--skip-bad-files").refused("1 of 1 files", "x.png")
    nothing_new(here, "data")


@pytest.mark.parametrize("output", ["x.zip", "x"])
def test_output_exists(here, output):
    data = write_images(here / "data", {"ant": 3, "bee": 3}, size=16)
    call = [data, output]
    prepare(*call, "--labels", "none").went_well()
    prepare(*call).refused(f"--out {output}: exists; pass --force")
    prepare(*call, "--force").went_well()
    nothing_new(here, "data", output)
    assert load_dataset(output, "train", DatasetConfig(resolution=16), labelled=False).class_names == ["ant", "bee"]


def test_force_deletes_nothing_but_datasets(here):
    data = write_images(here / "data", {"ant": 2, "bee": 2}, size=16)
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.tex").touch()
    prepare(data, "thesis", "--force").refused("thesis", "datasets only")
    for output in ("data", "data/inside", "."):
        prepare(data, output, "--force").refused(f"--out {output}", "another path")
    (here / "file").touch()
    (here / "folder.zip").mkdir()
    for output in ("file", "folder.zip"):
        prepare(data, output, "--force").refused(f"--out {output}", "cannot replace a file")
    prepare(data, "x.zip").went_well()
    prepare("x.zip", "x.zip", "--force").refused("x.zip", "another path")
    assert len(list(data.rglob("*.png"))) == 4 and (here / "thesis" / "chapter.tex").is_file()


@pytest.mark.parametrize("output", ["x.zip", "x"])
def test_interrupted(here, monkeypatch, output):
    data = write_images(here / "data", {"ant": 3, "bee": 3}, size=16)
    prepare(data, output).went_well()
    before = read_any(here / output)
    calls = []

    def fail(image):
        calls.append(image)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return b"png"

    monkeypatch.setattr("viscoin.datasets.prepare.png_bytes", fail)
    answer = prepare(data, output, "--force", "--labels", "none")
    assert answer.code == 130 and "Interrupted" in answer.err
    nothing_new(here, "data", output)
    assert read_any(here / output) == before


def read_any(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file): file.read_bytes() for file in files}


def test_wrong_options(here):
    data = write_images(here / "data", {"ant": 3, "bee": 3}, size=16)
    call = [data, "x.zip"]
    prepare("dogs", "x.zip").refused("'dogs'", "birds", ".zip")
    prepare(*call, "--crop", "left").refused("--crop left", "center-wide")
    prepare(*call, "--split", "dev").refused("--split dev", "validation")
    prepare(*call, "--labels", "l.json").refused("--labels l.json", "no such file")
    (here / "l.json").write_text('{"labels": [["ant/00.png", 0], ["cat/00.png", 1]]}')
    prepare(*call, "--labels", "l.json").refused("l.json", "'cat/00.png'", "not among the images")
    (here / "l.json").write_text('{"labels": [["ant/00.png", 0], ["bee/00.png", 1]]}')
    prepare(*call, "--labels", "l.json").refused("l.json", "no label for 4 of 6", "ant/01.png")
    prepare("birds", "x.zip", "--labels", "l.json").refused("--labels l.json", "'birds'")
    prepare(*call, "--preview", "x.gif").refused("--preview x.gif", ".png")
    nothing_new(here, "data", "l.json")


def test_unusable_labels_are_not_lost_in_silence(here):
    data = write_images(here / "data", {"00000": 3}, size=16)
    (data / "dataset.json").write_text(json.dumps({"labels": [[f"00000/{i:02}.png", [0.5, 1]] for i in range(3)]}))
    prepare(data, "x.zip").refused("dataset.json", "00000/00.png", "--labels none")
    prepare(data, "x.zip", "--labels", "none").went_well()


# --- preview -----------------------------------------------------------------------------------------------------


def test_preview_shows_every_class(here):
    data = write_images(here / "data", {"ant": 60, "bee": 60, "cat": 2}, size=16)
    answer = prepare(data, "x.zip", "--preview", "new/p.png").went_well()
    assert answer.out.splitlines()[-1] == "new/p.png"
    with Image.open(here / "new" / "p.png") as figure:
        assert min(figure.size) > 400
    images, names = sample_images(here / "x.zip", 6)
    assert images.shape == (6, 16, 16, 3) and names == ["ant"] * 2 + ["bee"] * 2 + ["cat"] * 2
    stored, labels = read_public(here / "x.zip")
    for image, name in zip(images, names):
        (place,) = [i for i, other in enumerate(stored) if np.array_equal(image, other)]
        assert ["ant", "bee", "cat"][labels[place]] == name


def test_preview_without_classes(here):
    save(here / "data" / "x.png", plain(16, 16))
    prepare("data", "x", "--preview", "p.png").went_well()
    assert (here / "p.png").is_file()


def test_prepared_images_decide_the_resolution(tmp_path):
    """A zip of `data SOURCE prepare` is trained at its own size; another one is refused."""
    from PIL import Image

    from viscoin.datasets import prepared_resolution

    for i in range(4):
        for name in ("red", "blue"):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 32), name).save(tmp_path / "images" / name / f"{i}.png")
    source, made = tmp_path / "images", tmp_path / "made.zip"
    prepare(str(source), str(made), "--resolution", "32").went_well()
    assert (prepared_resolution(str(source)), prepared_resolution(str(made)), prepared_resolution("birds")) == (
        None,
        32,
        None,
    )
    dry = Answer("train", "gan", "--dataset", str(made), "--dry-run").went_well()
    assert "resolution: 32" in dry.out
    other = Answer("train", "gan", "--dataset", str(made), "--set", "dataset.resolution=64", "--dry-run")
    other.refused("made.zip are 32 px", "leave it out", "prepare images of 64 px")
