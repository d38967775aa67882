"""Trackers kept up to date by `viscoin.runs.tracking`; each speaks to one library of `viscoin[tracking]`.

Making a tracker begins a run there, or resumes the known one; a ValueError then says what is missing. Whatever
its methods raise, the training continues.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock

from viscoin.runs.run import NO_LOCKS, RUNS

logger = logging.getLogger(__name__)

State = Literal["finished", "pruned", "interrupted", "failed"]

PROJECT = "viscoin"  # the experiment of MLflow and the project of wandb, unless their own variables name another


@dataclass(frozen=True)
class About:
    """A run, or a sweep, at its start.

    Attributes:
        parameters: by dotted key.
        tags: such as kind and dataset.
        sweep: name of the sweep that the run belongs to, or that this is.
        parent: what the tracker calls that sweep.
        varied: keys of the parameters that the sweep varies.
    """

    name: str
    folder: Path
    parameters: dict[str, Any]
    tags: dict[str, str]
    sweep: str | None = None
    parent: str | None = None
    varied: Sequence[str] = ()

    @property
    def is_sweep(self) -> bool:
        return self.name == self.sweep


@dataclass
class Known:
    """What a tracker has: its name for the run, the last step of each metric, figures, and how the run ended."""

    id: str | None = None
    steps: dict[str, int] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    state: State | None = None

    def forget(self) -> None:
        self.id, self.steps, self.figures, self.state = None, {}, [], None


@dataclass(frozen=True)
class Point:
    """A metric at a step; `time` in seconds since 1970."""

    name: str
    value: float
    step: int
    time: float


class Tracker(Protocol):
    """A place that shows runs.

    Attributes:
        hint: how to look at it.
    """

    hint: str

    def points(self, points: Sequence[Point]) -> None: ...

    def figure(self, path: Path, name: str, step: int) -> None: ...

    def finish(self, state: State, files: Sequence[Path]) -> None:
        """The end of the training; `files` are its recipe and metrics and, if it has one, its model."""

    def close(self) -> None:
        """Stop for now, without an end."""


class TensorBoardTracker:
    """Event files in the run folder."""

    def __init__(self, about: About, known: Known) -> None:
        from lightning_fabric.loggers import TensorBoardLogger
        from torch.utils.tensorboard.summary import hparams

        shown = about.varied or about.parameters  # one column each, in the table that compares runs
        if not any(about.folder.glob("events.out.tfevents.*")):
            known.forget()
        self.logger = TensorBoardLogger(about.folder, name="", version="")
        self.writer = self.logger.experiment
        self.hint = f"tensorboard --logdir {about.folder if about.is_sweep else about.folder.parent}"
        self.known = known
        values = {key: about.parameters[key] for key in shown}
        values = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
        _, start, self.end = hparams(values, {})
        if known.id is None:
            known.id = about.name
            if not about.is_sweep:  # which is no row of that table
                self.writer.file_writer.add_summary(start)
            self._table("parameters", about.parameters)
            self._table("tags", about.tags)
            self.writer.flush()

    def points(self, points: Sequence[Point]) -> None:
        for point in points:
            self.writer.add_scalar(_chart(point.name), point.value, point.step, walltime=point.time)
        self.writer.flush()  # a process that is killed loses nothing

    def figure(self, path: Path, name: str, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(f"figures/{name}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def finish(self, state: State, files: Sequence[Path]) -> None:
        if state in ("finished", "pruned"):  # the others may be resumed, and TensorBoard takes one end of a run alone
            self.writer.file_writer.add_summary(self.end if state == "finished" else _as_failure(self.end))
        last = max(self.known.steps.values(), default=0)
        self._table("end", {"state": state} | {path.stem: path for path in files}, last)
        self.close()

    def close(self) -> None:
        self.logger.finalize("")

    def _table(self, name: str, rows: Mapping[str, Any], step: int = 0) -> None:
        text = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
        self.writer.add_text(f"run/{name}", text, step)


def _as_failure(end: Any) -> Any:
    """The end of a run as torch has it, which knows success alone."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = end.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    content.session_end_info.status = Status.Value("STATUS_FAILURE")
    plugin.content = content.SerializeToString()
    return end


