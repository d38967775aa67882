"""The concept extractor Psi (Parekh et al. 2025, Sec. 3.2 and appendix)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viscoin.errors import Refused
from viscoin.models.whitening import PooledComponents

CONCEPT_GRID = 3  # side of the concept maps
OPPOSITE = -0.999  # cosine of two directions that count as the signs of one


class ConceptExtractor(nn.Module):
    """Three feature maps of f -> concept maps Phi and support Phi'.

    One strided convolution each brings the maps to one grid: 5x5 stride 4, 3x3 stride 2 and 3x3 stride 1 for grids
    of 28, 14 and 7; other strides follow from other shapes, 1 everywhere for the equal maps of a transformer.

    Args:
        feature_shapes: (C, H, W) of the three maps, from fine to coarse.
        n_concepts: K.
        latent_channels: channels of each map on the common grid.
        support_width: S, numbers of the support; by default 9K as published, whose layers then grow with K^2.
        support: how the support is read: "learned" by two layers from the latent as published, "components",
            whitened principal components of the maps, which need no training, or "none", for want of a generator.
    """

    def __init__(
        self,
        feature_shapes: Sequence[tuple[int, int, int]],
        n_concepts: int,
        latent_channels: int,
        support_width: int | None = None,
        support: str = "learned",
    ) -> None:
        super().__init__()
        if len(feature_shapes) != 3:
            raise ValueError(f"Psi takes three feature maps, not {len(feature_shapes)}")
        self.n_concepts, self.latent_channels = n_concepts, latent_channels
        self.grid = max(CONCEPT_GRID, min(min(height, width) for _, height, width in feature_shapes))
        self.conv1, self.conv2, self.conv3 = (self._to_grid(*shape) for shape in feature_shapes)
        self.conv4 = nn.Conv2d(3 * latent_channels, 3 * latent_channels, 3, padding=1)
        self.conv5 = nn.Conv2d(3 * latent_channels, n_concepts, 1)
        self.support_kind = support
        self.support_width = 0 if support == "none" else support_width or n_concepts * CONCEPT_GRID**2
        self.components = None
        if support == "none":
            return
        if support == "components":
            self.components = PooledComponents(feature_shapes, CONCEPT_GRID, self.support_width)
        else:
            self.linear1 = nn.Linear(3 * latent_channels * CONCEPT_GRID**2, self.support_width)
            self.linear2 = nn.Linear(self.support_width, self.support_width, bias=False)

    def forward(self, maps: Sequence[Tensor], supported: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, C_i, H_i, W_i) -> concept maps (B, K, 3, 3) >= 0, support (B, S), and `latent`.

        Args:
            supported: number of leading images to give the support of; None for all.
        """
        latent = self.latent(maps)
        some = [part[:supported] for part in maps]
        return self.concept_maps(latent), self.support(some, latent[:supported]), latent

    def latent(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i) -> what concepts and support are both read from, (B, 3 latent_channels, H, W)."""
        x = [conv(part).relu() for conv, part in zip((self.conv1, self.conv2, self.conv3), maps, strict=True)]
        # exact for grids that divide each other; pooling mends the others
        x = [part if part.shape[-1] == self.grid else F.adaptive_avg_pool2d(part, self.grid) for part in x]
        return self.conv4(torch.cat(x, 1)).relu()

    def concept_maps(self, latent: Tensor) -> Tensor:
        """Phi (B, K, 3, 3) >= 0."""
        return F.adaptive_avg_pool2d(self.places(latent), CONCEPT_GRID)

    def places(self, latent: Tensor) -> Tensor:
        """Concept maps on the grid on which they are computed, (B, K, H, W) >= 0."""
        return self.conv5(latent).relu()

    def support(self, maps: Sequence[Tensor], latent: Tensor) -> Tensor:
        """Phi' (B, S), which the generator alone needs; learned, it is >= 0."""
        if self.support_kind == "none":
            return latent.flatten(1)[:, :0]  # a number of images would be fixed in an ONNX file
        if self.components is not None:
            return self.components(maps)
        pooled = F.adaptive_avg_pool2d(latent, CONCEPT_GRID).flatten(1)
        return self.linear2(self.linear1(pooled).relu()).relu()

    @torch.no_grad()
    def start_from_channels(self, mixed: float = 0.02) -> None:
        """Initialise so that each concept reads one random channel of f, and little of any other.

        Channels of a trained f are closer to the causes of an image than random mixtures of them, which the usual
        initialisation makes and training hardly unmixes again. The support Phi' keeps its own.

        Args:
            mixed: what is left of the usual random weights.
        """
        for conv in (self.conv1, self.conv2, self.conv3):
            side = max(1, conv.stride[0] // 2)  # the box in the middle of the kernel that is averaged
            corner = conv.kernel_size[0] // 2
            box = slice(corner, corner + side)
            channels = torch.randperm(conv.in_channels)
            conv.weight *= mixed
            for out in range(conv.out_channels):
                conv.weight[out, channels[out % len(channels)], box, box] += 1 / side**2
        self.conv4.weight.mul_(mixed)[:, :, 1, 1] += torch.eye(self.conv4.out_channels)
        self.conv5.weight *= mixed
        concepts = torch.arange(self.n_concepts)
        self.conv5.weight[concepts, concepts % self.conv5.in_channels, 0, 0] += 1
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    @torch.no_grad()
    def start_from_directions(self, basis: Tensor, offset: Tensor, directions: Tensor, lift: float) -> None:
        """Initialise so that each concept reads one direction of the coarsest map of f, exactly, and no other.

        Scores of every place are map^T basis + offset. ReLUs on the way pass them on because they are lifted first.
        Concepts k and k + K/2 are the two signs of a direction. Other latents, which the support reads too, keep their
        weights, and so does the support.

        Args:
            basis: (C, d), d <= latent_channels; offset: (d,).
            directions: (d, k) with 2k = K, or one more where K is odd.
            lift: larger than what scores fall below zero; what lies below it is cut off.

        Raises:
            Refused: more dimensions than latent channels.
        """
        d, n = basis.shape[1], self.latent_channels
        if d > n:
            raise Refused("viscoin.latent_channels", n, f"the pursuit searches {d} dimensions", f"choose {d} or more")
        own = slice(2 * n, 2 * n + d)
        middle = self.conv3.kernel_size[0] // 2
        self.conv3.weight[:d] = 0
        self.conv3.weight[:d, :, middle, middle] = basis.T
        self._bias(self.conv3)[:d] = offset + lift
        self.conv4.weight[own] = 0
        self.conv4.weight[own, own, 1, 1] = torch.eye(d)
        self._bias(self.conv4)[own] = 0
        signed = torch.cat([directions, -directions], 1)[:, : self.n_concepts]
        self.conv5.weight.zero_()
        self.conv5.weight[:, own, 0, 0] = signed.T
        self._bias(self.conv5)[:] = -lift * signed.sum(0)

    def concept_path(self, d: int) -> list[tuple[Tensor, slice]]:
        """The parameters that concepts depend on after `start_from_directions` of d dimensions, with their rows."""
        first, own = slice(0, d), slice(2 * self.latent_channels, 2 * self.latent_channels + d)
        parts = ((self.conv3, first), (self.conv4, own), (self.conv5, slice(None)))
        return [(weight, rows) for conv, rows in parts for weight in (conv.weight, self._bias(conv))]

    def opposites(self) -> list[int | None]:
        """For each concept the one that reads the other sign of the same direction, as after `start_from_directions`.

        Both are never there together at one place: turning one on means turning the other off.
        """
        rows = self.conv5.weight.detach().flatten(1)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        values, columns = (rows @ rows.T).min(1)
        return [int(j) if value < OPPOSITE else None for value, j in zip(values, columns, strict=True)]

    @staticmethod
    def _bias(conv: nn.Conv2d) -> Tensor:
        if conv.bias is None:
            raise TypeError("convolutions of Psi have a bias")
        return conv.bias

    def _to_grid(self, channels: int, height: int, width: int) -> nn.Conv2d:
        stride = max(1, min(height, width) // self.grid)
        kernel = max(3, 2 * (stride // 2) + 1)
        return nn.Conv2d(channels, self.latent_channels, kernel, stride, padding=kernel // 2)
