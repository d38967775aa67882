"""The concept translator Omega and the pretrained generator that it drives (Parekh et al. 2025, Sec. 3.3)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_ada.networks import FullyConnected, Generator, Synthesis
from viscoin.models.concept_extractor import CONCEPT_GRID

SECOND_MOMENT_EPSILON = 1e-8


class ConceptTranslator(nn.Module):
    """Omega: concept maps and support -> style vectors w+, one fully-connected layer for each style.

    Styles i with i < coarse_layer or i > mid_layer come from the support, the rest from the concept maps; all are
    offsets from the generator's mean style.

    Args:
        n_concepts: K.
        num_ws, w_dim: number and width of the style vectors.
        coarse_layer, mid_layer: first and last style that concepts control.
        support_width: S; 9K by default.

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
    ) -> None:
        super().__init__()
        self.concept_styles = range(num_ws)[coarse_layer : mid_layer + 1]
        if not self.concept_styles:
            raise ValueError(
                f"viscoin.coarse_layer ({coarse_layer}) and viscoin.mid_layer ({mid_layer}) leave concepts none of "
                f"the generator's {num_ws} styles; choose 0 <= coarse_layer <= mid_layer, coarse_layer < {num_ws}"
            )
        self.num_ws, self.coarse_layer, self.mid_layer = num_ws, coarse_layer, mid_layer
        concepts = n_concepts * CONCEPT_GRID**2
        for i in range(num_ws):
            width = concepts if i in self.concept_styles else support_width or concepts
            layer = FullyConnected(width, w_dim, activation="lrelu", lr_multiplier=0.01)
            self.add_module(f"s{i}", nn.Sequential(layer))
        self.register_buffer("fixed_w_avg", torch.zeros(w_dim))

    def forward(self, concept_maps: Tensor, support: Tensor) -> Tensor:
        """Concept maps (B, K, 3, 3) and support (B, S) -> style vectors (B, num_ws, w_dim), float32."""
        concepts, support = _normalised(concept_maps.flatten(1)), _normalised(support)
        styles = [
            self.get_submodule(f"s{i}")(concepts if i in self.concept_styles else support) for i in range(self.num_ws)
        ]
        return self.fixed_w_avg + torch.stack(styles, 1)


class AdaptedGenerator(nn.Module):
    """Omega (`mapping`, trained) in front of a synthesis network (`synthesis`, always frozen and in eval mode).

    Args:
        synthesis: keywords of `stylegan2_ada.networks.Synthesis`.
        n_concepts, coarse_layer, mid_layer, support_width: see `ConceptTranslator`.
    """

    def __init__(
        self,
        synthesis: Mapping[str, Any],
        n_concepts: int,
        coarse_layer: int,
        mid_layer: int,
        support_width: int | None = None,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "synthesis": dict(synthesis),
            "coarse_layer": coarse_layer,
            "mid_layer": mid_layer,
        }
        self.img_resolution, self.img_channels = synthesis["img_resolution"], synthesis["img_channels"]
        self.synthesis = Synthesis(**synthesis).requires_grad_(False).eval()
        self.mapping = ConceptTranslator(
            n_concepts, self.synthesis.num_ws, synthesis["w_dim"], coarse_layer, mid_layer, support_width
        )

    @classmethod
    def from_pretrained(
        cls,
        generator: Generator,
        n_concepts: int,
        coarse_layer: int,
        mid_layer: int,
        support_width: int | None = None,
    ) -> "AdaptedGenerator":
        """A fresh Omega around a copy of a generator's synthesis network, starting at its mean style.

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
        adapted = cls(synthesis, n_concepts, coarse_layer, mid_layer, support_width)
        adapted.synthesis.load_state_dict(generator.synthesis.state_dict())
        adapted.mapping.fixed_w_avg.copy_(mean_style)
        return adapted.to(mean_style.device)

    def forward(self, concept_maps: Tensor, support: Tensor, noise_mode: str = "const") -> Tensor:
        """Concept maps (B, K, 3, 3) and support (B, S) -> images (B, 3, H, W) around [-1, 1], not clamped."""
        return self.synthesis(self.mapping(concept_maps, support), noise_mode=noise_mode)

    def train(self, mode: bool = True) -> "AdaptedGenerator":
        """Switch Omega; the synthesis network stays in eval mode."""
        super().train(mode)
        self.synthesis.eval()
        return self


def _normalised(x: Tensor) -> Tensor:
    """Rows (B, N) scaled to unit second moment (StyleGAN's normalisation of latents), float32."""
    x = x.float()
    return x * (x.square().mean(1, keepdim=True) + SECOND_MOMENT_EPSILON).rsqrt()
