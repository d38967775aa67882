"""Checkpoints of older VisCoIN code, read as data: a dictionary with one state dict for each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stylegan2_ada.plain_pickle import read_tensor_file

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
    content = read_tensor_file(path)
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
