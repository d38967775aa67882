"""Reads pickles as data: nothing in them runs, and only tensors, numbers, text, bytes and containers come out.

Python's unpickler calls whatever a file names. Here a file may name what `NAMES` lists, each of which stands for a
function of this module or for a plain container; tensors are cut out of the bytes by this module alone, after all has
been read. Not even torch.load sees the file: its `weights_only` mode has had holes of its own.
"""

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_BYTES = 4 * 2**30  # ten times the largest published network

# Instructions that data needs. Others look objects up elsewhere (EXT1, PERSID, ...) or only call (INST, OBJ, ...).
INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND
    APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GET
    BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ
"""
MOST_TUPLES = 50_000  # Python crashes when it hashes tuples that are nested ten times as deeply; networks have 5,000
STORAGE_MAGIC, STORAGE_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch's format from before its zip files
STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NUMPY_TYPES = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
NUMPY_TYPES |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}  # numpy code -> struct code


class PickledObject(NamedTuple):
    """What a pickle says of an object whose class is not built: the name of the class, and the attributes."""

    class_name: str
    state: dict[str, Any]


class RefusedError(ValueError):
    """The pickle asks for something that data does not need."""


class _Storage(NamedTuple):
    dtype: torch.dtype
    content: memoryview


class _StorageHandle(NamedTuple):
    type_name: str
    numel: int


class _Strided(NamedTuple):
    """A tensor before it is built. Nothing that a pickle does to a tuple can change it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Function:
    """Something for a pickle to call; unlike a plain function, it lets no BUILD instruction set its attributes."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("changes the attributes of a function")


class _Dict(dict[Any, Any]):
    """An OrderedDict or EasyDict; what attributes it has, as those of state dicts do, is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyType:
    """A numpy scalar type: its code, and its byte order, which pickles set afterwards."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *flags: Any) -> None:
        if code not in NUMPY_TYPES:
            raise RefusedError(f"asks for numpy values of type {_printable(code)}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle as dicts, lists, tuples, sets, numbers, text, bytes, tensors and `PickledObject`.

    Tensors are on the CPU and share no memory with each other, unless the file holds the very same tensor twice.

    Raises:
        ValueError: no such file, no pickle, truncated, larger than its tensors need, or asking for anything else,
            which is then named.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size / 2**30:.1f} GB; a network pickle has less than {MOST_BYTES / 2**30:.0f}")
    data = path.read_bytes()
    if data[:4] == b"PK\x03\x04":
        raise ValueError(f"{path} is a zip file, as torch.save writes it, not a pickle")
    if data[:1] != pickle.PROTO:
        raise ValueError(f"{path} is no pickle, or one of before Python 3")
    try:
        return _Builder(2 * size).plain(_load(io.BytesIO(data), NAMES))
    except RefusedError as error:
        raise ValueError(f"{path} {error}, which is not part of a network pickle; refused") from None
    except Exception as error:  # damaged bytes may raise anything
        reason = _printable(error) if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no pickle of a network: {reason}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(stream)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise RefusedError(f"asks for {_printable(f'{module}.{name}')}")
        return self._names[module, name]


class _StorageUnpickler(_Unpickler):
    def persistent_load(self, pid: Any) -> _StorageHandle:
        kind, type_name, _, _, numel, *_ = pid
        if kind != "storage" or type_name not in STORAGE_TYPES or not isinstance(numel, int):
            raise ValueError("a tensor is stored in an unknown way")
        return _StorageHandle(type_name, numel)


def _load(stream: io.BytesIO, names: Mapping[tuple[str, str], Any], unpickler: type[_Unpickler] = _Unpickler) -> Any:
    """Reads one pickle and leaves the stream behind it, after a look at all of its instructions."""
    start, tuples, allowed = stream.tell(), 0, set(INSTRUCTIONS.split())
    if unpickler is _StorageUnpickler:
        allowed.add("BINPERSID")
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        name = instruction.name
        if name not in allowed:
            detail = f" {_printable(argument)}" if isinstance(argument, str) else ""
            raise RefusedError(f"uses the pickle instruction {name}{detail}")
        if name.endswith("PUT") and (argument or 0) > count:  # the memo is an array as long as the largest index
            raise RefusedError(f"gives number {argument} to one of its first {count} objects")
        tuples += name.startswith(("TUPLE", "FROZENSET"))
        if tuples > MOST_TUPLES:
            raise RefusedError(f"holds more than {MOST_TUPLES} tuples")
    stream.seek(start)
    return unpickler(stream, names).load()


def _object(meta: Any) -> PickledObject:
    """A class pickled with its source text (meta["module_src"]), which is not looked at."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise ValueError("an object without the name of its class")
    if not isinstance(meta.get("state"), dict):
        raise ValueError(f"a {_printable(meta['class_name'])} without attributes")
    return PickledObject(meta["class_name"], meta["state"])


