"""Files of torch.save, read as data: the tensors that torch reads, and no changed bit passes where there are sums."""

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stylegan2_ada.plain_pickle import read_plain_pickle, read_tensor_file


def state() -> dict[str, Any]:
    """What a training saves: a network in the layout of convolutions, its optimiser, numbers, and odd tensors."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "step": 7, "best": None, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
        "views": [base, base[1:, ::2], base.t(), torch.zeros(()), torch.zeros(0, 3), base[0].expand(5, 6)[:1]],
        "types": [torch.ones(3).to(kind) for kind in (torch.float16, torch.bfloat16, torch.int64, torch.bool)],
        "random": torch.get_rng_state(), "parameter": nn.Parameter(torch.ones(2)),
    }  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("old", [False, True])
def test_the_same_as_torch_reads(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=not old)
    found, expected = read_tensor_file(path), torch.load(path, weights_only=True)
    assert equal(found, expected)
    for part in ("network", "optimizer"):
        ours, theirs = (value[part]["0.weight"] if part == "network" else value[part]["state"][0]["exp_avg"]
                        for value in (found, expected))  # fmt: skip
        assert ours.stride() == theirs.stride() != ours.contiguous().stride()


def test_no_changed_bit_passes(tmp_path: Path) -> None:
    path, draw, refused = tmp_path / "a.pt", random.Random(0), 0
    torch.save(state(), path)
    whole, expected = path.read_bytes(), read_tensor_file(path)
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            assert equal(read_tensor_file(path), expected)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_zip_files_that_hold_more_than_they_are_long(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(100_000)}, path)
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    path.write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"a\.pt is compressed, which is not part of a file of tensors; refused"):
        read_tensor_file(path)


BOMBS = {
    "key": (b"})" + b"2\x86" * 60 + b"K\x01s", "has a key of type tuple"),
    "set": (b"\x8f()" + b"2\x86" * 60 + b"\x90", "has a key of type tuple"),
    "frozenset": (b"()" + b"2\x86" * 60 + b"\x91", "has a key of type tuple"),
    "called set": (b"cbuiltins\nset\n]()" + b"2\x86" * 60 + b"e\x85R", "has a key of type tuple"),
    "made frozenset": (b"cbuiltins\nfrozenset\n]()" + b"2\x86" * 60 + b"e\x85\x81", "has a key of type tuple"),
    "pairs": (b"ccollections\nOrderedDict\n](" + b")" + b"2\x86" * 60 + b"K\x01\x86e\x85R", "has a key of type tuple"),
    "large number as key": (b"}\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"K\x01s", "has a key of type int"),
    "large number": (b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096, "holds a number of 32767 bits"),
    "doubled": (b")" + b"2\x86" * 60, "holds more than 1000000 values"),
    "circle": (b"]q\x00h\x00a", "holds a list that holds itself"),
    "again": (b"X\x10\x27\x00\x00" + b"a" * 10_000 + b"q\x00](" + b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R" * 500
              + b"e", "takes the same data again and again"),
    "long": (b"(" + b"N" * 1_000_001 + b"l", "has more than 1000000 instructions"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("read", [read_plain_pickle, read_tensor_file])
def test_bombs(tmp_path: Path, bomb: str, read: Any) -> None:
    data, reason = BOMBS[bomb]
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04" + data + b".")
    with pytest.raises(ValueError, match=rf"a\.pkl {reason}"):
        read(path)


def test_keys_that_data_has(tmp_path: Path) -> None:
    import pickle

    data = {"a": 1, b"b": 2, 3: 4, 0.5: 5, None: 6, True: 7, ("a", 1): 8, -5: {1, "x"}}
    path = tmp_path / "a.pkl"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(data, protocol))
        assert read_plain_pickle(path) == data
