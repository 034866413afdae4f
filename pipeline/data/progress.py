"""A progress bar for long work over data; in a log file a line now and then."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

_SECONDS = 0.5
_SECONDS_IN_LOGS = 30.0


@contextlib.contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; yields what is called with each amount newly done."""
    interval = _SECONDS if sys.stderr.isatty() else _SECONDS_IN_LOGS
    with tqdm(total=total, desc=title, unit=unit, mininterval=interval, file=sys.stderr) as bar:
        yield bar.update
