"""Photographs with masks for a network of ImageNet: how they are chosen and composed; what they are, where they are."""

import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.models.files import load_model
from viscoin.testing.attribution.places import area, mass, pointing

ROOT = Path(__file__).parents[1]
THERE = Path(os.environ.get("VISCOIN_PHOTOGRAPHS", ROOT / "runs" / "photographs"))
NAMES = [
    ["tiger", "Panthera tigris"],
    ["crane"],
    ["crane"],
    ["rubber eraser", "pencil eraser"],
    ["fire engine", "fire truck"],
]
COLOUR = (250, 10, 10)


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "fetch_photographs.py"))


@pytest.mark.parametrize(
    ("description", "classes"),
    [
        ("A Sumatran tiger.", (0,)),
        ("A crowned crane, from Africa.", (1, 2)),
        ("A fire truck.", (4,)),
        ("A truck.", ()),  # a name of a class that is more special
        ("A tiger lily.", ()),  # not its head
        ("A tiger with a ball.", (0,)),
        ("Two tigers.", ()),
        ("An eraser.", ()),
    ],
)
def test_a_description_names_the_class_that_its_first_phrase_ends_in(
    script: dict[str, Any], description: str, classes: tuple[int, ...]
) -> None:
    assert script["classes_of"](description, NAMES) == classes


def write_stamp(folder: Path, name: str, description: str | None = "A tiger.", opaque: bool = False) -> Path:
    """A red rectangle of 20 x 10 in the middle of nothing, soft at its left edge."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[..., 3] = 255 * opaque
    pixels[15:25, 10:30] = (*COLOUR, 255)
    pixels[15:25, 10, 3] = 255 if opaque else 60
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    if description is not None:
        path.with_suffix(".txt").write_text(f"{description}\nde.utf8=Ein Tiger.\n", encoding="utf-8")
    return path


def test_only_cut_out_photographs_of_known_classes_are_stamps(script: dict[str, Any], tmp_path: Path) -> None:
    write_stamp(tmp_path, "cats/tiger")
    write_stamp(tmp_path, "cats/cartoon/tiger")
    write_stamp(tmp_path, "cats/tiger_mirror")
    write_stamp(tmp_path, "cats/silent", None)
    write_stamp(tmp_path, "cats/cat", "A cat.")
    write_stamp(tmp_path, "cats/square", opaque=True)
    found = list(script["find_stamps"](tmp_path, NAMES))
    assert [(stamp.path.name, stamp.classes) for stamp in found] == [("tiger.png", (0,))]


def test_a_composition_shows_the_object_where_its_mask_is(script: dict[str, Any], tmp_path: Path) -> None:
    stamps = [script["Stamp"](write_stamp(tmp_path, "tiger"), "A tiger.", (0,))]
    corners = set()
    for seed in range(12):
        image, mask, kind = script["composed"](stamps[0], stamps, np.random.default_rng(seed))
        assert kind in ("gradient", "noise", "photograph", "stamps")
        pixels, where = np.asarray(image), np.asarray(mask)
        assert pixels.shape == (224, 224, 3) and set(np.unique(where)) == {0, 255}
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.4 * 224 < width < 0.76 * 224 and height / width == pytest.approx(10 / 19, abs=0.03)
        inside = pixels[rows[2] : rows[-2], columns[4] : columns[-4]]
        assert np.abs(inside.astype(int) - COLOUR).max() <= 2  # the colour of the object, and of nothing else
        corners.add((rows[0], columns[0]))
    assert len(corners) > 8


@pytest.mark.parametrize("kind", ["gradient", "noise", "photograph"])
def test_backgrounds_differ_and_depend_on_the_seed_alone(script: dict[str, Any], kind: str) -> None:
    drawn = [np.asarray(script[kind](np.random.default_rng(seed))) for seed in (0, 0, 1)]
    assert drawn[0].shape == (224, 224, 3) and drawn[0].std() > 2
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


needs_photographs = pytest.mark.skipif(
    not THERE.is_dir(), reason=f"{THERE} is not there: run scripts/fetch_photographs.py, or set VISCOIN_PHOTOGRAPHS"
)


@pytest.mark.slow
@needs_photographs
def test_the_network_names_the_photographs_and_grad_cam_points_at_the_objects() -> None:
    from viscoin.attribution import attribute

    loaded = load_model(THERE.with_suffix(".safetensors"), "classifier")
    data = load_dataset(str(THERE), "test", DatasetConfig(name=str(THERE), resolution=224))
    assert loaded.class_names == list(data.class_names) and len(data) >= 50
    images, labels = data.batch(range(len(data)))
    with torch.inference_mode():
        predicted = torch.cat([loaded.model.eval()(part).argmax(1) for part in images.split(16)])
    assert (predicted == labels).float().mean() >= 0.98  # of fewer classes; scaling through the folder changes nothing
    some = range(0, len(data), 4)
    masks = np.stack([data.part_masks(i)[0] for i in some])
    maps = attribute(loaded.model, images[::4], "gradcam", labels[::4], batch_size=8).maps.numpy()
    assert pointing(maps, masks).mean() > area(masks).mean() + 0.3
    assert mass(maps, masks).mean() > area(masks).mean() + 0.1
