"""Files that nobody should have to trust: a seeded generator of damaged, absurd and hostile model files and pickles."""

import collections
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nvidia_layout import dump, persistent
from safetensors.torch import save

from stylegan2_ada.networks import Generator

COMMAND = "touch canary"
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**20, 10**9, 2**63, -(2**70), 0.5, 1e300, float("nan"), float("inf"), "", "x",
    "64", "hf-hub:a/b", "hf_hub:a/b", "local-dir:/tmp", "https://example.org/a", "resnet18", "vit_giant_patch14_224",
    [], [[]], [1] * 1000, ["x"], {}, {"a": 1}, {"pretrained": True},
]  # fmt: skip


class Case(NamedTuple):
    """One file: what was done to it, and its bytes."""

    name: str
    suffix: str
    content: bytes


Tensors = dict[str, torch.Tensor]


def cases(models: dict[str, tuple[Tensors, dict[str, Any]]], whole: dict[str, bytes], count: int) -> Iterator[Case]:
    """That many files, all kinds of attack in turn.

    Args:
        models: by kind, tensors and metadata of a good model.
        whole: by suffix, the bytes of a good model file with its digest.
    """
    ways: list[Callable[[random.Random], Case]] = [
        lambda draw: _metadata(models, draw),
        lambda draw: _header(whole[".safetensors"], draw),
        lambda draw: _tensors(models, draw),
        lambda draw: _cut(whole, draw),
        lambda draw: _flipped(whole, draw),
        _code,
        _bomb,
        lambda draw: _metadata(models, draw),
        _zip,
        lambda draw: _network(draw),
    ]
    for number in range(count):
        yield ways[number % len(ways)](random.Random(number))


# --- model files


def _metadata(models: dict[str, tuple[Tensors, dict[str, Any]]], draw: random.Random) -> Case:
    """A value anywhere in the metadata is another one, or gone, or there is one more."""
    kind = draw.choice(list(models))
    tensors, metadata = models[kind]
    metadata = json.loads(json.dumps(metadata))
    changes = [_change(metadata, draw) for _ in range(draw.choice((1, 1, 1, 2)))]
    return Case(f"{kind}: {', '.join(changes)}", ".safetensors", save(tensors, {"viscoin": json.dumps(metadata)}))


def _change(values: Any, draw: random.Random, place: str = "") -> str:
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    favoured = [key for key in keys if key in ("architecture", "class_names", "kind")]
    key = draw.choice(favoured or keys) if keys and draw.random() < 0.9 else None
    if key is not None and isinstance(values[key], dict | list) and values[key] and draw.random() < 0.85:
        return _change(values[key], draw, f"{place}{key}.")
    value = draw.choice(ODD)
    if key is None and isinstance(values, dict):
        key = draw.choice(("pretrained", "evil", "__class__", "checkpoint_path"))
    if key is None:
        values.append(value)
    elif isinstance(values, dict) and draw.random() < 0.2:
        values.pop(key, None)
        return f"without {place}{key}"
    else:
        values[key] = value
    return f"{place}{key} = {value!r:.40}"


def _tensors(models: dict[str, tuple[Tensors, dict[str, Any]]], draw: random.Random) -> Case:
    """A tensor of another shape or type, one too many, or one less."""
    kind = draw.choice(list(models))
    tensors, metadata = dict(models[kind][0]), models[kind][1]
    name = draw.choice(list(tensors))
    other = draw.choice([
        torch.zeros(0), torch.zeros(3, 3), torch.zeros(1, 1, 1, 1, 1, 1), tensors[name].to(torch.int16),
        torch.full(tensors[name].shape, float("nan")), torch.zeros(tensors[name].shape, dtype=torch.bool), None,
    ])  # fmt: skip
    if other is None:
        del tensors[name]
    else:
        tensors[draw.choice((name, f"{name}.more"))] = other
    text = f"{kind}: {name} {None if other is None else (other.dtype, tuple(other.shape))}"
    return Case(text, ".safetensors", save(tensors, {"viscoin": json.dumps(metadata)}))


