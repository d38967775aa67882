"""Figures of the concepts of a dataset."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from viscoin.analysis.concepts import ConceptTable, cluster_order, concept_name
from viscoin.plotting.style import (
    BLUE,
    COLUMN,
    DARK,
    DIVERGING,
    GREY,
    LIGHT,
    LINE,
    ORANGE,
    PAGE,
    SKY,
    SMALL,
    middle_cut,
    new_figure,
    styled,
)

LONG_NAME = 44  # characters of class names beside a matrix


@styled
def activation_per_image(table: ConceptTable, width: float = COLUMN) -> Figure:
    """How many concepts an image activates, and how strongly: activations by their rank within the image."""
    figure = new_figure(width, 2.2)
    axes = figure.subplots()
    low, middle, high = table.activation_by_rank
    ranks = np.arange(1, len(middle) + 1)
    axes.fill_between(ranks, low, high, color=SKY, alpha=0.45, lw=0, label="10 to 90 % of images")
    axes.plot(ranks, middle, color=BLUE, label="median image")
    active = float(np.median(table.active_per_image))
    axes.axvline(active, color=GREY, ls="--", lw=0.8, label=f"{active:g} active concepts (median)")
    axes.set(xlabel="concepts of an image, strongest first", ylabel="activation", ylim=(0, None), xlim=(1, len(ranks)))
    axes.legend()
    return figure


@styled
def activation_per_concept(table: ConceptTable, width: float = COLUMN) -> Figure:
    """Mean activation of each concept, and in what share of the images it is active."""
    figure = new_figure(width, 2.9)
    above, below = figure.subplots(2, sharex=True)
    order = np.argsort(-table.mean_activation, kind="stable")
    ranks = np.arange(1, len(order) + 1)
    above.bar(ranks, table.mean_activation[order], width=1.0, color=BLUE)
    below.bar(ranks, table.active_share[order], width=1.0, color=ORANGE)
    above.set(ylabel="mean activation")
    below.set(ylabel="share of images\nwith activity", ylim=(0, 1), xlabel="concepts, strongest first")
    below.set_xlim(0.5, len(order) + 0.5)
    dead = int(table.dead.sum())
    above.set_title(f"{len(order)} concepts, {dead} never active")
    return figure


@styled
def concept_entropies(table: ConceptTable, width: float = COLUMN) -> Figure:
    """Are concepts of one class or of many? Entropy of their activation over the classes."""
    figure = new_figure(width, 2.0)
    axes = figure.subplots()
    values = table.entropy[~np.isnan(table.entropy)]
    axes.hist(values, bins=25, range=(0, 1), color=BLUE, ec="white", lw=0.5)
    axes.set(xlim=(0, 1), xlabel="entropy over classes / log(number of classes)", ylabel="concepts")
    axes.text(0, 1.02, "one class", transform=axes.transAxes, fontsize=SMALL, color=GREY, ha="left")
    axes.text(1, 1.02, "all classes alike", transform=axes.transAxes, fontsize=SMALL, color=GREY, ha="right")
    return figure


@styled
def class_concept_importance(
    table: ConceptTable,
    class_names: Sequence[str],
    concepts: int = 40,
    classes: int = 40,
    width: float = PAGE,
    names: Mapping[int, str] | None = None,
) -> Figure:
    """Mean relevance of the most important concepts for each class, as a matrix."""
    importance = table.class_concept_importance[:classes]
    shown = importance_order(importance, concepts)
    figure = new_figure(width, 1.0 + max(len(importance), 4) * LINE)
    axes = figure.subplots()
    axes.set_facecolor(LIGHT)
    picture = axes.imshow(importance[:, shown], cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(importance)), [middle_cut(name, LONG_NAME) for name in class_names[: len(importance)]])
    axes.set_xticks(range(len(shown)), [_short_name(k, names) for k in shown], rotation=90)
    axes.tick_params(length=0, labelsize=SMALL)
    if len(shown) > 24:
        axes.tick_params("x", labelsize=SMALL - 1.5)
    axes.set_xlabel(f"concept ({len(shown)} most important of {importance.shape[1]})")
    if len(class_names) > len(importance):
        axes.set_ylabel(f"class (the first {len(importance)} of {len(class_names)})")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, shrink=min(1.0, 9 / max(len(importance), 1)), pad=0.01, ticks=[-1, 0, 1])
    bar.set_label("mean relevance")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


@styled
def concept_class_importance(
    table: ConceptTable,
    class_names: Sequence[str],
    concepts: int = 20,
    width: float = PAGE,
    names: Mapping[int, str] | None = None,
) -> Figure:
    """Which classes the most important concepts speak for: the share of each concept's positive relevance."""
    shown = np.argsort(-table.importance, kind="stable")[:concepts]
    figure = new_figure(width, 0.6 + len(shown) * 0.2)
    axes = figure.subplots()
    for row, concept in enumerate(shown):
        shares = table.concept_class_importance[concept]
        left = 0.0
        for place, index in enumerate(np.argsort(-shares, kind="stable")[:4]):
            colour = (BLUE, SKY, "#A6D3EE", "#D6EBF7")[place]
            axes.barh(row, shares[index], left=left, height=0.86, color=colour, ec="white", lw=0.5)
            _write(axes, left, row, shares[index], class_names[index], "white" if place == 0 else DARK, width - 1.2)
            left += shares[index]
        axes.barh(row, max(0.0, shares.sum() - left), left=left, height=0.86, color=LIGHT, ec="white", lw=0.5)
    axes.set_yticks(range(len(shown)), [concept_name(concept, names) for concept in shown])
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.5), xlabel="share of the concept's positive relevance")
    axes.set_title(f"{len(shown)} most important of {len(table.importance)} concepts")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


