"""Training of Psi, Theta and Omega on a frozen classifier and a frozen generator (Parekh et al. 2025, Sec. 3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

from stylegan2_ada.networks import Generator
from viscoin.config import Recipe, ViscoinConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.models.classifier import Classifier
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.ensemble import Encoding, VisCoIN
from viscoin.models.explainer import Explainer
from viscoin.models.files import save_model
from viscoin.models.generator import AdaptedGenerator
from viscoin.runs import Run
from viscoin.testing.inference import choose_images
from viscoin.training import losses
from viscoin.training.data import StepBatches
from viscoin.training.loop import check_finite, fit, load_best
from viscoin.training.runtime import digest, fast_layout, make_fabric, seed_step

VALIDATION_IMAGES = 1000
OPTIONS = {"classifier": "--classifier", "generator": "--gan"}


def build_ensemble(
    config: ViscoinConfig, classifier: Classifier, generator: Generator, class_names: list[str]
) -> VisCoIN:
    """A fresh ensemble around trained f and G."""
    extractor = ConceptExtractor(classifier.feature_shapes, config.n_concepts, config.latent_channels)
    if config.initialisation == "channels":
        extractor.start_from_channels()
    return VisCoIN(
        classifier,
        extractor,
        Explainer(config.n_concepts, len(class_names), config.dropout, config.weight_norm),
        AdaptedGenerator.from_pretrained(generator, config.n_concepts, config.coarse_layer, config.mid_layer),
        class_names,
    )


def train_viscoin(
    recipe: Recipe,
    run: Run,
    classifier: Classifier,
    generator: Generator,
    device: str = "auto",
    precision: str = "auto",
) -> Path:
    """Train the ensemble by the recipe; strips of reconstructions go to the run's `figures/`.

    Returns:
        The model file (the best weights on validation images) in the run's folder.

    Raises:
        ValueError: f, G and the data do not fit together, or a loss is not finite.
    """
    fabric = make_fabric(device, precision)
    config = recipe.viscoin
    train = load_dataset(recipe.dataset.name, "train", recipe.dataset)
    validation = load_dataset(recipe.dataset.name, "validation", recipe.dataset)
    _check_fit(classifier, generator, train)
    seed_step(recipe.seed, 0)
    ensemble = build_ensemble(config, classifier, generator, train.class_names)
    task = ViscoinTask(ensemble, generator, config, fabric, validation)
    batches = StepBatches(train, min(config.batch_size, len(train)), recipe.seed, config.horizontal_flip)

    shown = choose_images(len(validation), 16, recipe.seed)

    def draw(step: int) -> None:
        real = validation.batch(shown)[0]
        pairs = torch.stack([real, task.reconstruct(real)], 1).flatten(0, 1)
        save_image(pairs, run.figures / f"reconstructions-{step:06d}.png", normalize=True, value_range=(-1, 1))

    fit(
        run, task, batches, config.steps, seed=recipe.seed, evaluate_every=config.evaluate_every,
        device=fabric.device, title="viscoin", on_evaluate=draw,
    )  # fmt: skip
    load_best(run, task)
    scores = {f"validation.{key}": value for key, value in task.evaluate(0)[0].items()}
    return save_model(run.model_path, ensemble, "viscoin", recipe=recipe, class_names=train.class_names, scores=scores)


def _check_fit(classifier: Classifier, generator: Generator, dataset: ImageDataset) -> None:
    if classifier.n_classes != len(dataset.class_names):
        raise ValueError(
            f"the classifier knows {classifier.n_classes} classes, dataset {dataset.name!r} has "
            f"{len(dataset.class_names)}; train a classifier on this dataset"
        )
    if generator.img_resolution != dataset.resolution:
        raise ValueError(
            f"the generator draws {generator.img_resolution} px, the dataset has {dataset.resolution} px "
            f"(dataset.resolution); train a generator at this size"
        )


class ViscoinTask:
    """All losses of the method; the score rewards agreement with f on images and on their reconstructions."""

    def __init__(
        self, ensemble: VisCoIN, generator: Generator, config: ViscoinConfig, fabric: Fabric, validation: ImageDataset
    ) -> None:
        self.config, self.fabric, self.validation = config, fabric, validation
        self.ensemble = fast_layout(ensemble).to(fabric.device)
        self.sampler = fast_layout(generator).to(fabric.device).eval().requires_grad_(False)
        self.perceptual, self.perceptual_name = losses.make_perceptual(config.perceptual_loss, ensemble.classifier)
        groups: list[dict[str, Any]] = [
            {"params": [*self.ensemble.concept_extractor.parameters(), *self.ensemble.explainer.parameters()]},
            {
                "params": list(self.ensemble.generator.mapping.parameters()),
                "lr": config.learning_rate * config.translator_rate,
            },
        ]
        self.optimizer = torch.optim.Adam(groups, config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.frozen = digest(classifier=ensemble.classifier, generator=generator)

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.ensemble.train()
        with self.fabric.autocast():
            if self.config.generated:
                images = torch.cat([self._samples(), images])
            terms = self._terms(images, step)
        check_finite(terms, step)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        self.optimizer.step()
        self.schedule.step()
        return {"total": total.detach()} | {key: value.detach() for key, value in terms.items()}

    def _samples(self) -> Tensor:
        with torch.no_grad():
            z = torch.randn(self.config.generated, self.sampler.z_dim, device=self.fabric.device)
            return self.sampler(z, None, noise_mode="const").float().clamp(-1, 1)

    def _terms(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """The weighted terms of method.md's table, and bimodality, for a batch of generated and then real images."""
        config, ensemble = self.config, self.ensemble
        code = ensemble.encode(images)
        logits = ensemble.explain(code.concept_maps)
        terms = self._reconstruction_terms(images, code)
        terms["orthogonality"] = config.orthogonality * losses.concept_orthogonality(
            ensemble.concept_extractor.conv5.weight
        )
        if step >= config.warmup_steps:
            terms["output_fidelity"] = config.output_fidelity * losses.output_fidelity(logits, code.logits)
            terms["sparsity"] = config.sparsity * losses.sparsity(code.concept_maps)
            if config.bimodality:
                terms["bimodality"] = config.bimodality * losses.bimodality(code.concept_maps)
        return terms

    def _reconstruction_terms(self, images: Tensor, code: Encoding) -> dict[str, Tensor]:
        """The terms of the images that G draws again: all, or the first of them."""
        config, ensemble = self.config, self.ensemble
        count = len(images) if config.reconstructed is None else config.generated + config.reconstructed
        images, logits, maps = images[:count], code.logits[:count], [part[:count] for part in code.maps]
        ws = ensemble.generator.mapping(code.concept_maps[:count], code.support[:count])
        rebuilt = ensemble.generator.synthesis(ws, noise_mode="const").float()
        again = ensemble.classifier.features(rebuilt)
        return {
            "l1": losses.reconstruction_l1(rebuilt, images),
            "l2": losses.reconstruction_l2(rebuilt, images),
            "perceptual": config.perceptual * self.perceptual(rebuilt, images, again.maps, maps).mean(),
            "reconstruction_class": config.reconstruction_class * losses.reconstruction_class(again.logits, logits),
            "style": config.style * losses.style_regularization(ws, ensemble.generator.mapping.fixed_w_avg),
        }

    @torch.no_grad()
    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        self.ensemble.eval()
        totals = dict.fromkeys(("accuracy", "agreement", "accuracy_on_reconstructions", "l1", "mse"), 0.0)
        n = 0
        chosen = choose_images(len(self.validation), VALIDATION_IMAGES, seed=0)
        for images, labels in self.validation.batches(125, chosen):
            images, labels = images.to(self.fabric.device), labels.to(self.fabric.device)
            with self.fabric.autocast():
                code = self.ensemble.encode(images)
                answers = self.ensemble.explain(code.concept_maps).argmax(1)
                rebuilt = self.ensemble.decode(code.concept_maps, code.support).float().clamp(-1, 1)
                again = self.ensemble.explain(self.ensemble.encode(rebuilt).concept_maps).argmax(1)
            totals["accuracy"] += float((answers == labels).sum())
            totals["agreement"] += float((answers == code.logits.argmax(1)).sum())
            totals["accuracy_on_reconstructions"] += float((again == labels).sum())
            totals["l1"] += float(F.l1_loss(rebuilt, images, reduction="none").mean([1, 2, 3]).sum())
            totals["mse"] += float(F.mse_loss(rebuilt, images, reduction="none").mean([1, 2, 3]).sum())
            n += len(labels)
        results = {key: value / n for key, value in totals.items()}
        return results, results["agreement"] + results["accuracy_on_reconstructions"] - results["mse"]

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        self.ensemble.eval()
        with self.fabric.autocast():
            code = self.ensemble.encode(images.to(self.fabric.device))
            return self.ensemble.decode(code.concept_maps, code.support).float().cpu()

    def _rate(self, step: int) -> float:
        """x decay_factor every decay_every steps of the second half."""
        late = step - self.config.steps // 2
        return self.config.decay_factor ** (late // self.config.decay_every) if late > 0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "ensemble": self._trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "frozen": self.frozen,
        }

    def _trained_state(self) -> dict[str, Tensor]:
        frozen = ("classifier.", "generator.synthesis.")
        return {key: value for key, value in self.ensemble.state_dict().items() if not key.startswith(frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        other = [name for name, digest in self.frozen.items() if digest != state["frozen"][name]]
        if other:
            raise ValueError(
                f"this run was started with another {' and '.join(other)}; give the same one "
                f"({', '.join(OPTIONS[name] for name in other)}), or start a new run"
            )
        self.ensemble.load_state_dict(self.ensemble.state_dict() | state["ensemble"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
