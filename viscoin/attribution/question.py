"""What a method is asked: the images, which score of each, and with what the image is compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.attribution.explained import blurred
from viscoin.attribution.targets import Target
from viscoin.models.layers import backbone_of

BASELINES = ("blur", "grey", "noise")


class DoesNotHold(Exception):
    """A method has no meaning for a model; says why."""


@dataclass
class Passes:
    """Images that went through the model, forwards and back."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True)
class Found:
    """What a method answers: maps (B, h, w), and where it has them its `AttributionResult.gap` and steps, both (B,)."""

    native: Tensor
    gap: Tensor | None = None
    steps: Tensor | None = None


@dataclass(frozen=True)
class Question:
    """B images and one score of each; methods run the model through this alone.

    Attributes:
        target: of a twin of the model, which methods may hook and switch as they like.
        images: (B, 3, H, W) in [-1, 1], on the device of the model.
        targets: (B,) index of the explained score.
        against: (B,) index of the score that is subtracted from it, or None.
        indices: of the images, which stand for them in seeds.
        baseline: "blur", "grey", "noise", or images (B, 3, H, W).
        layer: path of a module of the backbone, "all", or None for the default and for methods without.
        options: all options of the method.
    """

    target: Target
    images: Tensor
    targets: Tensor
    against: Tensor | None
    indices: Sequence[int]
    seed: int
    batch_size: int
    baseline: Tensor | str
    layer: str | None
    options: Mapping[str, Any]
    passes: Passes = field(default_factory=Passes)

    @property
    def size(self) -> torch.Size:
        """(H, W)."""
        return self.images.shape[-2:]

    @property
    def backbone(self) -> nn.Module:
        return backbone_of(self.target.classifier)

    @property
    def every(self) -> Tensor:
        """Rows of all images."""
        return torch.arange(len(self.images), device=self.images.device)

    def score(self, images: Tensor, rows: Tensor) -> Tensor:
        """The explained score (N,) of other images (N, 3, H, W), each that of the given row (N,) of the question."""
        self.passes.forwards += len(images)
        return self.chosen(self.target.scores(images), rows)

    def chosen(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Of all scores (N, S) the explained one of each row."""
        found = scores.gather(1, self.targets[rows, None])[:, 0]
        return found if self.against is None else found - scores.gather(1, self.against[rows, None])[:, 0]

    def gradient(self, images: Tensor, rows: Tensor) -> Tensor:
        """d score / d images, (N, 3, H, W), for images (N, 3, H, W)."""
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            score = self.score(images, rows)
        return self.derivative(score, images)

    def derivative(self, score: Tensor, by: Tensor) -> Tensor:
        """d score / d by for scores (N,), of which each depends on its own row of `by`."""
        self.passes.backwards += len(score)
        (found,) = torch.autograd.grad(score.sum(), by, materialize_grads=True)
        return found

    def start(self) -> Tensor:
        """The images (B, 3, H, W) that show nothing, of the chosen kind."""
        if isinstance(self.baseline, Tensor):
            return self.baseline
        if self.baseline == "grey":
            return torch.zeros_like(self.images)
        return blurred(self.images) if self.baseline == "blur" else self.drawn(_uniform, self.every, [0])[:, 0]

    def samples(self, n: int) -> Iterator[tuple[Tensor, range]]:
        """Rows and numbers of samples, n for each image, in parts of at most `batch_size` together.

        Each part is of one image, or holds all n of several.
        """
        together = self.batch_size // n
        if together:
            for rows in self.every.split(together):
                yield rows, range(n)
            return
        for row, start in product(self.every, range(0, n, self.batch_size)):
            yield row[None], range(start, min(start + self.batch_size, n))

    def drawn(self, draw: Callable[..., np.ndarray], rows: Tensor, samples: Sequence[int]) -> Tensor:
        """Random images (rows, samples, 3, H, W) that depend on seed, index of the image and sample alone."""
        shape = tuple(self.images.shape[1:])
        made = [[draw(self.generator(int(row), sample), shape) for sample in samples] for row in rows]
        return torch.from_numpy(np.array(made, np.float32)).to(self.images.device)

    def noise(self, rows: Tensor, samples: Sequence[int]) -> Tensor:
        """Normal, of standard deviation 1, (rows, samples, 3, H, W)."""
        return self.drawn(_normal, rows, samples)

    def generator(self, row: int, sample: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.indices[row], sample])


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_normal(shape, np.float32)


def _uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.uniform(-1, 1, shape)


def parts(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items and the rest."""
    while part := list(islice(items, size)):
        yield part
