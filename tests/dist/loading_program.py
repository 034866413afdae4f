"""Builds a recipe's model as a stage does, and watches this rank's anonymous memory meanwhile.

    deepspeed --num_gpus 2 tests/dist/loading_program.py RECIPE

Rank 0 prints one JSON line: of each rank, the peak above what importing takes, and what is left
when the model is there, in bytes. Anonymous memory is what a rank has for itself; pages of mapped
weight files belong to the page cache, and all ranks share them. Started by test_loading.py.
"""

import gc
import json
import re
import sys
import threading
from pathlib import Path

from pipeline import dist
from pipeline.assemble import build_caption_model
from pipeline.ds_config import read_ds_config
from pipeline.engine import dtype_of
from pipeline.recipe import load_recipe
from pipeline.zero import join, placement_for

_EVERY_SECONDS = 0.001


def anonymous() -> int:
    """Bytes of anonymous memory that are resident now."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


class Watch:
    """The largest `anonymous` between two moments."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous())
            if self._done.wait(_EVERY_SECONDS):
                return


def main() -> None:
    """Every rank loads."""
    world = dist.start()
    config = load_recipe([each for each in sys.argv[1:] if not each.startswith("--local")])
    join()
    gc.collect()
    before = anonymous()
    with Watch() as watch:
        built = build_caption_model(
            config,
            {},
            {},
            dtype=dtype_of(config.precision),
            placement=placement_for(
                read_ds_config("llm_tune", config.llm_tune.ds_config), config.precision, world
            ),
            world=world,
        )
    gc.collect()
    mine = {"peak": watch.peak - before, "left": anonymous() - before}
    found = dist.gather_json(mine, world)
    if world.is_main:
        print("MEASURED " + json.dumps(found), flush=True)
    assert built.model is not None  # the model lives until here
    dist.stop()


if __name__ == "__main__":
    main()
