"""All that a service holds, and how it comes and goes."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from viscoin.serving.engine import Engine
from viscoin.serving.jobs import Jobs
from viscoin.serving.models import Models
from viscoin.serving.pictures import Uploads
from viscoin.serving.runs import RunFolder

SLOW_DEADLINE = 120.0
TURN = 2.0  # seconds between two looks at the jobs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a service is started.

    Attributes:
        models: kinds and paths; None: the newest or the shipped one.
        runs: folder of all runs.
        read_only: no jobs and no commands.
        token: what requests must bring; None for none.
        hosts: more names by which the service may be addressed.
        jobs: how many trainings run at a time.
        data_root: folder below which the data of jobs must lie.
        names: names.csv of the ensembles, in their order.
    """

    models: Sequence[tuple[str, Path | None]] = (("viscoin", None),)
    runs: Path = Path("runs")
    device: str = "auto"
    read_only: bool = False
    token: str | None = None
    hosts: Sequence[str] = ()
    jobs: int = 1
    data_root: Path | None = None
    names: Sequence[Path] = ()


@dataclass
class Service:
    """Models, engines, uploads, runs and jobs; `ending` is set when the service goes."""

    settings: Settings
    models: Models = field(init=False)
    ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.models = Models(self.settings.device)
        self.uploads, self.runs = Uploads(), RunFolder(self.settings.runs)
        self.jobs = Jobs(self.settings.runs, self.settings.jobs, self.settings.data_root)
        self.quick = Engine(name="engine")
        self.slow = Engine(waiting=16, together=1, deadline=SLOW_DEADLINE, name="slow engine")
        self.begun = time.time()

    def start(self) -> None:
        """Load the models, in the threads that own them, and start jobs whose turn has come, whoever looks or not."""
        self.quick.submit("load", self._load, [0])
        threading.Thread(target=self._advance, name="jobs", daemon=True).start()

    def _advance(self) -> None:
        while not self.ending.wait(TURN):
            self.jobs.advance()

    def _load(self, _items: Sequence[object]) -> list[None]:
        from viscoin.serving.answers import reference_of

        try:
            self.models.load(self.settings.models, self.settings.names)
        except Exception as error:  # it is told to everybody who asks
            logger.exception("no model could be loaded")
            self.models.failed = f"no model could be loaded: {error}"
            return [None]
        for model in self.models:
            if model.draws:
                self.slow.submit("reference", lambda items: [reference_of(model) and None for model in items], [model])
        return [None]

    def close(self) -> None:
        """End the threads; jobs that wait are told of, as nobody else will start them."""
        self.ending.set()
        self.jobs.leave()
        self.quick.close()
        self.slow.close()
