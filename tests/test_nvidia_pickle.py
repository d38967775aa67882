"""Published network pickles: what is in them comes out, and nothing in them runs."""

import builtins
import collections
import copyreg
import importlib
import io
import json
import os
import pickle
import pickletools
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia_layout import Persistent, dump, persistent, storage, storage_bytes, write
from safetensors import safe_open

from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.nvidia_pickle import read_network_pickle
from stylegan2_ada.plain_pickle import read_plain_pickle

GOLDEN = Path(__file__).parent / "golden" / "stylegan2"
PICKLE = GOLDEN / "nvidia_format.pkl"
SMALL = {"z_dim": 4, "c_dim": 0, "w_dim": 6, "img_resolution": 8, "img_channels": 3}
NARROW = {"channel_base": 64, "channel_max": 8}


def golden(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return config, state, tensors


def small_generator(**changes: Any) -> Generator:
    torch.manual_seed(0)
    return Generator(**{**SMALL, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": NARROW, **changes})


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- what is in them comes out


@pytest.mark.parametrize("role", ["G", "G_ema"])
def test_generator_of_the_pickle_draws_the_reference_images(role: str) -> None:
    config, state, tensors = golden("generator_res32")
    pickled = getattr(read_network_pickle(PICKLE), role)
    assert pickled.kind == "Generator" and pickled.dropped == ()
    assert pickled.config == {key: value for key, value in config.items() if not key.startswith("truncation")}
    assert pickled.state.keys() == state.keys()
    assert all(torch.equal(pickled.state[name], state[name]) for name in state)
    generator = pickled.build()
    with torch.no_grad():
        ws = generator.mapping(tensors["z"], None)
        torch.testing.assert_close(ws, tensors["ws"], atol=1e-4, rtol=1e-4)
        images = generator.synthesis(ws, noise_mode="const")
    torch.testing.assert_close(images, tensors["img_const"], atol=1e-3, rtol=1e-3)


def test_discriminator_of_the_pickle_gives_the_reference_logits() -> None:
    config, state, tensors = golden("discriminator_res32")
    pickled = read_network_pickle(PICKLE).D
    assert pickled is not None and pickled.kind == "Discriminator"
    assert pickled.config == {key: value for key, value in config.items() if key != "r1_grad_wrt"}
    assert pickled.state.keys() == state.keys()
    with torch.no_grad():
        logits = pickled.build()(tensors["x"], None)
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_conditional_networks_of_other_architectures(tmp_path: Path, protocol: int) -> None:
    sizes = {**SMALL, "c_dim": 3}
    g_kwargs = {**sizes, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {**NARROW, "architecture": "resnet"}}
    d_kwargs = {"c_dim": 3, "img_resolution": 8, "img_channels": 3, **NARROW, "architecture": "orig"}
    torch.manual_seed(0)
    generator, discriminator = Generator(**g_kwargs), Discriminator(**d_kwargs)
    path = write(
        tmp_path / "n.pkl",
        protocol,
        G_ema=persistent(generator, g_kwargs),
        D=persistent(discriminator, d_kwargs),
        training_set_kwargs={"path": "x.zip", "use_labels": True, "max_size": np.int64(7), "xflip": np.bool_(True)},
        augment_pipe=Persistent("AugmentPipe", {"_buffers": {"p": torch.tensor(0.25)}}),
    )
    pickle_ = read_network_pickle(path)
    assert pickle_.G is None and pickle_.G_ema is not None and pickle_.D is not None
    assert pickle_.G_ema.config == g_kwargs and pickle_.D.config == d_kwargs
    z, c = torch.randn(2, 4), torch.eye(3)[:2]
    image = generator(z, c, noise_mode="const")
    torch.testing.assert_close(pickle_.G_ema.build()(z, c, noise_mode="const"), image)
    torch.testing.assert_close(pickle_.D.build()(image, c), discriminator(image, c))
    assert pickle_.training_set_kwargs == {"path": "x.zip", "use_labels": True, "max_size": 7, "xflip": True}
    assert pickle_.augment_pipe.state["_buffers"]["p"] == 0.25


def test_keywords_are_sorted_into_place_and_unknown_ones_reported(tmp_path: Path) -> None:
    generator = small_generator()
    kwargs = {
        **SMALL,
        "mapping_kwargs": {"num_layers": 2, "fast": True},
        "synthesis_kwargs": {**NARROW, "channels_last": True},
        "conv_clamp": 256,  # at the top level, as later releases pass it
        "fused_modconv_default": "inference_only",
    }
    pickled = read_network_pickle(write(tmp_path / "n.pkl", G=persistent(generator, kwargs))).G
    assert pickled is not None
    assert pickled.dropped == ("mapping_kwargs.fast", "synthesis_kwargs.channels_last", "fused_modconv_default")
    assert pickled.config["synthesis_kwargs"] == {**NARROW, "conv_clamp": 256}
    pickled.build()


def test_what_modules_remember_wins_over_our_defaults(tmp_path: Path) -> None:
    generator = small_generator()
    pickled = persistent(generator, {**SMALL, "synthesis_kwargs": NARROW})
    modules = pickled.meta["state"]["_modules"]
    modules["mapping"].meta["state"] |= {"num_layers": 2, "w_avg_beta": 0.998}
    blocks = modules["synthesis"].meta["state"]["_modules"]
    for block in blocks.values():
        block.meta["state"] |= {"use_fp16": block is blocks["b8"], "architecture": "skip"}
        block.meta["state"]["_modules"]["conv1"].meta["state"] |= {"conv_clamp": 256, "use_noise": True}
    found = read_network_pickle(write(tmp_path / "n.pkl", G=pickled)).G
    assert found is not None
    assert found.config["mapping_kwargs"] == {"num_layers": 2, "w_avg_beta": 0.998}
    assert found.config["synthesis_kwargs"] == {**NARROW, "num_fp16_res": 1, "conv_clamp": 256}


def test_buffers_that_are_not_persistent_and_arguments_by_position(tmp_path: Path) -> None:
    generator = small_generator()
    generator.register_buffer("cache", torch.zeros(3))
    kwargs = {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": NARROW}
    pickled = persistent(generator, kwargs, _init_args=tuple(SMALL.values()), _non_persistent_buffers_set={"cache"})
    found = read_network_pickle(write(tmp_path / "n.pkl", G=pickled)).G
    assert found is not None and "cache" not in found.state
    assert {key: found.config[key] for key in SMALL} == SMALL


def test_plain_data_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6).reshape(2, 3)
    data = {
        "text": "ä", "bytes": b"\0x", "numbers": [1, -(2**70), 2.5, True, None], "pair": (1, "a"), "set": {1, 2},
        "half": torch.tensor([1.5], dtype=torch.float16), "flags": torch.tensor([True, False]),
        "one": torch.tensor(3.0),        "empty": torch.zeros(0, 4), "transposed": shared.t(), "same": [shared, shared],
        "ordered": collections.OrderedDict(a=1),
        "numpy": [np.float64(0.1), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(False)],
        "size": torch.Size([2, 3]), "dtype": torch.float32, "weights": torch.nn.Linear(2, 1).state_dict(),
    }  # fmt: skip
    data["big endian"] = np.dtype(">f8").type(0.1)
    for protocol in (2, 3, 4, 5):
        found = read_plain_pickle(put(tmp_path / "x.pkl", dump(data, protocol)))
        assert list(found) == list(data)
        for key in ("text", "bytes", "numbers", "pair", "set", "numpy", "ordered"):
            assert found[key] == data[key], key
        assert all(type(n) in (int, float, bool) for n in found["numpy"])
        for key in ("half", "flags", "one", "empty", "transposed"):
            assert torch.equal(found[key], data[key]) and found[key].dtype == data[key].dtype, key
        assert found["same"][0] is found["same"][1] and torch.equal(found["same"][0], shared)
        assert found["size"] == (2, 3) and found["dtype"] == "torch.float32"
        assert found["weights"].keys() == {"weight", "bias"}


def test_numbers_of_the_other_byte_order(tmp_path: Path) -> None:
    data = pickle.dumps(np.float64(1.5), 3).replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>")
    data = data.replace(np.float64(1.5).tobytes(), np.dtype(">f8").type(1.5).byteswap().tobytes())
    assert read_plain_pickle(put(tmp_path / "x.pkl", data)) == 1.5


# --- nothing in them runs


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


COMMAND = "touch canary"
CALLS = {
    "system": (Call(os.system, COMMAND), f"{os.name}.system"),
    "popen": (Call(subprocess.Popen, ["touch", "canary"]), "subprocess.Popen"),
    "eval": (Call(eval, "__import__('os').system('touch canary')"), "builtins.eval"),
    "exec": (Call(exec, "open('canary', 'w')"), "builtins.exec"),
    "open": (Call(open, "canary", "w"), "io.open"),
    "getattr": (Call(getattr, torch.nn.Linear, "forward"), "builtins.getattr"),
    "import": (Call(builtins.__import__, "antigravity"), "builtins.__import__"),
    "import_module": (Call(importlib.import_module, "antigravity"), "importlib.import_module"),
    "reduce with state": (Call(type, "X", (), {}, state={"a": 1}), "builtins.type"),
    "torch.load": (Call(torch.load, "x.pt"), "torch.serialization.load"),
    "path": (Path("/etc/passwd"), "pathlib"),
}


def stack_global(module: str, name: str) -> bytes:
    texts = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"".join(texts) + b"\x93"


def called(function: bytes, *arguments: str) -> bytes:
    texts = b"".join(b"X" + len(text).to_bytes(4, "little") + text.encode() for text in arguments)
    return b"\x80\x04" + function + b"(" + texts + b"tR."


RAW = {
    "global": (called(b"cos\nsystem\n", COMMAND), "os.system"),
    "dotted name": (called(stack_global("torch", "_utils.os.system"), COMMAND), "torch._utils.os.system"),
    "attribute of a known name": (
        called(stack_global("collections", "OrderedDict.fromkeys"), COMMAND),
        "collections.OrderedDict.fromkeys",
    ),
    "module as name": (called(stack_global("torch.storage", "os.system"), COMMAND), "torch.storage.os.system"),
    "inst": (b"\x80\x02(V" + COMMAND.encode() + b"\nios\nsystem\n.", "INST os system"),
    "obj": (b"\x80\x02(cos\nsystem\nV" + COMMAND.encode() + b"\no.", "OBJ"),
    "extension": (called(b"\x82\xf0", COMMAND), "EXT1"),
    "long extension": (called(b"\x84\xf0\x00\x00\x00", COMMAND), "EXT4"),
    "persistent text": (b"\x80\x02Pos.system\n.", "PERSID os.system"),
    "persistent object": (b"\x80\x04Vos.system\nQ.", "BINPERSID"),
    "newobj with keywords": (b"\x80\x04cbuiltins\nset\n)}\x92.", "NEWOBJ_EX"),
    "terminal commands": (b"\x80\x04cos\n\x1b[2Jsystem\n.", r"os.\x1b[2Jsystem"),
}


@pytest.fixture(autouse=True)
def no_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every test runs in an empty folder, where nothing may leave a file named canary."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "canary").exists()


def refused(data: bytes, *texts: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_network_pickle(put(Path("evil.pkl"), data))
    message = str(caught.value)
    assert message.startswith("evil.pkl ") and "\n" not in message, message
    for text in texts:
        assert text in message, message


def test_the_attacks_work_without_us() -> None:
    pickle.loads(dump(CALLS["system"][0]))
    assert Path("canary").exists()
    Path("canary").unlink()
    pickle.loads(RAW["global"][0])
    assert Path("canary").exists()
    Path("canary").unlink()


@pytest.mark.parametrize("attack", CALLS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_by_name(attack: str, protocol: int) -> None:
    evil, name = CALLS[attack]
    name = name if protocol > 2 else name.rpartition(".")[2]  # protocol 2 has older names of modules
    refused(dump(evil, protocol), "asks for", name, "not part of a network pickle; refused")
    refused(dump({"G": Persistent("Generator", {"_init_kwargs": {"z_dim": evil}})}, protocol), "asks for", name)


@pytest.mark.parametrize("attack", RAW)
def test_instructions_that_look_things_up_elsewhere_are_refused(attack: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("os", "system"))  # type: ignore[attr-defined]
    monkeypatch.setitem(copyreg._extension_cache, 0xF0, os.system)  # type: ignore[attr-defined]
    data, text = RAW[attack]
    refused(data, text, "refused")


@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_parameter", "torch.storage\n_load_from_bytes"])
def test_functions_cannot_be_changed(name: str) -> None:
    state = pickle.dumps((None, {"_call": "os.system", "__code__": None}), 2)[2:-1]
    refused(b"\x80\x02c" + name.encode() + b"\n" + state + b"b.", "changes the attributes of a function")
    read_network_pickle(PICKLE)


@pytest.mark.parametrize("name", ["collections\nOrderedDict", "dnnlib.util\nEasyDict", "builtins\nset", "torch\nSize"])
def test_classes_cannot_be_changed_nor_taken_for_data(name: str) -> None:
    for state in ((None, {"fromkeys": 1}), {"fromkeys": 1}):
        refused(b"\x80\x02c" + name.encode() + b"\n" + pickle.dumps(state, 2)[2:-1] + b"b.", "is damaged, or no pickle")
    refused(b"\x80\x02c" + name.encode() + b"\n.", "a bare type")


def test_attributes_of_containers_are_dropped() -> None:
    data = dump(Call(collections.OrderedDict, [("a", 1)], state={"items": "x", "__class__": "y"}))
    assert read_plain_pickle(put(Path("x.pkl"), data)) == {"a": 1}


def test_numpy_objects_are_refused() -> None:
    scalar = np.float64(0).__reduce__()[0]
    refused(dump(Call(scalar, np.dtype("O"), pickle.dumps(CALLS["system"][0]))), "numpy values of type O8")
    refused(dump(np.array([CALLS["system"][0]], dtype=object)), "_reconstruct")


def test_bytes_of_a_tensor_are_no_way_in() -> None:
    good = storage_bytes(torch.ones(3))
    load = torch.storage._load_from_bytes  # type: ignore[attr-defined]
    refused(dump(Call(load, pickle.dumps(CALLS["system"][0]))), f"{os.name}.system")
    stream = io.BytesIO(good)
    for _ in range(3):
        pickletools.dis(stream, out=io.StringIO())
    head, rest = good[: stream.tell()], good[stream.tell() :]
    refused(dump(Call(load, head + dump(CALLS["system"][0]) + rest)), f"{os.name}.system")
    refused(dump(Call(load, good.replace(b"FloatStorage", b"_load_global"))), "torch._load_global")
    stream = io.BytesIO()
    torch.save(torch.ones(3), stream)
    refused(dump(Call(load, stream.getvalue())), "is damaged, or no pickle")
    refused(dump(Call(load, "text")), "is damaged, or no pickle")


def test_source_text_is_not_looked_at(tmp_path: Path) -> None:
    source = "import os\nos.system('touch canary')\n"
    path = write(tmp_path / "n.pkl", G=persistent(small_generator(), small_generator().config, source=source))
    generator = read_network_pickle(path).G
    assert generator is not None
    generator.build()


# --- nor does it take all memory, or time


def strided(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    return Call(
        torch._utils._rebuild_tensor_v2,
        storage(torch.zeros(numel)),
        offset,
        size,
        stride,
        False,
        collections.OrderedDict(),
    )


@pytest.mark.parametrize(
    ("evil", "text"),
    [
        (strided(4, 0, (10**9,), (0,)), "storage of 4 numbers"),
        (strided(4, 0, (2, 2), (4, 1)), "storage of 4 numbers"),
        (strided(4, 3, (2,), (1,)), "storage of 4 numbers"),
        (strided(4, -1, (2,), (1,)), "impossible shape"),
        (strided(4, 0, (2**60, 2**60), (1, 1)), "impossible shape"),
        (strided(4, 0, (2,), (1, 1)), "impossible shape"),
        ([strided(4, 0, (4,), (1,)).__reduce__()[1][0]], "a bare _Storage"),
    ],
)
def test_tensors_larger_than_their_storage(evil: Any, text: str) -> None:
    refused(dump(evil), text)


def test_one_storage_for_many_tensors() -> None:
    shared, rebuild = storage(torch.zeros(10_000)), torch._utils._rebuild_tensor_v2
    many = [Call(rebuild, shared, 0, (10_000,), (1,), False, None) for _ in range(1000)]
    refused(dump(many), "larger than the file")


def test_length_of_a_storage() -> None:
    good = storage_bytes(torch.ones(3))
    load = torch.storage._load_from_bytes  # type: ignore[attr-defined]
    refused(dump(Call(load, good[:-1])), "3 numbers has 11 bytes")
    length = (3).to_bytes(8, "little")
    refused(dump(Call(load, good.replace(length, (2**40).to_bytes(8, "little")))), "has 12 bytes")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "gives number 2147483647"),
        (b"\x80\x04}" + b")" + b"\x85" * 1_000_000 + b"Ns.", "more than 50000 tuples"),
        (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.", "damaged"),
        (b"\x80\x04" + b"]" * 5_000 + b"a" * 4_999 + b".", "recursion"),
    ],
)
def test_bombs(data: bytes, text: str) -> None:
    refused(data, text)


def test_modules_that_hold_each_other_many_times(tmp_path: Path) -> None:
    inner = Persistent("Layer", {})
    for _ in range(40):
        inner = Persistent("Layer", {"_modules": {"a": inner, "b": inner}})
    path = write(tmp_path / "n.pkl", G=Persistent("Generator", {"_modules": {"x": inner}}))
    with pytest.raises(ValueError, match="'Generator' of more than 10000 modules"):
        read_network_pickle(path)


# --- mistakes


def test_what_is_no_network_pickle() -> None:
    with pytest.raises(ValueError, match=r"there is no file nowhere\.pkl"):
        read_network_pickle(Path("nowhere.pkl"))
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"<html>", b"cos\nsystem\n."):
        refused(data, "is no pickle")
    refused(PICKLE.read_bytes()[:-1], "is damaged, or no pickle")
    refused(PICKLE.read_bytes()[:100_000], "is damaged, or no pickle")
    refused(dump([1, 2]), "is no network pickle", "other data instead of G, D, G_ema")
    refused(dump({"a": 1, "b": 2}), "is no network pickle", "a dictionary of a, b")
    refused(dump({"G": None, "D": None}), "is no network pickle")
    refused(b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81.", "TensorFlow", "PyTorch release")
    stream = io.BytesIO()
    torch.save({"a": torch.ones(1)}, stream)
    refused(stream.getvalue(), "zip file, as torch.save writes it")


def test_networks_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "n.pkl", G=persistent(small_generator(), {}), D=Persistent("ProjectedDiscriminator", {}))
    with pytest.raises(ValueError, match=r"D is a 'ProjectedDiscriminator'; only Generator and Discriminator"):
        read_network_pickle(path)
    layer = Persistent("SynthesisInput", {"_buffers": {"transform": torch.eye(3)}})
    stylegan3 = Persistent("SynthesisNetwork", {"_modules": {"input": layer}})
    path = write(tmp_path / "n.pkl", G_ema=Persistent("Generator", {"_modules": {"synthesis": stylegan3}}))
    with pytest.raises(ValueError, match=r"G_ema is a generator of StyleGAN3"):
        read_network_pickle(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"img_resolution": 12}, "power of two"),
        ({"img_resolution": "8"}, "impossible settings"),
        ({"w_dim": 7}, r"weights do not fit this Generator, first synthesis\.b4.* \(\d+x6, needed \d+x7\)"),
        ({"img_resolution": 16}, r"synthesis\.b16\S* \(missing, needed"),
        ({"img_resolution": 4}, r"synthesis\.b8\S* \([\dx]+, needed missing\)"),
        ({"w_dim": 10**6}, "do not fit"),
    ],
)
def test_weights_that_do_not_fit_the_settings(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    config = {**small_generator().config, **changes}
    pickled = read_network_pickle(write(tmp_path / "n.pkl", G=persistent(small_generator(), config))).G
    assert pickled is not None
    with pytest.raises(ValueError, match=text):
        pickled.build()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"w_dim": 2**21}, "largest possible"),
        ({"mapping_kwargs": {"num_layers": 101}}, "more than 100 layers"),
        ({"w_dim": torch.ones(1)}, "not plain numbers"),
    ],
)
def test_absurd_settings(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    config = {**small_generator().config, **changes}
    path = write(tmp_path / "n.pkl", G=persistent(small_generator(), config))
    with pytest.raises(ValueError, match=rf"n\.pkl: .*{text}"):
        read_network_pickle(path)


def test_attributes_of_the_wrong_type(tmp_path: Path) -> None:
    for state in ({"_modules": 3}, {"_parameters": [1]}, {"_init_kwargs": "x"}, {"_init_args": 5}):
        path = write(tmp_path / "n.pkl", G=Persistent("Generator", state))
        with pytest.raises(ValueError, match=rf"{next(iter(state))} of a 'Generator' is a"):
            read_network_pickle(path)


# --- damage anywhere


def test_damaged_pickles_give_a_result_or_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a pickle ran something")

    for module, name in ((os, "system"), (subprocess, "Popen"), (importlib, "import_module")):
        monkeypatch.setattr(module, name, never)
    whole = dump({"G": persistent(small_generator(), small_generator().config), "D": None, "G_ema": None})
    structure = [i for i, byte in enumerate(whole) if not 0 < i < 2]
    draw = random.Random(0)
    outcomes = collections.Counter(_damage(tmp_path / "n.pkl", whole, structure, draw) for _ in range(300))
    assert outcomes["error"] > 60 and outcomes["result"] > 10, outcomes


def _damage(path: Path, whole: bytes, positions: list[int], draw: random.Random) -> str:
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8))):
        start, length = draw.choice(positions), draw.choice((1, 1, 2, 20))
        other = draw.randrange(len(whole))
        kind = draw.choice(("change", "cut", "insert", "copy"))
        middle = {"cut": b"", "insert": draw.randbytes(length) + data[start : start + length]}.get(
            kind, draw.randbytes(length)
        )
        data[start : start + length] = whole[other : other + length] if kind == "copy" else middle
    try:
        pickled = read_network_pickle(put(path, bytes(data)))
        for network in (pickled.G, pickled.D, pickled.G_ema):
            if network is not None:
                network.build()
    except ValueError as error:
        assert "\n" not in str(error)
        return "error"
    return "result"
