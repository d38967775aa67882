"""The same network once more, to look into without touching the one that others use."""

import copy
from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def twin(module: ModuleT) -> ModuleT:
    """A network with its own modes, hooks and switches that shares the memory of all weights and buffers.

    It is in eval mode and computes in float32 without translation, whatever `execution.prepare` did; its weights ask
    for no gradients. So hooks and switches of a twin need no cleaning up, and several threads may each have their own.
    It takes the time of copying a few small dictionaries for each module.
    """
    return _twin(module, {})


def _twin(module: ModuleT, made: dict[int, nn.Module]) -> ModuleT:
    if id(module) not in made:
        same = made[id(module)] = copy.copy(module)
        state = vars(same)
        for name, value in vars(module).items():
            if isinstance(value, dict):
                state[name] = copy.copy(value)
        state["_parameters"] = {name: None if p is None else p.detach() for name, p in module._parameters.items()}
        state["_modules"] = {name: child and _twin(child, made) for name, child in module._modules.items()}
        state["training"], state["_compiled_call_impl"] = False, None
        if "computes_in" in state:  # by `execution.prepare`, as functions of the other network
            for name in ("computes_in", "forward", "features"):
                state.pop(name, None)
    return made[id(module)]  # type: ignore[return-value]  # a copy has the type of the original
