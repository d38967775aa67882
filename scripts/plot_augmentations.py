"""Draw what the augmentation presets of generator training do to images of a dataset, or the classifier's transforms.

python scripts/plot_augmentations.py docs/images/augmentations.png
python scripts/plot_augmentations.py --transforms docs/images/transforms.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from stylegan2_ada.augment import augment_pipe
from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset, to_images, to_pixels
from viscoin.plotting.augmentation import augmentation_table
from viscoin.plotting.style import save_figure
from viscoin.training.data import StepBatches
from viscoin.training.transforms import Transforms

TRANSFORMS = {
    "rotation\n15°": Transforms(rotation=15),
    "Rand-\nAugment,\n2 x 9": Transforms(rand_augment=2, rand_augment_magnitude=9),
    "Rand-\nAugment,\n2 x 20": Transforms(rand_augment=2, rand_augment_magnitude=20),
    "blur\n1.5 px": Transforms(blur=1.5),
    "noise\n0.1": Transforms(noise=0.1),
    "mixup\n0.4": Transforms(mixup=0.4),
}
PRESETS = ("blit", "bg", "bgc", "bgcfnc")
PROBABILITIES = (0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path("augmentations.png"))
    parser.add_argument("--transforms", action="store_true", help="draw the classifier's transforms, with two seeds")
    parser.add_argument("--dataset", default="birds", help="name, folder or zip (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--images", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the augmentations (default: %(default)s)")
    arguments = parser.parse_args()
    config = DatasetConfig(name=arguments.dataset, resolution=arguments.resolution)
    dataset = load_dataset(arguments.dataset, "test", config, labelled=False)
    shown = np.linspace(0, len(dataset) - 1, min(arguments.images, len(dataset))).astype(int)
    real = dataset.pixels[shown]
    if arguments.transforms:
        seeds = (arguments.seed, arguments.seed + 1)
        rows = {name: [transform(real, changes, seed) for seed in seeds] for name, changes in TRANSFORMS.items()}
        save_figure(augmentation_table(real, rows, [f"seed {seed}" for seed in seeds]), arguments.file)
        return
    augmented = {name: [augment(real, name, p, arguments.seed) for p in PROBABILITIES] for name in PRESETS}
    figure = augmentation_table(real, augmented, [f"p = {p:g}" for p in PROBABILITIES])
    save_figure(figure, arguments.file)


def augment(pixels: np.ndarray, preset: str, p: float, seed: int) -> np.ndarray:
    """(N, H, W, 3) uint8 -> augmented with the preset and overall probability p, likewise."""
    torch.manual_seed(seed)
    pipe = augment_pipe(preset)
    pipe.p.fill_(p)
    return to_pixels(pipe(to_images(pixels)))


def transform(pixels: np.ndarray, changes: Transforms, seed: int) -> np.ndarray:
    """(N, H, W, 3) uint8 -> as the classifier sees them in training, in the order of `pixels`."""
    labels = np.arange(len(pixels))
    dataset = ImageDataset("shown", "train", pixels, labels, [str(label) for label in labels])
    batches = StepBatches(dataset, len(pixels), seed, transforms=changes)
    order = StepBatches(dataset, len(pixels), seed)(0)[1].argsort()  # mixup leaves no such labels
    return to_pixels(batches(0)[0][order])


if __name__ == "__main__":
    main()
