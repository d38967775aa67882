"""Typed recipes: every hyperparameter that a run uses, read from YAML, overridden by name, saved with the run."""

import difflib
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from viscoin.errors import Refused, regular
from viscoin.files import is_whole
from viscoin.penalties import ClassifierPenalties, EnsemblePenalties, named
from viscoin.texts import NotText, read_text

MOST_VALUES, MOST_TEXT = 20_000, 1_000_000  # of a YAML file; recipes have 150 values in 5,000 characters
LARGEST_SEED = 2**32 - 1  # what all libraries take that draw by a seed
LARGEST_WHOLE = 2**63 - 1  # what numpy and torch hold
LARGEST, MOST_CONCEPTS = 2**20, 10_000  # of networks that fit into any memory; Psi grows by the square
RECIPES = Path(__file__).parent / "recipes"
DEFAULT_DATASET = "birds"


ACCUMULATE = "parts in which a batch goes through the networks one after the other, to save memory"
FitMode = Literal["crop", "pad", "squash", "object"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]
AugmentPreset = Literal["blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"]


class _TooLarge(ValueError):
    """A number that no library can hold."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_held(cls, value: Any) -> Any:
        if isinstance(value, int) and value > LARGEST_WHOLE:
            raise _TooLarge(f"input should be at most {LARGEST_WHOLE}")
        return value


class DatasetConfig(Section):
    """Which images, how many and how large. `None` counts mean all that the dataset has."""

    name: str = DEFAULT_DATASET
    resolution: int = Field(64, ge=16, le=4096, description="side of the square images, pixels")
    classes: int | None = Field(None, ge=2, description="number of classes, for generated datasets")
    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of generated images and of automatic splits")
    skip_bad_files: bool = Field(False, description="leave unreadable images out instead of stopping")
    attribute: str = Field("Young", description="attribute that is the class of celeba_hq")
    path: str | None = Field(None, description="folder with the files of the dataset; None: the cache, or a download")
    crop_to_box: bool = Field(False, description="cut images to their bounding boxes, where a dataset has them")
    fit: FitMode = Field(
        "crop",
        description="how images become square: central square, white borders, squashed, or around what is opaque or "
        "masked",
    )
    crop_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the side that crop and squash show, as evaluation of timm and torchvision",
    )
    interpolation: Interpolation = "bicubic"
    grid_size: int = Field(3, ge=1, le=32, description="cells down and across of toy-count and cifar10-qa")
    counted_class: int = Field(
        3, ge=0, description="what these count: a colour (blue, green, cyan, red, magenta, yellow), or a CIFAR-10 class"
    )


class ClassifierConfig(Section):
    """Training of the classifier f."""

    backbone: str = Field("viscoin_resnet10", description="a name of timm, or a common spelling of one")
    pretrained: bool = Field(True, description="start from published weights, which are downloaded")
    weights: str | None = Field(
        None, description="start from the weights in this file instead: a checkpoint or a model"
    )
    cut: str | None = Field(
        None, description="module of the backbone after which it ends, in the mean over positions and one linear layer"
    )
    input_size: int | None = Field(
        None, ge=16, le=4096, description="side of the images that the backbone sees, resized from others, pixels"
    )
    train_layers: str = Field(
        "all", description="what trains beside the last layer: all, head (nothing), last:N (blocks), or stages by name"
    )
    freeze_norm: bool | None = Field(
        None, description="leave normalisation layers as they are; if not said, whenever not all layers train"
    )
    epochs: int = Field(6, ge=1)
    batch_size: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1, description=ACCUMULATE)
    optimizer: Literal["adam", "adamw", "radam", "sgd"] = "adamw"
    learning_rate: float = Field(2e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.02, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float | None = Field(
        None, ge=0, description="epochs of rising rate; if not said, a tenth of a cosine schedule, at most 100 steps"
    )
    step_epochs: int = Field(30, ge=1, description="epochs between rate drops of the step schedule")
    step_factor: float = Field(0.1, gt=0, le=1)
    class_weights: Literal["balanced"] | None = Field(None, description="balanced: rare classes count as much")
    early_stopping: int | None = Field(None, ge=1, description="epochs without a better model that end the training")
    best_metric: Literal["accuracy", "balanced_accuracy", "f1", "loss"] = Field(
        "accuracy", description="measure on validation images by which the best model is kept"
    )
    keep_every: int | None = Field(None, ge=1, description="epochs between models that are kept, to compare them")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    horizontal_flip: bool = True
    padding: int = Field(0, ge=0, description="random crop after padding by so many pixels")
    rotation: float = Field(0.0, ge=0, le=180, description="random rotation of training images, degrees to each side")
    noise: float = Field(0.0, ge=0, description="standard deviation of noise on training images in [-1, 1]")
    blur: float = Field(0.0, ge=0, description="largest standard deviation of a random Gaussian blur, pixels")
    rand_augment: int = Field(0, ge=0, description="operations of RandAugment on each training image; 2 is usual")
    rand_augment_magnitude: int = Field(9, ge=0, le=30, description="strength of RandAugment")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup, which blends pairs of training images; 0.2 is usual")
    penalties: ClassifierPenalties = Field(
        [], description="behaviour that is not wanted, as in `swap region=0,0,0.25,0.25`; several joined by ;"
    )

    @field_validator("penalties")
    @classmethod
    def _names_of_penalties(cls, value: list[Any]) -> list[Any]:
        return named(value)

    @model_validator(mode="after")
    def _layers_to_train(self) -> "ClassifierConfig":
        if not re.fullmatch(r"last:0*[1-9]\d*|[^:,\s]+(\s*,\s*[^:,\s]+)*", self.train_layers):
            raise ValueError(
                f"classifier.train_layers = {self.train_layers!r}: expected all, head, last:N with N from 1 on, or "
                "names of stages of the backbone, separated by commas"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "ClassifierConfig":
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"classifier.warmup_epochs = {self.warmup_epochs:g} must be below classifier.epochs = {self.epochs}; "
                "shorten the warm-up or train longer"
            )
        return self


class GanConfig(Section):
    """Architecture and training of the generator G and its discriminator D (StyleGAN2-ADA, Karras et al. 2020)."""

    z_dim: int = Field(64, ge=1, le=LARGEST)
    w_dim: int = Field(128, ge=1, le=LARGEST)
    mapping_layers: int = Field(2, ge=1, le=100)
    w_avg_beta: float = Field(0.995, gt=0, lt=1)
    channel_base: int = Field(2048, ge=64, le=LARGEST)
    channel_max: int = Field(64, ge=8, le=LARGEST)
    discriminator: Literal["resnet", "skip", "orig"] = "resnet"
    mbstd_group: int = Field(4, ge=1, description="images whose standard deviation D sees together, on each device")
    conditional: bool = Field(False, description="G and D know the classes of the dataset")
    num_fp16_res: int = Field(0, ge=0, le=20, description="so many of the highest resolutions in float16 on GPUs")
    conv_clamp: float | None = Field(None, gt=0, description="limit of activations; 256 keeps float16 safe")
    batch_size: int = Field(16, ge=1, description="images of a step on all devices together")
    accumulate: int = Field(1, ge=1, description=ACCUMULATE)
    kimg: float = Field(100, ge=0, description="length of the adversarial training, thousands of images")
    warm_start: float = Field(0, ge=0, description="length of the warm start by reconstruction, thousands of images")
    warm_start_learning_rate: float = Field(2e-3, gt=0)
    matching: float = Field(
        0, ge=0, description="so many thousands of images between the two, in which features of samples are matched"
    )
    matching_learning_rate: float = Field(1e-3, gt=0)
    hold: float = Field(
        0, ge=0, description="G stays as it is for so many thousands of images of each phase; the encoder, then D learn"
    )
    learning_rate: float = Field(2e-3, gt=0)
    r1_gamma: float = Field(1.0, ge=0)
    r1_interval: int = Field(16, ge=1)
    path_length_weight: float = Field(2.0, ge=0)
    path_length_interval: int = Field(8, ge=1)
    style_mixing: float = Field(0.9, ge=0, le=1)
    ema_kimg: float = Field(5, gt=0, description="half-life of the weight average, thousands of images")
    ema_rampup: float | None = Field(0.05, gt=0, description="largest half-life as a share of the images seen so far")
    horizontal_flip: bool = True
    augment: Literal["off", "fixed", "ada"] = Field("off", description="augmentation of all that D sees")
    augment_preset: AugmentPreset = "bgc"
    augment_p: float | None = Field(None, ge=0, le=1, description="strength of the fixed augmentation")
    ada_target: float = Field(0.6, ge=0, le=1, description="mean sign of D on real images that ada aims at")
    ada_kimg: float = Field(500, gt=0, description="thousands of images in which ada can go from 0 to 1")
    transfer: str | None = Field(None, description="model whose weights to start from, as far as they fit")
    freeze_d: int = Field(0, ge=0, description="layers of D, from the highest resolution, that do not train")
    reconstruction: float = Field(0.0, ge=0, description="weight of the reconstruction term in the adversarial phase")
    perceptual: float = Field(1.0, ge=0, description="weight of the perceptual distance within the reconstruction term")
    snapshot_kimg: float = Field(20, gt=0, description="thousands of images between image grids and saved models")
    snapshot_psi: float = Field(1.0, ge=0, description="truncation of the samples in image grids; 1 is none")

    @model_validator(mode="after")
    def _classes_that_matching_knows(self) -> "GanConfig":
        if self.matching and self.conditional:
            raise ValueError(
                f"gan.matching = {self.matching:g} compares all images at once, whatever their class, and so cannot "
                "train a conditional generator; set gan.matching=0, or leave out gan.conditional"
            )
        return self

    @model_validator(mode="after")
    def _strength_of_augmentation(self) -> "GanConfig":
        if self.augment == "fixed" and self.augment_p is None:
            raise ValueError("gan.augment = fixed needs a strength: set `gan.augment_p` from 0 to 1")
        if self.augment != "fixed" and self.augment_p is not None:
            raise ValueError(
                f"gan.augment_p = {self.augment_p} is for gan.augment = fixed, not {self.augment}; "
                "set `gan.augment` fixed, or leave `gan.augment_p` out"
            )
        return self


class ViscoinConfig(Section):
    """Psi, Theta and Omega: architecture, loss weights and schedule of Parekh et al. 2025, table of losses."""

    n_concepts: int = Field(256, ge=1, le=MOST_CONCEPTS)
    latent_channels: int = Field(512, ge=1, le=MOST_CONCEPTS)
    coarse_layer: int = Field(2, ge=0, le=1000)
    mid_layer: int = Field(10, ge=0, le=1000)
    weight_norm: bool = False
    dropout: float = Field(0.01, ge=0, lt=1)
    steps: int = Field(100_000, ge=0, description="0, of concepts of the pursuit: they stay as they are found")
    without_generator: bool = Field(False, description="Psi and Theta alone: concepts, which cannot be drawn")
    classes: list[str] | None = Field(
        None, min_length=2, description="classes of f that g explains; default: all that f knows"
    )
    class_map: str | None = Field(
        None, description="of a folder or zip: CSV or JSON, folder and class of f; `ignored`: folders are no classes"
    )
    support_width: int | None = Field(
        None, ge=1, le=MOST_CONCEPTS, description="numbers of the support Phi'; default: 9 for each concept"
    )
    support: Literal["learned", "components"] = Field(
        "learned", description="Phi' by trained layers as published, or whitened principal components of f's maps"
    )
    initialisation: Literal["random", "channels", "pursuit"] = Field(
        "random", description="Psi starts from single channels of f, or from two-valued directions of its last layer"
    )
    pursuit_dimensions: int | None = Field(None, ge=2, le=1000, description="of that search; default: by a rule")
    hold_concepts: float = Field(
        0.0, ge=0, le=1, description="concepts of the pursuit stay as they are for this share of the steps; 1: for good"
    )
    translator_activation: Literal["lrelu", "linear"] = Field("lrelu", description="of Omega; published: lrelu")
    translator_inputs: Literal["second_moment", "scaled", "whitened"] = Field(
        "second_moment",
        description="what Omega reads: normalised in each image (published), scaled, or whitened",
    )
    translator_rank: int | None = Field(
        None, ge=1, description="principal components of concept maps that a whitened Omega reads; default: all"
    )
    translator_start: Literal["random", "closed_form"] = Field(
        "random", description="closed_form: Omega starts as the regression of G's styles on what f sees in its samples"
    )
    directions: float = Field(
        0.0, ge=0, le=1, description="share of the steps, the last, that learn a direction of w+ for each concept too"
    )
    direction_images: int = Field(24, ge=1, description="edited images of such a step, on all devices together")
    direction_rate: float = Field(0.03, gt=0, description="learning rate of the directions")
    schedule: Literal["step", "cosine"] = Field("step", description="of the learning rates; step: as published")
    batch_size: int = Field(8, ge=1, description="real images of a step on all devices together")
    accumulate: int = Field(1, ge=1, description=ACCUMULATE)
    reconstructed: int | None = Field(None, ge=1, description="so many of them go through G; default: all")
    generated: int = Field(8, ge=0, description="samples of G in a step")
    learning_rate: float = Field(1e-4, gt=0)
    translator_rate: float = Field(1.0, gt=0, description="learning rate of Omega relative to that of Psi and Theta")
    generator_rate: float = Field(
        0.0, ge=0, description="learning rate of G's synthesis network, likewise; published: 0, G stays as it is"
    )
    decay_every: int = Field(1000, ge=1, description="steps between rate drops in the second half")
    decay_factor: float = Field(0.8, gt=0, le=1)
    warmup_steps: int = Field(100, ge=0, description="steps before sparsity and output fidelity switch on")
    output_fidelity: float = Field(0.5, ge=0, description="alpha")
    perceptual: float = Field(3.0, ge=0, description="beta")
    reconstruction_class: float = Field(0.1, ge=0, description="gamma")
    sparsity: float = Field(0.2, ge=0, description="delta")
    orthogonality: float = Field(1.0, ge=0)
    bimodality: float = Field(0.0, ge=0, description="concepts are either there or not; needs a batch of 100 or more")
    style: float = Field(1.0, ge=0)
    perceptual_loss: Literal["auto", "lpips", "classifier"] = "auto"
    horizontal_flip: bool = True
    evaluate_every: int = Field(1000, ge=1)
    early_stopping: int | None = Field(
        None, ge=1, description="evaluations without a better model that end the training"
    )
    penalties: EnsemblePenalties = Field(
        [], description="behaviour that is not wanted, as in `not_for concept=3 label=0`; several joined by ;"
    )

    @field_validator("penalties")
    @classmethod
    def _names_of_penalties(cls, value: list[Any]) -> list[Any]:
        return named(value)

    @model_validator(mode="after")
    def _parts_that_can_be_trained(self) -> "ViscoinConfig":
        if self.hold_concepts and self.initialisation != "pursuit":
            raise ValueError(
                f"viscoin.hold_concepts = {self.hold_concepts:g} holds the concepts of the pursuit, but "
                f"viscoin.initialisation is {self.initialisation}; set it to pursuit, or viscoin.hold_concepts to 0"
            )
        if self.generator_rate and self.directions == 1:
            raise ValueError(
                f"viscoin.generator_rate = {self.generator_rate:g} lets G train until the directions begin, but with "
                "viscoin.directions = 1 they begin at once; set either to less"
            )
        if not self.steps and not (self.without_generator and self.initialisation == "pursuit"):
            raise ValueError(
                "viscoin.steps = 0 leaves random concepts, or a generator that draws nothing; set "
                "viscoin.without_generator and viscoin.initialisation=pursuit, or train"
            )
        if self.directions and self.hold_concepts < 1:
            raise ValueError(
                f"viscoin.directions = {self.directions:g} needs concepts that no longer change; set "
                "viscoin.hold_concepts to 1, or viscoin.directions to 0"
            )
        return self


class Concept2ClipConfig(Section):
    """Training of the adapter from concept activations to the embeddings of a scorer, by which concepts are named."""

    model: str = Field("attributes", description="a model of open_clip, or attributes: the scorer without text")
    pretrained: str | None = Field(None, description="tag or file of the weights of the open_clip model")
    hidden: int = Field(0, ge=0, le=LARGEST, description="units between two layers; 0 is one linear layer")
    dropout: float = Field(0.98, ge=0, lt=1, description="share of concepts hidden at a step: each must stand alone")
    epochs: int = Field(60, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    squared_error: float = Field(1.0, ge=0, description="weight of the squared error beside 1 - cosine")

    @model_validator(mode="after")
    def _weights_of_the_model(self) -> "Concept2ClipConfig":
        if self.model == "attributes" and self.pretrained is not None:
            raise ValueError(
                f"concept2clip.pretrained = {self.pretrained!r} is for a model of open_clip; "
                "set `concept2clip.model` as well, or leave `concept2clip.pretrained` out"
            )
        if self.model != "attributes" and self.pretrained is None:
            raise ValueError(
                f"concept2clip.model = {self.model!r} needs weights: set `concept2clip.pretrained` to a tag, "
                "such as openai, or to a file"
            )
        return self


class JudgeConfig(Section):
    """Training of the judge, which reads attributes off images and shares nothing with f."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    blurred: float = Field(0.3, ge=0, le=1, description="share of training images with softened edges, as G draws them")
    noisy: float = Field(0.2, ge=0, le=1, description="share of training images with noise")
    horizontal_flip: bool = True
    early_stopping: int | None = Field(None, ge=1, description="epochs without a better model that end the training")


