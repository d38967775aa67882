"""Names for concepts: the caption towards which a concept pushes an image, if it is clear enough and proves true."""

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from viscoin.analysis.concepts import collect_concepts
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.inference.execution import exact
from viscoin.inference.loading import SubjectWithImages
from viscoin.models.concept2clip import Concept2Clip
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import find_model, load_model
from viscoin.models.scorers import Scorer
from viscoin.naming.adapter import ensemble_digest, image_embeddings
from viscoin.program import program_name
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.statistics.measures import auroc
from viscoin.texts import read_lines, read_table

CAPTIONS = Path(__file__).parents[1] / "captions"
LEVEL = 0.2  # share of random directions that may pass for clear
CERTAIN = 0.01  # p-value, over all concepts, with which a caption must follow the activation
FACTOR = 2.0  # lambda by which a concept is amplified
NULL_DRAWS = 10_000
RIGHT = 0.8  # AUROC with which a concept must detect an attribute to be named by it
NEAR = 0.05  # AUROC by which it may detect another one better


@dataclass(frozen=True)
class ConceptName:
    """A name, or why there is none, and what both rest on.

    Attributes:
        concept: its index.
        name: the best caption; None if it was not clear enough.
        reason: why there is no name; empty if there is one.
        caption, second: the best and the second best caption, whether good enough or not; None for dead concepts.
        score: cosine, in [-1, 1], between the concept's direction and the best caption.
        margin: how far the score is above that of the second.
        correlation: rank correlation between activation and similarity of image and caption, on the naming images.
        validity: AUROC of that similarity for "stronger than on average", on held-out images.
        validity_correlation: the rank correlation on held-out images.
    """

    concept: int
    name: str | None
    reason: str
    caption: str | None = None
    second: str | None = None
    score: float = np.nan
    margin: float = np.nan
    correlation: float = np.nan
    validity: float = np.nan
    validity_correlation: float = np.nan


@dataclass(frozen=True)
class Views:
    """Activations (N, K) of images and their embeddings (N, D)."""

    phi: np.ndarray
    embeddings: np.ndarray


def name_concepts(
    ensemble: VisCoIN,
    adapter: Concept2Clip,
    naming: ImageDataset,
    held_out: ImageDataset,
    captions: str = "auto",
    *,
    scorer: Scorer | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
) -> list[ConceptName]:
    """One name, or the reason for none, for each concept.

    A concept's direction is what amplifying it does to the embedding: adapter(phi, phi_k doubled) - adapter(phi),
    averaged over the images in which it is active. Its name is the caption nearest to that direction once the mean of
    all captions is taken away. It has none if

    - the score or its margin is like chance: of random directions, as images differ from each other (the
      covariance of their embeddings), 20 % score better, or half have a larger margin;
    - similarity of image and caption does not follow the activation: one-sided test of their rank correlation, p < 0.01
      after Bonferroni's correction for the number of concepts.

    The first alone would let every fifth meaningless direction pass, the second hardly any.

    Args:
        adapter: from the concepts of this ensemble.
        naming: images that decide about the names; best the validation split.
        held_out: other images, on which the names are tried.
        captions: a file, the name of a shipped list, or "auto", see `find_captions`.
        scorer: default: the one that the adapter was trained with.

    Raises:
        ValueError: an adapter for another ensemble, unusable captions, or an unavailable CLIP model.
    """
    check_adapter(adapter, ensemble)
    texts = find_captions(captions, adapter, naming)
    scorer = adapter.scorer(ensemble.classifier) if scorer is None else scorer
    place = torch.device(device)
    tables = [collect_concepts(ensemble, images, place, batch_size) for images in (naming, held_out)]
    views = [
        Views(table.activations, image_embeddings(scorer, images, table.indices, place))
        for table, images in zip(tables, (naming, held_out))
    ]
    with evaluation(scorer, place):  # type: ignore[arg-type]
        embedded = scorer.text_embeddings(texts).float().cpu().numpy()
    return choose_names(concept_directions(adapter, views[0].phi), texts, embedded, views[0], views[1], seed)


