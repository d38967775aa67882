"""Trainings through the service: branched, resumed, sent to a cluster, and compared state by state."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file
from test_serving import API, BEARER, TOKEN, is_problem
from tiny_models import Answer, set_options, tiny_recipe

from viscoin.datasets import load_dataset
from viscoin.models.files import load_model
from viscoin.runs.branch import branch, saved_steps
from viscoin.runs.control import read_record, send
from viscoin.runs.run import Run
from viscoin.serving.app import create_app
from viscoin.serving.jobs import Jobs
from viscoin.serving.state import Settings
from viscoin.testing.classifier import test_classifier as run_classifier


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of runs with a classifier of two epochs, both kept, that was steered at its first step."""
    folder = tmp_path_factory.mktemp("trained") / "runs"
    run = Run.create("classifier", tiny_recipe(classifier__epochs=2, classifier__keep_every=1), folder / "two")
    send(run.path, "set", {"learning_rate": 0.002}, by="a test")
    train("--out", run.path)
    return folder


def train(*more):
    changes = ["--set", "classifier.epochs=2", "--set", "classifier.keep_every=1"]
    Answer("train", "classifier", "--dataset", "birds", *set_options(), *changes, "--device", "cpu", *more).went_well()


@pytest.fixture
def begun(monkeypatch):
    """The jobs that would have been started."""
    found = []

    class Process:
        def poll(self):
            return 0

    monkeypatch.setattr(Jobs, "_start", lambda self, job: found.append(job) or Process())
    return found


@pytest.fixture
def client(root):
    settings = Settings([("viscoin", None)], root, "cpu", token=TOKEN, data_root=root.parent)
    return TestClient(create_app(settings), base_url="http://localhost", headers=BEARER)  # no model is needed


# --- branches ---------------------------------------------------------------------------------------------------------


def test_a_branch_without_a_change_becomes_the_run_that_it_comes_from(root, client, begun):
    assert client.get(f"{API}/runs/two/saved").json() == [4, 8]
    started = client.post(f"{API}/runs/two/branch", json={"step": 4, "name": "again"})
    assert started.status_code == 202 and started.json()["run"] == "again", started.text
    assert client.get(f"{API}/runs/again").json()["branch"] == {"run": "two", "step": 4}
    made = Run(root / "again")
    assert max(line["step"] for line in made.metrics()) == 4
    assert [(entry.step, entry.command) for entry in read_record(made.path)] == [(0, "set")]
    Answer(*begun[0].arguments, "--device", "cpu").went_well()
    own, other = (load_file(root / name / "model.safetensors") for name in ("two", "again"))
    assert own.keys() == other.keys() and all((own[key] == other[key]).all() for key in own)
    told = [[{k: v for k, v in line.items() if k != "time"} for line in Run(root / name).metrics()]
            for name in ("two", "again")]  # fmt: skip
    assert told[0] == told[1]


def test_a_branch_obeys_what_it_is_given_at_that_step(root, client, begun):
    commands = [{"command": "set", "values": {"learning_rate": 0.5}}, {"command": "note", "values": {"text": "fast"}}]
    asked = {"step": 4, "name": "other", "commands": commands}
    assert client.post(f"{API}/runs/two/branch", json=asked).status_code == 202
    Answer(*begun[0].arguments, "--device", "cpu").went_well()
    record = [(entry.step, entry.command, entry.refused) for entry in read_record(root / "other")]
    assert record == [(0, "set", None), (4, "set", None), (4, "note", None)]
    own, other = (Run(root / name).metrics() for name in ("two", "other"))
    assert own[0] == other[0] and own[-1]["validation.loss"] != other[-1]["validation.loss"]


def test_what_ended_a_run_does_not_end_its_branch(root, tmp_path):
    run = Run.create("classifier", tiny_recipe(classifier__epochs=2, classifier__keep_every=1), tmp_path / "ended")
    for command, values in (("note", {"text": "soon"}), ("finish", {})):
        send(run.path, command, values, by="a test")
    train("--out", run.path)
    assert saved_steps(run) == {0: "last"}
    made = branch(run, 0, tmp_path / "goes-on")
    assert [(entry.step, entry.command) for entry in read_record(made.path)] == [(0, "note")]
    train("--out", made.path, "--resume")
    assert max(line["step"] for line in made.metrics()) == 8
    assert [entry.command for entry in read_record(made.path)] == ["note"]


