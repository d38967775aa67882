"""Published network pickles {G, D, G_ema, augment_pipe, training_set_kwargs}, read as data.

The layout is that of the public PyTorch release of StyleGAN2-ADA: every module is pickled as the source text of its
class and its attributes. The source text is not looked at; names, shapes and settings fit the classes of `networks`.
"""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from .networks import Discriminator, DiscriminatorBlock, DiscriminatorEpilogue, Generator, Mapping, Synthesis
from .plain_pickle import PickledObject, read_plain_pickle
from .settings import LARGEST, MOST_LAYERS, DiscriminatorSettings, GeneratorSettings, Settings, explain

ROLES = ("G", "D", "G_ema")
KINDS: dict[str, type[Generator] | type[Discriminator]] = {"Generator": Generator, "Discriminator": Discriminator}
SETTINGS: dict[str, type[Settings]] = {"Generator": GeneratorSettings, "Discriminator": DiscriminatorSettings}
MOST_MODULES = 10_000  # a network for 1024 px has 100
DEEPEST, LONGEST = 4, 100  # a setting is a number, a text, or a short list or dictionary of such


@dataclass(frozen=True)
class PickledNetwork:
    """One network of a pickle.

    Attributes:
        kind: "Generator" or "Discriminator".
        config: keywords of that class of `networks`, JSON-able.
        state: parameters and buffers by their public names, on the CPU.
        dropped: keywords in the file that mean nothing here, like the memory layout.
    """

    kind: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    dropped: tuple[str, ...] = ()

    def build(self) -> Generator | Discriminator:
        """The network with its weights, in eval mode.

        Raises:
            ValueError: settings that no network has, or weights that do not fit them; the first few are listed.
        """
        try:
            SETTINGS[self.kind].model_validate(self.config)
        except ValidationError as error:
            raise ValueError(f"this {self.kind} has impossible settings: {explain(error)}") from None
        try:
            with torch.device("meta"):  # shapes only: settings from a file may ask for any size
                wanted = KINDS[self.kind](**self.config).state_dict()
        except Exception as error:  # settings of any type and value may fail anywhere
            raise ValueError(f"this {self.kind} has impossible settings: {error!s:.200}") from error
        misfits = [name for name, tensor in wanted.items() if _shape(self.state.get(name)) != _shape(tensor)]
        misfits += [name for name in self.state if name not in wanted]
        if misfits:
            raise ValueError(
                f"{len(misfits)} weights do not fit this {self.kind}, first "
                + ", ".join(f"{n} ({_shape(self.state.get(n))}, needed {_shape(wanted.get(n))})" for n in misfits[:3])
            )
        network = KINDS[self.kind](**self.config)
        network.load_state_dict(self.state)
        return network.eval()


@dataclass(frozen=True)
class NetworkPickle:
    """What a published pickle holds; the last two as plain data, None where the file has none."""

    G: PickledNetwork | None
    D: PickledNetwork | None
    G_ema: PickledNetwork | None
    augment_pipe: Any = None
    training_set_kwargs: Any = None


def read_network_pickle(path: Path) -> NetworkPickle:
    """Read a published network pickle; nothing in it runs.

    Raises:
        ValueError: no such file, no pickle, damaged, asking for anything that data does not need (named), a network
            of StyleGAN3 or of TensorFlow, or no network at all. Whether the weights fit, `build` finds out.
    """
    try:
        content = read_plain_pickle(path)
    except ValueError as error:
        if "dnnlib.tflib" in str(error):
            raise ValueError(
                f"{path} is a pickle of the TensorFlow release; only those of the PyTorch release can be read"
            ) from None
        raise
    if not isinstance(content, dict) or not any(isinstance(content.get(role), PickledObject) for role in ROLES):
        found = f"a dictionary of {', '.join(map(str, content))[:80]}" if isinstance(content, dict) else "other data"
        raise ValueError(f"{path} is no network pickle: it holds {found or 'nothing'} instead of {', '.join(ROLES)}")
    try:
        networks = {role: _network(content[role], role) for role in ROLES if content.get(role) is not None}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    rest = [content.get(key) for key in ("augment_pipe", "training_set_kwargs")]
    return NetworkPickle(*map(networks.get, ROLES), *rest)


def _network(pickled: Any, role: str) -> PickledNetwork:
    if not isinstance(pickled, PickledObject) or pickled.class_name not in KINDS:
        name = getattr(pickled, "class_name", type(pickled).__name__)
        raise ValueError(f"{role} is a {name!r:.60}; only Generator and Discriminator of StyleGAN2 can be read")
    state = dict(_weights(pickled))
    if any(name.startswith("synthesis.input.") for name in state):
        raise ValueError(f"{role} is a generator of StyleGAN3, which this StyleGAN2 cannot load")
    config, dropped = _config(pickled)
    return PickledNetwork(pickled.class_name, config, state, dropped)


# --- attributes of pickled modules


def _modules(root: PickledObject) -> dict[str, PickledObject]:
    """A module and all below it, by name with a dot behind it ("" is the module itself)."""
    found = [("", root)]
    for prefix, module in found:  # grows meanwhile
        children = _attribute(module, "_modules", dict, {})
        found += [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(child, PickledObject)]
        if len(found) > MOST_MODULES:
            raise ValueError(f"a {root.class_name!r:.60} of more than {MOST_MODULES} modules")
    return dict(found)


