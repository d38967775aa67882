"""Reads pickles and files of `torch.save` as data: nothing in them runs, and only tensors, numbers, text, bytes and
containers come out.

Python's unpickler calls whatever a file names. Here a file may name what `NAMES` lists, each of which stands for a
function of this module or for a plain container; tensors are cut out of the bytes by this module alone, after all has
been read. Not even torch.load sees the file: its `weights_only` mode has had holes of its own, it hashes whatever a
file takes for a key, never looks at the check sums of the file, and advises to switch all care off.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

MOST_BYTES = 4 * 2**30  # of a file that is read at once; ten times the largest published network
MOST_INSTRUCTIONS = 1_000_000  # ten times those of the largest networks and their optimisers
MOST_VALUES = 1_000_000  # in a container, counted as often as it refers to them
MOST_TUPLES = 50_000  # Python crashes when it hashes tuples that are nested ten times as deeply; networks have 5,000
MOST_BITS = 128  # of a number
MOST_DIMENSIONS = 64

# Instructions that data needs. Others look objects up elsewhere (EXT1, PERSID, ...) or only call (INST, OBJ, ...).
INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND
    APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GET
    BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ
"""
STORAGE_MAGIC, STORAGE_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch's format from before its zip files
ZIP_START = b"PK\x03\x04"
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

Names = Mapping[tuple[str, str], Any]


class PickledObject(NamedTuple):
    """What a pickle says of an object whose class is not built: the name of the class, and the attributes."""

    class_name: str
    state: dict[str, Any]


class _Foreign:
    """Whatever stands under a name that is not looked up; it takes all that a pickle does to it and keeps nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> "_Foreign":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    append = extend = add = __setstate__


class RefusedError(ValueError):
    """The pickle asks for something that data does not need."""


class DamagedError(ValueError):
    """A file that is not what it should be. `reason` says why, without the name of the file."""

    def __init__(self, path: Path, otherwise: str, reason: str) -> None:
        super().__init__(f"{path} is damaged, or {otherwise}: {reason}")
        self.reason = reason


class _Storage(NamedTuple):
    """Numbers of one type; `fetch` gives their bytes."""

    dtype: torch.dtype
    numel: int
    fetch: Callable[[], Any]


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

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for key, value in pairs:
            self[_checked_key(key)] = value

    def __setstate__(self, state: Any) -> None:
        pass


class _Set(set[Any]):
    __slots__ = ()

    def __init__(self, items: Any = ()) -> None:
        super().__init__(map(_checked_key, items))

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("changes the attributes of a set")


class _Size(tuple[Any, ...]):
    __slots__ = ()

    def __new__(cls, items: Any = ()) -> "_Size":
        if not isinstance(items, tuple | list) or len(items) > MOST_DIMENSIONS:
            raise ValueError("a tensor of impossible shape")
        return super().__new__(cls, items)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("changes the attributes of a shape")


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
    data = _bytes(path)
    if not data:
        raise ValueError(f"{path} is no pickle: it is empty")
    if data[:4] == ZIP_START:
        raise ValueError(f"{path} is a zip file, as torch.save writes it, not a pickle")
    if data[:1] != pickle.PROTO:
        raise ValueError(f"{path} is no pickle, or one of before Python 3")
    return _explained(path, "a network pickle", "no pickle of a network", lambda: _read_pickle(data))


def read_tensor_file(path: Path, lenient: bool = False) -> Any:
    """The content of a file of torch.save, in its zip format or the one before, or of a plain pickle of such data.

    The check sums of zip files are compared; the other formats have none. What comes out: see `read_plain_pickle`.

    Args:
        lenient: give a `PickledObject` without attributes for each object of another class, instead of refusing the
            file. Nothing is imported or called for it.

    Raises:
        ValueError: no such file, damaged, or asking for more than such data, which is then named.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(4)
    if start == ZIP_START:
        return _explained(path, "a file of tensors", "no file of tensors", lambda: _read_zip(path, lenient))
    if start[:1] != pickle.PROTO:
        reason = f"it starts with {start.hex(' ')}" if start else "it is empty"
        raise DamagedError(path, "no file of tensors", reason)
    data = _bytes(path)
    return _explained(path, "a file of tensors", "no file of tensors", lambda: _read_pickle(data, lenient))


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size / 2**30:.1f} GB; a network pickle has less than {MOST_BYTES / 2**30:.0f}")
    return path.read_bytes()