def test_of_a_best_that_was_bettered_meanwhile_nothing_is_taken(root, tmp_path):
    source = Run(root / "two")
    best = source.load_checkpoint("best")
    for step, there in ((4, int(best["step"]) == 4), (8, True)):
        made = branch(source, step, tmp_path / str(step))
        state = made.load_checkpoint("last")
        assert made.has_checkpoint("best") == (state["best"] is not None) == there


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"step": 5}, 422, "saved nothing at that step"),
        ({"step": -1}, 422, "step"),
        ({"step": 4, "name": "../x"}, 422, "no name for a run"),
        ({"step": 4, "name": "two"}, 409, "already"),
        ({"step": 4, "commands": [{"command": "stop"}]}, 422, "none for the start"),
        ({"step": 4, "commands": [{"command": "note"}]}, 422, "a note is a text"),
    ],
)
def test_a_branch_that_cannot_be_leaves_nothing(root, client, begun, body, status, text):
    before = sorted(root.iterdir())
    is_problem(client.post(f"{API}/runs/two/branch", json=body), status, text)
    assert sorted(root.iterdir()) == before and begun == []


def test_a_branch_on_a_full_disk_leaves_nothing(root, client, tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "save_checkpoint", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left"):
        branch(Run(root / "two"), 4, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    is_problem(client.post(f"{API}/runs/two/branch", json={"step": 4, "name": "new"}), 507, "No space left")


# --- resumed, replayed, checked ---------------------------------------------------------------------------------------


def test_what_was_stopped_goes_on(root, client, begun):
    run = Run.create("classifier", tiny_recipe(), root / "stopped")
    assert client.get(f"{API}/runs/stopped").json()["state"] == "stopped"
    started = client.post(f"{API}/runs/stopped/resume")
    assert started.status_code == 202 and begun[0].arguments[-1] == "--resume"
    is_problem(client.post(f"{API}/runs/two/resume"), 409, "is finished")
    with run.lock():
        is_problem(client.post(f"{API}/runs/stopped/resume"), 409, "is starting")
    is_problem(client.post(f"{API}/runs/none/resume"), 404, "no run")


def test_a_dry_run_starts_nothing_and_says_the_command(root, client, begun):
    body = {"kind": "classifier", "settings": {"classifier.epochs": 3}, "name": "new", "dry_run": True, "devices": 2}
    found = client.post(f"{API}/jobs", json=body).json()
    assert found["run"] == "new" and "--set classifier.epochs=3" in found["command"] and begun == []
    assert found["command"].endswith("--devices 2")
    is_problem(client.post(f"{API}/jobs", json=body | {"settings": {"classifier.epochs": 0}}), 422, "epochs")


def test_a_job_that_does_not_begin_is_not_lost(root, client):
    folder = root / "no-luck"
    folder.mkdir()
    (folder / "output.txt").write_text("Error: dataset cub: there is no such folder\n\n")
    row = next(row for row in client.get(f"{API}/runs").json() if row["run"] == "no-luck")
    assert row["state"] == "starting"  # as it may be of a service before this one
    os.utime(folder / "output.txt", (1, 1))
    row = next(row for row in client.get(f"{API}/jobs").json() if row["run"] == "no-luck")
    assert (row["state"], row["reason"]) == ("failed", "Error: dataset cub: there is no such folder")


def test_a_run_is_repeated_by_its_own_recipe(root, client, begun):
    asked = {"kind": "classifier", "replay": "two", "name": "repeated"}
    assert client.post(f"{API}/jobs", json=asked).status_code == 202
    assert "--dataset" not in begun[0].arguments
    Answer(*begun[0].arguments, "--device", "cpu").went_well()
    own, other = (load_file(root / name / "model.safetensors") for name in ("two", "repeated"))
    assert all((own[key] == other[key]).all() for key in own)


# --- a cluster --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A pretended sbatch, which keeps what it is given."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "$last" {tmp_path}/submitted\necho "7;cluster"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


BODY = {"kind": "classifier", "where": "slurm", "limits": {"gpus": "2", "partition": "main", "time": "0-02:00:00"}}


def test_a_job_of_a_cluster_is_submitted_as_submit_does(root, client, begun, cluster):
    found = client.post(f"{API}/jobs", json={**BODY, "name": "far", "settings": {"classifier.epochs": 3}})
    assert found.status_code == 202, found.text
    answer, script = found.json(), (cluster.parents[1] / "submitted").read_text()
    assert answer["job"] == "7" and answer["commands"]["cancel"] == "scancel 7" and begun == []
    assert script == (root / "far" / "job.sbatch").read_text()
    for line in ("#SBATCH --partition=main", "#SBATCH --gpus-per-node=2", "#SBATCH --time=0-02:00:00"):
        assert line in script
    assert f"--out {root / 'far'} --set classifier.epochs=3 --devices 2 --num-nodes 1" in script
    queued = [row for row in client.get(f"{API}/jobs").json() if row["run"] == "far"]
    assert queued == [{"run": "far", "kind": None, "state": "queued", "command": None, "pending": True}]
    assert client.get(f"{API}/runs").json()[0]["run"] == "far"
    is_problem(client.post(f"{API}/jobs", json={**BODY, "name": "far"}), 409, "already")


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"time": "long"}, "time"),
        ({"mem": "much"}, "mem"),
        ({"gpus": "two"}, "gpus"),
        ({"partition": "x\n#SBATCH --wrap"}, "partition"),
        ({"account": "a b"}, "account"),
        ({"nodes": 0}, "nodes"),
        ({"qos": "high"}, "qos"),
    ],
)
def test_limits_that_a_cluster_would_not_understand(root, client, cluster, limits, text):
    before = sorted(root.iterdir())
    is_problem(client.post(f"{API}/jobs", json={**BODY, "name": "bad", "limits": limits}), 422, text)
    assert sorted(root.iterdir()) == before and not (cluster.parents[1] / "submitted").exists()