def _header(whole: bytes, draw: random.Random) -> Case:
    """Another length, type, shape or place of a tensor in the header of .safetensors."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    way = draw.choice(("length", "dtype", "shape", "offsets", "name", "metadata", "deep"))
    if way == "length":
        other = draw.choice((0, 1, length - 1, length + 8, 2**31, 2**40, 2**63, 2**64 - 1))
        return Case(f"header of {other} bytes", ".safetensors", struct.pack("<Q", other) + whole[8:])
    if way == "dtype":
        header[name]["dtype"] = draw.choice(("F64", "I8", "F8_E4M3", "x", None, 5))
    elif way == "shape":
        header[name]["shape"] = draw.choice(([10**9] * 2, [2**63], [-1], [0], [1] * 5000, "x", None, []))
    elif way == "offsets":
        header[name]["data_offsets"] = draw.choice(([0, 10**12], [-8, 8], [8, 0], [0, 2**64], [], None, [0, 0]))
    elif way == "name":
        header[draw.choice(("", "x" * 10_000, "\x1b[2J", "../a"))] = header.pop(name)
    elif way == "metadata":
        header["__metadata__"] = draw.choice((None, 5, {"viscoin": 5}, {"viscoin": "{"}, {"viscoin": "[" * 10**5}, {}))
    else:
        header[name] = json.loads("[" * 300 + "]" * 300)
    text = json.dumps(header).encode()
    return Case(f"header: {way} of {name}", ".safetensors", struct.pack("<Q", len(text)) + text + data)


def _cut(whole: dict[str, bytes], draw: random.Random) -> Case:
    suffix = draw.choice(list(whole))
    end = draw.randrange(len(whole[suffix]))
    more = draw.choice((b"", bytes(draw.randrange(1, 5000)), draw.randbytes(100)))
    return Case(f"cut at {end}, then {len(more)} bytes", suffix, whole[suffix][:end] + more)


def _flipped(whole: dict[str, bytes], draw: random.Random) -> Case:
    suffix = draw.choice(list(whole))
    content = bytearray(whole[suffix])
    bits = [draw.randrange(8 * len(content)) for _ in range(draw.choice((1, 1, 1, 2, 30)))]
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    return Case(f"{len(bits)} bits flipped, first {bits[0]}", suffix, bytes(content))


# --- pickles


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def _saved(content: Any, old: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def _code(draw: random.Random) -> Case:
    """A pickle that calls something: of a shell, of Python, of torch, numpy or another library."""
    functions = (
        "os system", "posix system", "subprocess Popen", "builtins eval", "builtins exec", "builtins open",
        "builtins getattr", "builtins __import__", "importlib import_module", "runpy run_path", "torch load",
        "torch.hub load", "torch._utils _rebuild_tensor_v3", "torch.serialization load", "numpy load",
        "numpy.core.multiarray _reconstruct", "shutil rmtree", "webbrowser open", "pickle loads", "functools partial",
        "operator attrgetter", "collections defaultdict", "collections OrderedDict.fromkeys", "pty spawn",
        "timm create_model", "urllib.request urlopen", "torch.jit load", "socket create_connection", "builtins type",
    )  # fmt: skip
    module, name = draw.choice(functions).split()
    argument = b"X" + struct.pack("<I", len(COMMAND)) + COMMAND.encode()
    by_name = b"c" + f"{module}\n{name}\n".encode()
    on_stack = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"
    call = draw.choice((
        by_name + argument + b"\x85R", on_stack + argument + b"\x85R", by_name + argument + b"\x85\x81",
        b"(" + argument + f"i{module}\n{name}\n".encode(), b"(" + by_name + argument + b"o",
        by_name + b")R" + b"}X\x01\x00\x00\x00a" + argument + b"sb",
    ))  # fmt: skip
    wrapped = draw.choice((call, b"}X\x01\x00\x00\x00G" + call + b"s", b"]" + call + b"a", b"}" + call + b"K\x01s"))
    data = b"\x80\x04" + wrapped + b"."
    if draw.random() < 0.5:
        return Case(f"calls {module}.{name}", ".pkl", data)
    good = _saved({"metadata": "{}", "tensors": {}})
    return Case(f"calls {module}.{name} in a zip", ".pkl", _with_part(good, "data.pkl", data))


def _with_part(whole: bytes, part: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of torch.save with another content of one of its parts."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, data if entry.filename.endswith(f"/{part}") else old.read(entry))
    return stream.getvalue()


def _bomb(draw: random.Random) -> Case:
    """A small pickle that would take all time or memory of whoever reads, hashes, compares or prints it."""
    depth = draw.choice((30, 60, 200))
    doubled = b")" + b"2\x86" * depth  # a tuple of the tuple before, twice
    lists = (
        b"]"
        + b"q\x00](h\x00h\x00e" * 1
        + b"".join(
            b"q" + bytes([i]) + b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(1, min(depth, 250))
        )
    )
    text = b"X" + struct.pack("<I", 50_000) + b"a" * 50_000
    again = b"q\x00" + b"(ctorch\nSize\nh\x00\x85R1" * 20_000
    many = b"".join(b"J" + struct.pack("<i", i) + b"J" + struct.pack("<i", -i) + b"\x86K\x01s" for i in range(20_000))
    name, data = draw.choice((
        ("doubled tuples as key", b"}" + doubled + b"K\x01s"),
        ("doubled tuples as keys", b"}(" + doubled + b"K\x01u"),
        ("doubled tuples in a set", b"\x8f(" + doubled + b"\x90"),
        ("doubled tuples in a frozenset", b"(" + doubled + b"\x91"),
        ("doubled tuples in a dictionary of pairs", b"ccollections\nOrderedDict\n](" + doubled + b"K\x01\x86e\x85R"),
        ("doubled tuples in a set that is called", b"cbuiltins\nset\n](" + doubled + b"e\x85R"),
        ("doubled tuples in a frozenset that is made", b"cbuiltins\nfrozenset\n](" + doubled + b"e\x85\x81"),
        ("doubled tuples", doubled),
        ("doubled lists", lists),
        ("doubled lists as metadata", b"}(X\x08\x00\x00\x00metadata" + lists + b"X\x07\x00\x00\x00tensors}u"),
        ("nested tuples as key", b"})" + b"\x85" * draw.choice((1_000, 60_000)) + b"K\x01s"),
        ("nested lists", b"]" * 50_000 + b"a" * 49_999),
        ("number of many bits", b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000),
        ("number of many digits", b"L" + b"9" * 100_000 + b"L\n"),
        ("text again and again", text + again),
        ("many lists", b"(" + b"]" * 1_200_000 + b"l"),
        ("many copies", b"](" + text + b"2" * 1_200_000 + b"e"),
        ("pairs of numbers as keys", b"}" + many),
        ("numbers of the same hash", b"}" + b"".join(
            b"\x8a\x0e" + (i * (2**61 - 1)).to_bytes(14, "little", signed=True) + b"K\x01s" for i in range(20_000)
        )),
        ("memo", b"Nr\xff\xff\xff\x7f"),
        ("list that holds itself", b"]q\x00h\x00a"),
        ("dictionary that holds itself", b"}q\x00X\x01\x00\x00\x00ah\x00s"),
        ("length of bytes", b"\x8e" + struct.pack("<Q", 2**62) + b"x"),
        ("length of text", b"X\xff\xff\xff\x7fx"),
        ("frame", b"\x95" + struct.pack("<Q", 2**62) + b"N"),
    ))  # fmt: skip
    return Case(f"bomb: {name}", ".pkl", b"\x80\x04" + data + b".")


def _zip(draw: random.Random) -> Case:
    """A file of torch.save whose zip or storages are not what they seem."""
    good = _saved({"metadata": "{}", "tensors": {"a": torch.zeros(500), "b": torch.zeros(4)}})
    way = draw.choice(("compressed", "short", "long", "views", "script", "order", "twice", "noise", "old", "numel"))
    if way == "compressed":
        content = _with_part(good, "data/0", bytes(10**6), zipfile.ZIP_DEFLATED)
    elif way in ("short", "long"):
        content = _with_part(good, "data/0", bytes(1999 if way == "short" else 2001))
    elif way == "views":
        base = torch.zeros(100_000)
        content = _saved({"metadata": "{}", "tensors": {str(i): base[i:] for i in range(300)}})
    elif way == "script":
        content = good.replace(b"data.pkl", b"code/a.p")
    elif way == "order":
        content = _with_part(good, "byteorder", b"big")
    elif way == "twice":
        content = good + good
    elif way == "noise":
        content = b"PK\x03\x04" + draw.randbytes(draw.randrange(2000))
    elif way == "numel":
        content = good.replace(b"M\xf4\x01", draw.choice((b"M\xff\xff", b"M\x01\x00")))
    else:
        content = bytearray(_saved({"metadata": "{}", "tensors": {"a": torch.zeros(50)}}, old=True))
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return Case(f"zip: {way}", ".pkl", bytes(content))


def _network(draw: random.Random) -> Case:
    """A published pickle with other settings."""
    sizes = {"z_dim": 4, "c_dim": 0, "w_dim": 6, "img_resolution": 8, "img_channels": 3}
    kwargs: dict[str, Any] = {**sizes, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {"channel_max": 8}}
    generator = Generator(**kwargs)
    doubled: Any = ()
    for _ in range(60):
        doubled = [doubled, doubled]
    section = draw.choice((kwargs, kwargs["mapping_kwargs"], kwargs["synthesis_kwargs"]))
    known = {id(kwargs): list(sizes), id(kwargs["mapping_kwargs"]): ["num_layers", "activation", "layer_features"]}
    usual = ["channel_base", "num_fp16_res", "resample_filter", "architecture", "conv_clamp", "use_noise"]
    key, value = draw.choice(known.get(id(section), usual)), draw.choice([*ODD, doubled, torch.zeros(2)])
    section[key] = value
    state: dict[str, Any] = {"_init_kwargs": kwargs}
    if draw.random() < 0.3:
        key = draw.choice(("_modules", "_parameters", "_buffers", "_init_args", "z_dim", "num_layers"))
        state[key] = value
    shown = "doubled lists" if value is doubled else f"{value!r:.40}"
    return Case(f"network: {key} = {shown}", ".pkl", dump({"G_ema": persistent(generator, **state)}))


def attacked(folder: Path, case: Case) -> Path:
    path = folder / f"hostile{case.suffix}"
    path.write_bytes(case.content)
    return path


def count_by_kind(names: list[str]) -> collections.Counter[str]:
    return collections.Counter(name.split(":")[0].split(" ")[0] for name in names)


__all__ = ["Case", "attacked", "cases", "count_by_kind", "pickle"]
