"""What a process inherits that is forked from a rank, and must not use: data workers, as a rule.

It inherits the rank's memory without its threads. Whatever the collector found there to be thrown
away (an iterator over other workers, an engine) might wait for a thread that is not there.
"""

import gc
import os
from collections.abc import Callable


def at_fork(let_go: Callable[[], None]) -> None:
    """From now on, in processes forked from this one: `let_go` is called, and nothing of what was
    inherited is collected."""
    os.register_at_fork(
        before=gc.disable, after_in_parent=gc.enable, after_in_child=lambda: _begin(let_go)
    )


def _begin(let_go: Callable[[], None]) -> None:
    let_go()
    gc.freeze()
    gc.enable()