def test_what_a_cluster_refuses_is_told_and_leaves_nothing(root, client, cluster):
    cluster.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: main' >&2\nexit 1\n")
    before = sorted(root.iterdir())
    is_problem(client.post(f"{API}/jobs", json={**BODY, "name": "bad"}), 422, "invalid partition specified")
    cluster.unlink()
    os.environ["PATH"] = str(cluster.parent)  # put back by the fixture
    is_problem(client.post(f"{API}/jobs", json={**BODY, "name": "bad"}), 422, "no sbatch")
    assert sorted(root.iterdir()) == before


def test_a_dry_run_for_a_cluster_shows_the_script(root, client):
    found = client.post(f"{API}/jobs", json={**BODY, "name": "dry", "dry_run": True}).json()
    assert found["script"].startswith("#!/usr/bin/env bash") and not (root / "dry").exists()


# --- states of a training, side by side -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(root):
    """A client whose threads run."""
    settings = Settings([("classifier", root / "two" / "model.safetensors")], root, "cpu", token=TOKEN)
    with TestClient(create_app(settings), base_url="http://localhost", headers=BEARER) as found:
        until = time.monotonic() + 60
        while found.get("/readyz").status_code != 200 and time.monotonic() < until:
            time.sleep(0.05)
        yield found


def test_states_are_compared_on_the_same_images(root, running):
    assert running.get(f"{API}/runs/two/states").json() == ["1", "2", "final"]
    found = running.get(f"{API}/runs/two/analysis?states=1,final").json()
    assert [row["state"] for row in found["states"]] == ["1", "final"] and found["dataset"] == "birds"
    assert found["model"] == running.get(f"{API}/models").json()[0]["id"]
    Run.create("classifier", tiny_recipe(dataset__classes=5), root / "others")
    (root / "others" / "model.safetensors").write_bytes((root / "two" / "model.safetensors").read_bytes())
    assert running.get(f"{API}/runs/others/analysis").json()["model"] is None  # other images under the same name
    images = load_dataset("birds", "validation", tiny_recipe().dataset)
    for row, path in zip(found["states"], ("checkpoints/epoch-0001.safetensors", "model.safetensors")):
        wanted = run_classifier(load_model(root / "two" / path, "classifier").model, images)
        assert row["accuracy"] == pytest.approx(wanted.accuracy) and row["images"] == 24
        assert [entry[:3] for entry in row["each"]] == [
            list(one) for one in zip(range(24), wanted.labels.tolist(), wanted.predicted.tolist())
        ]
        assert np.array_equal(row["confusion"], wanted.confusion)
        assert row["figures"][0]["title"] == "Confusion"


def test_states_by_chosen_classes(running):
    found = running.get(f"{API}/runs/two/analysis?states=1&classes=2,0").json()["states"][0]
    assert {row["class"] for row in found["classes"]} == {found["class_names"][k] for k in (0, 2)}
    assert all({row["true"], row["predicted"]} & {found["class_names"][k] for k in (0, 2)} for row in found["confused"])


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("states=3", 404, "no state '3'"),
        ("states=1,2,final,4,5", 422, "at most 4"),
        ("states=1&classes=9", 422, "9 is out of range"),
        ("states=1&classes=crow", 422, "'crow' is no index"),
        ("split=train", 422, "split"),
        ("limit=5", 422, "limit"),
    ],
)
def test_states_that_are_none(running, query, status, text):
    is_problem(running.get(f"{API}/runs/two/analysis?{query}"), status, text)


def test_only_classifiers_have_states(root, running):
    Run.create("gan", tiny_recipe(), root / "a-gan")
    is_problem(running.get(f"{API}/runs/a-gan/states"), 409, "trains no classifier")
    assert Path(root / "a-gan").is_dir() and json.loads(running.get(f"{API}/runs/a-gan/saved").text) == []
