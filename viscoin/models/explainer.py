"""The explainer Theta (Parekh et al. 2025, Sec. 3.2)."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as normalise_weight


class Explainer(nn.Module):
    """Concept maps -> logits of g: dropout, max-pool to one activation per concept, one linear layer.

    Args:
        n_concepts: K.
        n_classes: number of logits.
        dropout: share of concept map entries dropped in training.
        weight_norm: learn direction and length of each class's weights apart (Salimans & Kingma, arXiv 1602.07868).
    """

    def __init__(self, n_concepts: int, n_classes: int, dropout: float = 0.01, weight_norm: bool = False) -> None:
        super().__init__()
        self.n_concepts, self.n_classes, self.weight_norm = n_concepts, n_classes, weight_norm
        self.dropout = nn.Dropout(dropout)
        linear = nn.Linear(n_concepts, n_classes)
        self.linear = normalise_weight(linear) if weight_norm else linear

    def forward(self, concept_maps: Tensor) -> Tensor:
        """Concept maps (B, K, 3, 3) -> logits (B, n_classes)."""
        return self.linear(activations(self.dropout(concept_maps)))

    @property
    def weight(self) -> Tensor:
        """Effective weights (n_classes, K)."""
        return self.linear.weight


def activations(concept_maps: Tensor) -> Tensor:
    """Concept activations phi (B, K): the maximum of each concept map (B, K, 3, 3)."""
    return concept_maps.amax((2, 3))