def _explained(path: Path, what: str, otherwise: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RefusedError as error:
        raise ValueError(f"{path} {error}, which is not part of {what}; refused") from None
    except Exception as error:  # damaged bytes may raise anything
        reason = _printable(error) if str(error) else type(error).__name__
        raise DamagedError(path, otherwise, reason) from error


def _read_pickle(data: bytes, lenient: bool = False) -> Any:
    reader = _Reader(len(data), lenient)
    stream = io.BytesIO(data)
    value = reader.load(stream, NAMES)
    if type(value) is int and value == STORAGE_MAGIC:
        value = reader.before_zip(data, NAMES | STORAGES)
    return _Builder(2 * len(data)).plain(value)


def _read_zip(path: Path, lenient: bool) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise RefusedError("is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise RefusedError("holds parts that lie over each other")
        names = [entry.filename for entry in entries]
        roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1 or any("/code/" in name for name in names):
            raise ValueError(f"a zip file of {_printable(', '.join(names[:3])) or 'nothing'}")
        if f"{roots[0]}/byteorder" in names and archive.read(f"{roots[0]}/byteorder") != b"little":
            raise ValueError("its tensors are stored with the other byte order")

        def content(key: str) -> bytes:
            return archive.read(f"{roots[0]}/data/{key}")  # compares the check sum

        stream = io.BytesIO(archive.read(f"{roots[0]}/data.pkl"))
        value = _Reader(size, lenient).load(stream, NAMES | STORAGES, _Storages(content))
        return _Builder(2 * size).plain(value)


class _Storages:
    """Storages by their key in the file, each once."""

    def __init__(self, content: Callable[[str], Any]) -> None:
        self.content = content
        self.found: dict[str, _Storage] = {}

    def __call__(self, pid: Any) -> _Storage:
        kind, type_name, key, _, numel, *view = pid
        if isinstance(type_name, _Foreign):
            raise RefusedError(f"asks for {_printable(type_name.name)}")
        if kind != "storage" or type_name not in STORAGE_TYPES or type(numel) is not int or any(view):
            raise ValueError("a tensor is stored in an unknown way")
        return self.found.setdefault(
            str(key), _Storage(STORAGE_TYPES[type_name], numel, lambda: self.content(str(key)))
        )


def _checked_key(key: Any) -> Any:
    """A key that is hashed in no time, and is one of few with that hash: text, bytes, a number, or a short tuple."""
    plain = key is None or type(key) in (str, bytes, bool, float) or (type(key) is int and abs(key) < 2**60)
    short = type(key) in (tuple, _Size) and len(key) <= 3
    if plain or (short and all(type(n) is str or (type(n) is int and abs(n) < 2**15) for n in key)):
        return key
    raise RefusedError(f"has a key of type {type(key).__name__}")


def _hashing(code: bytes, keys: slice) -> Callable[[Any], None]:
    """The instruction of that code, after a look at what it will hash."""
    step: Callable[[Any], None] = pickle._Unpickler.dispatch[code[0]]

    def look(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            _checked_key(key)
        step(unpickler)

    return look


class _Unpickler(pickle._Unpickler):  # the one in Python, whose steps can be looked at
    stack: list[Any]

    def __init__(self, stream: io.BytesIO, names: Names, reader: "_Reader", storages: _Storages | None) -> None:
        super().__init__(stream)
        self._names, self._reader, self._storages = names, reader, storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            if self._reader.lenient:
                return _Foreign(f"{module}.{name}")
            raise RefusedError(f"asks for {_printable(f'{module}.{name}')}")
        found = self._names[module, name]
        return _Function(self._reader.embedded) if found is _EMBEDDED else found

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storages is None:
            raise RefusedError("asks for an object that is kept elsewhere")
        return self._storages(pid)

    def _call(self) -> None:
        arguments = self.stack.pop()
        self._reader.spend(sum(len(one) for one in arguments if isinstance(one, str | bytes | list | tuple | dict)))
        self.stack[-1] = self.stack[-1](*arguments)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (getattr(pickle, name) for name in [*INSTRUCTIONS.split(), "BINPERSID"])
    } | {
        pickle.SETITEM[0]: _hashing(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _hashing(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _hashing(pickle.DICT, slice(0, None, 2)),
        pickle.ADDITEMS[0]: _hashing(pickle.ADDITEMS, slice(None)),
        pickle.FROZENSET[0]: _hashing(pickle.FROZENSET, slice(None)),
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
    }


class _Reader:
    """Reads the pickles of one file, those within its bytes as well, and counts what they ask for.

    Args:
        size: of the file; what functions are called with must not be longer than four times that.
        lenient: see `read_tensor_file`.
    """

    def __init__(self, size: int, lenient: bool = False) -> None:
        self.lenient = lenient
        self._instructions, self._tuples, self._items = MOST_INSTRUCTIONS, MOST_TUPLES, 4 * size

    def spend(self, items: int) -> None:
        self._items -= items
        if self._items < 0:
            raise RefusedError("takes the same data again and again")

    def load(self, stream: io.BytesIO, names: Names, storages: _Storages | None = None) -> Any:
        """Reads one pickle and leaves the stream behind it, after a look at all of its instructions."""
        start = stream.tell()
        self._look(stream, storages is not None)
        end = stream.tell()
        stream.seek(start)
        value = _Unpickler(stream, names, self, storages).load()
        stream.seek(end)
        return value

    def _look(self, stream: io.BytesIO, storages: bool) -> None:
        allowed = {*INSTRUCTIONS.split(), *(["BINPERSID"] if storages else [])}
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            name = instruction.name
            if name not in allowed:
                detail = f" {_printable(argument)}" if isinstance(argument, str) else ""
                raise RefusedError(f"uses the pickle instruction {name}{detail}")
            if name.endswith("PUT") and (argument or 0) > count:
                raise RefusedError(f"gives number {argument} to one of its first {count} objects")
            if isinstance(argument, int) and argument.bit_length() > MOST_BITS:
                raise RefusedError(f"holds a number of {argument.bit_length()} bits")
            self._instructions -= 1
            self._tuples -= name.startswith(("TUPLE", "FROZENSET"))
            if self._tuples < 0:
                raise RefusedError(f"holds more than {MOST_TUPLES} tuples")
            if self._instructions < 0:
                raise RefusedError(f"has more than {MOST_INSTRUCTIONS} instructions")

    def embedded(self, data: Any) -> _Storage:
        """What torch.storage._load_from_bytes gives: bytes of torch.save(storage), in the format before zip files."""
        found = self.before_zip(data, STORAGES)
        if not isinstance(found, _Storage):
            raise ValueError("a tensor is stored in an unknown way")
        return found

    def before_zip(self, data: bytes, names: Names) -> Any:
        """Magic number, version, platform, value, list of keys, and of each storage its length and content."""
        stream, contents = io.BytesIO(data), dict[str, memoryview]()
        storages = _Storages(contents.__getitem__)
        if self.load(stream, {}) != STORAGE_MAGIC or self.load(stream, {}) != STORAGE_PROTOCOL:
            raise ValueError("a tensor is stored in an unknown way")
        if not self.load(stream, {}).get("little_endian", True):
            raise ValueError("a tensor is stored with the other byte order")
        value = self.load(stream, names, storages)
        rest = memoryview(data)
        keys = self.load(stream, {})
        rest = rest[stream.tell() :]
        for key in map(str, keys):
            storage = storages.found[key]
            length, rest = int.from_bytes(rest[:8], "little"), rest[8:]
            size = storage.numel * storage.dtype.itemsize
            if length != storage.numel or len(rest) < size:
                raise ValueError(f"a tensor of {storage.numel} numbers has {len(rest)} bytes")
            contents[key], rest = rest[:size], rest[size:]
        return value


def _object(meta: Any) -> PickledObject:
    """A class pickled with its source text (meta["module_src"]), which is not looked at."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise ValueError("an object without the name of its class")
    if not isinstance(meta.get("state"), dict):
        raise ValueError(f"a {_printable(meta['class_name'])} without attributes")
    return PickledObject(meta["class_name"], meta["state"])


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *gradient_and_hooks: Any) -> _Strided:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without storage or shape")
    numbers = (offset, *size, *stride)
    if len(size) > MOST_DIMENSIONS or len(size) != len(stride):
        raise ValueError("a tensor of impossible shape")
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
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


_EMBEDDED = object()
# (module, name) in the file -> what stands for it here
NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "set"): _Set,
    ("__builtin__", "set"): _Set,
    ("builtins", "frozenset"): _Function(lambda items=(): frozenset(map(_checked_key, items))),
    ("torch", "Size"): _Size,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_object),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_strided),
    ("torch.storage", "_load_from_bytes"): _EMBEDDED,
    ("torch", "device"): _Function(_text),
    ("numpy", "dtype"): _Function(_NumpyType),
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("numpy._core.multiarray", "scalar"): _Function(_scalar),
    ("_codecs", "encode"): _Function(_latin1),
}
NAMES |= {("torch", str(dtype).removeprefix("torch.")): str(dtype) for dtype in STORAGE_TYPES.values()}
STORAGES: dict[tuple[str, str], Any] = {("torch", name): name for name in STORAGE_TYPES}


class _Builder:
    """Turns what was read into plain data; each object once, however often the file refers to it.

    Args:
        budget: most bytes of tensors, so that a small file cannot ask for all memory by using a storage many times.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._built: dict[int, tuple[Any, int]] = {}  # the plain value, and how many values it consists of
        self._open: set[int] = set()
        self._flat: dict[int, Tensor] = {}

    def plain(self, value: Any) -> Any:
        """Raises ValueError for what is no data or refers to itself, RecursionError for what is nested too deeply."""
        return self._visit(value)[0]

    def _visit(self, value: Any) -> tuple[Any, int]:
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value, 1
        key = id(value)
        if key in self._open:
            raise RefusedError(f"holds a {type(value).__name__} that holds itself")
        if key not in self._built:
            self._open.add(key)
            self._built[key] = self._build(value)
            self._open.remove(key)
        return self._built[key]

    def _build(self, value: Any) -> tuple[Any, int]:
        if isinstance(value, _Strided):
            return self._tensor(value), 1
        if isinstance(value, _Foreign):
            return PickledObject(value.name, {}), 1
        if isinstance(value, PickledObject):
            return PickledObject(value.class_name, self.plain(value.state)), 1
        if isinstance(value, dict):
            items, count = self._all(value.values())
            return dict(zip(map(self.plain, value), items, strict=True)), count
        for kind in (list, tuple, set, frozenset):
            if type(value) in (kind, {tuple: _Size, set: _Set}.get(kind)):
                items, count = self._all(value)
                return kind(items), count
        if isinstance(value, _NumpyType):
            return value.code, 1
        raise ValueError(f"a bare {type(value).__name__}, which is no data")

    def _all(self, values: Iterable[Any]) -> tuple[list[Any], int]:
        found = [self._visit(value) for value in values]
        count = 1 + sum(number for _, number in found)
        if count > MOST_VALUES:
            raise RefusedError(f"holds more than {MOST_VALUES} values")
        return [value for value, _ in found], count

    def _tensor(self, tensor: _Strided) -> Tensor:
        storage, numel = tensor.storage, math.prod(tensor.size)
        if numel == 0:
            return torch.empty(tensor.size, dtype=storage.dtype)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
        if last >= storage.numel or numel > storage.numel:
            raise ValueError(f"a tensor of shape {tensor.size} has a storage of {storage.numel} numbers")
        first = id(storage) not in self._flat
        if first:
            self._flat[id(storage)] = self._numbers(storage)
        cut = self._flat[id(storage)].as_strided(tensor.size, tensor.stride, tensor.offset)
        if first and numel == storage.numel and _dense(tensor.size, tensor.stride):
            return cut  # in its own layout, as channels-last weights need it
        self._spend(numel * storage.dtype.itemsize)
        return cut.clone(memory_format=torch.contiguous_format)

    def _numbers(self, storage: _Storage) -> Tensor:
        self._spend(storage.numel * storage.dtype.itemsize)
        content = storage.fetch()
        if len(content) != storage.numel * storage.dtype.itemsize:
            raise ValueError(f"a tensor of {storage.numel} numbers has {len(content)} bytes")
        return torch.frombuffer(bytearray(content), dtype=storage.dtype)

    def _spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise ValueError("its tensors are larger than the file")


def _dense(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether each number of the storage is used once."""
    expected = 1
    for step, n in sorted(zip(stride, size, strict=True)):
        if n > 1 and step != expected:
            return False
        expected *= n
    return True


def _printable(value: Any, most: int = 100) -> str:
    """One short line; control characters, which could command a terminal, are written out."""
    return str(value)[:most].encode("unicode_escape").decode("ascii")
