"""Training of Psi, Theta and Omega on a frozen classifier and a frozen generator (Parekh et al. 2025, Sec. 3)."""

import difflib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.utils import save_image

from stylegan2_ada.distributed import from_first
from stylegan2_ada.networks import Generator
from stylegan2_ada.together import once, together
from viscoin.config import Recipe, ViscoinConfig
from viscoin.datasets import ImageDataset
from viscoin.datasets.walking import composed
from viscoin.errors import Refused
from viscoin.files import atomic_path
from viscoin.inference.batches import choose_images
from viscoin.inference.classes import images_of_classes, listed
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.ensemble import VisCoIN
from viscoin.models.explainer import Explainer
from viscoin.models.files import save_model
from viscoin.models.generator import AdaptedGenerator
from viscoin.runs.control import commands_told
from viscoin.runs.run import Run
from viscoin.training.checkpoints import load_best
from viscoin.training.concept_penalties import OfConcepts
from viscoin.training.data import StepBatches, batch_workers
from viscoin.training.failures import recoverable
from viscoin.training.loop import fit
from viscoin.training.runtime import Runtime, check_shares, launch, load_splits, seed_step, whole_batch
from viscoin.training.starting import start_drawing, start_from_pursuit
from viscoin.training.viscoin_task import ViscoinTask

logger = logging.getLogger(__name__)


def build_ensemble(
    config: ViscoinConfig, classifier: Classifier, generator: Generator | None, class_names: list[str]
) -> VisCoIN:
    """A fresh ensemble around trained f and, where there is one, G.

    Raises:
        Refused: `viscoin.classes` names what is no class of f, or one twice.
    """
    shapes = classifier.feature_shapes
    support = "none" if generator is None else config.support
    extractor = ConceptExtractor(shapes, config.n_concepts, config.latent_channels, config.support_width, support)
    if config.initialisation == "channels":
        extractor.start_from_channels()
    chosen = choose_classes(config.classes, class_names)
    explainer = Explainer(config.n_concepts, len(class_names), config.dropout, config.weight_norm, chosen)
    if generator is None:
        return VisCoIN(classifier, extractor, explainer, None, class_names)
    adapted = AdaptedGenerator.from_pretrained(
        generator, config.n_concepts, config.coarse_layer, config.mid_layer,
        support_width=config.support_width, linear=config.translator_activation == "linear",
        inputs=config.translator_inputs, rank=config.translator_rank, directions=config.directions > 0,
    )  # fmt: skip
    return VisCoIN(classifier, extractor, explainer, adapted, class_names)


def choose_classes(chosen: Sequence[str] | None, known: Sequence[str]) -> list[int] | None:
    """Numbers of the classes of f that g is to know, ascending; None for all.

    Raises:
        Refused: a name that f does not know, or that stands there twice.
    """
    if chosen is None:
        return None
    numbers, chosen = {composed(name): number for number, name in enumerate(known)}, list(map(composed, chosen))
    for i, name in enumerate(chosen):
        if name not in numbers:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"f knows {listed(known)}"
            raise Refused("viscoin.classes", name, "is no class of f", hint)
        if name in chosen[:i]:
            raise Refused("viscoin.classes", name, "stands there twice", "name each class once")
    return sorted(numbers[name] for name in chosen) if len(chosen) < len(known) else None


def start_ensemble(
    ensemble: VisCoIN, generator: Generator | None, train: ImageDataset, recipe: Recipe, run: Run, device: torch.device
) -> int | None:
    """Give Psi, Theta and Omega the start that the recipe asks for, beyond random weights.

    Returns:
        Dimensions of the pursuit, for `ConceptExtractor.concept_path`, or None.
    """
    config, found = recipe.viscoin, None

    def start() -> tuple[dict[str, Tensor], int | None]:
        nonlocal found
        if config.initialisation == "pursuit":
            found = start_from_pursuit(ensemble, train, config, device, recipe.seed)
            with atomic_path(run.path / "pursuit.json") as partial:
                partial.write_text(json.dumps(asdict(found), indent=2) + "\n")
        if generator is not None and _starts_drawing(config):
            start_drawing(ensemble, generator, train, config, device, recipe.seed)
        return ensemble.state_dict(), None if found is None else found.dimensions

    with together():
        state, dimensions = once(start)
    ensemble.load_state_dict(state)
    return dimensions


