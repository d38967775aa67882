"""Maps that only concepts of an ensemble have: their own grid, and what their amplification changes."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from viscoin.attribution.explained import SMOOTHING, Explained
from viscoin.attribution.targets import ConceptActivation
from viscoin.errors import Refused
from viscoin.models.ensemble import Encoding, VisCoIN, amplify

FACTOR = 2.0  # of the amplification whose change is shown
BATCH = 64


def activation_grid(explained: Explained) -> Tensor:
    """The 3x3 concept map of which phi_k is the maximum, each cell a ninth of the image.

    A cell sees more than its ninth, up to the whole image, so its place need not be that of the cause.
    """
    _, code = concepts_of(explained)
    maps = code.concept_maps.detach()
    index = explained.chosen[..., None, None].expand(-1, -1, *maps.shape[2:])
    return F.interpolate(maps.gather(1, index), explained.size, mode="nearest")


def amplification_change(explained: Explained) -> Tensor:
    """|difference| of the images generated with phi_k amplified and as it is, smoothed over pixels."""
    ensemble, code = concepts_of(explained)
    batch, count = explained.chosen.shape
    selection = F.one_hot(explained.chosen.flatten(), ensemble.n_concepts).bool()
    rows = torch.arange(batch, device=selection.device).repeat_interleave(count)
    changes = []
    with torch.inference_mode():
        for some, chosen in zip(rows.split(BATCH), selection.split(BATCH), strict=True):
            part = code._replace(concept_maps=code.concept_maps[some], support=code.support[some])
            before, after = (
                ensemble.edit(part, amplify(part.concept_maps, chosen, factor)).float().clamp(-1, 1)
                for factor in (1.0, FACTOR)
            )
            changes.append((after - before).abs().mean(1) / 2)
    sigma = SMOOTHING * explained.size[0]
    smooth = gaussian_filter(torch.cat(changes).cpu().numpy(), (0, sigma, sigma), mode="nearest")
    return torch.from_numpy(np.asarray(smooth, np.float32)).unflatten(0, (batch, count)).to(explained.images.device)


def concepts_of(explained: Explained) -> tuple[VisCoIN, Encoding]:
    """The ensemble whose concepts are looked at, and its encoding of the images; Refused for other targets."""
    target, code = explained.target, explained.observed.code
    if not isinstance(target, ConceptActivation) or code is None:
        raise Refused("method", None, "grid and change are maps of concepts", "choose another for logits")
    return target.ensemble, code
