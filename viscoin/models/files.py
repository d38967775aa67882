"""Model files: one .safetensors with all that is needed to rebuild the model, found by path, run or name."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stylegan2_ada.plain_pickle import DamagedError, read_tensor_file
from viscoin.config import DEFAULT_DATASET, Recipe
from viscoin.errors import Refused
from viscoin.files import atomic_path, write_tensors
from viscoin.kinds import KINDS, Kind
from viscoin.models.architecture import check_metadata, unknown_keys
from viscoin.program import program_name
from viscoin.runs.revision import code_revision
from viscoin.runs.run import Run, newest_run

FORMAT = "viscoin/1"
MOST_BUFFERS = 2**26  # bytes of tables that an architecture brings along beside its weights
ASSETS = Path(__file__).parents[1] / "assets"  # DATASET/KIND.safetensors


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
    commands: Sequence[Mapping[str, Any]] = (),
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model with its architecture, recipe, class names, versions and scores; whole or not at all.

    Args:
        model: offers `architecture` (Generator and Discriminator: `config`), a JSON-able dict that rebuilds it.
        selection: by which measure the weights were chosen among those of the training, its value and their step.
        commands: what steered the training beside its recipe, as of `viscoin.runs.control.commands_told`.
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
        **({"commands": list(commands)} if commands else {}),
        **({"origin": origin} if origin else {}),
    }
    tensors = {key: stored(value, dtype) for key, value in model.state_dict().items()}
    write_file(path, tensors, metadata)
    return path


def add_scores(path: Path, scores: Mapping[str, float]) -> None:
    """Write scores into a model file; all else in it stays."""
    tensors, metadata = read_file(path)
    write_file(path, tensors, {**metadata, "scores": {**metadata.get("scores", {}), **scores}})


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to .safetensors, or to a pickle of plain tensors for other suffixes."""
    text = json.dumps({**metadata, "digest": _digest(metadata, tensors)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            if path.suffix == ".safetensors":
                partial.write_bytes(save(dict(tensors), {"viscoin": text}))
            else:
                write_tensors({"metadata": text, "tensors": dict(tensors)}, partial)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}); choose another path") from error


