"""`import-gan`, and downloads of published networks from a server of our own."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from nvidia_layout import persistent, write
from tiny_models import Answer

from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.nvidia_pickle import read_network_pickle
from viscoin.models import published
from viscoin.models.files import load_model
from viscoin.models.published import PUBLISHED, Published, fetch, find_published

GOLDEN = Path(__file__).parent / "golden" / "stylegan2" / "nvidia_format.pkl"
CONTENT = b"\x80" + bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


# --- the command


def small(path: Path, c_dim: int, resolution: int = 16, **changes: Any) -> Path:
    """A network pickle of tiny networks."""
    torch.manual_seed(0)
    narrow = {"channel_base": 128, "channel_max": 8}
    sizes = {"c_dim": c_dim, "img_resolution": resolution, "img_channels": 3}
    g_kwargs = {"z_dim": 4, "w_dim": 6, **sizes, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": narrow}
    generator, discriminator = Generator(**g_kwargs), Discriminator(**sizes, **narrow)
    networks = {"G_ema": persistent(generator, g_kwargs), "D": persistent(discriminator, {**sizes, **narrow})}
    return write(path, **{**networks, **changes})


def test_imported_model_files_rebuild_the_networks() -> None:
    answer = Answer("import-gan", GOLDEN, "--output", "g.safetensors", "--discriminator", "d.safetensors").went_well()
    assert "32 px, 3 channels" in answer.out and "keywords left out  none" in answer.out
    pickled = read_network_pickle(GOLDEN)
    for file, kind, network in (("g", "gan", pickled.G_ema), ("d", "discriminator", pickled.D)):
        assert network is not None
        loaded = load_model(Path(f"{file}.safetensors"), kind)
        assert loaded.model.config == network.build().config
        state = loaded.model.state_dict()
        assert state.keys() == network.state.keys()
        assert all(torch.equal(state[name], network.state[name]) for name in state)
        assert loaded.class_names == ["image"] and loaded.recipe["dataset"]["resolution"] == 32
        gan = loaded.recipe["gan"]
        assert (gan["z_dim"], gan["w_dim"], gan["mapping_layers"], gan["channel_base"]) == (24, 32, 2, 512)
        checksum = hashlib.sha256(GOLDEN.read_bytes()).hexdigest()
        assert loaded.metadata["origin"] == f"nvidia_format.pkl (SHA-256 {checksum})"


def test_the_one_in_training_and_the_name_of_the_dataset(here: Path) -> None:
    other = Generator(4, 0, 6, 16, 3, {"num_layers": 2}, {"channel_base": 128, "channel_max": 8})
    path = small(here / "n.pkl", 0, G=persistent(other, other.config))
    Answer("import-gan", path, "--output", "g.safetensors", "--network", "G", "--dataset", "faces").went_well()
    loaded = load_model(Path("g.safetensors"), "gan")
    assert torch.equal(loaded.model.synthesis.b4.const, other.synthesis.b4.const)
    assert loaded.metadata["dataset"] == "faces"


def test_classes_of_conditional_networks(here: Path) -> None:
    answer = Answer("import-gan", small(here / "n.pkl", 3), "--output", "g.safetensors").went_well()
    assert re.search(r"c_dim\)\s+3", answer.out)
    assert load_model(Path("g.safetensors")).class_names == ["class 0", "class 1", "class 2"]
    Answer("import-gan", small(here / "cifar10.pkl", 10), "--output", "c.safetensors").went_well()
    loaded = load_model(Path("c.safetensors"))
    assert loaded.class_names[:2] == ["airplane", "automobile"]
    assert "NVIDIA Source Code License" in loaded.metadata["origin"] and loaded.metadata["dataset"] == "cifar10"


def test_keywords_left_out_are_listed(here: Path) -> None:
    generator = Generator(4, 0, 6, 16, 3, {"num_layers": 2}, {"channel_base": 128, "channel_max": 8})
    kwargs = {**generator.config, "fused_modconv_default": "inference_only"}
    path = small(here / "n.pkl", 0, G_ema=persistent(generator, kwargs))
    assert "fused_modconv_default" in Answer("import-gan", path, "--output", "g.safetensors").went_well().out


def test_list_names_every_published_network() -> None:
    out = Answer("import-gan", "--list").went_well().out
    for name, network in PUBLISHED.items():
        assert re.search(rf"^{name} +{network.resolution} px ", out, re.MULTILINE), name
        assert network.address in out
    assert "no commercial use" in out


def test_mistakes_on_the_command_line(here: Path) -> None:
    output = ("--output", "g.safetensors")
    Answer("import-gan").refused("give a network pickle and --output")
    Answer("import-gan", GOLDEN).refused("give a network pickle and --output")
    Answer("import-gan", "nowhere.pkl", *output).refused("source nowhere.pkl: there is neither", "ffhq256")
    Answer("import-gan", GOLDEN, "--output", "g.pkl").refused("--output g.pkl", ".safetensors")
    Answer("import-gan", GOLDEN, *output, "--network", "D").refused("--network D", "G_ema or G")
    Answer("import-gan", GOLDEN, *output, "--discriminator", "g.safetensors").refused("the file of --output")
    Answer("import-gan", GOLDEN, *output, "--sha256", "abc").refused("--sha256 abc", "64 hexadecimal digits")
    Answer("import-gan", GOLDEN, *output, "--sha256", "0" * 64).refused(
        "--sha256 000", "nvidia_format.pkl has the SHA-256"
    )
    Answer("import-gan", small(here / "n.pkl", 0), *output, "--network", "G").refused(
        "--network: ", "holds no G, only D, G_ema"
    )
    Answer("import-gan", small(here / "n.pkl", 0, D=None), *output, "--discriminator", "d.safetensors").refused(
        "holds no D, only G_ema"
    )
    Answer("import-gan", small(here / "n.pkl", 0, resolution=8), *output).refused("dataset.resolution = 8")
    assert not list(here.glob("*.safetensors"))
    (here / "g.safetensors").touch()
    Answer("import-gan", GOLDEN, *output).refused("--output g.safetensors: exists; pass --force")
    Answer("import-gan", GOLDEN, *output, "--force").went_well()


def test_weights_that_do_not_fit_are_listed_and_nothing_is_written(here: Path) -> None:
    generator = Generator(4, 0, 6, 16, 3, {"num_layers": 2}, {"channel_base": 128, "channel_max": 8})
    path = small(here / "n.pkl", 0, G_ema=persistent(generator, {**generator.config, "w_dim": 7}))
    Answer("import-gan", path, "--output", "g.safetensors").refused("n.pkl: G_ema: ", "do not fit", "needed 8x7")
    assert not (here / "g.safetensors").exists()


# --- downloads


class Server:
    """Serves `content` at every path; can stop early, ignore ranges, change the file, or answer something else."""

    def __init__(self) -> None:
        self.content, self.etag, self.status = CONTENT, '"one"', 200
        self.stop_after: int | None = None
        self.ranges = True
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/x.pkl"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.requests.append(wanted)
        if self.status != 200:
            return handler.send_error(self.status)
        start = int(wanted[len("bytes=") : -1]) if wanted else 0
        if not self.ranges or handler.headers.get("If-Range", self.etag) != self.etag:
            start = 0
        elif start >= len(self.content) > 0:
            return handler.send_error(416)
        handler.send_response(206 if start else 200)
        if start:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{len(self.content)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        handler.wfile.write(self.content[start : self.stop_after])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(published, "TIMEOUT", 5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def interrupted(server: Server, after: int, **options: Any) -> None:
    server.stop_after = after
    with pytest.raises(ValueError, match=r"cannot download .*; try again to resume the download, or fetch it by other"):
        fetch(server.address, **options)
    server.stop_after = None


def test_download_is_kept_with_its_checksum(server: Server, here: Path) -> None:
    path = fetch(server.address)
    assert path.read_bytes() == CONTENT and here / "cache" in path.parents
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert path.with_name(f"{path.name}.sha256").read_text() == f"{digest}  {path.name}\n"
    assert fetch(server.address, digest.upper()) == path
    assert len(server.requests) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.sha256"]


def test_interrupted_download_goes_on_where_it_stopped(server: Server) -> None:
    interrupted(server, 5000)
    interrupted(server, 8000)
    path = fetch(server.address)
    assert path.read_bytes() == CONTENT
    assert server.requests == ["", "bytes=5000-", "bytes=8000-"]
    assert len(list(path.parent.iterdir())) == 2


def test_download_starts_again_when_the_file_has_changed(server: Server) -> None:
    interrupted(server, 5000)
    server.content, server.etag = CONTENT[:1] + CONTENT[:0:-1], '"two"'
    assert fetch(server.address).read_bytes() == server.content


@pytest.mark.parametrize("etag", ["", 'W/"one"'])
def test_download_starts_again_where_the_server_does_not_say_which_file(server: Server, etag: str) -> None:
    server.etag = etag
    interrupted(server, 5000)
    assert fetch(server.address).read_bytes() == CONTENT
    assert server.requests == ["", ""]


def test_download_starts_again_where_the_server_knows_no_ranges(server: Server) -> None:
    server.ranges = False
    interrupted(server, 5000)
    assert fetch(server.address).read_bytes() == CONTENT


def test_download_that_stopped_before_its_last_step(server: Server, here: Path) -> None:
    interrupted(server, 5000)
    (partial,) = (here / "cache").rglob("*.partial")
    partial.write_bytes(CONTENT)
    assert fetch(server.address).read_bytes() == CONTENT
    assert server.requests == ["", f"bytes={len(CONTENT)}-", ""]


def test_wrong_checksum_of_a_download(server: Server, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(ValueError, match=rf"has the SHA-256 {digest}, not 0+; .*`sha256` {digest} if you trust"):
        fetch(server.address, "0" * 64)
    assert not [path for path in (here / "cache").rglob("*") if path.is_file()]
    monkeypatch.setitem(PUBLISHED, "tiny", Published(server.address, 16, 1, "noise", "0" * 64))
    with pytest.raises(ValueError, match=rf"has the SHA-256 {digest}"):
        fetch("tiny")
    assert fetch("tiny", digest).read_bytes() == CONTENT


def test_file_that_changed_after_its_download(server: Server) -> None:
    path = fetch(server.address)
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(ValueError, match=r"has the SHA-256 .*; remove it to download it again, or remove .*\.sha256"):
        fetch(server.address)
    path.unlink()
    assert fetch(server.address).read_bytes() == CONTENT


def test_file_put_there_by_hand(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    server.status = 503
    monkeypatch.setitem(PUBLISHED, "tiny", Published(server.address, 16, 1, "noise", digest))
    with pytest.raises(ValueError, match=r"503.*put it at ") as caught:
        fetch("tiny")
    path = Path(str(caught.value).rpartition("put it at ")[2])
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=rf"not {digest}; remove it to download it again$"):
        fetch("tiny")
    path.write_bytes(CONTENT)
    assert fetch("tiny") == path


def test_what_is_no_pickle_is_not_kept(server: Server, here: Path) -> None:
    server.content = b"<html>please log in</html>"
    with pytest.raises(ValueError, match=r"x\.pkl is no network pickle \(perhaps a web page\)"):
        fetch(server.address)
    server.content = b""
    with pytest.raises(ValueError, match=r"is no network pickle"):
        fetch(server.address)
    assert not [path for path in (here / "cache").rglob("*") if path.is_file()]


def test_addresses_that_cannot_be_had(server: Server) -> None:
    server.status = 404
    with pytest.raises(ValueError, match=r"cannot download http://127.*x\.pkl \(HTTP Error 404.*\); fetch it by other"):
        fetch(server.address)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(ValueError, match=r"cannot download .*refused.*; fetch it by other means and put it at /"):
        fetch(server.address)
    with pytest.raises(ValueError, match=r"no published network is called 'ffhq9'; known are ffhq256, "):
        fetch("ffhq9")


def test_files_of_the_same_name_from_two_servers(server: Server) -> None:
    other = Server()
    other.content = CONTENT + b"other"
    assert fetch(server.address).read_bytes() != fetch(other.address).read_bytes()
    other.http.shutdown()
    other.http.server_close()


def test_published_network_through_the_command(server: Server, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = small(here / "n.pkl", 0).read_bytes()
    monkeypatch.setitem(PUBLISHED, "tiny", Published(server.address, 16, 1, "noise"))
    answer = Answer("import-gan", "tiny", "--output", "g.safetensors").went_well()
    assert "licence: " in answer.err and "no commercial use" in answer.err and "recorded its SHA-256" in answer.err
    assert load_model(Path("g.safetensors")).metadata["origin"].startswith(server.address)
    again = Answer("import-gan", server.address, "--output", "h.safetensors").went_well()
    assert "licence" not in again.err and len(server.requests) == 1


def test_published_networks_are_found_by_any_of_their_names() -> None:
    name = "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5"
    for text in ("celebahq256", name, f"{name}.pkl", PUBLISHED["celebahq256"].address):
        assert find_published(text) == "celebahq256"
    assert find_published("x.pkl") is None
    addresses = [network.address for network in PUBLISHED.values()]
    assert len(set(addresses)) == len(addresses)
    for network in PUBLISHED.values():
        assert network.address.startswith("https://")
        assert network.sha256 is None or re.fullmatch("[0-9a-f]{64}", network.sha256)
