"""Fixed linear maps to uncorrelated numbers: what Omega reads, and a support that needs no training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-8


class SecondMoment(nn.Module):
    """Rows (B, N) scaled to unit second moment (StyleGAN's normalisation of latents), float32."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


class Scaled(nn.Module):
    """Rows (B, N) divided by one fixed number, the root mean square of those it was fitted on; float32."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        self.scale.copy_(rows.square().mean().sqrt().clamp_min(EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / self.scale


class Whitening(nn.Module):
    """Rows (B, N) -> their leading principal components (B, rank), each of about unit variance; float32.

    Args:
        width: N.
        rank: number of components.
        floor: added to the variance of each component, as a share of the mean variance: noise is not blown up.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, width: int, rank: int, floor: float) -> None:
        super().__init__()
        if rank > width:
            raise ValueError(f"{rank} components of {width} numbers; choose at most {width}")
        self.floor = floor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.eye(width, rank))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> float:
        """Take mean and components from rows (M, N); returns the share of the variance that is kept."""
        centred = rows - rows.mean(0)
        values, vectors = torch.linalg.eigh((centred.T @ centred / len(rows)).double())
        rank = self.components.shape[1]
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)[:, :rank]
        self.mean.copy_(rows.mean(0))
        self.components.copy_(vectors / (values[:rank] + self.floor * values.mean() + EPSILON).sqrt())
        return float(values[:rank].sum() / values.sum().clamp_min(EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) @ self.components


class PooledComponents(nn.Module):
    """Feature maps of f -> whitened principal components (B, rank) of all of them, pooled to one small grid.

    Each map is divided by its total spread first, so that none of them rules.

    Args:
        feature_shapes: (C, H, W) of the maps.
        grid: side that they are averaged to.
        rank: number of components.
    """

    spread: Tensor

    def __init__(self, feature_shapes: Sequence[tuple[int, int, int]], grid: int, rank: int) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("spread", torch.ones(len(feature_shapes)))
        self.whitening = Whitening(grid**2 * sum(shape[0] for shape in feature_shapes), rank, floor=0.1)

    @torch.no_grad()
    def fit(self, pooled: Sequence[Tensor]) -> float:
        """Fit to averaged maps (M, C_i grid^2) of many images; returns the share of the variance that is kept."""
        self.spread.copy_(torch.stack([part.std(0).square().sum().sqrt().clamp_min(EPSILON) for part in pooled]))
        return self.whitening.fit(self._joined(pooled))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        with torch.autocast(maps[0].device.type, enabled=False):  # components of small variance would be noise
            return self.of_pooled([F.adaptive_avg_pool2d(part.float(), self.grid).flatten(1) for part in maps])

    def of_pooled(self, pooled: Sequence[Tensor]) -> Tensor:
        """Components (B, rank) of maps (B, C_i, grid, grid) that are averaged and flattened already."""
        return self.whitening(self._joined(pooled))

    def _joined(self, pooled: Sequence[Tensor]) -> Tensor:
        return torch.cat([part / spread for part, spread in zip(pooled, self.spread, strict=True)], 1)