def _storage(data: Any) -> _Storage:
    """The bytes of torch.save(storage): magic number, version, platform, handle, list of keys, length, content."""
    stream = io.BytesIO(data)
    if _load(stream, {}) != STORAGE_MAGIC or _load(stream, {}) != STORAGE_PROTOCOL:
        raise ValueError("a tensor is stored in an unknown way")
    if not _load(stream, {}).get("little_endian", True):
        raise ValueError("a tensor is stored with the other byte order")
    handle = _load(stream, {("torch", name): name for name in STORAGE_TYPES}, _StorageUnpickler)
    _load(stream, {})
    length = int.from_bytes(stream.read(8), "little")
    content = memoryview(data)[stream.tell() :]
    dtype = STORAGE_TYPES[handle.type_name]
    if length != handle.numel or len(content) != length * dtype.itemsize:
        raise ValueError(f"a tensor of {handle.numel} numbers has {len(content)} bytes")
    return _Storage(dtype, content)


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *gradient_and_hooks: Any) -> _Strided:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without storage or shape")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a tensor of impossible shape")
    return _Strided(storage, offset, size, stride)


def _parameter(data: Any, *gradient_and_hooks: Any) -> _Strided:
    if not isinstance(data, _Strided):
        raise ValueError("a parameter that is no tensor")
    return data


def _scalar(dtype: Any, data: Any) -> float | int | bool:
    if not isinstance(dtype, _NumpyType) or not isinstance(data, bytes):
        raise ValueError("a number without type or value")
    return struct.unpack(dtype.order + NUMPY_TYPES[dtype.code], data)[0]


def _latin1(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _text(value: Any, *rest: Any) -> str:
    return str(value) if isinstance(value, str) else ""


# (module, name) in the file -> what stands for it here
NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("torch", "Size"): tuple,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_object),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_strided),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    ("torch", "device"): _Function(_text),
    ("numpy", "dtype"): _Function(_NumpyType),
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("numpy._core.multiarray", "scalar"): _Function(_scalar),
    ("_codecs", "encode"): _Function(_latin1),
}
NAMES |= {("torch", str(dtype).removeprefix("torch.")): str(dtype) for dtype in STORAGE_TYPES.values()}


class _Builder:
    """Turns what was read into plain data; each object once, however often the file refers to it.

    Args:
        budget: most bytes of tensors, so that a small file cannot ask for all memory by using a storage many times.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._built: dict[int, Any] = {}

    def plain(self, value: Any) -> Any:
        """Raises ValueError for what is no data, RecursionError for what is nested too deeply."""
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        if id(value) not in self._built:
            self._build(value)
        return self._built[id(value)]

    def _build(self, value: Any) -> None:
        if isinstance(value, _Strided):
            self._built[id(value)] = self._tensor(value)
        elif isinstance(value, PickledObject):
            self._built[id(value)] = PickledObject(value.class_name, self.plain(value.state))
        elif isinstance(value, dict):
            into = self._built[id(value)] = {}
            into.update((self.plain(key), self.plain(inner)) for key, inner in value.items())
        elif type(value) is list:
            items: list[Any] = []
            self._built[id(value)] = items
            items.extend(self.plain(inner) for inner in value)
        elif type(value) in (tuple, set, frozenset):
            self._built[id(value)] = type(value)(self.plain(inner) for inner in value)
        elif isinstance(value, _NumpyType):
            self._built[id(value)] = value.code
        else:
            raise ValueError(f"a bare {type(value).__name__}, which is no data")

    def _tensor(self, tensor: _Strided) -> Tensor:
        dtype, content = tensor.storage
        numel = math.prod(tensor.size)
        if numel == 0:
            return torch.empty(tensor.size, dtype=dtype)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
        available = len(content) // dtype.itemsize
        if last >= available or numel > available:
            raise ValueError(f"a tensor of shape {tensor.size} has a storage of {available} numbers")
        self._budget -= len(content)
        if self._budget < 0:
            raise ValueError("its tensors are larger than the file")
        flat = torch.frombuffer(bytearray(content), dtype=dtype)
        return flat.as_strided(tensor.size, tensor.stride, tensor.offset).contiguous()


def _printable(value: Any, most: int = 100) -> str:
    """One short line; control characters, which could command a terminal, are written out."""
    return str(value)[:most].encode("unicode_escape").decode("ascii")
