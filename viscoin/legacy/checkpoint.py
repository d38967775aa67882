"""Checkpoints of older VisCoIN code, read as data: a dictionary with one state dict for each part."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan2_ada.plain_pickle import read_plain_pickle

PARTS = ("classifier", "concept_extractor", "explainer", "gan")
NEEDED = PARTS[1:]


@dataclass(frozen=True)
class Checkpoint:
    """State dicts by part, in the names of the older code; `dropped` names all else that the file holds."""

    parts: dict[str, dict[str, Tensor]]
    dropped: tuple[str, ...]
    path: Path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .pth of torch.save or a .pkl of pickle.dump; nothing in the file runs.

    Raises:
        ValueError: no such file, damaged, without the parts of an ensemble, or asking for anything that tensors in
            dictionaries do not need, which is then named.
    """
    content = _read(path)
    held = ", ".join(map(str, content))[:200] if isinstance(content, Mapping) else f"a {type(content).__name__}"
    if not isinstance(content, Mapping) or any(not isinstance(content.get(part), Mapping) for part in NEEDED):
        own = isinstance(content, Mapping) and {"metadata", "tensors"} <= set(content)
        advice = "; it comes from to-pickle: convert it with from-pickle" if own else ""
        raise ValueError(f"{path} is no older checkpoint: it holds {held}, not {', '.join(NEEDED)}{advice}")
    parts = {part: dict(content[part]) for part in PARTS if isinstance(content.get(part), Mapping)}
    for part, state in parts.items():
        odd = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
        if odd:
            raise ValueError(f"{path}: {part} holds {len(odd)} entries that are no tensors, first {', '.join(odd[:3])}")
    return Checkpoint(parts, tuple(str(key) for key in content if key not in parts), path)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        content = read_plain_pickle(path)
        if not isinstance(content, int):  # torch.save of before its zip files starts with a number
            return content
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes may raise anything
        refused = re.search(r"GLOBAL ([\w.]+)|instruction: (\w+)", str(error))
        if refused:
            name = refused[1] or f"the pickle instruction {refused[2]}"
            raise ValueError(
                f"{path} asks for {name}, which is not part of a checkpoint of tensors; refused. If you trust the "
                "file, save its state dicts alone with the code that wrote it"
            ) from None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no checkpoint: {reason}") from error
