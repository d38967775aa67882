"""The explainer Theta (Parekh et al. 2025, Sec. 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as normalise_weight

NEVER = -1e4  # logit of a class that g does not know: its probability is 0 in every precision, and it is finite in all


class Explainer(nn.Module):
    """Concept maps -> logits of g: dropout, max-pool to one activation per concept, one linear layer.

    Args:
        n_concepts: K.
        n_classes: number of logits, those of f.
        dropout: share of concept map entries dropped in training.
        weight_norm: learn direction and length of each class's weights apart (Salimans & Kingma, arXiv 1602.07868).
        chosen: the classes of f that g knows, ascending; the logits of others are -10,000. None: all.
    """

    chosen: Tensor | None

    def __init__(
        self,
        n_concepts: int,
        n_classes: int,
        dropout: float = 0.01,
        weight_norm: bool = False,
        chosen: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.n_concepts, self.n_classes, self.weight_norm = n_concepts, n_classes, weight_norm
        self.register_buffer("chosen", None if chosen is None else torch.tensor(chosen), persistent=False)
        self.dropout = nn.Dropout(dropout)
        linear = nn.Linear(n_concepts, n_classes if chosen is None else len(chosen))
        self.linear = normalise_weight(linear) if weight_norm else linear

    def forward(self, concept_maps: Tensor) -> Tensor:
        """Concept maps (B, K, 3, 3) -> logits (B, n_classes)."""
        logits = self.linear(activations(self.dropout(concept_maps)))
        return logits if self.chosen is None else self._spread(logits.T, NEVER).T

    @property
    def weight(self) -> Tensor:
        """Effective weights (n_classes, K); 0 for classes that g does not know."""
        return self._spread(self.linear.weight, 0)

    @property
    def bias(self) -> Tensor:
        """(n_classes,), with `NEVER` for classes that g does not know."""
        return self._spread(self.linear.bias, NEVER)

    def known(self, logits: Tensor) -> Tensor:
        """Logits of f (B, n_classes) -> those of the classes that g knows, (B, m)."""
        return logits if self.chosen is None else logits[:, self.chosen]

    def _spread(self, rows: Tensor, other: float) -> Tensor:
        """Rows of the classes that g knows among those of all classes, (m, ...) -> (n_classes, ...)."""
        if self.chosen is None:
            return rows
        return rows.new_full((self.n_classes, *rows.shape[1:]), other).index_copy(0, self.chosen, rows)


def activations(concept_maps: Tensor) -> Tensor:
    """Concept activations phi (B, K): the maximum of each concept map (B, K, 3, 3)."""
    return concept_maps.amax((2, 3))
