"""Training of the generator G: data, files and pictures around the steps of `stylegan2_ada.training`."""

import logging
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

from stylegan2_ada.distributed import share_batch_norm
from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.training import Features, GanSettings, GanTrainer
from stylegan2_ada.transfer import freeze_highest
from viscoin.config import GanConfig, Recipe
from viscoin.datasets import ImageDataset, load_dataset, prepared_resolution
from viscoin.errors import Refused
from viscoin.files import atomic_path
from viscoin.inference.batches import choose_images
from viscoin.inference.devices import resolve_device
from viscoin.models.classifier import Classifier
from viscoin.models.digests import digest
from viscoin.models.files import save_model
from viscoin.models.perceptual import ClassifierPerceptual
from viscoin.program import program_name
from viscoin.runs.control import commands_told
from viscoin.runs.run import Run
from viscoin.testing.gan import test_gan
from viscoin.training.data import StepBatches, batch_workers
from viscoin.training.failures import recoverable
from viscoin.training.gan_transfer import partners, partners_path, save_partners, take_over
from viscoin.training.loop import check_finite, fit
from viscoin.training.runtime import Runtime, check_runtime, check_shares, fast_layout, launch, seed_step
from viscoin.training.single import changed

if TYPE_CHECKING:
    from stylegan2_ada.augment import AugmentController, AugmentPipe

logger = logging.getLogger(__name__)

GRID = 64  # samples in a snapshot of an unconditional generator
GRID_PIXELS = 2048  # largest side of a snapshot, as far as that is possible
GRID_CLASSES = 32  # rows of a snapshot of a conditional generator
SNAPSHOTS_KEPT = 3
EVALUATION_SAMPLES = 1000
PATIENCE = 100  # steps in a row whose losses are not finite, before a training in float16 gives up


def build_generator(config: GanConfig, resolution: int, c_dim: int = 0) -> Generator:
    """G of a recipe, for square RGB images of `resolution` pixels and c_dim classes (0: unconditional)."""
    return Generator(
        z_dim=config.z_dim,
        c_dim=c_dim,
        w_dim=config.w_dim,
        img_resolution=resolution,
        img_channels=3,
        mapping_kwargs={"num_layers": config.mapping_layers, "w_avg_beta": config.w_avg_beta},
        synthesis_kwargs=_widths(config),
    )


def build_discriminator(config: GanConfig, resolution: int, c_dim: int = 0) -> Discriminator:
    """D of a recipe; `gan.freeze_d` of its layers do not require grad."""
    discriminator = Discriminator(
        c_dim=c_dim,
        img_resolution=resolution,
        img_channels=3,
        architecture=config.discriminator,
        epilogue_kwargs={"mbstd_group_size": config.mbstd_group},
        **_widths(config),
    )
    try:
        freeze_highest(discriminator, config.freeze_d)
    except ValueError as error:
        raise Refused("gan.freeze_d", config.freeze_d, str(error)) from error
    return discriminator


def _widths(config: GanConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in ("channel_base", "channel_max", "num_fp16_res", "conv_clamp")}


def check_gan(recipe: Recipe, runtime: Runtime = Runtime()) -> None:  # noqa: B008  it is frozen
    """Refuse what cannot be trained, before anything is loaded or started.

    Raises:
        ValueError: a resolution that is no power of two, counts that do not divide, devices that are not there.
    """
    config, resolution = recipe.gan, recipe.dataset.resolution
    if resolution & (resolution - 1):
        raise Refused(
            "dataset.resolution", resolution, "a generator needs a power of two",
            f"choose {1 << (resolution.bit_length() - 1)} or {1 << resolution.bit_length()}",
        )  # fmt: skip
    own = prepared_resolution(recipe.dataset.name)
    if own not in (None, resolution):
        raise Refused(
            "dataset.resolution", resolution, f"images of {recipe.dataset.name} are {own} px",
            f"leave it out, or prepare images of {resolution} px: {program_name()} data {recipe.dataset.name} prepare",
        )  # fmt: skip
    check_runtime(runtime)
    check_shares("gan", runtime, config.accumulate, batch_size=config.batch_size)
    shares = runtime.processes * config.accumulate
    share = config.batch_size // shares
    group = min(config.mbstd_group, share)
    if share % group:
        raise Refused(
            "gan.batch_size", config.batch_size,
            f"gives each device {share} images at a time, which do not divide into groups of {group} (gan.mbstd_group)",
            f"choose a multiple of {shares * group}",
        )  # fmt: skip
    if config.matching and share < 2:
        raise Refused(
            "gan.batch_size", config.batch_size,
            f"gan.matching compares the images that a device has at a time, and {share} is no distribution",
            f"choose {2 * shares} or more; 128 is what was measured",
        )  # fmt: skip
    if config.matching and config.matching * 1000 < config.batch_size:
        reason = f"less than one batch of {config.batch_size} images"
        remedy = f"give at least {config.batch_size / 1000:g}, or 0"
        raise Refused("gan.matching", f"{config.matching:g}", reason, remedy)
    if config.kimg * 1000 < config.batch_size and (config.kimg or not config.matching):
        reason = f"less than one batch of {config.batch_size} images"
        raise Refused("gan.kimg", f"{config.kimg:g}", reason, f"give at least {config.batch_size / 1000:g}")


