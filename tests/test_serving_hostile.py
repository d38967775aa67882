"""What goes wrong around a service: full disks, foreign folders and files, and what its errors must not tell."""

import errno
import io
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from test_serving import API, is_problem, served  # noqa: F401  # a fixture
from tiny_models import Answer, tiny_recipe

from viscoin.models.files import read_file, write_file
from viscoin.runs.run import Run
from viscoin.serving.app import create_app
from viscoin.serving.state import Settings


@pytest.fixture
def client(served):  # noqa: F811
    return served[0]


@pytest.fixture
def runs(served):  # noqa: F811
    return served[2]


def test_pictures_of_other_depths_are_what_they_show(client):
    """Grey of 16 bits is not white, a palette not its indices, what is opaque not transparent."""
    grey = np.full((40, 40), 128, np.uint8)
    pictures = [
        Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey).convert("P"),
        Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])),
    ]  # fmt: skip
    told = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        answer = client.post(f"{API}/predict/files", files={"file": ("x.png", buffer.getvalue())})
        told.append([row["p"] for row in answer.json()[0]["f"]])
    assert np.ptp(told, axis=0).max() < 1e-6


def test_no_answer_tells_where_the_service_lies(client, runs):
    run = Run.create("classifier", tiny_recipe(), runs / "watched")
    (run.path / "control.jsonl").write_text("damaged\n")
    (runs / "odd").mkdir()
    (runs / "odd" / "recipe.yaml").write_text("flour: 500 g\n")
    with run.lock():
        told = [client.post(f"{API}/runs/watched/commands", json={"command": command}) for command in ("note", "stop")]
    asked = ("runs", "runs/watched", "runs/watched/commands", "runs/odd", "runs/odd/analysis", "models", "jobs")
    told += [client.get(f"{API}/{path}") for path in asked]
    told += [client.post(f"{API}/jobs", json={"kind": "classifier", "dataset": "/etc"})]
    told += [client.post(f"{API}/runs/{name}/branch", json={"step": 3}) for name in ("watched", "odd")]
    assert len([answer for answer in told if answer.status_code >= 400]) >= 5
    assert [answer.text for answer in told if str(runs) in answer.text] == []


def test_what_is_no_run_is_neither_steered_nor_deleted(client, runs):
    (runs / "theirs").mkdir()
    (runs / "theirs" / "notes.txt").write_text("mine")
    (runs / "a-file").write_text("x")
    for name in ("theirs", "a-file"):
        for answer in (
            client.get(f"{API}/runs/{name}"),
            client.post(f"{API}/runs/{name}/commands", json={"command": "stop"}),
            client.post(f"{API}/runs/{name}/resume"),
            client.delete(f"{API}/runs/{name}"),
        ):
            is_problem(answer, 404, "no run")
    assert [path.name for path in (runs / "theirs").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_training_that_cannot_be_started_on_a_full_disk_leaves_nothing(client, runs, monkeypatch, number):
    def full(*_args, **_more):
        raise OSError(number, "full")

    monkeypatch.setattr("viscoin.serving.jobs.subprocess.Popen", full)
    body = {"kind": "classifier", "name": f"new-{number}"}
    for _ in range(2):  # the name is free again
        is_problem(client.post(f"{API}/jobs", json=body), 507, "disk is full")
    assert not (runs / f"new-{number}").exists() and client.get(f"{API}/jobs").status_code == 200


def test_a_job_that_cannot_be_started_at_its_turn_is_said_to_have_failed(tmp_path, monkeypatch, caplog):
    class Process:
        ended = False

        def poll(self):
            return 0 if self.ended else None

    begun, broken = [], []

    def start(command, **_more):
        if broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        begun.append(Process())
        return begun[-1]

    settings = Settings([("viscoin", None)], tmp_path / "runs", "cpu", data_root=tmp_path)
    client = TestClient(create_app(settings), base_url="http://localhost")  # no model is needed
    Run.create("classifier", tiny_recipe(), tmp_path / "runs" / "before")
    monkeypatch.setattr("viscoin.serving.jobs.subprocess.Popen", start)
    for name in ("first", "second", "third"):
        assert client.post(f"{API}/jobs", json={"kind": "classifier", "name": name}).status_code == 202
    assert client.post(f"{API}/runs/before/resume").status_code == 202
    broken.append(True)
    begun[0].ended = True
    jobs = client.get(f"{API}/jobs")
    assert jobs.status_code == 200, jobs.text
    failed = {row["run"]: row for row in jobs.json() if row["state"] == "failed"}
    assert failed.keys() >= {"second", "third", "before"}
    assert failed["second"]["reason"] == "it could not be started: No space left on device"
    assert "run second could not be started: No space left on device" in caplog.text
    assert not (tmp_path / "runs" / "second").exists()
    assert not any(str(tmp_path) in row["reason"] for row in failed.values())
    shown = {row["run"]: row for row in client.get(f"{API}/runs").json()}
    assert [shown[name]["state"] for name in ("second", "third", "before")] == ["failed"] * 3
    one = client.get(f"{API}/runs/before").json()
    assert (one["state"], one["reason"]) == ("failed", failed["before"]["reason"])
    broken.clear()  # there is room again, and all of them may be asked for again
    assert client.post(f"{API}/jobs", json={"kind": "classifier", "name": "second"}).status_code == 202
    assert client.post(f"{API}/runs/before/resume").status_code == 202
    begun[1].ended = True
    states = {row["run"]: row["state"] for row in client.get(f"{API}/jobs").json()}
    assert states["third"] == "failed" and states["second"] != "failed" and "before" not in states
    assert client.get(f"{API}/runs/before").json()["state"] == "stopped"  # as far as its folder tells


def test_a_model_of_another_version_is_told_to_who_asks(served, tmp_path):  # noqa: F811
    tensors, metadata = read_file(next(iter(served[0].app.state.service.models)).path)
    write_file(tmp_path / "new.safetensors", tensors, metadata | {"format": 999})
    app = create_app(Settings([("viscoin", tmp_path / "new.safetensors")], tmp_path, "cpu"))
    with TestClient(app, base_url="http://localhost") as client:
        until = time.monotonic() + 60
        while client.get("/readyz").json()["status"] == "loading" and time.monotonic() < until:
            time.sleep(0.05)
        said = is_problem(client.get(f"{API}/models"), 503, "no model could be loaded")["detail"]
    assert "new.safetensors" in said and "999" in said


def test_the_command_line_does_not_open_a_service_to_all():
    Answer("serve", "--host", "0.0.0.0", "--no-token").refused("0.0.0.0", "other machines")
