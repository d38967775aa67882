"""Signals that ask a process to stop: when they are answered, and what they become."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar

# Ctrl-C, the end of a job, a terminal that is closed, and SLURM's early warning; some systems lack the last ones.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
AGAIN = 0.05  # seconds after which a signal is sent once more that came where it could not be answered

Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; `signal` is its number."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = int(number)


class _Held:
    """How many blocks of `held` the main thread is in, and the signals that wait for their end."""

    depth = 0
    waiting: ClassVar[list[int]] = []


@contextmanager
def held() -> Iterator[None]:
    """Signals that come within the block are answered at its end: what it writes is never half done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are answered by the main thread alone
        return
    _Held.depth += 1
    try:
        yield
    finally:
        _Held.depth -= 1
        if not _Held.depth:
            waiting = list(dict.fromkeys(_Held.waiting))
            _Held.waiting.clear()
            for number in waiting:
                signal.raise_signal(number)


def holding() -> bool:
    """Whether signals are being held back."""
    return _Held.depth > 0


@contextmanager
def handled(handler: Handler, hold: bool = True) -> Iterator[None]:
    """Answer signals that ask to stop by a handler, if this is the main thread.

    Args:
        hold: signals within `held` reach the handler at its end.
    """
    owner = os.getpid()

    def answer(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a child that was forked from here
            os._exit(128 + number)
        if hold and _Held.depth:
            _Held.waiting.append(number)
        else:
            handler(number, frame)

    before: dict[int, Any] = {}
    try:
        for number in _answered():
            before[number] = signal.signal(number, answer) or signal.SIG_DFL
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)


def _answered() -> list[signal.Signals]:
    """The signals to answer: nohup has a process ignore the end of its terminal."""
    return [n for n in STOPPING if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once and without a word: nothing is begun yet, or all is done."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(128 + number)


def stop(number: int, frame: FrameType | None) -> None:
    """Raise `Stopped`; after an import that is under way, as one cut short may abort the process from its C++."""
    if _importing(frame):
        _send_later(number)
    else:
        raise Stopped(number=number)


def leave_on_signals() -> None:
    """From now on, signals that ask to stop end this process by the exit code 128 + their number."""
    for number in _answered():
        signal.signal(number, leave)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block, signals that ask to stop raise `Stopped`."""
    report = sys.unraisablehook

    def unraisable(unraisable: Any) -> None:
        """Python cannot raise it in a destructor or a callback of C; so it comes once more."""
        if isinstance(unraisable.exc_value, Stopped):
            _send_later(unraisable.exc_value.signal)
        else:
            report(unraisable)

    sys.unraisablehook = unraisable
    try:
        with handled(stop):
            yield
    finally:
        sys.unraisablehook = report


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _send_later(number: int) -> None:
    timer = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
