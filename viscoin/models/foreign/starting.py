"""A classifier that starts from weights of a file: another library's checkpoint, or a model file of our own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from viscoin.errors import Refused
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model
from viscoin.models.foreign.fitting import fit_checkpoint
from viscoin.models.foreign.pipeline import Pipeline, find_pipeline
from viscoin.models.foreign.reading import read_checkpoint


@dataclass(frozen=True)
class Start:
    """Weights to start from: a backbone, its tensors by timm's names, and keywords of `Classifier` that go with them.

    Attributes:
        fixed_size: whether the weights fit one input size only.
    """

    backbone: str
    tensors: dict[str, Tensor]
    keywords: dict[str, Any]
    fixed_size: bool


def read_start(path: Path, backbone: str | None = None) -> Start:
    """The weights in a checkpoint or in a model file of kind "classifier".

    Args:
        backbone: that they must be of; None: whichever they are of.

    Raises:
        ValueError: no such file, unusable weights, or weights of another backbone.
    """
    try:
        return _of_checkpoint(path, backbone)
    except Refused as error:
        if "model file of viscoin" not in error.reason:
            raise
    loaded = load_model(path, "classifier").model
    own = loaded.architecture["backbone"]
    if backbone not in (None, own):
        raise Refused("classifier.weights", path, f"is of backbone {own}, not of {backbone}", "omit `backbone`")
    keywords = {key: value for key, value in loaded.architecture.items() if key not in ("backbone", "n_classes")}
    keywords["input_size"] = loaded.input_size
    del keywords["resolution"]
    return Start(own, dict(loaded.model.state_dict()), keywords, hasattr(loaded.model, "pos_embed"))


def _of_checkpoint(path: Path, backbone: str | None) -> Start:
    checkpoint = read_checkpoint(path)
    fitted = fit_checkpoint(checkpoint, backbone)
    pipeline = find_pipeline(checkpoint, fitted, Pipeline()).pipeline
    keywords: dict[str, Any] = {"input_size": pipeline.input_size, "mean": pipeline.mean, "std": pipeline.std}
    if fitted.norm_eps is not None:
        keywords["norm_eps"] = fitted.norm_eps
    return Start(fitted.backbone, dict(fitted.tensors), keywords, "pos_embed" in fitted.tensors)


def start_classifier(
    start: Start, n_classes: int, resolution: int, cut: str | None = None, input_size: int | None = None
) -> Classifier:
    """A classifier of other classes with these weights; its last layer is new, and random.

    Args:
        resolution, cut, input_size: see `Classifier`; without `input_size`, weights that fit one size keep that.

    Raises:
        Refused: weights that fit another input size alone.
    """
    keywords = dict(start.keywords)
    own = keywords.pop("input_size")
    if start.fixed_size and input_size not in (None, own):
        raise Refused("classifier.input_size", input_size, f"the weights fit {own} px alone", f"set it to {own}")
    side = input_size or (own if start.fixed_size else None)
    model = Classifier(
        start.backbone, n_classes, resolution, cut=cut or keywords.pop("cut", None), input_size=side, **keywords
    )
    last = model.model.get_classifier()
    heads = {
        id(weight) for layer in (last if isinstance(last, tuple | list) else (last,)) for weight in layer.parameters()
    }
    own_tensors = model.model.state_dict(keep_vars=True)
    wanted = {name for name, tensor in own_tensors.items() if id(tensor) not in heads}
    model.model.load_state_dict({name: start.tensors[name] for name in wanted}, strict=False)
    return model
