"""What the service refuses, row by row of the dangers that it was built against, beside those of test_serving.py."""

import io
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from test_serving import API, TOKEN, is_problem, picture_bytes, served  # noqa: F401  # a fixture
from tiny_models import Answer, tiny_recipe

from viscoin.errors import Refused
from viscoin.runs.run import Run
from viscoin.serving.app import create_app
from viscoin.serving.models import Models
from viscoin.serving.security import BodyInTime, check_exposure
from viscoin.serving.server import _bind
from viscoin.serving.state import Settings

ROOT = Path(__file__).parents[1]


@pytest.fixture
def client(served):  # noqa: F811
    return served[0]


# --- who can reach it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "node17"])
def test_other_addresses_need_a_token(host):
    with pytest.raises(Refused, match="other machines"):
        check_exposure(host, None)
    check_exposure(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_may_do_without(host):
    check_exposure(host, None)


def test_further_names_are_given_by_name(tmp_path):
    app = create_app(Settings((), tmp_path, "cpu", hosts=["Node17.example"]))
    client = TestClient(app, base_url="http://node17.example:8000")
    assert client.get("/healthz").status_code == 200
    is_problem(client.get("/healthz", headers={"Host": "other.example"}), 421)


def test_no_other_site_may_read(client):
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "http://localhost"}):
        answer = client.get(f"{API}/models", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options(f"{API}/predict", headers=asked).status_code == 405


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_form_with_too_many_fields_is_refused(client):
    fields = {f"field{i}": (None, "x") for i in range(9)}
    is_problem(client.post(f"{API}/images", files={**fields, "file": ("a.png", picture_bytes())}), 400)


def test_what_is_only_a_little_too_large_to_decode_is_refused_by_its_header(client, monkeypatch):
    def decoded(*_args, **_more):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("viscoin.serving.pictures.read_square", decoded)
    for size in ((4001, 4000), (16_000_001, 1)):
        content = picture_of(size)
        is_problem(client.post(f"{API}/images", files={"file": ("x.png", content)}), 413, "16 million")


def picture_of(size):
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    return buffer.getvalue()


def test_uploads_are_never_written(served, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    before = sorted(served[2].rglob("*"))
    for name in ("../../up.png", "/etc/x.png", "a\x00b.png", "<script>.png"):
        answer = served[0].post(f"{API}/images", files={"file": (name, picture_bytes(seed=9))})
        assert answer.status_code == 200 and re.fullmatch("[0-9a-f]{32}", answer.json()[0]["image"])
    assert list(tmp_path.iterdir()) == [] and sorted(served[2].rglob("*")) == before


# --- folders ----------------------------------------------------------------------------------------------------------


def test_links_are_no_runs_and_no_pictures(served, tmp_path):  # noqa: F811
    client, _, runs = served
    Run.create("classifier", tiny_recipe(), tmp_path / "elsewhere")
    (runs / "linked").symlink_to(tmp_path / "elsewhere")
    is_problem(client.get(f"{API}/runs/linked"), 404)
    assert "linked" not in [row["run"] for row in client.get(f"{API}/runs").json()]
    own = Run.create("classifier", tiny_recipe(), runs / "own")
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture_bytes())
    (own.figures / "secret.png").symlink_to(secret)
    is_problem(client.get(f"{API}/runs/own/figures/secret.png"), 404)
    assert client.get(f"{API}/runs/own/figures").json() == []


def test_a_folder_that_is_no_run_of_ours_is_shown_as_damaged_and_not_steered(served):  # noqa: F811
    client, _, runs = served
    (runs / "foreign").mkdir()
    (runs / "foreign" / "recipe.yaml").write_text("flour: 500 g\n")
    assert client.get(f"{API}/runs/foreign").json()["state"] == "damaged"
    is_problem(client.post(f"{API}/runs/foreign/commands", json={"command": "pause"}), 409, "nothing trains")
    is_problem(client.post(f"{API}/runs/foreign/resume"), 409, "is damaged")
    is_problem(client.post(f"{API}/runs/foreign/branch", json={"step": 1}), 422, "is damaged")
    is_problem(client.get(f"{API}/runs/foreign/analysis"), 422, "is damaged")


def test_a_full_disk_is_told_where_a_command_is_sent(served, monkeypatch):  # noqa: F811
    client, _, runs = served
    run = Run.create("classifier", tiny_recipe(), runs / "full")

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("viscoin.runs.control.atomic_path", full)
    with run.lock():
        is_problem(client.post(f"{API}/runs/full/commands", json={"command": "pause"}), 507, "No space left")


# --- models and the start ---------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_a_pickle_is_no_model_and_nothing_in_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.pkl", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ValueError, match=r"model\."):
            Models("cpu").load([("viscoin", tmp_path / name)])
    assert not (tmp_path / "hacked").exists()


def test_a_file_of_another_version_is_told(served, tmp_path):  # noqa: F811
    content = next(iter(served[0].app.state.service.models)).path.read_bytes()
    path = tmp_path / "new.safetensors"
    path.write_bytes(content.replace(b'"kind', b'"sort', 1).replace(b'kind\\"', b'sort\\"', 1))
    with pytest.raises(ValueError, match=re.escape("new.safetensors")):
        Models("cpu").load([("viscoin", path)])


def test_mistakes_at_the_start_are_told_before_anything_is_loaded(tmp_path):
    Answer("serve", "--viscoin", tmp_path / "none").refused("--viscoin", "no such file")
    Answer("serve", "--classifier", tmp_path / "none").refused("--classifier", "no such file")
    names = tmp_path / "names.csv"
    names.touch()
    Answer("serve", "--concept-names", tmp_path / "none").refused("--concept-names", "no such file")
    Answer("serve", "--classifier", names, "--concept-names", names).refused("--concept-names", "no ensemble")
    Answer("serve", "--concept-names", names, "--concept-names", names).refused("--concept-names", "no ensemble")
    Answer("serve", "--no-token", "--token-file", names).refused("--token-file", "does not go with")
    Answer("serve", "--token-file", names).refused("--token-file", "16 characters")
    Answer("serve", "--token-file", tmp_path).refused("--token-file", "cannot be read")


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port}.*cannot listen on 127.0.0.1"):
            _bind("127.0.0.1", port)


# --- slow clients, over a real connection -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_sends_too_slowly_is_cut_off_and_the_service_does_not_say_what_it_is(tmp_path):
    """A body byte by byte is 408 after its time; others are answered meanwhile; headers name no server."""
    code = (
        "import sys; from viscoin.serving import security, server; from viscoin.serving.state import Settings\n"
        "security.BodyInTime.__init__.__defaults__ = (1.0,)\n"
        "from pathlib import Path\n"
        f"server.serve(Settings((('viscoin', Path('none')),), Path({str(tmp_path)!r}), 'cpu'), '127.0.0.1', 0)"
    )
    program = f"import logging; logging.basicConfig(level=logging.INFO)\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.settimeout(60)
            slow.sendall(
                f"POST {API}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                "Content-Length: 50\r\n\r\n{".encode()
            )
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.settimeout(60)
                other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = other.recv(4096).decode().lower()
                assert head.startswith("http/1.1 200") and "\r\nserver:" not in head
            answer = slow.recv(4096).decode()
            assert answer.startswith("HTTP/1.1 408") and "application/problem+json" in answer
    finally:
        process.terminate()
        assert process.wait(60) in (0, -signal.SIGTERM)  # uvicorn raises it once more when it is done
    assert BodyInTime.__init__.__defaults__ == (30.0,)
