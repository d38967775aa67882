"""One thread that computes for all: requests wait in a bounded queue and are taken together, batch by batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

WAITING, TOGETHER, DEADLINE = 64, 16, 10.0

Batch = Callable[[Sequence[Any]], Sequence[Any]]


class Full(Exception):
    """As many requests wait already as may."""


class Late(Exception):
    """A request was not begun before its deadline."""


@dataclass
class Counts:
    """What an engine has done so far, for `/metrics`."""

    computed: int = 0
    batches: int = 0
    skipped: int = 0
    rejected: int = 0


@dataclass
class _Work:
    kind: Hashable
    run: Batch
    items: Sequence[Any]
    deadline: float
    future: "Future[list[Any]]" = field(default_factory=Future)


class Engine:
    """A thread and its queue. Work of one kind that waits is done together, up to `together` items.

    Nothing lingers for more to come: what has come while the thread computed is the next batch. Work whose future was
    cancelled, or whose deadline is over, is skipped.

    Args:
        waiting: requests that may wait.
        together: items of a batch; a request with more is a batch of its own.
        deadline: seconds from arrival within which work must begin.
        name: of the thread.
    """

    def __init__(
        self, waiting: int = WAITING, together: int = TOGETHER, deadline: float = DEADLINE, name: str = "engine"
    ) -> None:
        self.waiting, self.together, self.deadline, self.counts = waiting, together, deadline, Counts()
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def submit(self, kind: Hashable, run: Batch, items: Sequence[Any]) -> "Future[list[Any]]":
        """Have items computed: `run` gets those of several requests of that kind, and gives one result for each.

        Raises:
            Full: the queue is.
        """
        work = _Work(kind, run, items, time.monotonic() + self.deadline)
        with self._changed:
            if self._closed or len(self._queue) >= self.waiting:
                self.counts.rejected += 1
                raise Full
            self._queue.append(work)
            self._changed.notify()
        return work.future

    def close(self) -> None:
        """End the thread after the batch that it is at; what waits is given up."""
        with self._changed:
            self._closed = True
            for work in self._queue:
                work.future.cancel()
            self._queue.clear()
            self._changed.notify()
        self._thread.join(timeout=30)

    def _serve(self) -> None:
        while batch := self._take():
            self._compute(batch)

    def _take(self) -> list[_Work]:
        """The next work with what else can be done together; empty when the engine is closed."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return []
                first = self._next()
                if first is not None:
                    return [first, *self._same(first)]

    def _next(self) -> _Work | None:
        work = self._queue.popleft()
        if time.monotonic() > work.deadline:
            self.counts.skipped += 1
            if work.future.set_running_or_notify_cancel():
                work.future.set_exception(Late())
            return None
        if not work.future.set_running_or_notify_cancel():
            self.counts.skipped += 1
            return None
        return work

    def _same(self, first: _Work) -> list[_Work]:
        """Those that wait of the same kind and that fit, taken out of the queue; the order of the others stays."""
        found, others, room = list[_Work](), deque[_Work](), self.together - len(first.items)
        while self._queue:
            if self._queue[0].kind != first.kind or len(self._queue[0].items) > room:
                others.append(self._queue.popleft())
            elif (work := self._next()) is not None:
                found.append(work)
                room -= len(work.items)
        self._queue.extend(others)
        return found

    def _compute(self, batch: Sequence[_Work]) -> None:
        items = [item for work in batch for item in work.items]
        self.counts.batches += 1
        try:
            results = list(batch[0].run(items))
        except BaseException as error:  # whatever it is, those who wait must hear of it
            for work in batch:
                work.future.set_exception(error)
            return
        self.counts.computed += len(items)
        for work in batch:
            work.future.set_result(results[: len(work.items)])
            del results[: len(work.items)]
