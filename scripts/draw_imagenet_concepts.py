"""What the pursuit finds among the 1000 classes of ImageNet: a figure of 40 directions, and how stable they are.

    python scripts/draw_imagenet_concepts.py           # 310 MB of downloads; ten minutes on one core

The network is EfficientNet-Lite0 of PyPI. How its features spread is taken from the stamps of Tux Paint: each on grey,
and three times on random backgrounds, as in fetch_photographs.py. The pursuit looks for directions among the rows of
the last layer, so that no image or label decides what is found.

Two figures: docs/images/imagenet-concepts.png with crops of clip art (`openclipart-png` of Debian, in the public
domain), and runs/imagenet-concepts/stamps.png with crops of the stamps (GPL, so not committed). The numbers are in
runs/imagenet-concepts/pursuit.json; beside them stands what the same search finds among random points.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from fetch_photographs import Stamp, composed, download_stamps, download_weights, load_network, on_grey, run
from matplotlib import pyplot as plt
from PIL import Image

from viscoin.datasets.base import to_images
from viscoin.models.classifier import Classifier
from viscoin.models.foreign.class_names import imagenet_names
from viscoin.models.pursuit import Pursuit, distinct, of_map, pursue, relevant_basis, stability, two_valued

CONCEPTS, VIEWS, BATCH = 40, 4, 32
CROPS, CLASSES, CROP = 3, 4, 96  # of each end of a direction; pixels of 224
CLIPART, FOLDERS = "openclipart-png", "usr/share/openclipart/png"
DRAWINGS = ("animals", "buildings", "containers", "education", "electronics", "food", "office", "people", "plants",
            "recreation", "tools", "transportation")  # fmt: skip
MOST_DRAWINGS, LARGEST_DRAWING = 150, 4_000_000  # of a folder; pixels
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Seen:
    """What f makes of N images: features (N, D) of the last layer, its coarsest map (N, C, h, w); and the images."""

    features: np.ndarray
    maps: np.ndarray
    images: Sequence[Image.Image]

    @property
    def pooled(self) -> np.ndarray:
        return self.maps.mean((2, 3), dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "imagenet-concepts", metavar="FOLDER")
    parser.add_argument("--stamps", type=Path, metavar="FOLDER", help="stamps that are here already")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights (.pth) that are here already")
    parser.add_argument("--clipart", type=Path, metavar="FOLDER", help="clip art that is here already")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        network = load_network(options.weights or download_weights(Path(folder)))
        stamps = list(read(options.stamps or download_stamps(Path(folder))))
        drawings = list(some_drawings(options.clipart or download_clipart(Path(folder))))
        seen = look(network, views(stamps, options.seed))
        clipart = look(network, (on_grey(drawing.image()) for drawing in drawings))
    weight = network.last_layer.weight.detach().numpy().astype(np.float64)
    found = pursue(weight, seen.features, CONCEPTS, seed=options.seed)
    scores = relevant_basis(weight, seen.features, found.basis.shape[1])[0] @ found.directions * len(weight) ** 0.5
    numbers = measured(weight, seen, found, scores, options.seed)
    (options.out / "pursuit.json").write_text(json.dumps(numbers, indent=2, default=float) + "\n")
    print(json.dumps({key: value for key, value in numbers.items() if key != "concepts"}, indent=2, default=float))
    alone = Seen(seen.features[::VIEWS], seen.maps[::VIEWS], seen.images[::VIEWS])
    fitted = of_map(found, seen.features, seen.pooled)
    draw(scores, found, fitted, alone, options.out / "stamps.png")
    draw(scores, found, fitted, clipart, ROOT / "docs" / "images" / "imagenet-concepts.png")


def download_clipart(folder: Path) -> Path:
    run(folder, "apt-get", "download", CLIPART)
    run(folder, "dpkg-deb", "-x", next(folder.glob(f"{CLIPART}*.deb")).name, "clipart")
    return folder / "clipart" / FOLDERS


def read(folder: Path) -> Iterator[Stamp]:
    """All stamps of which something can be seen, without those that are another one mirrored."""
    for path in sorted(folder.rglob("*.png")):
        stamp = Stamp(path, "", (0,))
        if not path.stem.endswith("_mirror") and max(stamp.image().getchannel("A").getextrema()) > 127:
            yield stamp


def some_drawings(folder: Path) -> Iterator[Stamp]:
    for name in DRAWINGS:
        files = [path for path in sorted((folder / name).rglob("*.png")) if is_small(path)]
        yield from (Stamp(path, "", (0,)) for path in files[:: -(-len(files) // MOST_DRAWINGS)])


def is_small(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.width * image.height < LARGEST_DRAWING
    except Image.DecompressionBombError:
        return False


def views(stamps: Sequence[Stamp], seed: int) -> Iterator[Image.Image]:
    """Each stamp on grey, then on random backgrounds."""
    for number, stamp in enumerate(stamps):
        random = np.random.default_rng([seed, number])
        others = [Stamp(stamps[i].path, "", (1,)) for i in random.permutation(len(stamps))[:VIEWS]]
        yield on_grey(stamp.image())
        yield from (composed(stamp, others, random).image for _ in range(VIEWS - 1))


@torch.inference_mode()
def look(network: Classifier, images: Iterator[Image.Image]) -> Seen:
    features, maps, kept = [], [], list[Image.Image]()

    def push(batch: Sequence[Image.Image]) -> None:
        found = network.last_features(to_images(np.stack([np.asarray(image.convert("RGB")) for image in batch])))
        features.append(found[0].numpy())
        maps.append(found[1].numpy())
        print(f"{len(kept)} images", flush=True)

    for image in images:
        kept.append(image)
        if len(kept) % BATCH == 0:
            push(kept[-BATCH:])
    if rest := len(kept) % BATCH:
        push(kept[-rest:])
    return Seen(np.concatenate(features).astype(np.float64), np.concatenate(maps), kept)


def measured(weight: np.ndarray, seen: Seen, found: Pursuit, scores: np.ndarray, seed: int) -> dict[str, object]:
    """What was found, how well other searches find it again, and the same of random points and directions."""
    random, d = np.random.default_rng(seed), found.basis.shape[1]
    points = np.linalg.qr(random.standard_normal((len(weight), d)))[0] * len(weight) ** 0.5
    values = two_valued(points, seed=seed)[1][:CONCEPTS]
    directions = random.standard_normal((d, CONCEPTS))
    directions /= np.linalg.norm(directions, axis=0)
    chance = stability(weight, seen.features, Pursuit(found.basis, found.mean, directions, found.values, "classes"))
    same, names = stability(weight, seen.features, found, seed), imagenet_names()
    return {
        "images": len(seen.features), "dimensions": d, "over": found.over, "values": found.values.tolist(),
        "values_of_random_points": values.tolist(),
        "explained_by_the_coarsest_map": of_map(found, seen.features, seen.pooled)[2],
        "stability": vars(same), "stability_of_random_directions": vars(chance),
        "independent": len(distinct(scores, found.values)),
        "concepts": [
            {"value": found.values[k], "low": low, "high": high}
            for k, (low, high) in enumerate(ends(scores, names, 10))
        ],
    }  # fmt: skip


def ends(scores: np.ndarray, names: Sequence[str], count: int) -> Iterator[tuple[list[str], list[str]]]:
    """The classes at both ends of each column of scores (1000, k), the outermost first."""
    for column in scores.T:
        order = np.argsort(column)
        yield [names[c] for c in order[:count]], [names[c] for c in order[::-1][:count]]


def draw(
    scores: np.ndarray, found: Pursuit, fitted: tuple[np.ndarray, np.ndarray, float], shown: Seen, path: Path
) -> None:
    """A row for each direction: the low end, all classes along it, the high end."""
    matplotlib.use("agg")
    figure = plt.figure(figsize=(12, 0.8 * CONCEPTS))
    widths = [2.6, *[0.8] * CROPS, 2.2, *[0.8] * CROPS, 2.6]
    grid = figure.add_gridspec(
        CONCEPTS, len(widths), width_ratios=widths, left=0.005, right=0.995, top=0.999, bottom=0.001, wspace=0.03,
        hspace=0.08,
    )  # fmt: skip
    local = np.einsum("nchw,cd->ndhw", shown.maps, fitted[0] @ found.directions) + (
        fitted[1] @ found.directions
    )[:, None, None]  # fmt: skip
    names = list(ends(scores, imagenet_names(), CLASSES))
    for k in range(CONCEPTS):
        for side, sign in enumerate((-1, 1)):
            text = figure.add_subplot(grid[k, (0, -1)[side]])
            text.axis("off")
            text.text(
                (0.97, 0.03)[side], 0.5, "\n".join(names[k][side]), ha=("right", "left")[side], va="center", fontsize=9
            )
            for i, crop in enumerate(crops(sign * local[:, k], shown.images)):
                axis = figure.add_subplot(grid[k, 1 + side * (CROPS + 1) + (CROPS - 1 - i if side == 0 else i)])
                axis.imshow(crop)
                axis.axis("off")
        axis = figure.add_subplot(grid[k, CROPS + 1])
        axis.hist(scores[:, k], bins=40, range=(-3.2, 3.2), color="0.6")
        axis.set(yticks=[], xticks=[])
        axis.spines[["top", "left", "right"]].set_visible(False)
        axis.text(0.01, 0.97, f"{k}", transform=axis.transAxes, va="top", fontsize=9, weight="bold")
        axis.text(0.99, 0.97, f"{found.values[k]:.2f}", transform=axis.transAxes, va="top", ha="right", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    with Image.open(path) as image:  # a palette: a third of the size
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def crops(local: np.ndarray, images: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """Of the images with the largest scores (N, h, w), mean over 3 x 3 places: the surroundings of the largest."""
    blocks = sum(local[:, y : y + local.shape[1] - 2, x : x + local.shape[2] - 2] for y in range(3) for x in range(3))
    for n in np.argsort(-blocks.max((1, 2)))[:CROPS]:
        y, x = np.unravel_index(blocks[n].argmax(), blocks[n].shape)
        image = images[n].convert("RGB")
        unit = image.width / local.shape[1]
        left, top = (round(min(max((place + 1.5) * unit - CROP / 2, 0), image.width - CROP)) for place in (x, y))
        yield image.crop((left, top, left + CROP, top + CROP))


if __name__ == "__main__":
    main()
