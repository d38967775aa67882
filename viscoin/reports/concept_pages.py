"""Linked pages about concepts and classes that open from the disk and need nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib import colormaps
from PIL import Image

from viscoin.analysis.concept_files import class_rows, concept_rows, correlated, summary
from viscoin.analysis.concepts import ConceptTable, concept_name
from viscoin.analysis.gallery import ConceptView
from viscoin.analysis.quality import Quality
from viscoin.datasets import ImageDataset
from viscoin.datasets.originals import original
from viscoin.files import atomic_path
from viscoin.plotting.style import HEAT
from viscoin.reports.demo_page import template_environment

LARGEST = 256  # side of a picture in the pages, pixels
PRO, CONTRA = 10, 4  # concepts of a class, and classes of a concept, that are listed for and against
PAIRS = 12
CROPS = 3  # of a concept in a list
ALIKE = 0.9  # correlation of concepts that say the same

FIGURES = {
    "activation-per-image": "How many concepts an image activates, and how strongly.",
    "activation-per-concept": "How strong each concept is on average, and in what share of the images it is active.",
    "entropies": "Entropy of the concepts over the classes: is a concept active in one class or in all alike?",
    "class-concept-importance": "How relevant the most important concepts are for each class: red for, blue against.",
    "concept-class-importance": "How the relevance of the most important concepts is shared among the classes.",
    "co-activation": "Which of the most important concepts fire in the same images: red together, blue apart.",
}


def write_concept_report(
    out: Path,
    table: ConceptTable,
    dataset: ImageDataset,
    views: Mapping[int, ConceptView],
    info: Mapping[str, Any],
    quality: Quality,
    names: Mapping[int, str] | None = None,
) -> Path:
    """Write index.html, beside the figures that it shows, and pages/ with a page per view and class.

    Args:
        out: folder that holds a PNG for each of `FIGURES`.
        views: pictures of the concepts that get a page.
        info: `model`, `split` and `date`, shown as they are.
        quality: shown at the top, with its warnings.
    """
    pages = out / "pages"
    report = _Report(table, dataset, views, names)
    for folder in (pages / "images", pages / "amplified"):
        folder.mkdir(parents=True, exist_ok=True)
    finest = dataset.resolution
    for row in report.rows_shown():
        pixels = original(dataset, int(table.indices[row]), LARGEST)
        finest = max(finest, len(pixels))
        _save(Image.fromarray(pixels), pages / report.picture(row))
    for k, view in views.items():
        if not len(view.strip):
            continue
        _save(
            Image.fromarray(_strip(view, dataset, table)), pages / f"amplified/{k}.jpg", LARGEST * (len(view.strip) + 2)
        )
    environment = template_environment()
    environment.filters |= {"signed": lambda value: f"{value:+.2f}".replace("-", "−"), "fixed": "{:.2f}".format}
    shared = {"info": info, "dataset": dataset, "resolution": dataset.resolution, "finest": finest, "quality": quality}
    for path, text in report.render(environment, shared):
        with atomic_path(out / path) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / "index.html"


class _Report:
    """What the templates are given."""

    def __init__(
        self,
        table: ConceptTable,
        dataset: ImageDataset,
        views: Mapping[int, ConceptView],
        names: Mapping[int, str] | None,
    ) -> None:
        self.table, self.views, self.files = table, views, dataset.files
        self.relevance = np.nan_to_num(table.class_concept_importance)
        self.concepts = concept_rows(table, dataset.class_names, names)
        for row in self.concepts:
            k = row["concept"]
            row |= {"title": concept_name(k, names), "page": f"concept-{k}.html" if k in views else None}
            row |= {"dead": bool(table.dead[k]), "class_index": _place(dataset.class_names, row["class"])}
        for k, crops in self._crops().items():
            self.concepts[k]["crops"] = crops
        self.classes = class_rows(table, dataset.class_names, dataset.labelled)
        for c, row in enumerate(self.classes):
            row |= {"index": c, "page": f"class-{c}.html"}

    def render(self, environment: Environment, shared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield "pages/style.css", environment.get_template("concepts-style.css.j2").render()
        index = environment.get_template("concepts-index.html.j2")
        shown, alike = self.folded()
        values: dict[str, Any] = {
            "paged": len(self.views),
            "alike": [(self.concepts[k], self.concepts[other], r) for k, other, r in alike],
            "never": [self.concepts[k] for k in np.flatnonzero(self.table.dead)],
            "figures": FIGURES,
            "numbers": summary(self.table),
            "pairs": self.pairs(),
            "classes": self.classes,
        }
        yield "index.html", index.render(**shared, **values, root="pages/", concepts=[self.concepts[k] for k in shown])
        page = environment.get_template("concepts-concept.html.j2")
        for k, before, after in _neighbours(list(self.views)):
            around = {"before": self._link(before), "after": self._link(after)}
            values = {"view": self.views[k], "examples": self.examples(k), "correlated": self.correlated(k)}
            votes = self._for_and_against(self.table.weight[:, k], self.relevance[:, k], self.classes)
            yield (
                f"pages/concept-{k}.html",
                page.render(
                    **shared, **values, **around, root="", concept=self.concepts[k], votes=votes, classes=self.classes
                ),
            )
        page = environment.get_template("concepts-class.html.j2")
        for c, before, after in _neighbours(list(range(len(self.classes)))):
            around = {"before": self._class(before), "after": self._class(after)}
            speaking = self._for_and_against(self.relevance[c], self.table.weight[c], self.concepts)
            for row in speaking:
                k = row["of"]["concept"]
                row["examples"] = self.examples(k)[:CROPS] if k in self.views else []
            yield (
                f"pages/class-{c}.html",
                page.render(**shared, **around, root="", row=self.classes[c], speaking=speaking, own=self.own(c)),
            )

    def examples(self, concept: int) -> list[dict[str, Any]]:
        """The most activating images of a concept that has a view."""
        return [
            {
                "picture": self.picture(example.row),
                "file": self.file(example.row),
                "index": int(self.table.indices[example.row]),
                "activation": example.activation,
                "crop": example.crop,
                "label": self.table.labels[example.row],
            }
            for example in self.views[concept].examples
        ]

    def _crops(self) -> dict[int, list[dict[str, Any]]]:
        """A few crops of each concept for lists, of images that no concept before it shows, where it has others."""
        taken: set[str] = set()
        crops = {}
        for k in range(len(self.concepts)):
            examples = self.examples(k) if k in self.views else []
            chosen = sorted(examples, key=lambda example: example["picture"] in taken)[:CROPS]
            taken |= {example["picture"] for example in chosen}
            crops[k] = chosen
        return crops

    def folded(self) -> tuple[list[int], list[tuple[int, int, float]]]:
        """Concepts by importance without those that say what a more important one does: these with it and r."""
        r = np.nan_to_num(self.table.co_activation)
        shown: list[int] = []
        alike = []
        for k in map(int, self.table.order):
            nearest = max(shown, key=lambda other: r[k, other], default=None)
            if nearest is not None and r[k, nearest] > ALIKE:
                alike.append((k, nearest, float(r[k, nearest])))
            else:
                shown.append(k)
        return shown, alike

    def file(self, row: int) -> str:
        """What people call an image: the end of its file's path, or its index."""
        index = int(self.table.indices[row])
        return f"image {index}" if self.files is None else "/".join(Path(self.files[index]).parts[-2:])

    def own(self, label: int, most: int = 6) -> list[str]:
        """Pictures of a class: the images of which g is surest."""
        return [self.picture(row) for row in self._surest(label, most)]

    def rows_shown(self) -> set[int]:
        """Rows of the table whose images the pages show."""
        examples = {example.row for view in self.views.values() for example in view.examples}
        return examples.union(*(self._surest(c) for c in range(len(self.classes))))

    def picture(self, row: int) -> str:
        return f"images/{self.table.indices[row]}.jpg"

    def correlated(self, concept: int) -> list[tuple[dict[str, Any], float]]:
        return [(self.concepts[k], r) for k, r in correlated(self.table, concept)]

    def pairs(self) -> list[tuple[dict[str, Any], dict[str, Any], float]]:
        """The pairs of concepts that fire together most."""
        r = np.triu(np.nan_to_num(self.table.co_activation), 1)
        best = np.argsort(-r, axis=None, kind="stable")[:PAIRS]
        found = [divmod(int(place), len(r)) for place in best]
        return [(self.concepts[i], self.concepts[j], float(r[i, j])) for i, j in found if r[i, j] > 0]

    def _surest(self, label: int, most: int = 6) -> list[int]:
        rows = np.flatnonzero(self.table.labels == label)
        return rows[np.argsort(-self.table.g_probabilities[rows, label], kind="stable")[:most]].tolist()

    def _link(self, concept: int | None) -> tuple[str, str] | None:
        return None if concept is None else (f"concept-{concept}.html", self.concepts[concept]["title"])

    def _class(self, label: int | None) -> tuple[str, str] | None:
        return None if label is None else (f"class-{label}.html", self.classes[label]["class"])

    def _for_and_against(
        self, values: np.ndarray, others: np.ndarray, rows: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Rows with the largest values and those with the smallest, by value; `share` of the largest absolute one."""
        order = np.argsort(-values, kind="stable")
        chosen = [i for i in order[:PRO] if values[i] > 0] + [i for i in order[-CONTRA:] if values[i] < 0]
        largest = np.abs(values).max(initial=1e-12)
        return [{"of": rows[i], "value": values[i], "other": others[i], "share": values[i] / largest} for i in chosen]


def _place(names: Sequence[str], name: str | None) -> int | None:
    return None if name is None else list(names).index(name)


def _neighbours(items: Sequence[int]) -> Iterator[tuple[int, int | None, int | None]]:
    """Each item with the one before and the one after it."""
    return zip(items, [None, *items], [*items[1:], None])


def _strip(view: ConceptView, dataset: ImageDataset, table: ConceptTable) -> np.ndarray:
    """The strongest example, its versions, and where the last one differs; a change has its own scale."""
    original = dataset.pixels[table.indices[view.examples[0].row]]
    change = colormaps[HEAT](view.change / max(view.change.max(), 1e-6), bytes=True)[..., :3]
    return np.concatenate([original, *view.strip, change], axis=1)


def _save(image: Image.Image, path: Path, widest: int = LARGEST) -> None:
    if image.width > widest:
        image = image.resize((widest, round(image.height * widest / image.width)), Image.Resampling.LANCZOS)
    image.save(path, quality=90, subsampling=0)