class DiffMaskConfig(Section):
    """Training of DiffMask (De Cao et al. 2020; for images Nalmpantis et al. 2023) on a frozen ViT."""

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-5, gt=0, description="of the gates")
    lr_placeholder: float = Field(1e-3, gt=0, description="of the vector that replaces patches")
    lr_alpha: float = Field(0.3, gt=0, description="of the multipliers")
    warmup_steps: int = Field(1200, ge=0, description="steps of rising rate of gates and placeholder")
    alpha: float = Field(20.0, ge=0, le=200, description="where the multiplier of each layer starts")
    eps: float = Field(0.1, ge=0, description="divergence from f's prediction that is tolerated, nats")
    sparsity: Literal["expected", "log"] = Field(
        "expected",
        description="what gets small: the share of patches kept, or the mean of its log, as published",
    )
    placeholder: Literal["learned", "zeros", "fixed"] = Field(
        "learned", description="what replaces a patch; fixed: the mean embedding of patches that show no known part"
    )
    mul_activation: float = Field(15.0, gt=0, description="range of the gates' logits to each side")
    add_activation: float = Field(8.0, description="where they start: 8 is open")
    spread: float = Field(
        1.0, ge=0, le=1, description="how far gates differ at the start, of the usual initialisation; 1 as published"
    )
    weighted_layer_distribution: bool = Field(False, description="draw layers less often that are good already")
    checkpoint: str | None = Field(None, description="a DiffMask of the same classifier to start from")
    sample_images: int = Field(8, ge=1, description="images of each split in the figures of masks")
    log_every_n_steps: int = Field(200, ge=1, description="steps between validations, figures of masks and checkpoints")
    early_stopping: int | None = Field(
        None, ge=1, description="evaluations without a better model that end the training"
    )
    num_workers: int | None = Field(None, ge=0, description="threads that prepare batches; None: by the device")