def choose_precision(config: GanConfig, runtime: Runtime) -> tuple[GanConfig, Runtime, bool]:
    """How to compute: the config to build networks with, Fabric's precision, and whether layers run in float16.

    Of float16 there is only the published scheme (ADA paper, Appendix C.1): the highest resolutions in float16 with
    bounded activations, everything else in float32, no loss scaling. "16-mixed" asks for it; "auto" takes it on GPUs
    where the recipe names `num_fp16_res`. All else leaves float16 alone.

    Raises:
        ValueError: 16-mixed without a GPU.
    """
    cuda, precision = resolve_device(runtime.device).type == "cuda", runtime.precision
    if precision == "16-mixed" and not cuda:
        raise Refused("precision", "16-mixed", "needs a CUDA device", "use 32-true or bf16-mixed here")
    if precision == "16-mixed" or (precision == "auto" and cuda and config.num_fp16_res):
        chosen = {"num_fp16_res": config.num_fp16_res or 4, "conv_clamp": config.conv_clamp or 256.0}
        return config.model_copy(update=chosen), replace(runtime, precision="32-true"), True
    return (config.model_copy(update={"num_fp16_res": 0}) if cuda else config), runtime, False


def load_images(recipe: Recipe, split: str) -> ImageDataset:
    """Real images of a split; with classes if the generator is conditional.

    Raises:
        ValueError: there are no classes to condition on.
    """
    name, config = recipe.dataset.name, recipe.dataset
    dataset = load_dataset(name, split, config, labelled=False)
    if not recipe.gan.conditional:
        return dataset
    if len(dataset.class_names) < 2:
        raise Refused(
            "gan.conditional", None, f"dataset {name!r} has no labels",
            "give a folder with one folder of images per class or a zip with labels in its dataset.json, or leave it "
            "out",
        )  # fmt: skip
    return load_dataset(name, split, config)