def _weights(root: PickledObject) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a module and of all below it, by dotted name."""
    for prefix, module in _modules(root).items():
        passing = _attribute(module, "_non_persistent_buffers_set", set, set())
        buffers = _attribute(module, "_buffers", dict, {})
        tensors = _attribute(module, "_parameters", dict, {}) | {k: buffers[k] for k in buffers if k not in passing}
        yield from ((f"{prefix}{name}", tensor) for name, tensor in tensors.items() if isinstance(tensor, Tensor))


def _attribute(module: PickledObject, name: str, kind: type, default: Any) -> Any:
    value = module.state.get(name, default)
    if not isinstance(value, kind):
        raise ValueError(f"{name} of a {module.class_name!r:.60} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


# --- settings


def _keywords(function: type, *fixed: str) -> dict[str, Any]:
    """Keywords of a class and their defaults, without those that its owner fixes."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in fixed}


_MAPPING = _keywords(Mapping, "z_dim", "c_dim", "w_dim", "num_ws")
# class -> section ("" for the class itself) -> keyword -> default
SECTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "Generator": {
        "": _keywords(Generator, "mapping_kwargs", "synthesis_kwargs"),
        "mapping_kwargs": _MAPPING,
        "synthesis_kwargs": _keywords(Synthesis, "w_dim", "img_resolution", "img_channels"),
    },
    "Discriminator": {
        "": _keywords(Discriminator, "block_kwargs", "mapping_kwargs", "epilogue_kwargs"),
        "mapping_kwargs": _MAPPING,
        "block_kwargs": {key: _keywords(DiscriminatorBlock)[key] for key in ("activation", "resample_filter")},
        "epilogue_kwargs": _keywords(
            DiscriminatorEpilogue, "in_channels", "cmap_dim", "img_channels", "architecture", "conv_clamp"
        ),
    },
}


def _config(root: PickledObject) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keywords for our class, and the names of those in the file that it does not take.

    Releases differ in their defaults, and in where they pass the keywords of the synthesis network. So what was passed
    is sorted into place, and where a module remembers another setting than that, or than our default, it wins.
    """
    sections = SECTIONS[root.class_name]
    config: dict[str, dict[str, Any]] = {section: {} for section in sections}
    dropped = []
    for name, value in _given(root, sections).items():
        section, _, key = name.rpartition(".")
        if not section and key not in sections[""] and key in sections.get("synthesis_kwargs", {}):
            section = "synthesis_kwargs"
        if key in sections[section]:
            config[section][key] = value
        else:
            dropped.append(name)
    for section, facts in _facts(root).items():
        for key, value in facts.items():
            if config[section].get(key, sections[section][key]) != value:
                config[section][key] = value
    top = config.pop("")
    return _checked(top | {section: values for section, values in config.items() if values}), tuple(dropped)


def _given(root: PickledObject, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The arguments that the class was called with, by dotted name."""
    given = dict(zip(sections[""], _attribute(root, "_init_args", tuple, ()), strict=False))
    given |= _attribute(root, "_init_kwargs", dict, {})
    if not _is_setting(given):
        raise ValueError("its settings are not plain numbers and text")
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if key not in sections:
            flat[str(key).replace(".", "_")] = value
        elif isinstance(value, dict):
            flat |= {f"{key}.{str(inner).replace('.', '_')}": value[inner] for inner in value}
    return flat


def _facts(root: PickledObject) -> dict[str, dict[str, Any]]:
    """What the modules remember of their settings, by section and keyword."""
    modules = _modules(root)

    def remembered(path: str, **attributes: str) -> dict[str, Any]:
        state = modules[path].state if path in modules else {}
        found = {keyword: state[name] for keyword, name in attributes.items() if state.get(name) is not None}
        return {keyword: value for keyword, value in found.items() if _is_setting(value)}

    generator = root.class_name == "Generator"
    prefix, block, layer = ("synthesis.", "synthesis.b4.", "conv1.") if generator else ("", "b8.", "conv0.")
    blocks = [modules[path].state for path in modules if re.fullmatch(rf"{prefix}b\d+\.", path)]
    facts = {
        "": remembered("", **{key: key for key in SECTIONS[root.class_name][""] if key != "conv_clamp"}),
        "mapping_kwargs": remembered("mapping.", num_layers="num_layers", w_avg_beta="w_avg_beta")
        | remembered("mapping.fc0.", activation="activation", lr_multiplier="bias_gain"),
    }
    convolutions = remembered(block, architecture="architecture")
    convolutions |= remembered(f"{block}{layer}", conv_clamp="conv_clamp")
    if any("use_fp16" in state for state in blocks):
        convolutions["num_fp16_res"] = sum(state.get("use_fp16") is True for state in blocks)
    if generator:
        noise = remembered(f"{block}{layer}", activation="activation", use_noise="use_noise")
        return facts | {"synthesis_kwargs": convolutions | noise}
    facts[""] |= convolutions
    facts["block_kwargs"] = remembered(f"{block}{layer}", activation="activation")
    facts["epilogue_kwargs"] = remembered("b4.mbstd.", mbstd_group_size="group_size", mbstd_num_channels="num_channels")
    return facts


def _is_setting(value: Any, depth: int = DEEPEST) -> bool:
    """Whether it is plain and small; what a pickle holds may take forever to compare or to print."""
    if value is None or type(value) in (bool, int, float, str):
        return True
    inner = value.values() if type(value) is dict else value if type(value) in (list, tuple) else None
    if inner is None or depth == 0 or len(inner) > LONGEST:
        return False
    return all(_is_setting(one, depth - 1) for one in inner)


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The same through JSON; ValueError for what is no number, text or list, and for absurd sizes."""
    try:
        config = json.loads(json.dumps(config), parse_int=_size)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"its settings are not plain numbers and text ({error})") from None
    layers = config.get("mapping_kwargs", {}).get("num_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(f"its mapping network has more than {MOST_LAYERS} layers")
    return config


def _size(digits: str) -> int:
    if abs(int(digits)) > LARGEST:
        raise ValueError(f"one of its settings is {digits:.20}; the largest possible is {LARGEST}")
    return int(digits)