class Recipe(Section):
    """One dataset and the settings of all that is trained on it."""

    dataset: DatasetConfig = DatasetConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    gan: GanConfig = GanConfig()
    viscoin: ViscoinConfig = ViscoinConfig()
    concept2clip: Concept2ClipConfig = Concept2ClipConfig()
    judge: JudgeConfig = JudgeConfig()
    diffmask: DiffMaskConfig = DiffMaskConfig()
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    expected: dict[str, float] = Field(default_factory=dict, description="results to expect, by name")

    @model_validator(mode="after")
    def _layers_in_order(self) -> "Recipe":
        if self.viscoin.mid_layer < self.viscoin.coarse_layer:
            raise ValueError(
                f"viscoin.mid_layer ({self.viscoin.mid_layer}) must not be below viscoin.coarse_layer "
                f"({self.viscoin.coarse_layer})"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str = "birds", overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name_or_path: name of a shipped recipe, or path of a YAML file, also the recipe.yaml of a run. A file may say
            `base: NAME` to start from a shipped recipe; what neither says has the default of this module.
        overrides: dotted key -> value (`{"viscoin.steps": 500}`); text is read as the key's type, "null" as None.

    Raises:
        ValueError: unknown recipe, an empty one, unknown key (the nearest one is named) or a value of the wrong type
            or range.
    """
    path = _recipe_file(name_or_path)
    filled = {key: value for key, value in _read(path).items() if value is not None}
    if not filled:
        raise ValueError(f"recipe {path} is empty; write what to change, as in `base: birds`, or give no recipe")
    if base := filled.pop("base", None):
        if base not in recipe_names():
            raise ValueError(f"recipe {path}: base = {base!r} is no shipped recipe; {_other_recipes(str(base))}")
        inherited = load_recipe(base).model_dump()
        merged = _merge(inherited, filled)
        if _subject(merged) != _subject(inherited):
            merged["expected"] = filled.get("expected", {})
        filled = merged
    return _override(filled, overrides or {}, str(path), of_caller=True)


def _recipe_file(name_or_path: str) -> Path:
    path, shipped = Path(name_or_path), RECIPES / f"{name_or_path}.yaml"
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    if path.is_dir():
        inside = path / "recipe.yaml"
        raise Refused("recipe", path, "a folder, not a file", f"give {inside if inside.is_file() else 'a YAML file'}")
    if regular(path).exists():
        raise Refused("recipe", path, "not a file", "give a YAML file")
    raise ValueError(f"no recipe or file named {name_or_path!r}; {_other_recipes(name_or_path)}")


def _other_recipes(name: str) -> str:
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}the shipped recipes are {', '.join(recipe_names())}"


class _Bounded:
    """Counts the values of a YAML document before any is made, each as often as aliases repeat it."""

    def get_single_node(self) -> yaml.Node | None:
        root = super().get_single_node()  # type: ignore[misc]
        if root is not None and _count_values(root, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES} values; write less, and no aliases of aliases")
        return root


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Values of a node, infinitely many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # should it come again within itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = itertools.chain(*inner) if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


class PlainLoader(_Bounded, yaml.SafeLoader):
    """YAML of plain values, and not too many of them."""


class _Loader(_Bounded, yaml.BaseLoader):
    """YAML whose values are all text, which is read as the key's type: `off` is a word, and 2024 may be a folder."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice in a section")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    """Sections of a recipe file, or of the recipe within the recipe.yaml of a run."""
    values = read_yaml(path, f"recipe {path}")
    values = {} if values is None else values
    if not is_whole(read_text(path)):
        raise ValueError(f"recipe {path} is damaged: this recipe.yaml of a run is not as it was written")
    if isinstance(values, dict) and {"kind", "recipe"} <= values.keys():
        values = values["recipe"]
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must hold sections (dataset, classifier, gan, viscoin), not {values!r:.60}")
    return values


def read_yaml(path: Path, name: str) -> Any:
    """What a YAML file holds, its values as text or None; ValueError, which calls it by `name`, if it is no YAML."""
    try:
        return _parse(parse_yaml(read_text(path), _Loader))
    except (yaml.YAMLError, NotText) as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str, loader: type[PlainLoader] | type[_Loader] = PlainLoader) -> Any:
    """What a YAML document holds; every file that people can change goes through here.

    Raises:
        yaml.YAMLError: no YAML, too long, nested too deeply, or aliases that make it hold too many values.
    """
    if len(text) > MOST_TEXT:
        raise yaml.YAMLError(f"it has {len(text)} characters; settings have less than {MOST_TEXT}")
    try:
        return yaml.load(text, loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # a date or number that is none
        raise yaml.YAMLError(f"a value is not of its type ({error})") from error


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `values`, section by section."""
    merged = dict(base)
    for key, value in values.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def override_recipe(recipe: Recipe, overrides: Mapping[str, Any], source: str | None = None) -> Recipe:
    """A copy of a recipe with some values changed; keys, values and errors as `load_recipe`.

    Args:
        source: where the overrides come from, for errors, as in "of this space"; None: the caller.
    """
    return _override(recipe.model_dump(), overrides, source or "of the saved run", of_caller=source is None)


def _override(values: dict[str, Any], overrides: Mapping[str, Any], source: str, of_caller: bool) -> Recipe:
    before = _subject(values)
    for key, value in overrides.items():
        _assign(values, key, _parse(value))
    if _subject(values) != before and not any(key.startswith("expected") for key in overrides):
        values.pop("expected", None)
    return parse_recipe(values, source, overrides if of_caller else {})


def _subject(values: Mapping[str, Any]) -> list[str]:
    """Which dataset, and which classes of it, expected results are about: they say nothing of others."""
    section = values.get("dataset")
    return [str(section.get(key)).lower() for key in ("name", "attribute")] if isinstance(section, dict) else []


def parse_recipe(values: Mapping[str, Any], source: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Validate plain values into a Recipe; `source` names them in the error, but not those that come from overrides."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        reasons = [_explain(item) for item in error.errors()]
    of_source, others = list[str](), list[str]()
    for reason in reasons:
        words = re.findall(r"[\w.]+", reason)
        given = [
            value for key, value in (overrides or {}).items() if any(f"{word}.".startswith(f"{key}.") for word in words)
        ]
        if given:
            others.append(f"`settings`: {reason}" if any(isinstance(value, str) for value in given) else reason)
        else:
            of_source.append(reason)
    own = [f"recipe {source}: {'; '.join(of_source)}"] if of_source else []
    raise Refused(None, None, "; ".join(own + others))


def _parse(value: Any) -> Any:
    """Texts, also those inside of sections, for the validation to read; but it takes no 1e5 for an integer."""
    if isinstance(value, dict):
        return {key: _parse(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_parse(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if value.lower() in ("", "~", "null", "none"):
        return None
    return float(value) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ValueError(f"override {key!r}: {parent!r} is a value, not a section")
        values = inner
    values[last] = value


def _explain(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggest(item['loc'])}"
    reason = item["msg"].lower()
    if item["type"] == "value_error":
        reason = str(item["ctx"]["error"])
        if not isinstance(item["ctx"]["error"], _TooLarge):
            return reason if len(item["loc"]) < 2 else f"{'.'.join(map(str, item['loc'][:2]))}: {reason}"
    return f"{key} = {item['input']!r:.100}: {reason}"


def _suggest(location: tuple[str | int, ...]) -> str:
    section: Any = Recipe
    for part in location[:-1]:
        fields = getattr(section, "model_fields", {})
        if str(part) not in fields:
            return ""  # within a list
        section = fields[str(part)].annotation
    name, names = str(location[-1]), list(section.model_fields)
    near = difflib.get_close_matches(name, names, n=1) or _elsewhere(name)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else f" (known keys: {', '.join(names)})"


def _elsewhere(name: str) -> list[str]:
    """Keys of that name in any section, as in "classifier.epochs"."""
    sections = {title: getattr(field.annotation, "model_fields", {}) for title, field in Recipe.model_fields.items()}
    return [f"{title}.{name}" for title, keys in sections.items() if name in keys]
