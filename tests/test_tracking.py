"""Trackers show what the run folder holds: no point twice, none lost, and no training ends because of them."""

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from tiny_models import Answer, set_options, tiny_recipe

from viscoin.runs import trackers, tracking
from viscoin.runs.run import Run, read_metrics
from viscoin.runs.trackers import TRACKERS, About, Known, Point, root_cause
from viscoin.runs.tracking import parse_trackers, tracked

CLASSIFIER = ["train", "classifier", *set_options(), "--set", "classifier.backbone=viscoin_resnet10", "--no-pretrained"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("VISCOIN_TRACK", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def new_run(kind: str = "viscoin", **changes: object) -> Run:
    return Run.create(kind, tiny_recipe(**changes), Path("runs/one"), allow_changes=True)


def work(run: Run, steps: Sequence[int]) -> None:
    """What a training does to its folder: two lines and a figure at each step."""
    for step in steps:
        run.log(step, {"train.l1": 1 / step, "train.mse": 0.25})
        run.log(step, {"validation.accuracy": step / 100})
        Image.fromarray(np.full((8, 8, 3), step, np.uint8)).save(run.figures / f"reconstructions-{step:06d}.png")


class Fake:
    """A tracker that notes what it is sent, and fails when told to."""

    sent: list[tuple[str, int]]
    events: list[str]
    broken = False

    def __init__(self, about: About, known: Known) -> None:
        self.answer(f"start {known.id}")
        self.about, known.id, self.hint = about, "x", "nowhere"

    @classmethod
    def answer(cls, event: str) -> None:
        if cls.broken:
            raise ConnectionError("gone")
        cls.events.append(event)

    def points(self, points: Sequence[Point]) -> None:
        self.answer("points")
        self.sent.extend((point.name, point.step) for point in points)

    def figure(self, path: Path, name: str, step: int) -> None:
        self.answer(f"figure {name} {step}")

    def finish(self, state: str, files: Sequence[Path]) -> None:
        self.answer(f"finish {state} {' '.join(path.name for path in files)}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """In the place of TensorBoard."""
    monkeypatch.setitem(TRACKERS, "tensorboard", Fake)
    Fake.sent, Fake.events, Fake.broken = [], [], False
    return Fake


def everything(steps: Sequence[int]) -> list[tuple[str, int]]:
    return [(name, step) for step in steps for name in ("train.l1", "train.mse", "validation.accuracy")]


# --- what is sent, and when


def test_names_of_trackers() -> None:
    assert parse_trackers(None) == parse_trackers(["none"]) == parse_trackers(["wandb,none"]) == []
    assert parse_trackers(["mlflow, WandB", "tensorboard", "mlflow"]) == ["mlflow", "wandb", "tensorboard"]
    for text in ("comet", "mlflow,", ""):
        with pytest.raises(ValueError, match=r"track .*: unknown; choose tensorboard, mlflow, wandb or none"):
            parse_trackers([text])


def test_all_is_sent_once_and_the_end_is_told(fake: type[Fake]) -> None:
    run = new_run()
    with tracked(run, ["tensorboard"]):
        work(run, [10, 20])
        run.model_path.touch()
    assert fake.sent == everything([10, 20]) and run.listeners == []
    figures = [f"figure reconstructions {step}" for step in (10, 20)]
    assert [event for event in fake.events if event.startswith("figure")] == figures
    assert fake.events[0] == "start None"
    assert fake.events[-1] == "finish finished recipe.yaml metrics.jsonl model.safetensors"


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")])
def test_other_ends(fake: type[Fake], error: type[BaseException], state: str) -> None:
    run = new_run()
    run.model_path.touch()  # of an earlier end
    with pytest.raises(error), tracked(run, ["tensorboard"]):
        work(run, [10])
        raise error
    assert fake.events[-1] == f"finish {state} recipe.yaml metrics.jsonl"


def test_resumed_run_goes_on_without_points_twice_nor_asking_for_it(fake: type[Fake]) -> None:
    run = new_run()
    with pytest.raises(KeyboardInterrupt), tracked(run, ["tensorboard"]):
        work(run, [10, 20, 30])
        raise KeyboardInterrupt
    again = new_run()
    with tracked(again):  # its last checkpoint was at step 10
        again.truncate_metrics(10)
        work(again, [20, 30, 40])
    assert sorted(fake.sent) == sorted(everything([10, 20, 30, 40]))
    assert len([event for event in fake.events if event.startswith("figure")]) == 4
    assert [event for event in fake.events if event.startswith("start")] == ["start None", "start x"]


def test_none_ends_what_followed_before(fake: type[Fake]) -> None:
    run = new_run()
    with tracked(run, ["tensorboard"]):
        work(run, [10])
    with tracked(run, []):
        work(run, [20])
    assert fake.sent == everything([10])


def test_tracker_that_joins_late_gets_all(fake: type[Fake]) -> None:
    run = new_run()
    work(run, [10, 20])
    with tracked(run, ["tensorboard"]):
        work(run, [30])
    assert fake.sent == everything([10, 20, 30])


def test_tracker_that_fails_is_warned_of_once_and_catches_up(
    fake: type[Fake], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run()
    with tracked(run, ["tensorboard"]):
        work(run, [10])
        fake.broken = True
        work(run, [20])
        monkeypatch.setattr(tracking, "RETRY_SECONDS", 0)
        work(run, [30])  # too early for another try
        tried = [record.levelname for record in caplog.records].count("WARNING")
        fake.broken = False
        work(run, [40])
        assert fake.sent == everything([10])
    assert fake.sent == everything([10, 20, 30, 40])
    assert len(read_metrics(run.metrics_path)) == 8
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and tried == 1
    assert "tensorboard fails (gone); the training goes on, and metrics.jsonl has everything" in warnings[0]


def test_failed_tracker_is_tried_again_now_and_then(
    fake: type[Fake], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0)
    run = new_run()
    with tracked(run, ["tensorboard"]):
        fake.broken = True
        work(run, [10, 20])
        fake.broken = False
        work(run, [30])
        assert fake.sent == everything([10, 20, 30])
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_tracker_that_fails_to_the_end_is_made_up_for_by_the_next_run(fake: type[Fake]) -> None:
    run = new_run()
    with tracked(run, ["tensorboard"]):
        work(run, [10])
        fake.broken = True
        work(run, [20])
    fake.broken = False
    with tracked(new_run()):
        pass
    assert fake.sent == everything([10, 20])


def test_figures_of_generators_are_at_steps(fake: type[Fake]) -> None:
    run = new_run("gan", gan__batch_size=8)
    for name in ("samples-000004k", "overview"):
        (run.figures / f"{name}.png").touch()
    with tracked(run, ["tensorboard"]):
        pass
    assert [event for event in fake.events if "figure" in event] == ["figure overview 0", "figure samples 500"]


def test_first_of_several_trackers_is_told_when_the_second_cannot_be_had(fake: type[Fake]) -> None:
    tried = []

    def missing(about: About, known: Known) -> Fake:
        tried.append(about.name)
        raise ValueError("--track mlflow: no answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRACKERS, "mlflow", missing)
        with pytest.raises(ValueError, match="no answer"), tracked(new_run(), ["tensorboard", "mlflow"]):
            pytest.fail("nothing is trained")
    assert fake.events[-1] == "finish failed recipe.yaml" and tried == ["one"]


# --- mistakes


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_missing_package(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    Answer(*CLASSIFIER, "--track", name).refused(
        f"--track {name}: needs the package {name}", "pip install viscoin[tracking]"
    )
    assert list(here.iterdir()) == []


def test_unknown_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    Answer(*CLASSIFIER, "--track", "mlflow,comet").refused("--track comet: unknown; choose")
    monkeypatch.setenv("VISCOIN_TRACK", "comet")
    Answer(*CLASSIFIER).refused("--track comet: unknown; choose")


@pytest.mark.slow
def test_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    answer = Answer(*CLASSIFIER, "--track", "mlflow")
    answer.refused("http://me:***@127.0.0.1:9 does not answer", "Connection refused", "MLFLOW_TRACKING_URI")
    assert "secret" not in answer.err and not list(Path("runs").iterdir())


def test_passwords_are_not_shown() -> None:
    assert root_cause(ValueError("POST\nhttp://me:secret@host/api: 500")) == "POST http://me:***@host/api: 500"


def test_nobody_logged_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("NETRC", str(here / "none"))
    wandb.teardown()
    try:
        said = "nobody is logged in; run `wandb login`, or set WANDB_MODE=offline"
        with pytest.raises(ValueError, match=said), tracked(new_run(), ["wandb"]):
            pytest.fail("nothing is trained")
    finally:
        wandb.teardown()


# --- the real ones


def twice(name: str) -> Run:
    """A run of 10, 20, 30 steps, killed, and resumed from its checkpoint at 10 up to 40, with a changed recipe."""
    run = new_run()
    with pytest.raises(KeyboardInterrupt), tracked(run, [name]):
        work(run, [10, 20, 30])
        raise KeyboardInterrupt
    again = new_run(viscoin__dropout=0.5)
    with tracked(again):
        again.truncate_metrics(10)
        work(again, [20, 30, 40])
        again.model_path.write_bytes(b"weights")
    return again


def session_end(events: Any) -> str:
    """The status of a run in TensorBoard's table of parameters."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.summary_metadata["_hparams_/session_end_info"].plugin_data.content
    return Status.Name(HParamsPluginData.FromString(content).session_end_info.status)


def session_start(events: Any) -> set[str]:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    return set(HParamsPluginData.FromString(content).session_start_info.hparams)


def test_tensorboard() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = twice("tensorboard")
    found = EventAccumulator(str(run.path))
    found.Reload()
    assert session_end(found) == "STATUS_SUCCESS"
    scalars = found.Scalars("train/l1")
    assert [event.step for event in scalars] == [10, 20, 30, 40]
    np.testing.assert_allclose([event.value for event in scalars], 1 / np.array([10, 20, 30, 40]), rtol=1e-6)
    assert abs(scalars[-1].wall_time - read_metrics(run.metrics_path)[-1]["time"]) < 600  # seconds of the same clock
    images = found.Images("figures/reconstructions")
    assert [(image.step, image.width) for image in images] == [(10, 8), (20, 8), (30, 8), (40, 8)]
    texts = {
        name: [event.tensor_proto.string_val[0].decode() for event in found.Tensors(f"run/{name}/text_summary")]
        for name in ("parameters", "tags", "end")
    }
    assert len(texts["parameters"]) == 1 and "| viscoin.n_concepts | 6 |" in texts["parameters"][0]
    assert "| kind | viscoin |" in texts["tags"][0] and "| revision |" in texts["tags"][0]
    interrupted, finished = texts["end"]
    assert "| state | interrupted |" in interrupted and "model" not in interrupted
    assert "| state | finished |" in finished and f"| model | {run.model_path} |" in finished
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_trial_in_tensorboard_is_compared_by_what_the_sweep_varies() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Pruned(Exception):
        pass

    run = new_run()
    run.annotate(sweep={"study": "s", "trial": 7, "varied": ["viscoin.learning_rate", "seed"]})
    with pytest.raises(Pruned), tracked(run, ["tensorboard"], pruned=Pruned):
        work(run, [10])
        raise Pruned
    found = EventAccumulator(str(run.path))
    found.Reload()
    assert session_start(found) == {"viscoin.learning_rate", "seed"} and session_end(found) == "STATUS_FAILURE"
    (tags,) = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("run/tags/text_summary")]
    assert "| study | s |" in tags and "| trial | 7 |" in tags


def client() -> Any:
    """MLflow's own, at the place where runs are kept by default."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{Path('runs/mlflow.db').absolute()}")


@pytest.mark.slow
def test_mlflow() -> None:
    pytest.importorskip("mlflow")
    run = twice("mlflow")
    experiment = client().get_experiment_by_name("viscoin")
    (found,) = client().search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    data = found.data
    assert data.params["viscoin.n_concepts"] == "6" and data.params["dataset.name"] == "birds"
    assert not [key for key in data.params if key.startswith(("gan.", "classifier."))]
    assert (data.params["viscoin.dropout"], data.tags["changed.viscoin.dropout"]) == ("0.01", "0.5")
    assert (data.tags["kind"], data.tags["dataset"], data.tags["state"]) == ("viscoin", "birds", "finished")
    assert data.tags["revision"] and data.tags["folder"] == str(run.path.absolute())
    history = client().get_metric_history(found.info.run_id, "train.l1")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in (10, 20, 30, 40)]
    assert data.metrics["validation.accuracy"] == 0.4
    figures = {f"figures/reconstructions-0000{step}.png" for step in (10, 20, 30, 40)}
    assert {file.path for file in client().list_artifacts(found.info.run_id, "figures")} == figures
    saved = Path("runs/mlflow-artifacts") / found.info.run_id / "artifacts"
    assert (saved / "model.safetensors").read_bytes() == b"weights"
    assert (saved / "metrics.jsonl").read_text() == run.metrics_path.read_text()

    client().delete_run(found.info.run_id)  # then the same command makes a new one, with everything
    with tracked(new_run(viscoin__dropout=0.5)):
        pass
    (other,) = client().search_runs([experiment.experiment_id])
    assert other.info.run_id != found.info.run_id
    assert [metric.step for metric in client().get_metric_history(other.info.run_id, "train.l1")] == [10, 20, 30, 40]


@pytest.mark.slow
def test_sweep_in_mlflow_and_tensorboard(here: Path) -> None:
    pytest.importorskip("mlflow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (here / "space.yaml").write_text("classifier.learning_rate: [0.001, 0.002]\n")
    given = ["sweep", *CLASSIFIER[1:-1], "--space", "space.yaml", "--sampler", "grid"]
    Answer(*given, "--trials", 1, "--track", "mlflow,tensorboard").went_well()
    Answer(*given).went_well()
    folder = Path("runs/birds-classifier-sweep")
    sweep, *trials = client().search_runs(
        [client().get_experiment_by_name("viscoin").experiment_id], order_by=["attributes.start_time"]
    )
    assert (sweep.info.run_name, sweep.info.status) == ("birds-classifier-sweep", "FINISHED")
    assert sweep.data.params["space.classifier.learning_rate"] == "0.001, 0.002"
    assert sweep.data.params["pruner"] == "median" and sweep.data.tags["kind"] == "sweep"
    files = {file.path for file in client().list_artifacts(sweep.info.run_id)}
    assert files == {"best.yaml", "trials.csv", "model.safetensors", "figures"}
    figures = {Path(file.path).name for file in client().list_artifacts(sweep.info.run_id, "figures")}
    assert figures == {path.name for path in folder.glob("*.png")}
    values = []
    for number, trial in enumerate(trials):
        run, data = Run(folder / "trials" / f"{number:04d}"), trial.data
        assert (trial.info.run_name, trial.info.status) == (f"birds-classifier-sweep/{number}", "FINISHED")
        assert data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert (data.tags["trial"], data.tags["study"]) == (str(number), "birds-classifier-sweep")
        assert data.params["classifier.learning_rate"] == str(run.recipe.classifier.learning_rate)
        assert data.metrics["validation.accuracy"] == read_metrics(run.metrics_path)[-1]["validation.accuracy"]
        assert {file.path for file in client().list_artifacts(trial.info.run_id)} == {"recipe.yaml", "metrics.jsonl"}
        found = EventAccumulator(str(run.path))
        found.Reload()
        assert session_start(found) == {"classifier.learning_rate"} and found.Scalars("value")
        values.append(data.metrics["value"])
    history = client().get_metric_history(sweep.info.run_id, "best")
    assert [(metric.step, metric.value) for metric in history] == [(1, values[0]), (2, max(values))]


@contextmanager
def mlflow_ui(port: int) -> Iterator[Callable[..., Any]]:
    """`mlflow ui` as the documentation starts it; yields a function that asks its REST API."""
    command = ["ui", "--backend-store-uri", "sqlite:///runs/mlflow.db", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # which would start seven processes more
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(path: str, **body: object) -> Any:
        data = json.dumps(body).encode() if body else None
        request = Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            found = answer.read()
        return json.loads(found) if path.startswith("/api") else found

    try:
        end = time.monotonic() + 120
        while True:
            try:
                assert ask("/health") == b"OK"
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, "mlflow ui does not start"
                time.sleep(0.3)
        yield ask
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


@pytest.mark.long
def test_training_in_mlflow_ui_also_when_it_goes_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    port = free_port()
    Answer(*CLASSIFIER, "--out", "runs/f", "--track", "mlflow").went_well()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = new_run()
    with mlflow_ui(port) as ask:
        experiment = ask("/api/2.0/mlflow/experiments/get-by-name?experiment_name=viscoin")["experiment"]
        query = {"experiment_ids": [experiment["experiment_id"]]}
        (found,) = ask("/api/2.0/mlflow/runs/search", **query)["runs"]
        assert found["info"]["run_name"] == "f" and found["info"]["status"] == "FINISHED"
        assert {"key": "classifier.epochs", "value": "1"} in found["data"]["params"]
        logged = {key: value for line in read_metrics(Path("runs/f/metrics.jsonl")) for key, value in line.items()}
        metrics = {metric["key"]: metric["value"] for metric in found["data"]["metrics"]}
        assert metrics == {key: value for key, value in logged.items() if key not in ("step", "time")}
        files = ask(f"/api/2.0/mlflow/artifacts/list?run_id={found['info']['run_id']}")["files"]
        assert {file["path"] for file in files} == {"metrics.jsonl", "model.safetensors", "recipe.yaml"}
        model = ask(f"/get-artifact?path=model.safetensors&run_uuid={found['info']['run_id']}")
        assert model == Path("runs/f/model.safetensors").read_bytes()

        following = tracked(run, ["mlflow"])
        following.__enter__()
        work(run, [10])
    work(run, [20, 30])  # the server is gone
    following.__exit__(None, None, None)
    assert "mlflow fails" in caplog.text

    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # its file is still there
    with tracked(new_run()):
        pass
    (found, _) = client().search_runs([experiment["experiment_id"]])
    history = client().get_metric_history(found.info.run_id, "train.l1")
    assert [metric.step for metric in history] == [10, 20, 30]
    assert len(client().list_artifacts(found.info.run_id, "figures")) == 3
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")


def test_mlflow_database_where_the_file_system_has_no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made all the same, and nothing is left that would lock others out."""

    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with trackers._one_at_a_time():
        assert not [path for path in Path("runs").iterdir() if path.stat().st_size]
    with trackers._one_at_a_time():
        pass


def wandb_records(path: Path) -> Iterator:
    """Records of an offline run: a LevelDB log (32 KiB blocks of chunks with a head of 7 bytes) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, part = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def records_of_ended(path: Path) -> list:
    """The same once the run's end is among them, which a process of W&B writes in its own time."""
    end = time.monotonic() + 60
    while True:
        records = list(wandb_records(path))
        if any(record.HasField("exit") for record in records) or time.monotonic() > end:
            return records
        time.sleep(0.2)


@pytest.mark.slow
def test_wandb_offline() -> None:
    pytest.importorskip("wandb")
    twice("wandb")
    files = sorted(Path("runs/one/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    rows, ids, codes, artifacts, config = [], set(), [], [], {}
    for record in (record for file in files for record in records_of_ended(file)):
        match record.WhichOneof("record_type"):
            case "history":
                values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in values.items()})
            case "run":
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert (record.run.display_name, record.run.project) == ("one", "viscoin")
            case "exit":
                codes.append(record.exit.exit_code)
            case "artifact":
                artifacts.append(record.artifact)
    assert len(ids) == 1 and codes == [130, 0]
    assert [(row["step"], row["train/l1"]) for row in rows if "train/l1" in row] == [
        (step, 1 / step) for step in (10, 20, 30, 40)
    ]
    assert [row["step"] for row in rows if "figures/reconstructions/path" in row] == [10, 20, 30, 40]
    assert config["viscoin.n_concepts"] == 6 and config["kind"] == "viscoin" and config["viscoin.dropout"] == 0.5
    (artifact,) = artifacts
    assert artifact.type == "model"
    assert {entry.path for entry in artifact.manifest.contents} == {"model.safetensors", "metrics.jsonl", "recipe.yaml"}
