"""Figures that several commands and reports show: samples of G, and reconstructions."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from stylegan2_ada.networks import Generator
from viscoin.datasets import ImageDataset, to_pixels
from viscoin.inference.batches import choose_images, evaluation
from viscoin.inference.loading import SubjectWithImages, choose_indices
from viscoin.models.ensemble import VisCoIN
from viscoin.plotting import evaluation as plots
from viscoin.plotting.data import real_and_generated, reconstructions
from viscoin.plotting.drawing import drawing_figures
from viscoin.plotting.truth import truth_figures
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.gan import GanMeasures, samples
from viscoin.testing.viscoin import ViscoinMeasures

SHOWN = 12  # images in figures of reconstructions and samples


def draw_samples(generator: Generator, images: ImageDataset, count: int, seed: int) -> Figure:
    """Random real images beside the same number of samples of a generator."""
    device = next(generator.parameters()).device
    real = images.pixels[choose_images(len(images), count, seed)]
    with evaluation(generator, device):
        drawn = np.concatenate([to_pixels(part) for part in samples(generator, images, len(real), seed, device, 64)])
    return real_and_generated(real, drawn)


def draw_reconstructions(
    ensemble: VisCoIN, images: ImageDataset, indices: Sequence[int], device: torch.device
) -> Figure:
    """Images above their reconstructions."""
    batch, _ = images.batch(indices)
    with evaluation(ensemble, device):
        code = ensemble.encode(batch.to(device))
        rebuilt = to_pixels(ensemble.decode(code.concept_maps, code.support))
    return reconstructions(images.pixels[np.asarray(indices)], rebuilt)


def ensemble_figures(
    subject: SubjectWithImages, result: ViscoinMeasures, estimates: Mapping[str, Estimate], seed: int
) -> dict[str, Figure]:
    """By name, the figures of the measures that were taken of an ensemble."""
    tested, shown = result.ensemble, choose_indices(subject.images, None, SHOWN, seed)
    figures = {}
    if "accuracy" in result.wanted:
        figures["accuracy"] = plots.accuracy_figure(result.to_dict(), estimates)
        if tested.labelled:
            figures["confusion"] = plots.confusion_figure(tested.confusion, tested.class_names)
    if "reconstruction" in result.wanted:
        figures["reconstructions"] = draw_reconstructions(subject.model, subject.images, shown, subject.device)
    if "faithfulness" in result.wanted:
        figures["faithfulness"] = plots.faithfulness_figure(tested.faithfulness)
    if "kept" in result.wanted:
        figures["kept-concepts"] = plots.kept_concepts_figure(tested.sufficiency, estimates)
    if result.consistency is not None:
        figures["consistency"] = plots.consistency_figure(result.consistency)
    if result.truth is not None:
        figures |= truth_figures(result.truth)
    if result.drawing is not None:
        figures |= drawing_figures(estimates)
    return figures


def gan_figures(subject: SubjectWithImages, result: GanMeasures, features: str, seed: int) -> dict[str, Figure]:
    """By name: samples beside real images, and both in the plane of the features' main axes where these are known."""
    figures = {"samples": draw_samples(subject.model, subject.images, 3 * SHOWN, seed)}
    if result.plane is not None:
        figures["features"] = plots.feature_plane_figure(*result.plane, features, result.values)
    return figures
