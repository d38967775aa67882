"""Hostile model files: nothing in them runs, allocates or hangs; each is refused in one line or loads as it should."""

import collections
import io
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import Case, attacked, cases
from tiny_models import tiny_recipe, write_models

from stylegan2_ada.metrics import InceptionFeatures
from stylegan2_ada.nvidia_pickle import read_network_pickle
from viscoin.errors import reason_of
from viscoin.legacy.checkpoint import read_checkpoint
from viscoin.models import perceptual, scorers
from viscoin.models.concept2clip import Concept2Clip
from viscoin.models.files import load_model, read_file, write_file
from viscoin.models.scorers import load_clip
from viscoin.training.gan_transfer import read_transfer

MEGABYTES = 400  # by which the memory of the process may grow; what the files ask for are GBs
SECONDS = 120  # after which a file counts as one that hangs; they take milliseconds


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    """By kind, tensors and metadata of a model; by suffix, a good file of the classifier."""
    folder = tmp_path_factory.mktemp("models")
    models = {kind: read_file(path) for kind, path in write_models(folder, tiny_recipe()).items()}
    whole = {}
    for suffix in (".safetensors", ".pkl"):
        write_file(folder / f"whole{suffix}", *models["gan"])
        whole[suffix] = (folder / f"whole{suffix}").read_bytes()
    return models, whole


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where a file runs something, speaks to the network, hangs, or takes much memory."""

    def never(*arguments: Any, **options: Any) -> None:
        raise SystemError("a file ran something")

    def late(*arguments: Any) -> None:
        raise SystemError("a file hangs")

    monkeypatch.chdir(tmp_path)
    for module, name in ((os, "system"), (subprocess, "Popen"), (socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(module, name, never)
    before = signal.signal(signal.SIGALRM, late)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB"
    assert not (tmp_path / "canary").exists()


def networks(path: Path) -> Any:
    found = read_network_pickle(path)
    return [network.build() for network in (found.G, found.D, found.G_ema) if network is not None]


def outcome(read: Callable[[Path], Any], path: Path, case: Case) -> str:
    """ "error" or "result"; anything else that comes of the file fails."""
    signal.alarm(SECONDS)
    try:
        read(path)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 2000, f"{case.name}: {message}"
        assert "weights_only" not in message and "allocate" not in message, f"{case.name}: {message}"
        assert path.name in message or read is networks, f"{case.name}: {message}"  # `build` knows no file
        return "error"
    except Exception as error:
        raise AssertionError(f"{case.name}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
    return "result"


def attack(small: tuple[dict[str, Any], dict[str, bytes]], folder: Path, count: int) -> collections.Counter[str]:
    """How many of so many files each reader refused or took."""
    models, whole = small
    good = {name: tensor.float() for name, tensor in models["gan"][0].items()}
    outcomes: collections.Counter[str] = collections.Counter()
    for case in cases(models, whole, count):
        path = attacked(folder, case)
        found = outcome(load_model, path, case)
        outcomes[found] += 1
        if found == "result" and "flipped" in case.name:  # where nothing lies, or it is the same
            state = load_model(path).model.state_dict()
            assert all(torch.equal(state[name].float(), good[name]) for name in good), case.name
        if case.suffix == ".pkl":
            outcomes[f"checkpoint {outcome(read_checkpoint, path, case)}"] += 1
            outcomes[f"network {outcome(networks, path, case)}"] += 1
    return outcomes


def test_some_hostile_files(small: Any, tmp_path: Path, guarded: None) -> None:
    outcomes = attack(small, tmp_path, 40)
    assert outcomes["error"] > 30, outcomes


@pytest.mark.long
def test_many_hostile_files(small: Any, tmp_path: Path, guarded: None) -> None:
    outcomes = attack(small, tmp_path, 1500)
    print(dict(outcomes))
    assert outcomes["error"] > 1100 and outcomes["result"] > 10, outcomes
    assert outcomes["checkpoint result"] == 0 and outcomes["network result"] > 0, outcomes


@pytest.mark.parametrize("kind", ["classifier", "gan", "viscoin"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_any_changed_bit_of_a_tensor_or_of_the_metadata_is_noticed(
    small: Any, tmp_path: Path, kind: str, suffix: str
) -> None:
    tensors, metadata = small[0][kind]
    path = tmp_path / f"model{suffix}"
    write_file(path, tensors, metadata)
    content = path.read_bytes()
    largest = max(tensors.values(), key=lambda tensor: tensor.nbytes).contiguous().numpy().tobytes()
    for place in (content.index(largest) + len(largest) // 2, content.index(b"birds")):
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"model\.\w+ is damaged"):
            load_model(path, kind)


def test_files_of_older_versions_have_no_digest_and_load(small: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors, metadata = small[0]["gan"]
    save_file(tensors, tmp_path / "old.safetensors", {"viscoin": json.dumps(metadata)})
    assert load_model(tmp_path / "old.safetensors", "gan").metadata == metadata


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_any_changed_bit_of_the_word_digest_is_noticed(small: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    write_file(path, *small[0]["gan"])
    content = path.read_bytes()
    place = content.index(b"digest")
    for bit in range(8 * len(b"digest")):
        changed = bytearray(content)
        changed[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"model\.\w+ is damaged"):
            read_file(path)


def test_empty_files_are_called_so_once(tmp_path: Path) -> None:
    for read, name in ((read_checkpoint, "e.pt"), (load_model, "e.pkl")):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"{name} is damaged(?!.*is damaged).*: it is empty$"):
            read(tmp_path / name)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def clip_of(path: Path) -> Any:
    pytest.importorskip("open_clip")
    return load_clip("ViT-B-32", str(path))


def lpips_of(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual, "lpips_weights", lambda: path)
        return perceptual.load_lpips("cpu")


def inception_of(path: Path) -> Any:
    pytest.importorskip("torch_fidelity")
    return InceptionFeatures(path)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("read", [load_model, read_checkpoint, read_transfer, lpips_of, inception_of, clip_of])
def test_all_that_reads_foreign_weights_names_what_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any], old: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=rf"{os.name}\.system") as caught:
        read(path)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("canary").exists()


def test_advice_of_torch_is_left_out() -> None:
    stream = io.BytesIO()
    torch.save(Evil(), stream)
    stream.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="weights_only") as caught:
        torch.load(stream, weights_only=True)
    assert reason_of(caught.value) == f"it asks for {os.name}.system, which is not part of a file of tensors; refused"


@pytest.mark.parametrize(("model", "pretrained"), [("ViT-B-32", "openai"), ("ViT-B-32", "laion2b_s34b_b79k")])
def test_an_adapter_file_starts_no_download(
    tmp_path: Path, guarded: None, monkeypatch: pytest.MonkeyPatch, model: str, pretrained: str
) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setattr(scorers, "OPENAI_CACHE", tmp_path)
    monkeypatch.setattr(scorers, "try_to_load_from_cache", lambda *names: None)
    adapter = Concept2Clip(3, 4, 0, 0.0, {"model": model, "pretrained": pretrained}, "")
    with pytest.raises(ValueError, match="not on this machine, and a model file starts no download; fetch them: "):
        adapter.scorer(None)  # type: ignore[arg-type]


def test_the_comparison_of_digests_can_be_left_out(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, metadata = small[0]["classifier"]
    path = tmp_path / "model.safetensors"
    write_file(path, tensors, metadata)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not what its digest says"):
        load_model(path)
    monkeypatch.setenv("VISCOIN_VERIFY", "0")
    load_model(path)
