"""What a page about a concept shows: the images that activate it most, where it fires, and its amplification."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from stylegan2_ada.together import collect, own
from viscoin.analysis.amplification import FACTORS, AmplificationResult, amplify_images
from viscoin.analysis.concepts import ConceptTable
from viscoin.attribution.heatmaps import concept_heatmaps
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import progress
from viscoin.models.ensemble import VisCoIN

CROP = 0.4  # side of a crop as a share of the image's
STRIPS_AT_ONCE = 32


@dataclass(frozen=True)
class Example:
    """An image that activates a concept: its row in the table, how much, and the (x, y, side) in pixels of its crop."""

    row: int
    activation: float
    crop: tuple[int, int, int]


@dataclass(frozen=True)
class ConceptView:
    """Pictures of one concept.

    Attributes:
        concept: its index.
        examples: images that activate it, the strongest first.
        factors: (F,) multipliers of the strip; none, and no strip, without a generator.
        strip: (F, H, W, 3) uint8, the strongest example generated with the concept multiplied by each factor.
        change: (H, W) in [0, 1], how far the last factor is from the reconstruction; 1 is black against white.
        predicted: class that g predicts for that example.
        f_probability, g_probability: (F,) of that class, for the generated images.
    """

    concept: int
    examples: list[Example]
    factors: np.ndarray
    strip: np.ndarray
    change: np.ndarray
    predicted: int
    f_probability: np.ndarray
    g_probability: np.ndarray


def view_concepts(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    table: ConceptTable,
    concepts: Sequence[int] | np.ndarray,
    examples: int = 8,
    factors: Sequence[float] = FACTORS,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> dict[int, ConceptView]:
    """Pictures of the given concepts by their index; each must be active in some image.

    A crop is the window that holds most of the concept's heatmap.

    Raises:
        ValueError: a concept is never active.
    """
    asleep = [int(k) for k in concepts if table.dead[k]]
    if asleep:
        raise ValueError(f"concepts {', '.join(map(str, asleep))} are active in no image; nothing can be shown of them")

    def viewed(start: int) -> list[ConceptView]:
        chosen = [int(k) for k in concepts[start : start + STRIPS_AT_ONCE]]
        shown = examples_of(ensemble, dataset, table, chosen, examples, device, batch_size)
        bar.update(len(chosen))
        if not ensemble.draws:
            return [_undrawn(k, shown[k], dataset, table) for k in chosen]
        best = table.indices[[shown[k][0].row for k in chosen]]
        selection = F.one_hot(torch.tensor(chosen), table.activations.shape[1]).bool()
        strips = amplify_images(ensemble, dataset.batch(best)[0], selection, factors, device, batch_size)
        return [_view(k, shown[k], strips, place) for place, k in enumerate(chosen)]

    starts = own(range(0, len(concepts), STRIPS_AT_ONCE))
    with progress(sum(len(concepts[start : start + STRIPS_AT_ONCE]) for start in starts), "pages", "concept") as bar:
        return {view.concept: view for views in collect(map(viewed, starts)) for view in views}


def examples_of(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    table: ConceptTable,
    concepts: Sequence[int],
    count: int = 8,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> dict[int, list[Example]]:
    """The images that activate each concept most, the strongest first, with where it fires; none for dead ones.

    A crop is the window that holds most of the concept's heatmap.
    """
    alive = [k for k in concepts if not table.dead[k]]
    found = [_most_activating(table, dataset, k, count) for k in alive]
    crops = iter(_crops(ensemble, dataset, table, alive, found, device, batch_size) if alive else ())
    shown = {
        k: [Example(int(row), float(table.activations[row, k]), next(crops)) for row in rows]
        for k, rows in zip(alive, found, strict=True)
    }
    return {k: shown.get(k, []) for k in concepts}


def _most_activating(table: ConceptTable, dataset: ImageDataset, concept: int, count: int) -> np.ndarray:
    """Rows of the images that activate a concept most; fewer where fewer do, and no copies of one image."""
    column = table.activations[:, concept]
    rows: dict[bytes, int] = {}
    for row in np.argsort(-column, kind="stable"):
        if len(rows) == count or not column[row] > 0:
            break
        rows.setdefault(dataset.pixels[table.indices[row]].tobytes(), int(row))
    return np.array(list(rows.values()), dtype=int)


def _crops(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    table: ConceptTable,
    concepts: Sequence[int],
    found: Sequence[np.ndarray],
    device: torch.device | str,
    batch_size: int,
) -> list[tuple[int, int, int]]:
    images = table.indices[np.concatenate(found)]
    each = torch.tensor(concepts).repeat_interleave(torch.tensor([len(rows) for rows in found]))[:, None]
    side = max(1, round(CROP * dataset.resolution))
    places: list[int] = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        result = concept_heatmaps(ensemble, dataset.batch(images[part])[0], each[part], device=device)
        mass = F.avg_pool2d(torch.from_numpy(result.heatmaps), side, stride=1)
        places += mass.flatten(1).argmax(1).tolist()
    steps = dataset.resolution - side + 1
    return [(place % steps, place // steps, side) for place in places]


def _undrawn(concept: int, examples: list[Example], dataset: ImageDataset, table: ConceptTable) -> ConceptView:
    side, none = dataset.resolution, np.zeros(0)
    strip, change = np.zeros((0, side, side, 3), np.uint8), np.zeros((side, side))
    return ConceptView(concept, examples, none, strip, change, int(table.predicted[examples[0].row]), none, none)


def _view(concept: int, examples: list[Example], strips: AmplificationResult, row: int) -> ConceptView:
    return ConceptView(
        concept,
        examples,
        strips.factors,
        strips.images[row],
        strips.changes[row, -1],
        int(strips.predicted[row]),
        strips.f_probability[row],
        strips.g_probability[row],
    )
