"""The hard concrete distribution: gates in [0, 1] that are 0 with a probability, and have gradients all the same."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class HardConcrete:
    """A binary concrete variable (Maddison et al. 2017), stretched to [low, high] and cut to [0, 1].

    Louizos et al. 2018, Eqs. 10-12 (there: 2/3, -0.1, 1.1). The defaults are those of DiffMask, where a gate is never
    exactly 1. Everything is elementwise: `logits` v say how open a gate is, of any shape.
    """

    temperature: float = 0.2
    low: float = -0.2
    high: float = 1.0

    def concrete(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Samples s in [0, 1] before stretching, of uniform numbers in [0, 1)."""
        return torch.sigmoid((logits + torch.log(uniforms) - torch.log1p(-uniforms)) / self.temperature)

    def gate(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Samples z in [0, 1] of uniform numbers in [0, 1)."""
        return (self.low + (self.high - self.low) * self.concrete(logits, uniforms)).clamp(0, 1)

    def log_prob(self, logits: Tensor, values: Tensor) -> Tensor:
        """Log density of s in (0, 1) before stretching."""
        x = self.temperature * torch.logit(values) - logits
        return math.log(self.temperature) + F.logsigmoid(x) + F.logsigmoid(-x) - torch.log(values * (1 - values))

    def cdf(self, logits: Tensor, values: Tensor) -> Tensor:
        """P(s <= values) before stretching."""
        return torch.sigmoid(self.temperature * torch.logit(values) - logits)

    def log_open(self, logits: Tensor) -> Tensor:
        """log P(z > 0)."""
        return F.logsigmoid(logits - self.temperature * math.log(-self.low / self.high))

    def one(self, logits: Tensor) -> Tensor:
        """P(z = 1)."""
        if self.high <= 1:
            return torch.zeros_like(logits)
        return torch.sigmoid(logits - self.temperature * math.log((1 - self.low) / (self.high - 1)))
