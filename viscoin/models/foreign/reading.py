"""Checkpoints of other programs, read as data: the tensors of a network, wherever in a file they are."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stylegan2_ada.plain_pickle import PickledObject, read_tensor_file
from viscoin.errors import Refused, reason_of, regular

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".safetensors")
# Where a checkpoint keeps the weights of its network; averaged ones come first, as they are what was published.
PLACES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "module", "net",
    "network", "weights", "params",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder_q.")
QUANTISED = re.compile(r"(_packed_params|zero_point|qweight|qzeros|weight_format|SCB|quant_map|absmax)(\.\w+)?$")
SAVE = "save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
DEPTH = 4  # dictionaries inside each other


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network as a file holds them, in float32.

    Attributes:
        tensors: by name, in the order of the file, without prefixes that all share.
        place: keys of the dictionaries that they were in, as in "state_dict"; "" where the file holds nothing else.
        prefix: what was taken from the front of their names.
        in_order: whether the order is that of the network; files of safetensors sort their names.
        config: of the network, from `config.json` beside the file, or {}.
        preprocessing: of images, from `preprocessor_config.json` beside the file, or {}.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    place: str = ""
    prefix: str = ""
    in_order: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """The network in a checkpoint; no code in the file runs.

    Args:
        path: .pt, .pth, .bin, .ckpt or .safetensors, or a folder with one of these.

    Raises:
        Refused: no such file, or one that holds a whole pickled network, quantised weights, a part of the weights, the
            state of an optimiser, or no tensors; says which.
    """
    file = _file(path)
    if file.name.endswith(".index.json") or re.search(r"-0*\d+-of-0*\d+\.", file.name):
        raise _refused(file, "the weights are spread over several files (shards)", "save them as one file")
    content = _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
    found, place = _network(file, content)
    if any(QUANTISED.search(name) for name in found):
        raise _quantised(file)
    tensors = {name: _floats(file, value) for name, value in found.items() if isinstance(value, Tensor)}
    tensors, prefix = _without_prefix(tensors)
    config = _json(file.parent / "config.json")
    named = [key for key in ("arch", "architecture") if isinstance(content.get(key), str)]
    if named and "architecture" not in config:
        config = {**config, "architecture": content[named[0]]}
    return Checkpoint(
        file, tensors, place, prefix, file.suffix != ".safetensors", config,
        _json(file.parent / "preprocessor_config.json"),
    )  # fmt: skip


def of_state(path: Path, state: Mapping[str, Tensor]) -> Checkpoint:
    """A checkpoint of the state dict of a network that is in memory; `path` is what messages call it."""
    tensors, prefix = _without_prefix({name: _floats(path, value.detach().cpu()) for name, value in state.items()})
    return Checkpoint(path, tensors, prefix=prefix)


def _file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise Refused("checkpoint", path, "there is no such file")
        return regular(path)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if any(re.search(r"-of-\d+\.", file.name) for file in files):
        raise _refused(path, "the weights are spread over several files (shards)", "save them as one file")
    if len(files) != 1:
        held = ", ".join(file.name for file in files[:4]) or "none"
        raise Refused("checkpoint", path, f"a folder must hold one file of weights, this one holds {held}", "name it")
    return files[0]


def _safetensors(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, "pt") as opened:
            if "viscoin" in (opened.metadata() or {}):
                raise Refused("checkpoint", file, "is a model file of viscoin already", "give it as `classifier`")
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except Refused:
        raise
    except Exception as error:  # damaged bytes may raise anything
        raise Refused("checkpoint", file, f"is damaged or no file of safetensors: {reason_of(error)}") from error


def _pickle(file: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise _refused(file, "is a TorchScript program, which is code", SAVE)
    try:
        content = read_tensor_file(file, lenient=True)
    except ValueError as error:
        if re.search(r"torch\.Q\w+Storage|qtensor", str(error)):
            raise _quantised(file) from error
        raise Refused("checkpoint", None, str(error)) from error
    if isinstance(content, PickledObject):
        raise _whole(file, content.class_name)
    if not isinstance(content, dict):
        raise _refused(file, f"holds a {type(content).__name__}, no dictionary of tensors", SAVE)
    return content


def _network(file: Path, content: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The innermost dictionary of tensors, and the keys on the way there."""
    found, place = content, list[str]()
    for _ in range(DEPTH):
        inside = [key for key in PLACES if isinstance(found.get(key), dict | PickledObject) and found[key]]
        usable = [key for key in inside if isinstance(found[key], dict)]
        if inside and not usable:
            raise _whole(file, found[inside[0]].class_name)
        if not usable:
            break
        found, place = found[usable[0]], [*place, usable[0]]
    if {"state", "param_groups"} <= set(found) and not _tensors(found):
        raise _refused(file, "holds the state of an optimiser, no weights", SAVE)
    if not _tensors(found):
        if any(isinstance(value, PickledObject) and "_rebuild_q" in value.class_name for value in found.values()):
            raise _quantised(file)
        keys = ", ".join(map(str, list(found)[:6])) or "nothing"
        raise _refused(file, f"holds no dictionary of tensors, but {keys}", SAVE)
    if any(isinstance(value, PickledObject) and "_rebuild_q" in value.class_name for value in found.values()):
        raise _quantised(file)
    return {str(name): value for name, value in found.items()}, ".".join(place)


def _tensors(found: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in found.values())


def _floats(file: Path, tensor: Tensor) -> Tensor:
    if tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1:
        raise _quantised(file)
    return tensor.float() if tensor.is_floating_point() else tensor


def _without_prefix(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The same tensors without prefixes that most of them share; what lacks them, such as a head beside, stays."""
    taken, found = "", dict(tensors)
    while True:
        shares = Counter(prefix for name in found for prefix in PREFIXES if name.startswith(prefix))
        prefix = next((prefix for prefix, count in shares.most_common(1) if 2 * count > len(found)), None)
        if prefix is None:
            return found, taken
        shorter = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        if len(shorter) < len(found):
            return found, taken
        found, taken = shorter, taken + prefix


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _refused(file: Path, reason: str, remedy: str) -> Refused:
    return Refused("checkpoint", file, reason, remedy)


def _whole(file: Path, name: str) -> Refused:
    return _refused(file, f"holds a whole pickled object ({name}), whose code would run, not a dictionary", SAVE)


def _quantised(file: Path) -> Refused:
    return _refused(file, "its weights are quantised", "give the checkpoint from before the quantisation, in float")
