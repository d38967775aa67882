"""Work that processes share by turns: each does its part, and all of them have all results.

Only inside `together()`, which all processes enter: elsewhere, as with one process, each does everything itself. Of W
processes, process r does parts r, r + W, r + 2W, ... of a list of parts, which does not depend on W; so results are the
same for any number of processes. What one of them alone can do, such as writing files, the first one does.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import chain, zip_longest
from typing import Any, TypeVar

from .distributed import gather_objects, rank, world_size

T = TypeVar("T")

_TOGETHER: ContextVar[bool] = ContextVar("together", default=False)
_MISSING = object()


class ProcessGone(RuntimeError):
    """Another process has ended before all were done."""


@contextmanager
def together() -> Iterator[None]:
    """A block that all processes go through; it ends when all have, and an exception of one ends it in all of them.

    Raises:
        Exception: of the same type and text as in the process where it came up first, if it can be sent.
        RuntimeError: it cannot be sent.
        ProcessGone: another process has ended.
    """
    if world_size() == 1 or _TOGETHER.get():
        yield
        return
    token = _TOGETHER.set(True)
    try:
        yield
        _exchange(lambda: None)
    except Exception as error:
        if not getattr(error, "known_to_all", False):
            _tell(error)
        raise
    finally:
        _TOGETHER.reset(token)


def turn() -> tuple[int, int]:
    """Number of this process among those that share work here, and how many these are: (0, 1) outside `together()`."""
    return (rank(), world_size()) if _TOGETHER.get() else (0, 1)


def own(parts: Sequence[T]) -> Sequence[T]:
    """The parts whose turn it is in this process."""
    first, count = turn()
    return parts[first::count]


def collect(results: Iterable[T]) -> list[T]:
    """The results for all parts in their order, the same in all processes.

    Args:
        results: one for each of `own(parts)`; may do the work while it is iterated.
    """
    if turn()[1] == 1:
        return list(results)
    rows: Iterable[Any] = zip_longest(*_exchange(lambda: list(results)), fillvalue=_MISSING)
    return [result for result in chain.from_iterable(rows) if result is not _MISSING]


def once(work: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    number, count = turn()
    return work() if count == 1 else _exchange(lambda: work() if number == 0 else None)[0]  # type: ignore[return-value]


def one_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 first, then on the other ranks, which can reuse what it cached."""
    number, count = turn()
    if count == 1:
        return work()
    found: list[T] = []
    _exchange(lambda: found.append(work()) if number == 0 else None)
    return found[0] if number == 0 else work()


def _exchange(work: Callable[[], T]) -> list[T]:
    """What the work makes in each process, by rank; an exception of one is raised in all."""
    try:
        value = work()
    except Exception as error:
        _tell(error)
        raise
    try:
        found: list[tuple[T, Exception | None]] = gather_objects((value, None))
    except RuntimeError as gone:  # of torch.distributed
        raise _known(ProcessGone("another process has ended; what it said last tells why")) from gone
    for _, told in found:
        if told is not None:
            raise _known(told)
    return [value for value, _ in found]


def _tell(error: Exception) -> None:
    """Send an exception of this process to the others, who expect something else, or the end of the block."""
    try:
        sent: Any = error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else None
    except Exception:  # whatever an exception's own code raises
        sent = None
    with suppress(RuntimeError):  # the others may be gone
        gather_objects((None, sent or RuntimeError(f"process {rank()}: {type(error).__name__}: {error}")))
        _known(error)


def _known(error: Exception) -> Exception:
    """Mark an exception that all processes have, so that none sends it again; `known_to_all` may be asked for."""
    error.known_to_all = True  # type: ignore[attr-defined]
    return error