@recoverable
def train_gan(
    recipe: Recipe,
    run: Run,
    classifier: Classifier | None = None,
    runtime: Runtime = Runtime(),  # noqa: B008  it is frozen
) -> Path:
    """Train G by the recipe; sample grids go to the run's `figures/`, the last few models to its `checkpoints/`.

    Args:
        classifier: f, whose features measure reconstructions in the warm start; only L1 + L2 without it.
        runtime: see also `choose_precision`.

    Returns:
        The model file (averaged weights of G) in the run's folder; D and E, which only trainings need, lie beside it
        where there are trained ones.

    Raises:
        ValueError: what `check_gan` refuses; a resumed run was started with another classifier; a loss is not finite.
    """
    check_gan(recipe, runtime)
    config, runtime, half = choose_precision(recipe.gan, runtime)
    fabric, run = launch(runtime, run)
    with fabric.rank_zero_first(local=True):  # one process of each node prepares the images for the others
        dataset, validation = load_images(recipe, "train"), load_images(recipe, "validation")
    classifier = _same_classifier(run, classifier, fabric)
    if config.matching and classifier is None:
        raise Refused(
            "gan.matching", f"{config.matching:g}", "needs a classifier, whose feature maps of samples it matches",
            "name one by `classifier`, or set it to 0",
        )  # fmt: skip
    seed_step(recipe.seed, 0)
    task = GanTask(config, dataset, fabric, classifier, validation, half, runtime.compile)
    if config.transfer is not None and not any(run.checkpoints.glob("*.pt")):
        take_over(task.trainer, Path(config.transfer))
    steps = task.trainer.adversarial_from + round(config.kimg * 1000 / config.batch_size)
    wanted = config.warm_start + config.matching + config.kimg
    if fabric.global_rank == 0 and steps * config.batch_size != round(wanted * 1000):
        logger.info("whole batches of %d: %g kimg in all", config.batch_size, steps * config.batch_size / 1000)
    batches = StepBatches(
        dataset, config.batch_size, recipe.seed, config.horizontal_flip,
        rank=fabric.global_rank, world_size=fabric.world_size, workers=batch_workers(fabric.device),
    )  # fmt: skip
    shown = choose_images(len(dataset), GRID // 2, recipe.seed)

    def save(path: Path, scores: Mapping[str, float] | None = None) -> Path:
        names = dataset.class_names
        commands = commands_told(run.path) if path == run.model_path else ()
        return save_model(
            path, task.trainer.ema, "gan", recipe=recipe, class_names=names, scores=scores, commands=commands
        )

    def snapshot(step: int) -> None:
        mark = f"{step * config.batch_size // 1000:06d}k"
        _save_grid(run.figures / f"samples-{mark}.png", *task.samples())
        if config.reconstruction or config.warm_start:
            real = dataset.batch(shown)[0]
            pairs = torch.stack([real, task.reconstruct(real)], 1).flatten(0, 1)
            _save_grid(run.figures / f"reconstructions-{mark}.png", pairs)
        if step < steps:
            save(run.checkpoints / f"model-{mark}.safetensors")
            _keep_last(run.checkpoints, "model-*.safetensors", SNAPSHOTS_KEPT)

    every = max(1, round(config.snapshot_kimg * 1000 / config.batch_size))
    results = fit(
        run, task, batches, steps, seed=recipe.seed, evaluate_every=every, device=fabric.device, title="gan",
        on_evaluate=snapshot,
    )  # fmt: skip
    results = results or task.evaluate(steps)[0]
    if fabric.global_rank == 0:
        save(run.model_path, {f"validation.{key}": value for key, value in results.items()})
        if config.kimg or task.trainer.encoder is not None:  # matching alone trains neither D nor E
            save_partners(partners_path(run.model_path), partners(task.trainer), recipe)
    fabric.barrier()
    return run.model_path


def _same_classifier(run: Run, classifier: Classifier | None, fabric: Fabric) -> Classifier | None:
    """f that this run is trained with, written down at its start: a resumed run takes no other one.

    Raises:
        ValueError: another f than at the start.
    """
    given = "none" if classifier is None else digest(classifier=classifier)["classifier"]
    started = run.header.get("classifier")
    fabric.barrier()
    if started is None and fabric.global_rank == 0:
        run.annotate(classifier=given)
    if started == "none":
        return None
    if started not in (None, given):
        reason = f"{run.path} was started with another classifier"
        raise Refused("classifier", None, reason, "give the same one, or start a new run")
    return classifier


def describe_gan(recipe: Recipe) -> str:
    """The networks of a recipe as text: layers, their parameters and output shapes for one image."""
    resolution = recipe.dataset.resolution
    c_dim = len(load_images(recipe, "train").class_names) if recipe.gan.conditional else 0
    with torch.no_grad():
        generator = build_generator(recipe.gan, resolution, c_dim)
        discriminator = build_discriminator(recipe.gan, resolution, c_dim)
        z, c = torch.zeros(1, recipe.gan.z_dim), torch.zeros(1, c_dim)
        image = torch.zeros(1, 3, resolution, resolution)
        parts = [_layers("generator", generator, z, c), _layers("discriminator", discriminator, image, c)]
    return "\n\n".join(parts)


def _layers(title: str, network: torch.nn.Module, *inputs: Tensor) -> str:
    """A table of the layers with parameters of their own or of a direct child without children."""
    rows: list[tuple[str, str, str]] = []

    def note(name: str, layer: torch.nn.Module, output: Any) -> None:
        shape = "x".join(map(str, output.shape[1:])) if isinstance(output, Tensor) else ""
        rows.append((name, f"{sum(p.numel() for p in layer.parameters()):,}", shape))

    hooks = [
        layer.register_forward_hook(lambda module, args, output, name=name: note(name, module, output))
        for name, layer in network.named_modules()
        if list(layer.parameters(recurse=False)) and not name.endswith("affine") and not hasattr(layer, "num_conv")
    ]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    parameters = list(network.parameters())
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or every) for every in (True, False))
    head = f"{title}: {total:,} parameters" + (f", {trained:,} of them trained" if trained < total else "")
    return "\n".join([head, *(f"  {name:<24} {count:>12}  {shape}" for name, count, shape in rows)])


