"""Random changes of the classifier's training images, each image's sampled from a generator of its own.

torchvision's `transforms.v2` samples from torch's global generator, which threads and the training share; therefore its
functions are used here, and their parameters are sampled from (seed, position) alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from viscoin.config import ClassifierConfig

LEVELS = 30  # of RandAugment's magnitude


@dataclass(frozen=True)
class Transforms:
    """What happens to images (3, H, W) in [-1, 1], in this order; zeros are off.

    Attributes:
        rotation: largest angle to either side, degrees; corners are filled by reflection.
        rand_augment: number of operations (`OPERATIONS`) that follow each other.
        rand_augment_magnitude: their strength, from 0 to 30.
        blur: largest standard deviation of the Gaussian, pixels.
        noise: standard deviation of Gaussian noise, in units of [-1, 1].
        mixup: alpha of the Beta(alpha, alpha) that weighs pairs of images (`mix`).
    """

    rotation: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    blur: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0

    @classmethod
    def of(cls, config: ClassifierConfig) -> "Transforms | None":
        """Those of a recipe; None when all are off."""
        chosen = cls(**{field.name: getattr(config, field.name) for field in fields(cls)})
        return chosen if chosen.changes_images or chosen.mixup else None

    @property
    def changes_images(self) -> bool:
        return bool(self.rotation or self.rand_augment or self.blur or self.noise)

    def check(self, resolution: int) -> None:
        """ValueError when images of this size are too small."""
        if radius(self.blur) >= resolution:
            raise ValueError(
                f"classifier.blur = {self.blur:g} px blurs across {radius(self.blur)} px, and the images have "
                f"{resolution} px (dataset.resolution); choose at most {(resolution - 1) / 3:.3g}"
            )

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """The image (3, H, W) in [-1, 1], changed by random numbers of `generator`."""
        if self.rotation:
            image = rotate(image, generator.uniform(-self.rotation, self.rotation))
        if self.rand_augment:
            image = rand_augment(image, self.rand_augment, self.rand_augment_magnitude / LEVELS, generator)
        if self.blur:
            sigma = self.blur * (1 - generator.random())  # never 0
            image = V.gaussian_blur(image, [2 * radius(sigma) + 1] * 2, [sigma] * 2)
        if self.noise:
            shape = tuple(image.shape)
            image = image + self.noise * torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        return image.clamp(-1, 1)


def radius(sigma: float) -> int:
    """Pixels to each side that a Gaussian reaches."""
    return math.ceil(3 * sigma)


def warp(image: Tensor, matrix: list[list[float]]) -> Tensor:
    """The image (3, H, W), each pixel taken from where the 2x3 matrix moves it; what lies outside is reflected.

    Coordinates are x, y in [-1, 1]. torchvision's own geometry leaves the outside black.
    """
    grid = F.affine_grid(torch.tensor([matrix], dtype=image.dtype), [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]


def rotate(image: Tensor, degrees: float) -> Tensor:
    """Turned about its centre, counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return warp(image, [[cos, -sin, 0], [sin, cos, 0]])


def rand_augment(image: Tensor, count: int, strength: float, generator: np.random.Generator) -> Tensor:
    """RandAugment (Cubuk et al. 2020): `count` operations, equally likely, at one strength from 0 to 1 and either sign.

    Args:
        image: (3, H, W) in [-1, 1], as is the result.
    """
    image = (image + 1) / 2
    for _ in range(count):
        operation = list(OPERATIONS.values())[generator.integers(len(OPERATIONS))]
        image = operation(image, strength if generator.random() < 0.5 else -strength)
    return image * 2 - 1


# Images in [0, 1] and a strength in [-1, 1]; the ranges are those of torchvision's RandAugment, from AutoAugment.
OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, m: image,
    "shear x": lambda image, m: warp(image, [[1, 0.3 * m, 0], [0, 1, 0]]),
    "shear y": lambda image, m: warp(image, [[1, 0, 0], [0.3 * m, 1, 0]]),
    "translate x": lambda image, m: warp(image, [[1, 0, 2 * 150 / 331 * m], [0, 1, 0]]),
    "translate y": lambda image, m: warp(image, [[1, 0, 0], [0, 1, 2 * 150 / 331 * m]]),
    "rotate": lambda image, m: rotate(image, 30 * m),
    "brightness": lambda image, m: V.adjust_brightness(image, 1 + 0.9 * m),
    "colour": lambda image, m: V.adjust_saturation(image, 1 + 0.9 * m),
    "contrast": lambda image, m: V.adjust_contrast(image, 1 + 0.9 * m),
    "sharpness": lambda image, m: V.adjust_sharpness(image, 1 + 0.9 * m),
    "posterize": lambda image, m: V.posterize(image, 8 - round(4 * abs(m))),
    "solarize": lambda image, m: V.solarize(image, 1 - abs(m)),
    "autocontrast": lambda image, m: V.autocontrast(image),
    "equalize": lambda image, m: V.equalize(image),
}


def mix(images: Tensor, labels: Tensor, weights: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """mixup (Zhang et al. 2018, Eq. 1): every image and its label, blended with those of the next one in the batch.

    Args:
        images: (B, 3, H, W).
        labels: (B,) class indices.
        weights: (B,) share of the image itself, in [0, 1].

    Returns:
        Images, and probabilities of the classes (B, n_classes).
    """
    targets = F.one_hot(labels, n_classes).to(images.dtype)
    column = weights.to(images.dtype)[:, None]
    return (
        images.roll(-1, 0).lerp(images, column[..., None, None]),
        targets.roll(-1, 0).lerp(targets, column),
    )
