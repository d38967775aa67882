"""Maps that know nothing of the model: what a method must beat."""

import torch
from torch import Tensor
from torch.nn import functional as F

from viscoin.attribution.question import Found, Question

WIDTH = 0.25  # standard deviation of the blob in the middle, of the image's side


def random(question: Question) -> Found:
    """Uniform noise in [0, 1) by pixel, of the seed and the image's index."""
    draws = [question.generator(row, 0).random(tuple(question.size), "float32") for row in range(len(question.images))]
    return Found(torch.stack([torch.from_numpy(one) for one in draws]).to(question.images.device))


def centre(question: Question) -> Found:
    """A Gaussian blob in the middle, its peak 1."""
    height, width = question.size
    y, x = (torch.linspace(-1, 1, length, device=question.images.device) / (2 * WIDTH) for length in (height, width))
    blob = torch.exp(-(y[:, None] ** 2 + x**2) / 2)
    return Found(blob.expand(len(question.images), -1, -1).clone())


def edges(question: Question) -> Found:
    """Length of the image's gradient in brightness, by central differences."""
    grey = question.images.mean(1, keepdim=True)
    return Found((_difference(grey, 2) ** 2 + _difference(grey, 3) ** 2).sqrt()[:, 0])


def _difference(grey: Tensor, axis: int) -> Tensor:
    """Half the difference of both neighbours; at the border, the outermost pixels go on."""
    padded = F.pad(grey, (1, 1, 0, 0) if axis == 3 else (0, 0, 1, 1), mode="replicate")
    length = grey.shape[axis]
    return (padded.narrow(axis, 2, length) - padded.narrow(axis, 0, length)) / 2
