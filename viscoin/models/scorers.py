"""Scorers: images and captions in one embedding space, where nearness means that the words fit the picture.

`ClipScorer` is any model of open_clip. `AttributeScorer` needs no text model: its space is spanned by the attributes
that a dataset knows, and the only captions that it understands are their names.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.plain_pickle import read_tensor_file
from viscoin.errors import Refused, reason_of
from viscoin.models.classifier import Classifier

logger = logging.getLogger(__name__)

RIDGE = 1e-2  # of the probe's features, which have unit variance
OPENAI_CACHE = Path.home() / ".cache" / "clip"  # where open_clip keeps the weights that it does not take from the Hub


class Scorer(Protocol):
    """What naming asks of an embedding space: unit vectors for images and for captions."""

    name: str  # for logs and files

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, D) of unit length."""

    def text_embeddings(self, captions: Sequence[str]) -> Tensor:
        """T captions -> (T, D) of unit length."""


class AttributeScorer(nn.Module):
    """A text-free scorer: one axis for each attribute of a dataset, read off f's features by a linear probe.

    An image is where the probe puts it, as unit vector; the caption of an attribute is the unit vector of its axis.
    This is no CLIP: it knows nothing but these attributes, and those only as well as the probe reads them.

    Args:
        classifier: f.
        attribute_names: A names, the captions.
        probe: `probe_features` (B, F) -> (B, A), fitted by `fit_probe`.
    """

    name = "attribute probe (no CLIP)"

    def __init__(self, classifier: Classifier, attribute_names: Sequence[str], probe: nn.Linear) -> None:
        super().__init__()
        self.classifier, self.attribute_names, self.probe = classifier, list(attribute_names), probe

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, A) of unit length."""
        return F.normalize(self.probe(probe_features(self.classifier, images)), dim=1)

    def text_embeddings(self, captions: Sequence[str]) -> Tensor:
        """Names of attributes -> (T, A); ValueError for any other caption."""
        unknown = [caption for caption in captions if caption not in self.attribute_names]
        if unknown:
            raise Refused(
                None, None,
                f"caption {unknown[0]!r}: this adapter was trained without a text model and knows only the names of "
                f"attributes ({', '.join(self.attribute_names[:3])}, ...)",
                "pass `names` auto, or train one for CLIP (concept2clip.model=ViT-B-32, "
                "concept2clip.pretrained=openai)",
            )  # fmt: skip
        axes = torch.eye(len(self.attribute_names), device=self.probe.weight.device)
        return axes[[self.attribute_names.index(caption) for caption in captions]]


def probe_features(classifier: Classifier, images: Tensor) -> Tensor:
    """Mean and maximum over positions of the three maps of f (B, F); small parts show in the maximum."""
    maps = [part.float() for part in classifier.features(images).maps]
    return torch.cat([part.mean((2, 3)) for part in maps] + [part.amax((2, 3)) for part in maps], 1)


def fit_probe(features: Tensor, attributes: Tensor) -> nn.Linear:
    """Ridge regression from features (N, F) to attributes (N, A), bool; outputs have variance 1 over these images.

    So all attributes weigh alike in a unit vector, the rare as the frequent. An attribute that never varies stays 0.
    """
    features, targets = features.double(), attributes.double()
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    inputs = (features - mean) / deviation
    gram = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(inputs.shape[1], dtype=torch.double)
    weight = torch.linalg.solve(gram, inputs.T @ (targets - targets.mean(0)) / len(inputs))
    spread = (inputs @ weight).std(0)
    weight = torch.where(spread > 1e-6, weight / spread.clamp_min(1e-6), 0) / deviation[:, None]
    probe = nn.Linear(*weight.shape)
    probe.load_state_dict({"weight": weight.T.float(), "bias": -(mean @ weight).float()})
    return probe.requires_grad_(False)


class ClipScorer(nn.Module):
    """A model of open_clip with its own preprocessing; frozen.

    Args:
        model: what `open_clip.create_model` returns.
        tokenizer: its tokenizer.
        name: for logs and files.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model.requires_grad_(False).eval(), tokenizer, name
        visual: Any = model.visual
        size, config = visual.image_size, visual.preprocess_cfg
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        mean, deviation = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], resized to what the model takes -> (B, D) of unit length."""
        images = (images + 1) / 2
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.model.encode_image((images - self.mean) / self.deviation, normalize=True).float()  # type: ignore[operator]

    def text_embeddings(self, captions: Sequence[str]) -> Tensor:
        """T captions -> (T, D) of unit length."""
        tokens = self.tokenizer(list(captions)).to(self.mean.device)
        return self.model.encode_text(tokens, normalize=True).float()  # type: ignore[operator]


def load_clip(clip_model: str, pretrained: str, download: bool = True) -> ClipScorer:
    """A published model of open_clip, whose weights are downloaded if they are not there yet, or one from files.

    Args:
        clip_model: a name of `open_clip.list_models()`, or a JSON file with such a model's configuration.
        pretrained: a tag of its published weights, or a file of weights.
        download: whether weights may be downloaded; not where a model file alone names them.

    Raises:
        ValueError: open_clip is not installed, unknown model or tag, or unavailable weights.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise Refused(
            "clip_model", clip_model, "CLIP needs the package open-clip-torch",
            "install it by: pip install viscoin[clip]",
        ) from error  # fmt: skip
    name = _register(open_clip, clip_model)
    tags = open_clip.list_pretrained_tags_by_model(name)
    local = Path(pretrained).is_file()
    if not local and pretrained not in tags:
        remedy = f"choose {', '.join(tags)}" if tags else "give a file of weights"
        raise Refused("pretrained", pretrained, f"neither a file nor published weights of {clip_model}", remedy)
    if not local and not download and not _is_cached(open_clip.get_pretrained_cfg(name, pretrained)):
        raise Refused(
            "pretrained", pretrained, f"the weights of {clip_model} are not on this machine, and a "
            "model file starts no download",
            f"fetch them: python -c \"import open_clip; open_clip.create_model('{name}', pretrained='{pretrained}')\"",
        )  # fmt: skip
    empty = open_clip.create_model(name, load_weights=False)
    size = sum(4 * parameter.numel() for parameter in empty.parameters()) / 1e6
    if not local:
        hub = open_clip.get_pretrained_cfg(name, pretrained).get("hf_hub")
        place = HF_HUB_CACHE if hub else OPENAI_CACHE
        logger.info("weights of %s (%s): %.0f MB, downloaded to %s if not there yet", name, pretrained, size, place)
    try:
        if local and Path(pretrained).suffix != ".safetensors":
            read_tensor_file(Path(pretrained))  # open_clip would name neither what is refused nor what is damaged
        with nullcontext() if download else _offline():
            loaded = open_clip.create_model(name, pretrained=pretrained)
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # the same without weights has just worked, so it was their download or their file
        reason = reason_of(error)
        failed = f"could not be {'read' if local else 'downloaded'} ({reason})"
        raise Refused(
            "pretrained", pretrained, f"the weights of {clip_model} ({size:.0f} MB) {failed}",
            "fetch them where there is a network and pass their file, or use `clip_model` attributes where a dataset "
            "has some",
        ) from error  # fmt: skip
    return ClipScorer(loaded, tokenizer, f"open_clip {name} ({pretrained})")


def _is_cached(config: Mapping[str, Any]) -> bool:
    """Whether published weights of open_clip have been downloaded before."""
    if not config.get("hf_hub"):
        return (OPENAI_CACHE / str(config.get("url", "?")).rpartition("/")[2]).is_file()
    repository, _, file = config["hf_hub"].rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    names += [Path(name).with_suffix(".safetensors").name for name in names] + ["open_clip_model.safetensors"]
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


@contextmanager
def _offline() -> Iterator[None]:
    """Let the Hub's library take what it has downloaded before, and ask nobody whether there is something newer."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _register(open_clip: Any, model: str) -> str:
    """The name by which open_clip knows a model, which may come from a JSON file."""
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        open_clip.add_model_config(path)
        model = path.stem
    if model not in open_clip.list_models():
        near = [name for name in open_clip.list_models() if name.lower().startswith(model.lower()[:5])][:5]
        remedy = f"did you mean {', '.join(near)}?" if near else "choose one such as ViT-B-32, or attributes"
        raise Refused("clip_model", model, "unknown to open_clip", remedy)
    return model
