"""One function over many tasks in processes, results as they come.

Processes are spawned, not forked, since the caller may hold threads or a GPU; so the function and
its tasks must be picklable. Order is lost, which is the caller's to mend.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the task, result) of every task as it is done, in any order.

    Args:
        function: what is done with a task; its exceptions are raised here.
        tasks: all of them.
        workers: processes; 0, or a single task, runs in this one.

    Raises:
        DataError: a process died.
    """
    if workers == 0 or len(tasks) < 2:
        for number, task in enumerate(tasks):
            yield number, function(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=_follow_the_parent
    ) as pool:
        running = {pool.submit(function, task): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"workers={workers}: a working process died (out of memory?); "
                "run again with fewer workers, what is finished is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _follow_the_parent() -> None:
    """End this process when its parent is killed: an orphan would write what a restart writes."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