class MLflowTracker:
    """The server of MLFLOW_TRACKING_URI, by default the SQLite file runs/mlflow.db with artifacts beside it."""

    STATUS: Mapping[State, str] = {
        "finished": "FINISHED", "pruned": "KILLED", "interrupted": "KILLED", "failed": "FAILED",
    }  # fmt: skip

    def __init__(self, about: About, known: Known) -> None:
        # A training neither waits for minutes nor reports to others than its user.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 2
        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        given = os.environ.get("MLFLOW_TRACKING_URI")
        uri = given or f"sqlite:///{(RUNS / 'mlflow.db').absolute()}"
        self.hint = _public(given) if given else f"mlflow ui --backend-store-uri sqlite:///{RUNS / 'mlflow.db'}"
        try:
            with nullcontext() if given else _one_at_a_time():
                self.client = MlflowClient(tracking_uri=uri)
                self.id = self._open(about, known.id)
            self._describe(about)
        except Exception as error:
            raise ValueError(
                f"--track mlflow: {_public(uri)} does not answer, or takes no runs ({root_cause(error)}); see that it "
                "works, set MLFLOW_TRACKING_URI to another one, or unset it to use runs/mlflow.db"
            ) from error
        if self.id != known.id:
            known.forget()
            known.id = self.id

    def _open(self, about: About, known: str | None) -> str:
        """The id of the run to write to."""
        experiment = self._experiment()
        runs = self.client.search_runs([experiment], f"attributes.run_id = '{known}'") if known else []
        if runs:
            self.client.update_run(runs[0].info.run_id, status="RUNNING", name=about.name)
            return runs[0].info.run_id
        return self.client.create_run(experiment, run_name=about.name).info.run_id

    def _experiment(self) -> str:
        """The id of the experiment, made where there is none yet."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (RUNS / "mlflow-artifacts").absolute().as_uri()
        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self.client.create_experiment(name, artifact_location=place)
        except Exception:
            if found := self.client.get_experiment_by_name(name):  # another process was faster
                return found.experiment_id
            raise

    def _describe(self, about: About) -> None:
        """Tags and parameters; those of MLflow never change, so that a change on the way becomes a tag."""
        from mlflow.entities import Param, RunTag

        written = self.client.get_run(self.id).data.params
        values = {key: str(value) for key, value in about.parameters.items()}
        new = [Param(key, value) for key, value in values.items() if key not in written]
        changed = {f"changed.{key}": value for key, value in values.items() if written.get(key, value) != value}
        nested = {"mlflow.parentRunId": about.parent} if about.parent else {}
        texts = about.tags | nested | changed | {"state": "running"}
        tags = [RunTag(key, value) for key, value in texts.items()]
        for start in range(0, max(len(new), len(tags)), 100):  # that many at once
            self.client.log_batch(self.id, params=new[start : start + 100], tags=tags[start : start + 100])

    def points(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(points), 1000):  # that many at once
            some = points[start : start + 1000]
            self.client.log_batch(self.id, [Metric(p.name, p.value, round(p.time * 1000), p.step) for p in some])

    def figure(self, path: Path, name: str, step: int) -> None:
        self.client.log_artifact(self.id, str(path), "figures")

    def finish(self, state: State, files: Sequence[Path]) -> None:
        for path in files:
            self.client.log_artifact(self.id, str(path))
        self.client.set_tag(self.id, "state", state)
        self.client.set_terminated(self.id, self.STATUS[state])

    def close(self) -> None:
        pass  # nothing is open between two calls


class WandbTracker:
    """Weights & Biases; with WANDB_MODE=offline a folder in that of the run, for `wandb sync` later."""

    EXIT_CODES: Mapping[State, int] = {"finished": 0, "pruned": 0, "interrupted": 130, "failed": 1}

    def __init__(self, about: About, known: Known) -> None:
        os.environ.setdefault("WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", "1")  # seconds that a killed process loses
        import wandb

        self.wandb = wandb
        mode = wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ValueError(
                "--track wandb: nobody is logged in; run `wandb login`, or set WANDB_MODE=offline to keep the run here"
            )
        if mode == "offline":  # folders are named by the second
            while any(about.folder.glob(f"wandb/offline-run-{time.strftime('%Y%m%d_%H%M%S')}-*")):
                time.sleep(0.05)
        settings = wandb.Settings(console="off", silent=True, init_timeout=30, finish_timeout=600)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT, id=known.id, name=about.name,
                group=about.sweep, job_type=about.tags["kind"], tags=[about.tags["kind"], about.tags["dataset"][:64]],
                config=about.parameters | about.tags, allow_val_change=True, dir=about.folder.absolute(),
                resume="allow", reinit="finish_previous", settings=settings,
            )  # fmt: skip
        except Exception as error:
            raise ValueError(
                f"--track wandb: it cannot start a run ({root_cause(error)}); see to that, or set WANDB_MODE=offline "
                "to keep the run here"
            ) from error
        known.id = self.run.id
        self.hint = f"wandb sync {about.folder}/wandb/offline-run-*" if self.run.offline else str(self.run.url)
        self.run.define_metric("*", step_metric="step")
        self.run.summary["state"] = "running"

    def points(self, points: Sequence[Point]) -> None:
        rows: dict[int, dict[str, float]] = {}
        for point in points:
            rows.setdefault(point.step, {})[_chart(point.name)] = point.value
        for step, values in rows.items():
            self.run.log({"step": step, **values})

    def figure(self, path: Path, name: str, step: int) -> None:
        self.run.log({"step": step, f"figures/{name}": self.wandb.Image(str(path))})

    def finish(self, state: State, files: Sequence[Path]) -> None:
        if any(path.suffix == ".safetensors" for path in files):
            artifact = self.wandb.Artifact(f"model-{self.run.id}", "model")
            for path in files:
                artifact.add_file(str(path))
            self.run.log_artifact(artifact)
        self.run.summary["state"] = state
        self.run.finish(exit_code=self.EXIT_CODES[state])

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[About, Known], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MLflowTracker,
    "wandb": WandbTracker,
}


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """MLflow makes its database in many steps, in which runs that start together would meet."""
    RUNS.mkdir(exist_ok=True)
    lock = FileLock(RUNS / ".mlflow.lock", timeout=120, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def _chart(metric: str) -> str:
    """`train.l1` as `train/l1`: charts are grouped by what comes before a slash."""
    return metric.replace(".", "/", 1)


def _public(uri: str) -> str:
    """A URI without the password that it may hold."""
    return re.sub(r"(://[^/@]*):[^/@]*@", r"\1:***@", uri)


def root_cause(error: BaseException) -> str:
    """What the first of the errors says that led to this one."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return _public(" ".join(str(error).split())[:200]) or type(error).__name__
