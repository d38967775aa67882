"""Types and bounds of what a model file says of its model, checked before anything is built from it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stylegan2_ada.settings import MOST_PIXELS, Settings, Size, WholeSynthesisSettings, Width, explain
from viscoin.config import DatasetConfig
from viscoin.kinds import KINDS, load

Resolution = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Share = Annotated[float, Field(ge=0, lt=1)]
Style = Annotated[int, Field(ge=0, le=1000)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=100)]  # of timm or open_clip, no address of a hub


Channels = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Number = Annotated[int, Field(ge=0, le=10_000)] | Annotated[float, Field(ge=0, le=10_000)]
Option = bool | Number | Annotated[str, Field(pattern=r"^\w*$", max_length=40)] | None

# Keywords of timm's networks that change their shape or arithmetic, and nothing else: no path, no address, no code.
BACKBONE_OPTIONS = (
    "act_layer", "bn_eps", "channel_multiplier", "channels", "class_token", "conv_mlp", "depth", "depths", "dims",
    "embed_dim", "global_pool", "head_hidden_size", "init_values", "layers", "ls_init_value", "mlp_ratio",
    "no_embed_class", "num_heads", "pad_type", "patch_size", "pre_norm", "qkv_bias", "reg_tokens", "stem_type",
    "stem_width", "window_size",
)  # fmt: skip


class ClassifierArchitecture(Settings):
    """Keywords of `Classifier`, but for `pretrained`: a file does not ask for downloads."""

    backbone: Name
    n_classes: Size
    resolution: Resolution
    # files of older versions have none of these: as the backbone has it
    cut: Name | None = None
    input_size: Resolution | None = None
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    norm_eps: Annotated[float, Field(gt=0, lt=1)] | None = None
    options: dict[str, Option | Annotated[list[Number], Field(max_length=16)]] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _of_the_backbone(cls, options: dict[str, Any]) -> dict[str, Any]:
        unknown = [key for key in options if key not in BACKBONE_OPTIONS]
        if unknown:
            raise ValueError(f"unknown option of the backbone {unknown[0]!r:.60}")
        return options


class AdaptedArchitecture(Settings):
    """Keywords of `AdaptedGenerator`."""

    synthesis: WholeSynthesisSettings
    coarse_layer: Style
    mid_layer: Style
    # files of older versions have none of these: Omega as published
    linear: bool = False
    inputs: Literal["second_moment", "scaled", "whitened"] = "second_moment"
    rank: Size | None = None
    directions: bool = False


class ExplainingArchitecture(Settings):
    """What an ensemble consists of, besides its classifier."""

    generator: AdaptedArchitecture
    n_concepts: Size
    latent_channels: Size
    support_width: Size | None = None  # files of older versions have neither: 9 for each concept, learned
    support: Literal["learned", "components", "none"] = "learned"
    dropout: Share
    weight_norm: bool


class EnsembleArchitecture(ExplainingArchitecture):
    """That of `VisCoIN`; without a generator there is no support either, and its width is 0."""

    classifier: ClassifierArchitecture
    generator: AdaptedArchitecture | None  # type: ignore[assignment]  # one of `PartsArchitecture` cannot be missing
    support_width: Annotated[int, Field(ge=0)] | None = None
    classes: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=2)  # that g knows; None: all

    @model_validator(mode="after")
    def _classes_are_those_of_f(self) -> "EnsembleArchitecture":
        known = self.classes
        if known is not None and (known != sorted(set(known)) or known[-1] >= self.classifier.n_classes):
            raise ValueError("classes of g must be classes of f, in their order")
        return self

    @model_validator(mode="after")
    def _support_is_for_a_generator(self) -> "EnsembleArchitecture":
        without = self.support == "none"
        if (self.generator is None) != without or (self.support_width == 0) != without:
            raise ValueError("a generator and a support belong together")
        return self


class PartsArchitecture(Settings):
    """Keywords of `EnsembleParts`."""

    feature_shapes: list[Annotated[list[Size], Field(min_length=3, max_length=3)]] = Field(min_length=3, max_length=3)
    architecture: ExplainingArchitecture
    n_classes: Size


class AttributeSpace(Settings):
    """The embedding space of a scorer without text."""

    model: Literal["attributes"]
    names: list[str] = Field(min_length=1)
    features: Size


class ClipSpace(Settings):
    """The embedding space of a model of open_clip."""

    model: str
    pretrained: str


class Concept2ClipArchitecture(Settings):
    """Keywords of `Concept2Clip`."""

    n_concepts: Size
    dim: Size
    hidden: Width
    dropout: Share
    space: AttributeSpace | ClipSpace
    ensemble: str


class JudgeArchitecture(Settings):
    """Keywords of `Judge`."""

    attributes: list[str] = Field(min_length=1)
    resolution: Resolution


class DiffMaskArchitecture(Settings):
    """Keywords of `DiffMask`."""

    classifier: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    layers: Annotated[int, Field(ge=3, le=1000)]
    width: Size
    mul_activation: Annotated[float, Field(gt=0)]
    add_activation: float
    placeholder: Literal["learned", "zeros", "fixed"]
    alpha: Annotated[float, Field(ge=0)]


class Metadata(BaseModel):
    """What every model file says; more than that may stand there."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: str
    architecture: dict[str, Any]
    dataset: str
    recipe: dict[str, Any]
    class_names: list[str] = Field(min_length=1)
    versions: dict[str, str] = {}
    revision: str = ""
    scores: dict[str, float | None] = {}
    origin: str = ""
    selection: dict[str, Any] = {}

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of model {kind!r:.60}; known are {', '.join(KINDS)}")
        return kind

    @field_validator("recipe")
    @classmethod
    def _of_a_dataset(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        section = recipe.get("dataset")
        if not isinstance(section, dict) or not {"name", "resolution", "seed"} <= section.keys():
            raise ValueError("recipe.dataset must hold name, resolution and seed")
        DatasetConfig.model_validate(section, strict=True)
        expected = recipe.get("expected", {})
        if not isinstance(expected, dict) or not all(isinstance(value, int | float) for value in expected.values()):
            raise ValueError("recipe.expected must hold numbers by name")
        return recipe

    @model_validator(mode="after")
    def _architecture_of_its_kind(self) -> "Metadata":
        load(KINDS[self.kind].settings).model_validate(self.architecture)
        count = self.architecture.get("n_classes") or self.architecture.get("c_dim")
        if count and count != len(self.class_names):
            raise ValueError(f"there are {count} classes and {len(self.class_names)} class names")
        return self


def unknown_keys(metadata: Mapping[str, Any]) -> list[str]:
    """Keys that no version of before check sums wrote into a model file."""
    return [key for key in metadata if key not in {"format", *Metadata.model_fields}]


def check_metadata(metadata: Any) -> None:
    """Raise ValueError, in one line, unless a model can be built from this, as far as types and bounds say."""
    try:
        Metadata.model_validate(metadata)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
