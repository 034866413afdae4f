"""Items of a data set loaded ahead, in order, by processes that may die.

A worker that is killed (by the system that ran out of memory, as a rule) takes nothing with it but
time: all workers are started again at the first item that has not come. That works because an item
is a pure function of its number. Where the same item kills its worker every time, that is said.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import DataError
from pipeline.watch.signals import leave_signals_to_the_parent

T_co = TypeVar("T_co", covariant=True)

_TRIES = 3  # of one item
_AHEAD = 4  # items a worker holds ready
# A worker that dies while its item is handed over breaks the connection in one of several ways.
_DEATHS = (RuntimeError, EOFError, ConnectionError, FileNotFoundError)


class LoadedAhead(Generic[T_co]):
    """The items of `numbers`, in order; iterate once.

    Attributes: restarts: how often workers were started again so far.
    """

    def __init__(self, dataset: Dataset[T_co], numbers: range, *, workers: int) -> None:
        """Start nothing yet.

        Args:
            dataset: map-style; `dataset[n]` must not depend on what was asked before.
            numbers: with step 1.
            workers: processes; 0 loads in this one.
        """
        self._dataset, self._numbers = dataset, numbers
        self._workers = min(workers, len(numbers))
        self.restarts = 0

    def __iter__(self) -> Iterator[T_co]:
        """Yield the items.

        Raises:
            WorkerDeathError: the worker of one item died each time.
        """
        last = len(self._numbers)
        done, tries = 0, 0
        loaded, end = self._start(0, last, self._workers, _AHEAD), last
        while done < last:
            if done == end:  # past what killed a worker: back to full speed
                loaded, end = self._start(done, last, self._workers, _AHEAD), last
            try:
                item = next(loaded)
            except Exception as error:
                if not self._workers:
                    raise
                if not isinstance(error, _DEATHS) or not _is_death(error):
                    # The workers end with `loaded`, which the error's frames would keep; they heed
                    # no SIGTERM, so Python's own way out would wait for them for ever.
                    del loaded
                    raise error.with_traceback(None) from None
                tries += 1
                if tries == _TRIES:
                    raise WorkerDeathError(self._numbers[done], error) from error
                self.restarts += 1
                # One by one for as long as the killer can be among them, so that it is known.
                end = min(done + self._workers * _AHEAD, last)
                loaded = self._start(done, end, 1, 1)
                continue
            done, tries = done + 1, 0
            yield item

    def _start(self, first: int, end: int, workers: int, ahead: int) -> Iterator[T_co]:
        loader: DataLoader[T_co] = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._numbers[first:end],
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            # Its own generator: otherwise each start draws from torch's global one, and a resumed
            # run would see other dropout than an uninterrupted one.
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_the_parent,
        )
        with _own_signals():
            return iter(loader)


class WorkerDeathError(DataError):
    """An item whose worker died each time it was tried."""

    def __init__(self, number: int, error: Exception) -> None:
        cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        super().__init__(
            f"a loading process died {_TRIES} times at item {number} ({cause}); if memory ran out, "
            "lower data.workers, or see the system's log for another reason"
        )
        self.number = number


def _is_death(error: Exception) -> bool:
    """Whether a worker is gone, and not what an item raised there, which is marked by PyTorch."""
    said = str(error)
    if isinstance(error, RuntimeError):
        return said.startswith("DataLoader worker (pid")
    return not said.startswith("Caught ")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Undoes PyTorch's handler of SIGCHLD.

    It raises in the middle of whatever the main thread does, of an optimizer step too. Without it a
    death is noticed where the next item is waited for, within seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # PyTorch takes over no signals here
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
