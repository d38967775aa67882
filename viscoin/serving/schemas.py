"""What requests hold, with the bounds of each value."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from viscoin.training.regions import MOST_SIDE

ImageId = Annotated[
    str, Field(max_length=160, description="id of an upload, or of an image of the model's data, as birds/test/14")
]
ModelId = Annotated[str | None, Field(max_length=80, description="id of a model; default: the first one")]
Index = Annotated[int, Field(ge=0, le=1_000_000)]
Amount = Annotated[float, Field(ge=0, le=16, allow_inf_nan=False)]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
MOST_MARKED, MOST_BOXES, MOST_RUNS = 1000, 64, 65_536  # images of a split, boxes of one, run lengths of one mask


class Body(BaseModel):
    """A body without other keys than its own."""

    model_config = ConfigDict(extra="forbid")


class PredictBody(Body):
    """An image that is known already."""

    image: ImageId
    model: ModelId = None
    top: Annotated[int, Field(ge=1, le=50, description="classes and concepts in the answer")] = 6


class ExplainBody(Body):
    """Maps of classes, of concepts, or of the predicted class."""

    image: ImageId
    model: ModelId = None
    method: Annotated[str, Field(max_length=40)] = "gradcam"
    classes: Annotated[list[Index] | None, Field(max_length=8)] = None
    concepts: Annotated[list[Index] | None, Field(max_length=8)] = None
    against: Annotated[Index | None, Field(description="a class whose logit is subtracted")] = None


class AmplifyBody(Body):
    """Concepts multiplied by factors, or set to values in units of their 90 % quantile."""

    image: ImageId
    model: ModelId = None
    factors: Annotated[dict[Index, Amount], Field(max_length=64)] = {}
    values: Annotated[dict[Index, Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]], Field(max_length=64)] = {}


class LimitsBody(Body):
    """What a job asks SLURM for, as the options of `submit` say."""

    partition: Annotated[str | None, Field(max_length=80)] = None
    account: Annotated[str | None, Field(max_length=80)] = None
    gpus: Annotated[str, Field(max_length=40, description="GPUs per node, as 2 or a100:2; 0 computes on the CPU")] = "1"
    nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    time: Annotated[str, Field(max_length=40, description="time limit, as 1-00:00:00")] = "1-00:00:00"
    mem: Annotated[str, Field(max_length=20, description="memory per node")] = "32G"
    cpus_per_task: Annotated[int, Field(ge=1, le=1024)] = 8


class JobBody(Body):
    """A training."""

    kind: Annotated[str, Field(max_length=40)]
    dataset: Annotated[str | None, Field(max_length=400, description="default: that of `replay`, else birds")] = None
    recipe: Annotated[str | None, Field(max_length=80, description="default: that of the dataset")] = None
    settings: Annotated[dict[str, Any], Field(max_length=200, description="keys of the recipe")] = {}
    name: Annotated[str | None, Field(max_length=128)] = None
    replay: Annotated[str | None, Field(max_length=128, description="a run whose commands are obeyed again")] = None
    devices: Annotated[int | None, Field(ge=1, le=64, description="processes, one a GPU")] = None
    where: Annotated[Literal["here", "slurm"], Field(description="by this service, or as a job of a cluster")] = "here"
    limits: Annotated[LimitsBody, Field(description="what a job of a cluster asks for")] = LimitsBody()
    dry_run: Annotated[bool, Field(description="check it, and say what would be started")] = False


class CommandBody(Body):
    """A command to a training."""

    command: Literal["pause", "continue", "stop", "finish", "evaluate", "set", "penalty", "note"]
    values: Annotated[dict[str, Any], Field(max_length=50)] = {}


class BranchBody(Body):
    """A new training from a saved step of a run."""

    step: Annotated[int, Field(ge=0, le=10**12, description="one of GET saved")]
    name: Annotated[str | None, Field(max_length=128, description="of the new run")] = None
    commands: Annotated[list[CommandBody], Field(max_length=20, description="to be obeyed at that step")] = []


class MaskBody(Body):
    """A mask as COCO writes it in uncompressed run lengths: column by column, outside and inside in turn."""

    size: Annotated[list[Side], Field(min_length=2, max_length=2, description="height and width, pixels")]
    counts: Annotated[list[Annotated[int, Field(ge=0, le=MOST_SIDE**2)]], Field(min_length=1, max_length=MOST_RUNS)]


class MarkBody(Body):
    """What is marked on one image: all that its boxes or its mask cover."""

    boxes: Annotated[
        list[Annotated[list[Share], Field(min_length=4, max_length=4)]],
        Field(max_length=MOST_BOXES, description="each left, top, right, bottom, in shares of the side"),
    ] = []
    mask: MaskBody | None = None


class MarksBody(Body):
    """Marked images by their index; those of validation are what a penalty is measured on."""

    train: Annotated[dict[Index, MarkBody], Field(min_length=1, max_length=MOST_MARKED)]
    validation: Annotated[dict[Index, MarkBody], Field(max_length=MOST_MARKED)] = {}
