"""Model files: one .safetensors with all that is needed to rebuild the model, found by path, run or name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from viscoin.config import Recipe
from viscoin.errors import Refused
from viscoin.files import atomic_path, write_tensors
from viscoin.kinds import KINDS
from viscoin.runs.revision import code_revision
from viscoin.runs.run import Run, newest_run

FORMAT = "viscoin/1"
ASSETS = Path(__file__).parents[2] / "assets"


@dataclass(frozen=True)
class LoadedModel:
    """A rebuilt model in eval mode, and what its file says of it."""

    model: Any  # Classifier, Generator, VisCoIN or Concept2Clip, as `kind` says
    kind: str
    metadata: Mapping[str, Any]
    path: Path

    @property
    def class_names(self) -> list[str]:
        return self.metadata["class_names"]

    @property
    def recipe(self) -> dict[str, Any]:
        return self.metadata["recipe"]


def save_model(
    path: Path,
    model: nn.Module,
    kind: str,
    *,
    recipe: Recipe,
    class_names: Sequence[str],
    scores: Mapping[str, float] | None = None,
    origin: str | None = None,
    selection: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model with its architecture, recipe, class names, versions and scores; whole or not at all.

    Args:
        model: offers `architecture` (Generator and Discriminator: `config`), a JSON-able dict that rebuilds it.
        selection: by which measure the weights were chosen among those of the training, its value and their step.
        origin: where weights come from that were not trained here, and their licence.
        dtype: store floating-point weights in this type (torch.float16 halves the file); loading gives float32.
    """
    metadata = {
        "format": FORMAT,
        "kind": kind,
        "architecture": getattr(model, KINDS[kind].architecture),
        "dataset": recipe.dataset.name,
        "recipe": recipe.model_dump(),
        "class_names": list(class_names),
        "versions": _versions(),
        "revision": code_revision(),
        "scores": dict(scores or {}),
        **({"selection": dict(selection)} if selection else {}),
        **({"origin": origin} if origin else {}),
    }
    tensors = {key: _stored(value, dtype) for key, value in model.state_dict().items()}
    write_file(path, tensors, metadata)
    return path


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to .safetensors, or to a pickle of plain tensors for other suffixes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            if path.suffix == ".safetensors":
                partial.write_bytes(save(dict(tensors), {"viscoin": json.dumps(metadata)}))
            else:
                write_tensors({"metadata": json.dumps(metadata), "tensors": dict(tensors)}, partial)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}); choose another path") from error


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a model file or of a pickle written by `to-pickle`; runs no code from the file.

    Raises:
        ValueError: missing, truncated, not written by this project, or by a version of another format.
    """
    if not path.is_file():
        raise ValueError(f"there is no model file {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("viscoin")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            content = content if isinstance(content, dict) else {}
            text, tensors = content.get("metadata"), content.get("tensors", {})
        metadata = json.loads(text) if text is not None else {}
    except Exception as error:  # damaged bytes may raise anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or not a model file of viscoin: {reason}") from error
    if text is None:
        raise ValueError(
            f"{path} was not written by viscoin (its metadata is missing); import-viscoin converts older checkpoints, "
            "import-gan published generators"
        )
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {metadata.get('format')!r}, this version of viscoin reads {FORMAT!r}")
    return tensors, metadata


def load_model(path: Path, kind: str | None = None) -> LoadedModel:
    """Rebuild the model of a file, a run folder or a pickle written by `to-pickle`.

    Raises:
        ValueError: unusable file, another kind than asked for, or weights that do not fit the named architecture.
    """
    path = Run(path).model_path if path.is_dir() else path
    tensors, metadata = read_file(path)
    if kind is not None and metadata["kind"] != kind:
        raise ValueError(f"{path} holds a {metadata['kind']} model; a {kind} model is needed here")
    model = _build(metadata)
    wanted = model.state_dict()
    misfits = [key for key in wanted if key not in tensors or tensors[key].shape != wanted[key].shape]
    misfits += [key for key in tensors if key not in wanted]
    if misfits:
        raise ValueError(f"{path}: {len(misfits)} weights do not fit its architecture, first {', '.join(misfits[:3])}")
    model.load_state_dict(tensors)  # to the types of the model
    return LoadedModel(model.to(memory_format=torch.channels_last).eval(), metadata["kind"], metadata, path)


def find_model(kind: str, value: str | Path | None, dataset: str) -> Path:
    """The file that `value` means: a file or run folder; without one the newest run, else the shipped model.

    Raises:
        ValueError: nothing there; says how to get one.
    """
    if value is not None:
        path = Path(value)
        if path.is_dir() and not Run(path).model_path.is_file():
            raise ValueError(f"run folder {path} holds no finished model (model.safetensors)")
        if not path.exists():
            raise ValueError(f"there is no model file or run folder {path}")
        return Run(path).model_path if path.is_dir() else path
    run = newest_run(kind, dataset, finished=True)
    if run is not None:
        return run.model_path
    shipped = ASSETS / dataset / f"{kind}.safetensors"
    if shipped.is_file():
        return shipped
    raise Refused(
        None, None, f"no {kind} model of dataset {dataset!r} was found in runs/ and none is shipped",
        f"train one: train {kind} `dataset` {dataset}",
    )  # fmt: skip


def _build(metadata: Mapping[str, Any]) -> nn.Module:
    kind = metadata["kind"]
    if kind not in KINDS:
        raise ValueError(f"unknown kind of model {kind!r}; known are {', '.join(KINDS)}")
    model: nn.Module = KINDS[kind].build(metadata["architecture"], metadata["class_names"])
    return model


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype).clone() if dtype and tensor.is_floating_point() else tensor.clone()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("viscoin", "torch", "timm", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
