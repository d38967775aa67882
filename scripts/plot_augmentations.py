"""Draw what the augmentation presets of generator training do to images of a dataset.

python scripts/plot_augmentations.py docs/images/augmentations.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from stylegan2_ada.augment import augment_pipe
from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset, to_images, to_pixels
from viscoin.plotting.augmentation import augmentation_table
from viscoin.plotting.style import save_figure

PRESETS = ("blit", "bg", "bgc", "bgcfnc")
PROBABILITIES = (0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path("augmentations.png"))
    parser.add_argument("--dataset", default="birds", help="name, folder or zip (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--images", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the augmentations (default: %(default)s)")
    arguments = parser.parse_args()
    config = DatasetConfig(name=arguments.dataset, resolution=arguments.resolution)
    dataset = load_dataset(arguments.dataset, "test", config, labelled=False)
    shown = np.linspace(0, len(dataset) - 1, min(arguments.images, len(dataset))).astype(int)
    real = dataset.pixels[shown]
    augmented = {name: [augment(real, name, p, arguments.seed) for p in PROBABILITIES] for name in PRESETS}
    figure = augmentation_table(real, augmented, [f"p = {p:g}" for p in PROBABILITIES])
    save_figure(figure, arguments.file)


def augment(pixels: np.ndarray, preset: str, p: float, seed: int) -> np.ndarray:
    """(N, H, W, 3) uint8 -> augmented with the preset and overall probability p, likewise."""
    torch.manual_seed(seed)
    pipe = augment_pipe(preset)
    pipe.p.fill_(p)
    return to_pixels(pipe(to_images(pixels)))


if __name__ == "__main__":
    main()