def check_adapter(adapter: Concept2Clip, ensemble: VisCoIN) -> None:
    """Raise Refused unless the adapter was trained on the concepts of this ensemble."""
    remedy = f"train one for this ensemble: {program_name()} train concept2clip with it as `viscoin`"
    if adapter.n_concepts != ensemble.n_concepts:
        reason = f"it reads {adapter.n_concepts} concepts, the ensemble has {ensemble.n_concepts}"
        raise Refused("adapter", None, reason, remedy)
    if adapter.ensemble != ensemble_digest(ensemble):
        other = f"another ensemble, whose {adapter.n_concepts} concepts mean other things"
        raise Refused("adapter", None, f"it was trained on {other}", remedy)


# --- captions


def caption_lists() -> list[str]:
    """Names of the caption lists that come with the package."""
    return sorted(path.stem for path in CAPTIONS.glob("*.txt"))


def find_captions(names: str, adapter: Concept2Clip, dataset: ImageDataset) -> list[str]:
    """The captions that `names` means.

    Args:
        names: a file, the name of a shipped list, or "auto": the attributes that span the adapter's space, else those
            of the dataset.

    Raises:
        ValueError: no such file or list, an unusable one, or nothing that "auto" could mean.
    """
    known = f"a file with a caption a line, or a list of ours: {', '.join(caption_lists())}"
    if names == "auto":
        attributes = adapter.space.get("names") or dataset.attribute_names
        if not len(attributes):
            raise Refused("names", "auto", f"dataset {dataset.name!r} has no attributes", f"give {known}")
        return list(attributes)
    path = Path(names)
    if not path.is_file():
        path = CAPTIONS / f"{names}.txt"
    if not path.is_file():
        raise Refused("names", names, "there is no such file", f"give auto, {known}")
    return read_captions(path)


def read_captions(path: Path) -> list[str]:
    """Captions of a text file, one a line; empty lines and what follows a # are left out.

    Raises:
        ValueError: not readable as text, fewer than two captions, or one that comes twice.
    """
    lines = read_lines(path, "names")
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        caption = " ".join(line.partition("#")[0].split())
        if caption in first:
            reason = f"line {number} repeats line {first[caption]}, {caption!r}"
            raise Refused("names", path, reason, "between equal captions no name can be chosen, remove one")
        if caption:
            first[caption] = number
    if len(first) < 2:
        held = f"holds {len(first) or 'no'} caption{'s' * (not first)}"
        raise Refused("names", path, f"{held}, and a name is a choice between at least 2", "write one a line")
    return list(first)


# --- names


@torch.inference_mode()
def concept_directions(adapter: Concept2Clip, phi: np.ndarray) -> np.ndarray:
    """Directions (K, D) in which concepts push the embedding, from activations (N, K); NaN for dead concepts.

    Mean over the images in which a concept is active of adapter(phi with phi_k doubled) - adapter(phi).
    """
    weight = next(adapter.parameters())
    activations = torch.from_numpy(phi).to(weight)
    directions = weight.new_full((phi.shape[1], adapter.architecture["dim"]), float("nan"))
    for k in range(phi.shape[1]):
        active = activations[activations[:, k] > 0]
        if len(active):
            amplified = active.clone()
            amplified[:, k] *= FACTOR
            directions[k] = (adapter(amplified) - adapter(active)).mean(0)
    return directions.float().cpu().numpy()


def choose_names(
    directions: np.ndarray,
    captions: Sequence[str],
    embedded: np.ndarray,
    naming: Views,
    held_out: Views,
    seed: int = 0,
) -> list[ConceptName]:
    """Names by similarity, see `name_concepts`, from directions (K, D) and embeddings (T, D) of T >= 2 captions."""
    texts = _unit(embedded - embedded.mean(0))
    scores = _unit(directions) @ texts.T
    alive = np.flatnonzero(np.isfinite(scores).all(1) & (np.linalg.norm(directions, axis=1) > 0))
    least_score, least_margin = null_thresholds(naming.embeddings, texts, seed)
    order = np.argsort(-scores[alive], axis=1, kind="stable")
    best, second = order[:, 0], order[:, 1]
    correlations, p_values = _follow(naming, texts, alive, best)
    validities, held_correlations = _validity(held_out, texts, alive, best), _follow(held_out, texts, alive, best)[0]
    names = [ConceptName(k, None, "never active") for k in range(len(directions))]
    for i, k in enumerate(alive):
        score = float(scores[k, best[i]])
        margin = score - float(scores[k, second[i]])
        reason = ""
        if score <= least_score:
            reason = f"no clear direction: score not above {least_score:.2f}, as chance gives"
        elif margin <= least_margin:
            reason = f"two captions fit alike: margin not above {least_margin:.2f}, as chance gives"
        elif not p_values[i] * len(alive) <= CERTAIN:
            reason = "the caption does not follow the activation"
        names[k] = ConceptName(
            int(k), None if reason else captions[best[i]], reason, captions[best[i]], captions[second[i]], score,
            margin, float(correlations[i]), float(validities[i]), float(held_correlations[i]),
        )  # fmt: skip
    return names