def _save_grid(path: Path, images: Tensor, columns: int = 8) -> None:
    with atomic_path(path) as partial:
        save_image(images, partial, "PNG", nrow=columns, normalize=True, value_range=(-1, 1))


def _keep_last(folder: Path, pattern: str, count: int) -> None:
    for path in sorted(folder.glob(pattern))[:-count]:
        os.unlink(path)


class GanTask:
    """A GanTrainer on Fabric's device and precision, as the loop wants it.

    Args:
        config: of the networks and their training; decides with `dataset` whether they know classes.
        classifier: f or None; moved to the device.
        half_precision: layers run in float16, so that single steps may have losses that are not finite.
        compiled: translate the networks by `torch.compile`, where the steps need no second derivatives.
    """

    def __init__(
        self,
        config: GanConfig,
        dataset: ImageDataset,
        fabric: Fabric,
        classifier: Classifier | None,
        validation: ImageDataset,
        half_precision: bool = False,
        compiled: bool = False,
    ) -> None:
        self.config, self.fabric, self.number = config, fabric, 0
        self.classifier, self.validation = classifier, validation
        self.classes = len(dataset.class_names) if config.conditional else 0
        self.settings = _settings(config, classifier is not None, half_precision)
        self.bad_steps = torch.zeros((), device=fabric.device)  # in a row
        resolution = dataset.resolution
        generator = fast_layout(build_generator(config, resolution, self.classes)).to(fabric.device)
        discriminator = fast_layout(build_discriminator(config, resolution, self.classes)).to(fabric.device)
        encoder = perceptual = None
        if config.warm_start or config.reconstruction:
            import viscoin.models.classifier  # noqa: F401  registers the backbone with timm

            encoder = timm.create_model("viscoin_resnet10", num_classes=config.w_dim)
            encoder = share_batch_norm(fast_layout(encoder).to(fabric.device))
            if classifier is not None:
                perceptual = ClassifierPerceptual(classifier.to(fabric.device).eval().requires_grad_(False))
        features = None
        if config.matching and classifier is not None:
            features = pooled_features(classifier.to(fabric.device).eval().requires_grad_(False))
        augment, controller = _augmentation(config)
        self.trainer = GanTrainer(
            generator, discriminator, self.settings, encoder, perceptual,
            check=self._count_bad_steps if half_precision else lambda terms: check_finite(terms, self.number),
            augment=None if augment is None else augment.to(fabric.device), controller=controller,
            labels=torch.from_numpy(dataset.labels) if config.conditional else None, compiled=compiled,
            features=features,
        )  # fmt: skip

    @property
    def steerable(self) -> tuple[str, ...]:
        """Keys of `gan` that may change while it trains."""
        own = ("learning_rate", "r1_gamma", "path_length_weight", "style_mixing", "ema_kimg", "ema_rampup")
        warm = ("warm_start_learning_rate",) * (self.settings.warm_start_steps > 0)
        matched = ("matching_learning_rate",) * (self.settings.matching_steps > 0)
        rebuilds = ("reconstruction",) * (self.trainer.encoder is not None)
        perceptual = ("perceptual",) * (self.trainer.perceptual is not None)
        augments = {"off": (), "fixed": ("augment_p",), "ada": ("ada_target", "ada_kimg")}[self.config.augment]
        return (*own, *warm, *matched, *rebuilds, *perceptual, *augments)

    def apply(self, values: Mapping[str, Any]) -> None:
        """Train by these values from the next step on."""
        self.config = changed(self.config, values)
        self.settings = _settings(self.config, self.classifier is not None, self.settings.half_precision)
        self.trainer.change(self.settings)
        augment, controller = self.trainer.augment, self.trainer.controller
        if controller is not None:
            controller.target, controller.ada_kimg = self.config.ada_target, self.config.ada_kimg
        elif augment is not None:
            augment.p.fill_(self.config.augment_p or 0.0)

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.number = step
        with self.fabric.autocast():
            return self.trainer.step(images, step, labels if self.classes else None)

    def _count_bad_steps(self, terms: Mapping[str, Tensor]) -> None:
        """In float16 a step may fail; only many in a row are an error, looked at now and then to spare the GPU."""
        finite = torch.isfinite(torch.stack([value.detach().float() for value in terms.values()])).all()
        self.bad_steps = torch.where(finite, 0, self.bad_steps + 1)
        if self.number % PATIENCE == 0 and self.bad_steps >= PATIENCE:
            check_finite(terms, self.number)

    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        """Frechet distance of an equal number of validation images and samples, in features of f; nothing without f."""
        if self.classifier is None:
            return {}, None
        n = min(EVALUATION_SAMPLES, len(self.validation))
        return {
            "fid": test_gan(self.trainer.ema, self.classifier, self.validation, n, device=self.fabric.device).fid
        }, None

    @torch.no_grad()
    def samples(self) -> tuple[Tensor, int]:
        """Images of the averaged generator for fixed z, in [-1, 1], and in how many columns to show them.

        A row has one class of a conditional generator, and a column one z.
        """
        ema = self.trainer.ema
        columns = min(8, max(2, GRID_PIXELS // ema.img_resolution))
        rows = min(self.classes, GRID_CLASSES)
        n = columns if rows else min(GRID, columns**2)
        z = torch.randn(n, ema.z_dim, generator=torch.Generator().manual_seed(0))
        z, classes = z.repeat(rows or 1, 1), torch.arange(rows).repeat_interleave(n)
        c = F.one_hot(classes, self.classes).float() if rows else torch.empty(len(z), 0)
        size = max(1, GRID * 64**2 // ema.img_resolution**2)
        images = []
        for some_z, some_c in zip(z.to(self.fabric.device).split(size), c.to(self.fabric.device).split(size)):
            with self.fabric.autocast():
                image = ema(some_z, some_c, truncation_psi=self.config.snapshot_psi, noise_mode="const")
            images.append(image.float().cpu())
        return torch.cat(images), columns

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


def pooled_features(classifier: Classifier) -> Features:
    """What `gan.matching` compares: means of f's last map, of its quarters, of grids on other maps and on the image."""

    def features(images: Tensor) -> list[Tensor]:
        *finer, last = classifier.features(images).maps
        grids = [(last, 1), (last, 2), *((part, 4) for part in finer), (images, 8)]
        return [F.adaptive_avg_pool2d(part, side).flatten(1) for part, side in grids]

    return features


def _settings(config: GanConfig, has_classifier: bool, half_precision: bool) -> GanSettings:
    names = {field.name for field in fields(GanSettings)} & set(GanConfig.model_fields)
    same = {name: getattr(config, name) for name in names - {"perceptual"}}
    return GanSettings(
        **same,
        warm_start_steps=round(config.warm_start * 1000 / config.batch_size),
        matching_steps=round(config.matching * 1000 / config.batch_size),
        hold_steps=round(config.hold * 1000 / config.batch_size),
        perceptual=config.perceptual if has_classifier else 0.0,
        half_precision=half_precision,
    )


def _augmentation(config: GanConfig) -> "tuple[AugmentPipe | None, AugmentController | None]":
    """The pipe that all images pass before D, at its first strength, and what adjusts the strength."""
    if config.augment == "off":
        return None, None
    from stylegan2_ada.augment import AugmentController, augment_pipe

    pipe = augment_pipe(config.augment_preset)
    pipe.p.fill_(config.augment_p or 0.0)
    if config.augment == "fixed":
        return pipe, None
    return pipe, AugmentController(target=config.ada_target, ada_kimg=config.ada_kimg)