def _starts_drawing(config: ViscoinConfig) -> bool:
    """Whether any part of the support or of Omega is fitted before it trains."""
    fitted = config.support == "components" or config.translator_inputs != "second_moment"
    return fitted or config.translator_start == "closed_form" or config.directions > 0


@recoverable
def train_viscoin(
    recipe: Recipe,
    run: Run,
    classifier: Classifier,
    generator: Generator | None,
    runtime: Runtime = Runtime(),  # noqa: B008  it is frozen
    class_names: Sequence[str] | None = None,
) -> Path:
    """Train the ensemble by the recipe; strips of reconstructions go to the run's `figures/`.

    Without a generator there are none, and concepts that are held for good are only found, not trained.

    Args:
        class_names: of f. With them, a folder may have some of its classes only, or none; see `images_of_classes`.

    Returns:
        The model file (the best weights on validation images) in the run's folder.

    Raises:
        ValueError: f, G and the data do not fit together, a batch cannot be shared out, or a loss is not finite.
    """
    config = recipe.viscoin
    shared = ("batch_size",) if generator is None else ("batch_size", "generated", "reconstructed")
    counts = {name: getattr(config, name) for name in shared}
    check_shares("viscoin", runtime, config.accumulate, **{name: n for name, n in counts.items() if n is not None})
    fabric, run = launch(runtime, run)
    train, validation = _load_images(fabric, recipe, class_names)
    _check_fit(classifier, generator, train)
    seed_step(recipe.seed, 0)
    ensemble = build_ensemble(config, classifier, generator, train.class_names)
    dimensions = None
    if from_first(not any(run.checkpoints.glob("*.pt"))):  # all of them, or none: another node may see files late
        dimensions = start_ensemble(ensemble, generator, train, recipe, run, fabric.device)
    penalties = OfConcepts(ensemble, config, train, validation, recipe.seed, run)
    task = ViscoinTask(ensemble, generator, config, fabric, validation, runtime.compile, dimensions, penalties)
    batches = StepBatches(
        train, whole_batch(config.batch_size, len(train), runtime.processes * config.accumulate), recipe.seed,
        config.horizontal_flip, rank=fabric.global_rank, world_size=fabric.world_size,
        workers=batch_workers(fabric.device), penalties=penalties,
    )  # fmt: skip

    shown = choose_images(len(validation), 16, recipe.seed)
    steps = config.steps if task.trained else 0

    def draw(step: int) -> None:
        real = validation.batch(shown)[0]
        pairs = torch.stack([real, task.reconstruct(real)], 1).flatten(0, 1)
        with atomic_path(run.figures / f"reconstructions-{step:06d}.png") as partial:
            save_image(pairs, partial, "PNG", normalize=True, value_range=(-1, 1))

    if steps:
        fit(
            run, task, batches, steps, seed=recipe.seed, evaluate_every=config.evaluate_every, device=fabric.device,
            title="viscoin", on_evaluate=None if generator is None else draw, shared_draws=True,
            patience=config.early_stopping,
        )  # fmt: skip
        load_best(run, task)
    else:
        logger.info("concepts stay as the pursuit found them; nothing trains")
    scores = {f"validation.{key}": value for key, value in task.evaluate(0)[0].items()}
    if fabric.global_rank == 0:
        save_model(
            run.model_path, ensemble, "viscoin", recipe=recipe, class_names=train.class_names, scores=scores,
            commands=commands_told(run.path),
        )  # fmt: skip
    fabric.barrier()
    return run.model_path


def _load_images(fabric: Fabric, recipe: Recipe, known: Sequence[str] | None) -> tuple[ImageDataset, ImageDataset]:
    if known is None:
        return load_splits(fabric, recipe)
    name, config, class_map = recipe.dataset.name, recipe.dataset, recipe.viscoin.class_map
    with fabric.rank_zero_first(local=True):
        train, validation = (
            images_of_classes(name, split, config, known, class_map=class_map) for split in ("train", "validation")
        )
    return train, validation


def _check_fit(classifier: Classifier, generator: Generator | None, dataset: ImageDataset) -> None:
    if classifier.n_classes != len(dataset.class_names):
        raise ValueError(
            f"the classifier knows {classifier.n_classes} classes, dataset {dataset.name!r} has "
            f"{len(dataset.class_names)}; train a classifier on this dataset"
        )
    if generator is not None and generator.img_resolution != dataset.resolution:
        raise ValueError(
            f"the generator makes {generator.img_resolution} px, the dataset has {dataset.resolution} px "
            f"(dataset.resolution); train a generator at this size"
        )
