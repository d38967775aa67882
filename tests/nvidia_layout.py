"""Writes network pickles in the public layout from our own networks, with any deviation that a test wants."""

import io
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

CLASS_NAMES = {"FullyConnected": "FullyConnectedLayer", "Mapping": "MappingNetwork", "Synthesis": "SynthesisNetwork"}


class EasyDict(dict):
    """The public release's dictionary; pickled under its public name."""


EasyDict.__module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta: Any) -> None:
    raise AssertionError("only its name is used")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """An object that is pickled as source text and attributes."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = "") -> None:
        self.meta = EasyDict(type="class", version=6, module_src=source, class_name=class_name, state=state)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,)


def persistent(module: nn.Module, kwargs: dict[str, Any] | None = None, source: str = "", **state: Any) -> Persistent:
    """A module as the public release pickles it; `state` are attributes of the module itself."""
    own = {
        "training": False,
        "_parameters": dict(module.named_parameters(recurse=False)),
        "_buffers": dict(module.named_buffers(recurse=False)),
        "_non_persistent_buffers_set": set(),
        "_modules": {name: persistent(child, source=source) for name, child in module.named_children()},
        "_init_args": (),
        "_init_kwargs": EasyDict(kwargs or {}),
    }
    name = type(module).__name__
    return Persistent(CLASS_NAMES.get(name, name), own | state, source)


def dump(value: Any, protocol: int = 3) -> bytes:
    """A pickle with the public names, as if the public modules could be imported here."""
    modules = {
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": types.ModuleType("dnnlib.util"),
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": types.ModuleType("torch_utils.persistence"),
    }
    modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        stream = io.BytesIO()
        pickle.Pickler(stream, protocol).dump(value)
        return stream.getvalue()
    finally:
        for name in modules:
            del sys.modules[name]


def write(path: Path, protocol: int = 3, **content: Any) -> Path:
    """A network pickle of the given networks (made by `persistent`) and None for the rest."""
    keys = ("G", "D", "G_ema", "augment_pipe", "training_set_kwargs")
    path.write_bytes(dump({key: content.get(key) for key in keys}, protocol))
    return path


def storage(tensor: torch.Tensor) -> Any:
    """The object that torch pickles in the place of a tensor's memory."""
    return tensor.__reduce_ex__(2)[1][0]


def storage_bytes(tensor: torch.Tensor) -> bytes:
    """What is in the pickle for it."""
    return storage(tensor).__reduce__()[1][0]