@styled
def co_activation(
    table: ConceptTable, names: Mapping[int, str] | None = None, concepts: int = 48, width: float = PAGE
) -> Figure:
    """Which of the most important concepts fire together: correlations over images, the correlated side by side."""
    best = table.order[:concepts]
    shown = best[cluster_order(table.co_activation[np.ix_(best, best)])]
    correlations = table.co_activation[np.ix_(shown, shown)]
    figure = new_figure(width, max(2.4, 0.6 + len(shown) * LINE))
    axes = figure.subplots()
    axes.set_facecolor(LIGHT)
    picture = axes.imshow(correlations, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(shown)), [_short_name(k, names) for k in shown])
    axes.set_xticks(range(len(shown)), [str(k) for k in shown], rotation=90)
    axes.tick_params(length=0, labelsize=SMALL - 0.5 if len(shown) > 40 else SMALL)
    axes.set(xlabel=f"concept ({len(shown)} most important of {len(table.dead)}, similar ones side by side)")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.01, ticks=[-1, 0, 1])
    bar.set_label("correlation of activations")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def concept_figures(
    table: ConceptTable, class_names: Sequence[str], names: Mapping[int, str] | None = None
) -> dict[str, Figure]:
    """All figures of this module by the names of their files."""
    return {
        "activation-per-image": activation_per_image(table),
        "activation-per-concept": activation_per_concept(table),
        "entropies": concept_entropies(table),
        "class-concept-importance": class_concept_importance(table, class_names, names=names),
        "concept-class-importance": concept_class_importance(table, class_names, names=names),
        "co-activation": co_activation(table, names),
    }


def importance_order(importance: np.ndarray, most: int) -> np.ndarray:
    """The most important concepts of (C, K), put beside the class for which each matters most."""
    importance = np.nan_to_num(importance)
    peak = importance.max(0)
    best = np.argsort(-peak, kind="stable")[:most]
    return best[np.lexsort((-peak[best], importance.argmax(0)[best]))]


def _short_name(concept: int, names: Mapping[int, str] | None) -> str:
    """The number alone stands for a concept without name where an axis says that it counts concepts."""
    return concept_name(concept, names) if concept in (names or {}) else str(concept)


def _write(axes, left: float, row: int, share: float, name: str, colour: str, inches: float) -> None:  # type: ignore[no-untyped-def]
    """Put as much of the name into its bar as fits, and nothing if little does."""
    characters = int(share * inches / (SMALL * 0.0082)) - 1
    if characters >= min(len(name), 8):
        text = name if len(name) <= characters else name[: characters - 1].rstrip(" -") + "…"
        axes.text(left + 0.006, row, text, va="center", ha="left", fontsize=SMALL, color=colour)
