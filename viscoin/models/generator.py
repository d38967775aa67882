"""The concept translator Omega and the pretrained generator that it drives (Parekh et al. 2025, Sec. 3.3)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_ada.networks import FullyConnected, Generator, Synthesis
from viscoin.models.concept_extractor import CONCEPT_GRID
from viscoin.models.directions import ConceptDirections
from viscoin.models.explainer import activations
from viscoin.models.whitening import Scaled, SecondMoment, Whitening


class ConceptTranslator(nn.Module):
    """Omega: concept maps and support -> style vectors w+, one fully-connected layer for each style.

    Styles i with i < coarse_layer or i > mid_layer come from the support, the rest from the concept maps; all are
    offsets from the generator's mean style. As published, inputs are scaled to unit second moment in each image and
    layers end in a leaky ReLU.

    Args:
        n_concepts: K.
        num_ws, w_dim: number and width of the style vectors.
        coarse_layer, mid_layer: first and last style that concepts control.
        support_width: S; 9K by default.
        linear: no activation after the layers, so that what concepts add to styles is the sum of what each adds.
        inputs: "second_moment" as published, "scaled" by one fixed number, or "whitened": concept maps by `rank` of
            their principal components (support by a fixed number, as its components are whitened already).
        rank: number of these components.

    Raises:
        ValueError: the range of concept styles is empty, so that concepts would change nothing.
    """

    fixed_w_avg: Tensor

    def __init__(
        self,
        n_concepts: int,
        num_ws: int,
        w_dim: int,
        coarse_layer: int,
        mid_layer: int,
        support_width: int | None = None,
        linear: bool = False,
        inputs: str = "second_moment",
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.concept_styles = range(num_ws)[coarse_layer : mid_layer + 1]
        if not self.concept_styles:
            raise ValueError(
                f"viscoin.coarse_layer ({coarse_layer}) and viscoin.mid_layer ({mid_layer}) leave concepts none of "
                f"the generator's {num_ws} styles; choose 0 <= coarse_layer <= mid_layer, coarse_layer < {num_ws}"
            )
        self.num_ws, self.coarse_layer, self.mid_layer, self.linear = num_ws, coarse_layer, mid_layer, linear
        width = n_concepts * CONCEPT_GRID**2
        self.concept_input: nn.Module
        self.support_input: nn.Module
        read = width
        if inputs == "whitened":
            read = min(rank or width, width)
            self.concept_input, self.support_input = Whitening(width, read, floor=0.02), Scaled()
        else:
            kind = Scaled if inputs == "scaled" else SecondMoment
            self.concept_input, self.support_input = kind(), kind()
        for i in range(num_ws):
            n = read if i in self.concept_styles else support_width or width
            self.add_module(f"s{i}", nn.Sequential(_layer(n, w_dim, linear)))
        self.register_buffer("fixed_w_avg", torch.zeros(w_dim))

    def forward(self, concept_maps: Tensor, support: Tensor) -> Tensor:
        """Concept maps (B, K, 3, 3) and support (B, S) -> style vectors (B, num_ws, w_dim), float32."""
        with torch.autocast(concept_maps.device.type, enabled=False):  # whitening loses too much in half precision
            concepts, support = self.concept_input(concept_maps.flatten(1)), self.support_input(support)
        styles = [
            self.get_submodule(f"s{i}")(concepts if i in self.concept_styles else support) for i in range(self.num_ws)
        ]
        return self.fixed_w_avg + torch.stack(styles, 1)


def _layer(width: int, w_dim: int, linear: bool) -> nn.Module:
    if linear:
        layer = nn.Linear(width, w_dim)
        nn.init.zeros_(layer.bias)
        return layer
    return FullyConnected(width, w_dim, activation="lrelu", lr_multiplier=0.01)


class AdaptedGenerator(nn.Module):
    """Omega (`mapping`, trained) in front of a synthesis network (`synthesis`, frozen at first, always in eval mode).

    Args:
        synthesis: keywords of `stylegan2_ada.networks.Synthesis`.
        n_concepts, coarse_layer, mid_layer, support_width, linear, inputs, rank: see `ConceptTranslator`.
        directions: draw changes of single concepts by directions as well.
    """

    def __init__(
        self,
        synthesis: Mapping[str, Any],
        n_concepts: int,
        coarse_layer: int,
        mid_layer: int,
        support_width: int | None = None,
        linear: bool = False,
        inputs: str = "second_moment",
        rank: int | None = None,
        directions: bool = False,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "synthesis": dict(synthesis),
            "coarse_layer": coarse_layer,
            "mid_layer": mid_layer,
            "linear": linear,
            "inputs": inputs,
            "rank": rank,
            "directions": directions,
        }
        self.img_resolution, self.img_channels = synthesis["img_resolution"], synthesis["img_channels"]
        self.synthesis = Synthesis(**synthesis).requires_grad_(False).eval()
        w_dim = synthesis["w_dim"]
        self.mapping = ConceptTranslator(
            n_concepts, self.synthesis.num_ws, w_dim, coarse_layer, mid_layer, support_width, linear, inputs, rank
        )
        styles = self.mapping.concept_styles
        self.directions = ConceptDirections(n_concepts, styles, w_dim) if directions else None

    @classmethod
    def from_pretrained(
        cls, generator: Generator, n_concepts: int, coarse_layer: int, mid_layer: int, **options: Any
    ) -> "AdaptedGenerator":
        """A fresh Omega around a copy of a generator's synthesis network, starting at its mean style.

        Args:
            options: the other arguments.

        Raises:
            ValueError: the generator's mean style is zero, as in one that was never trained.
        """
        mean_style = generator.mapping.get_buffer("w_avg")
        if not mean_style.any():
            raise ValueError(
                "the generator's mean style (mapping.w_avg) is zero, so reconstructions would start from nowhere; "
                "use a trained generator"
            )
        keys = ("w_dim", "img_resolution", "img_channels")
        synthesis = {key: generator.config[key] for key in keys} | generator.config["synthesis_kwargs"]
        adapted = cls(synthesis, n_concepts, coarse_layer, mid_layer, **options)
        adapted.synthesis.load_state_dict(generator.synthesis.state_dict())
        adapted.mapping.fixed_w_avg.copy_(mean_style)
        return adapted.to(mean_style.device)

    def forward(
        self, concept_maps: Tensor, support: Tensor, noise_mode: str = "const", original: Tensor | None = None
    ) -> Tensor:
        """Concept maps (B, K, 3, 3) and support (B, S) -> images (B, 3, H, W) around [-1, 1], not clamped.

        Args:
            original: concept maps before they were edited. Where there are directions, they draw the difference as
                well; without, Omega alone draws, as published.
        """
        return self.synthesis(self.styles(concept_maps, support, original), noise_mode=noise_mode)

    def styles(self, concept_maps: Tensor, support: Tensor, original: Tensor | None = None) -> Tensor:
        """The styles w+ (B, num_ws, w_dim) that the same arguments are drawn from."""
        ws = self.mapping(concept_maps, support)
        if original is not None and self.directions is not None:
            ws = self.directions(ws, activations(concept_maps) - activations(original))
        return ws

    def train(self, mode: bool = True) -> "AdaptedGenerator":
        """Switch Omega; the synthesis network stays in eval mode."""
        super().train(mode)
        self.synthesis.eval()
        return self
