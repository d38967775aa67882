"""Types and bounds of the settings of networks, for those that come from a file and may hold anything."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .networks import ARCHITECTURES
from .ops.bias_act import ACTIVATIONS

LARGEST = 2**20
MOST_PIXELS = 4096  # side of an image
MOST_LAYERS = 100  # of a mapping network

Size = Annotated[int, Field(ge=1, le=LARGEST)]
Width = Annotated[int, Field(ge=0, le=LARGEST)]  # 0: none
Resolution = Annotated[int, Field(ge=4, le=MOST_PIXELS)]
Activation = Annotated[str, Field(pattern=f"^({'|'.join(ACTIVATIONS)})$")]
Architecture = Annotated[str, Field(pattern=f"^({'|'.join(ARCHITECTURES)})$")]
Filter = Annotated[list[float], Field(min_length=1, max_length=64)]


class Settings(BaseModel):
    """Nothing is converted, and nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MappingSettings(Settings):
    """Keywords of `Mapping` that are free."""

    num_layers: int = Field(8, ge=1, le=MOST_LAYERS)
    embed_features: Size | None = None
    layer_features: Size | None = None
    activation: Activation = "lrelu"
    lr_multiplier: float = Field(0.01, gt=0)
    w_avg_beta: float = Field(0.995, ge=0, le=1)


class Precision(Settings):
    """What all convolutional networks know."""

    channel_base: Size = 32768
    channel_max: Size = 512
    num_fp16_res: int = Field(0, ge=0, le=20)
    conv_clamp: float | None = Field(None, gt=0)


class SynthesisSettings(Precision):
    """Keywords of `Synthesis` that are free."""

    architecture: Architecture = "skip"
    activation: Activation = "lrelu"
    resample_filter: Filter = [1, 3, 3, 1]
    use_noise: bool = True


class WholeSynthesisSettings(SynthesisSettings):
    """All keywords of `Synthesis`."""

    w_dim: Size
    img_resolution: Resolution
    img_channels: int = Field(ge=1, le=64)


class GeneratorSettings(Settings):
    """Keywords of `Generator`."""

    z_dim: Width
    c_dim: Width
    w_dim: Size
    img_resolution: Resolution
    img_channels: int = Field(ge=1, le=64)
    mapping_kwargs: MappingSettings | None = None
    synthesis_kwargs: SynthesisSettings | None = None


class BlockSettings(Settings):
    """Keywords of `DiscriminatorBlock` that are free."""

    activation: Activation = "lrelu"
    resample_filter: Filter = [1, 3, 3, 1]


class EpilogueSettings(BlockSettings):
    """Keywords of `DiscriminatorEpilogue` that are free."""

    mbstd_group_size: Size | None = 4
    mbstd_num_channels: Width = 1


class DiscriminatorSettings(Precision):
    """Keywords of `Discriminator`."""

    c_dim: Width
    img_resolution: Resolution
    img_channels: int = Field(ge=1, le=64)
    architecture: Architecture = "resnet"
    cmap_dim: Size | None = None
    block_kwargs: BlockSettings | None = None
    mapping_kwargs: MappingSettings | None = None
    epilogue_kwargs: EpilogueSettings | None = None


def explain(error: ValidationError, most: int = 3) -> str:
    """What is wrong with settings, in one line: where, and how."""
    reasons = []
    for item in error.errors(include_url=False)[:most]:
        place = ".".join(map(str, item["loc"]))
        reason = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"].lower()
        given = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" = {item['input']!r:.60}"
        reasons.append(f"{place}{given}: {reason}" if place else reason)
    more = error.error_count() - most
    return " ".join("; ".join([*reasons, *([f"{more} more"] if more > 0 else [])]).split())