def null_thresholds(embeddings: np.ndarray, texts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The score that 20 %, and the margin that half, of random directions exceed.

    Such directions are normal with the covariance of the embeddings (N, D), so they lie where images differ.

    Args:
        texts: centred captions (T, D) of unit length.
    """
    deviations = embeddings - embeddings.mean(0)
    draws = np.random.default_rng(seed).standard_normal((NULL_DRAWS, len(deviations))).astype(np.float32) @ deviations
    ordered = np.sort(_unit(draws) @ texts.T, axis=1)
    return float(np.quantile(ordered[:, -1], 1 - LEVEL)), float(np.median(ordered[:, -1] - ordered[:, -2]))


def _follow(views: Views, texts: np.ndarray, alive: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank correlation of each concept with the similarity to its caption, and its one-sided p-value."""
    found = []
    similarity = views.embeddings @ texts.T
    for k, caption in zip(alive, best):
        phi, near = views.phi[:, k], similarity[:, caption]
        constant = np.ptp(phi) == 0 or np.ptp(near) == 0
        found.append((np.nan, np.nan) if constant else spearmanr(phi, near, alternative="greater"))
    return np.array(found).reshape(-1, 2).T[0], np.array(found).reshape(-1, 2).T[1]


def _validity(views: Views, texts: np.ndarray, alive: np.ndarray, best: np.ndarray) -> np.ndarray:
    """AUROC (M,) of the similarity to each concept's caption for images in which the concept is above its mean."""
    strong = views.phi[:, alive] > views.phi[:, alive].mean(0)
    similarity = rankdata(views.embeddings @ texts.T, axis=0)
    return np.array([auroc(similarity[:, [c]], strong[:, [i]])[0, 0] for i, c in enumerate(best)])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# --- what comes out


@dataclass(frozen=True)
class NameGrades:
    """Names against the truth of a dataset whose attributes are the captions.

    A name is right if the concept is stronger where that attribute is present, with an AUROC of at least 0.8 on test
    images and at most 0.05 below that of the attribute it detects best.

    Attributes:
        right, wrong: named concepts.
        abstained: concepts without a name, dead ones included; `abstained_rightly` of them detect no attribute at 0.8.
        best: named concepts whose name is the attribute that they detect best.
        share_right: right / (right + wrong), with its interval over concepts; None without any name.
        chance: the share of random names from the attributes that would be right.
        attributes_named: attributes that are the right name of some concept.
    """

    right: int
    wrong: int
    abstained: int
    abstained_rightly: int
    best: int
    share_right: Estimate | None
    chance: float
    attributes_named: int

    def to_dict(self) -> dict[str, Any]:
        """Numbers alone."""
        return asdict(self)


def grade_names(
    names: Sequence[ConceptName], phi: np.ndarray, attributes: np.ndarray, attribute_names: Sequence[str], seed: int = 0
) -> NameGrades:
    """Grade names that are attributes.

    Args:
        phi: (N, K) of test images.
        attributes: (N, A) bool, the truth, columns named by `attribute_names`.

    Raises:
        ValueError: a name that is no attribute.
    """
    strange = [name.name for name in names if name.name is not None and name.name not in attribute_names]
    if strange:
        raise ValueError(f"name {strange[0]!r} is no attribute of the dataset and cannot be graded")
    areas = np.nan_to_num(auroc(phi, attributes)).T
    fitting = (areas >= RIGHT) & (areas >= areas.max(1, keepdims=True) - NEAR)
    named = [(name.concept, list(attribute_names).index(name.name)) for name in names if name.name is not None]
    right = np.array([fitting[k, a] for k, a in named], dtype=bool)
    without = [name.concept for name in names if name.name is None]
    return NameGrades(
        right=int(right.sum()),
        wrong=int(len(right) - right.sum()),
        abstained=len(without),
        abstained_rightly=int((~fitting[without].any(1)).sum()),
        best=sum(bool(areas[k].argmax() == a) for k, a in named),
        share_right=bootstrap(right, seed=seed, unit="names") if len(right) else None,
        chance=float(fitting[[k for k, _ in named]].mean()) if named else float("nan"),
        attributes_named=len({a for k, a in named if fitting[k, a]}),
    )


def grade_on(
    dataset: ImageDataset,
    names: Sequence[ConceptName],
    ensemble: VisCoIN,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> NameGrades | None:
    """`grade_names` on a dataset with attributes; None if it has none, or if a name is none of them."""
    if not dataset.has_truth or not {name.caption for name in names if name.caption} <= set(dataset.attribute_names):
        return None
    table = collect_concepts(ensemble, dataset, device, batch_size)
    return grade_names(names, table.activations, dataset.attributes, dataset.attribute_names)


def name_and_grade(
    subject: SubjectWithImages,
    concept2clip: Path | None,
    captions: str,
    batch_size: int = 128,
    once: Callable[[Callable[[], ImageDataset]], ImageDataset] = lambda load: load(),
) -> tuple[list[ConceptName], NameGrades | None]:
    """Names for the concepts of an ensemble, found in float32, and how many are right where the truth is known.

    They rest on validation images (on training images where validation images are looked at).

    Args:
        concept2clip: the adapter; None means the newest or shipped one of the dataset.
        captions: as `name_concepts` takes them.
        once: loads a dataset so that several processes do not prepare it at the same time.
    """
    config, images = subject.config, subject.images
    split = "validation" if images.split != "validation" else "train"
    adapter = load_model(find_model("concept2clip", concept2clip, config.name), "concept2clip").model
    naming = once(lambda: load_dataset(config.name, split, config))
    with exact():
        found = name_concepts(
            subject.model, adapter, naming, images, captions, device=subject.device, batch_size=batch_size
        )
        return found, grade_on(images, found, subject.model, subject.device, batch_size)


def names_csv(names: Sequence[ConceptName]) -> str:
    """A table of all concepts, comma-separated, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ConceptName.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(name) for name in names)
    return text.getvalue()


def read_names(path: Path, n_concepts: int | None = None) -> dict[int, str]:
    """Concept -> name, of the concepts that have one in a names.csv.

    Args:
        n_concepts: of the ensemble that the names are for; None: not known.

    Raises:
        Refused: unreadable, another table, or a concept that is no number, comes twice or is none of the ensemble.
    """
    names: dict[int, str] = {}
    for line, row in read_table(path, ("concept", "name"), "concept_names", "give names.csv of concepts"):
        number, name = row["concept"].strip(), row["name"].strip()
        if not number.isdecimal():
            raise Refused("concept_names", path, f"line {line}: {number!r} is no number of a concept", "correct it")
        if n_concepts is not None and int(number) >= n_concepts:
            reason = f"line {line}: there is no concept {number}, the ensemble has {n_concepts}, counted from 0"
            raise Refused("concept_names", path, reason, "give the names of this ensemble")
        if int(number) in names:
            raise Refused("concept_names", path, f"line {line}: concept {number} has a name already", "remove one")
        if name:
            names[int(number)] = name
    return names


def read_grades(path: Path) -> dict[int, float]:
    """Concept -> AUROC in [0, 1] with which its name proves true on held-out images, of a names.csv that has them."""
    found: dict[int, float] = {}
    with suppress(Refused):  # a table by hand has none
        for _, row in read_table(path, ("concept", "validity"), "concept_names", "give names.csv of concepts"):
            with suppress(ValueError):
                grade = float(row["validity"])
                found |= {int(row["concept"]): grade} if 0 <= grade <= 1 else {}
    return found
