"""Training of the generator G: data, files and pictures around the steps of `stylegan2_ada.training`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.utils import save_image

from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.training import GanSettings, GanTrainer
from viscoin.config import GanConfig, Recipe
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.models.classifier import Classifier
from viscoin.models.files import save_model
from viscoin.runs import Run
from viscoin.testing.gan import test_gan
from viscoin.testing.inference import choose_images
from viscoin.training.data import StepBatches
from viscoin.training.loop import check_finite, fit
from viscoin.training.losses import ClassifierPerceptual
from viscoin.training.runtime import fast_layout, make_fabric, seed_step

GRID = 64  # samples in a snapshot
EVALUATION_SAMPLES = 1000


def build_generator(config: GanConfig, resolution: int) -> Generator:
    """G of a recipe, for square RGB images of `resolution` pixels."""
    return Generator(
        z_dim=config.z_dim,
        c_dim=0,
        w_dim=config.w_dim,
        img_resolution=resolution,
        img_channels=3,
        mapping_kwargs={"num_layers": config.mapping_layers, "w_avg_beta": config.w_avg_beta},
        synthesis_kwargs={"channel_base": config.channel_base, "channel_max": config.channel_max},
    )


def train_gan(
    recipe: Recipe, run: Run, classifier: Classifier | None = None, device: str = "auto", precision: str = "auto"
) -> Path:
    """Train G by the recipe; sample grids go to the run's `figures/`.

    Args:
        classifier: f, whose features measure reconstructions in the warm start; only L1 + L2 without it.

    Returns:
        The model file (averaged weights of G) in the run's folder.
    """
    fabric = make_fabric(device, precision)
    config = recipe.gan
    dataset = load_dataset(recipe.dataset.name, "train", recipe.dataset)
    seed_step(recipe.seed, 0)
    validation = load_dataset(recipe.dataset.name, "validation", recipe.dataset)
    task = GanTask(config, recipe.dataset.resolution, fabric, classifier, validation)
    steps = task.settings.warm_start_steps + round(config.kimg * 1000 / config.batch_size)
    batches = StepBatches(dataset, config.batch_size, recipe.seed, config.horizontal_flip)
    shown = choose_images(len(dataset), GRID // 2, recipe.seed)

    def draw(step: int) -> None:
        save_image(
            task.sample(GRID),
            run.figures / f"samples-{step * config.batch_size // 1000:06d}k.png",
            normalize=True,
            value_range=(-1, 1),
        )
        if config.reconstruction or config.warm_start:
            real = dataset.batch(shown)[0]
            pairs = torch.stack([real, task.reconstruct(real)], 1).flatten(0, 1)
            save_image(
                pairs,
                run.figures / f"reconstructions-{step * config.batch_size // 1000:06d}k.png",
                normalize=True,
                value_range=(-1, 1),
            )

    snapshot = max(1, round(config.snapshot_kimg * 1000 / config.batch_size))
    results = fit(
        run, task, batches, steps, seed=recipe.seed, evaluate_every=snapshot, device=fabric.device, title="gan",
        on_evaluate=draw,
    ) or task.evaluate(steps)[0]  # fmt: skip
    scores = {f"validation.{key}": value for key, value in results.items()}
    return save_model(
        run.model_path, task.trainer.ema, "gan", recipe=recipe, class_names=dataset.class_names, scores=scores
    )


class GanTask:
    """A GanTrainer on Fabric's device and precision, as the loop wants it."""

    def __init__(
        self,
        config: GanConfig,
        resolution: int,
        fabric: Fabric,
        classifier: Classifier | None,
        validation: ImageDataset,
    ) -> None:
        self.fabric, self.number = fabric, 0
        self.classifier, self.validation = classifier, validation
        self.settings = GanSettings(
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            r1_gamma=config.r1_gamma,
            r1_interval=config.r1_interval,
            path_length_weight=config.path_length_weight,
            path_length_interval=config.path_length_interval,
            style_mixing=config.style_mixing,
            ema_kimg=config.ema_kimg,
            warm_start_learning_rate=config.warm_start_learning_rate,
            warm_start_steps=round(config.warm_start * 1000 / config.batch_size),
            reconstruction=config.reconstruction,
            perceptual=config.perceptual if classifier is not None else 0.0,
        )
        generator = fast_layout(build_generator(config, resolution)).to(fabric.device)
        discriminator = Discriminator(
            c_dim=0, img_resolution=resolution, img_channels=3,
            channel_base=config.channel_base, channel_max=config.channel_max,
        )  # fmt: skip
        encoder = perceptual = None
        if config.warm_start or config.reconstruction:
            import viscoin.models.classifier  # noqa: F401  registers the backbone with timm

            encoder = timm.create_model("viscoin_resnet10", num_classes=config.w_dim)
            encoder = fast_layout(encoder).to(fabric.device)
            if classifier is not None:
                perceptual = ClassifierPerceptual(classifier.to(fabric.device).eval().requires_grad_(False))
        self.trainer = GanTrainer(
            generator, fast_layout(discriminator).to(fabric.device), self.settings, encoder, perceptual,
            backward=fabric.backward, check=lambda terms: check_finite(terms, self.number),
        )  # fmt: skip

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.number = step
        with self.fabric.autocast():
            return self.trainer.step(images, step)

    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        """Frechet distance between validation images and as many samples, in features of f; nothing without f."""
        if self.classifier is None:
            return {}, None
        n = min(EVALUATION_SAMPLES, len(self.validation))
        return {
            "fid": test_gan(self.trainer.ema, self.classifier, self.validation, n, device=self.fabric.device).fid
        }, None

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Images of the averaged generator for fixed z, in [-1, 1]."""
        z = torch.randn(n, self.trainer.ema.z_dim, generator=torch.Generator().manual_seed(0)).to(self.fabric.device)
        with self.fabric.autocast():
            return self.trainer.ema(z, None, noise_mode="const").float().cpu()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """G(E(x)) with averaged weights of G."""
        encoder = self.trainer.encoder
        if encoder is None:
            raise ValueError("this generator is trained without an encoder")
        encoder.eval()
        with self.fabric.autocast():
            w = encoder(images.to(self.fabric.device)).float()
            rebuilt = self.trainer.ema.synthesis(self.trainer._broadcast(w), noise_mode="const").float().cpu()
        encoder.train()
        return rebuilt

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trainer.load_state_dict(state)