def read_file(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a model file or of a pickle written by `to-pickle`; runs no code from the file.

    What the metadata say of a model is not looked at yet; see `read_model`.

    Raises:
        ValueError: missing, truncated, other bytes than were written, not written by this project, or by a version of
            another format.
    """
    path = Path(path)
    found = _read(path)
    with _whole(path, *found):
        return found.tensors, found.metadata


def read_model(path: Path | str, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a model, whose types and bounds are checked.

    Of a file without a digest, which anybody may have written, the model is built once to see whether they fit.

    Raises:
        ValueError: as `read_file`, another kind than asked for, or metadata of which no model can be built.
    """
    path = Path(path)
    found = _read(path)
    if found.digest is None:
        load_model(path, kind)
    with _whole(path, *found):
        _check(path, found.metadata, kind)
        return found.tensors, found.metadata


def load_model(path: Path | str, kind: str | None = None) -> LoadedModel:
    """Rebuild the model of a file, a run folder or a pickle written by `to-pickle`.

    Raises:
        ValueError: unusable file, another kind than asked for, or weights that do not fit the named architecture.
    """
    path = Path(path)
    path = Run(path).model_path if path.is_dir() else path
    found = _read(path)
    with _whole(path, *found):
        _check(path, found.metadata, kind)
        try:
            model = _build(KINDS[found.metadata["kind"]], found.metadata, found.tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    model = model.to(memory_format=torch.channels_last).eval()
    return LoadedModel(model, found.metadata["kind"], found.metadata, path)


def find_model(kind: str, value: str | Path | None, dataset: str) -> Path:
    """The file that `value` means: a file or run folder; without one the newest run, else the shipped model.

    From any folder, `assets/birds/gan.safetensors` names a shipped file.

    Raises:
        ValueError: nothing there; says how to get one.
    """
    if value is not None:
        path = Path(value)
        if path.parts[:1] == ("assets",) and not path.exists():
            path = ASSETS.joinpath(*path.parts[1:])
        if path.is_dir() and not Run(path).model_path.is_file():
            raise ValueError(f"run folder {path} holds no finished model (model.safetensors)")
        if not path.exists():
            moved = f"; shipped models lie in {ASSETS}" if ASSETS.joinpath(*path.parts[-2:]).is_file() else ""
            raise ValueError(f"there is no model file or run folder {path}{moved}")
        return Run(path).model_path if path.is_dir() else path
    run = newest_run(kind, dataset, finished=True)
    if run is not None:
        return run.model_path
    shipped = ASSETS / dataset / f"{kind}.safetensors"
    if shipped.is_file():
        return shipped
    raise Refused(
        None, None, f"no {kind} model of dataset {dataset!r} was found in runs/ and none is shipped",
        f"train one: {program_name()} train {kind} `dataset` {dataset}",
    )  # fmt: skip


def has_model(kind: str, dataset: str | None) -> bool:
    """Whether there is a run or a shipped model of that kind for a dataset (None: birds)."""
    try:
        find_model(kind, None, dataset or DEFAULT_DATASET)
    except Refused:
        return False
    return True


class _Content(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    digest: str | None  # what the file says; those of older versions have none


def _read(path: Path) -> _Content:
    """What stands in a file; its digest is not compared yet."""
    if not path.is_file():
        raise ValueError(f"there is no model file {path}")
    try:
        tensors, text = _content(path)
        metadata = json.loads(text) if text is not None else {}
    except Exception as error:  # damaged bytes may raise anything
        said = error.reason if isinstance(error, DamagedError) else str(error)
        reason = " ".join(said.split()).removeprefix(f"{path} ")[:200] or type(error).__name__
        raise ValueError(f"{path} is damaged or not a model file of viscoin: {reason}") from error
    if text is None:
        raise ValueError(
            f"{path} was not written by viscoin (its metadata is missing); import-viscoin converts older checkpoints, "
            "import-gan published generators"
        )
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has the format {found!r:.60}, this version of viscoin reads {FORMAT!r}")
    if "digest" not in metadata and (unknown := unknown_keys(metadata)):
        raise ValueError(f"{path} is damaged: its metadata hold {unknown[0]!r:.60}, which nobody wrote, and no digest")
    return _Content(tensors, metadata, metadata.pop("digest", None))


@contextmanager
def _whole(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], digest: str | None
) -> Iterator[None]:
    """Compares the digest of a file while the block makes something of it, unless VISCOIN_VERIFY is 0.

    Raises:
        ValueError: it differs; whatever the block raised then has that reason.
    """
    if digest is None or os.environ.get("VISCOIN_VERIFY") == "0":
        yield
        return
    with ThreadPoolExecutor(1) as other:
        found = other.submit(_digest, dict(metadata), tensors)
        try:
            yield
        finally:
            if found.result() != digest:
                raise ValueError(f"{path} is damaged: its content is not what its digest says; copy it or make it anew")


def _check(path: Path, metadata: Mapping[str, Any], kind: str | None) -> None:
    found = metadata.get("kind")
    if kind is not None and isinstance(found, str) and found != kind:
        raise ValueError(f"{path} holds a {found[:60]} model; a {kind} model is needed here")
    try:
        check_metadata(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: its metadata cannot be used: {error}") from None


def _content(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Tensors and metadata as they stand in a file."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return found, (file.metadata() or {}).get("viscoin")
    content = read_tensor_file(path)
    if not isinstance(content, dict) or "metadata" not in content:
        return {}, None
    tensors = content.get("tensors")
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError("its tensors are something else")
    return tensors, content["metadata"]


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the metadata and of names, types, shapes and values of all tensors."""
    found = hashlib.sha256(json.dumps(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _build(kind: Kind, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model with its weights; nothing of the sizes that the metadata name is made before they fit the tensors."""
    try:
        with torch.device("meta"):
            model: nn.Module = kind.build(metadata["architecture"], metadata["class_names"])
    except Exception as error:  # settings that contradict each other may fail anywhere
        raise ValueError(" ".join(str(error).split())[:500] or type(error).__name__) from error
    wanted = model.state_dict()
    misfits = [key for key in wanted if key not in tensors or not _fits(tensors[key], wanted[key])]
    misfits += [key for key in tensors if key not in wanted]
    if misfits:
        raise ValueError(f"{len(misfits)} weights do not fit its architecture, first {', '.join(misfits[:3])}")
    rest = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in wanted)
    if rest > MOST_BUFFERS + sum(tensor.nbytes for tensor in wanted.values()):
        raise ValueError(f"its architecture needs tables of {rest / 2**20:.0f} MB; choose a smaller resolution")
    state = {key: _copied(tensors[key], value.dtype) for key, value in wanted.items()}
    names = sum(1 for _ in model.named_parameters(remove_duplicate=False))
    if names > sum(1 for _ in model.parameters()) or _has_tables(model, state):
        model = kind.build(metadata["architecture"], metadata["class_names"])  # has more than its file
        model.load_state_dict(state)
    else:
        model.load_state_dict(state, assign=True)
    return model


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory of its own, as the file may change, in the layout in which convolutions are fastest."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(dtype, copy=True, memory_format=layout)


def _fits(tensor: Tensor, wanted: Tensor) -> bool:
    floats = tensor.is_floating_point() and wanted.is_floating_point()  # weights may be stored in half precision
    return tensor.shape == wanted.shape and (floats or tensor.dtype == wanted.dtype)


def _has_tables(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the model has tables of its own, which its file does not hold."""
    return any(buffer.is_meta and name not in state for name, buffer in model.named_buffers())


def stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy as it stands in files: on the CPU, and floating-point numbers of that type, if one is given."""
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
