"""Checks what a stage needs, and makes what it does not find where the recipe says so.

Raw data to shards, small weights from scratch, the phases before: so that a stage without
arguments works in a fresh clone. A real recipe leaves this off and gets a clear error instead.
"""

import logging
from pathlib import Path

from pipeline.config import Config, PrepareConfig
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.data.prepare import prepare
from pipeline.data.remote import is_remote
from pipeline.data.settings import check_prepared
from pipeline.dist import World, on_main
from pipeline.errors import DataError
from pipeline.explain.sketches import unmade_weights, with_sketches
from pipeline.phases import phases_before
from pipeline.preflight import check, check_scores
from pipeline.pretrain import pretrain
from pipeline.run import effective, run_phase
from pipeline.stopping import stop_if_asked
from pipeline.tasks import scored

log = logging.getLogger("pipeline")


def make_shards(config: Config, world: World) -> None:
    """Prepares the recipe's `prepare` on rank 0 where shards are missing.

    Shards that are there, but of other settings than the recipe's, are a DataError. Raises Stopped
    on all ranks where a stop is asked for; finished shards are kept.
    """

    def make() -> None:
        missing = shards_missing(config)
        for entry in config.prepare.values():
            if world.presence.stop_asked() is not None:
                return
            if missing:
                _prepare(entry, world)
            else:
                check_prepared(entry)

    on_main(make, world)
    stop_if_asked(world)


def _prepare(entry: PrepareConfig, world: World) -> None:
    try:
        prepare(entry, report=log.info)
    except DataError:
        # A launcher that ends a rank ends its working processes too: that is no fault of theirs.
        if world.presence.stop_asked() is None:
            raise


def ensure(config: Config, world: World, *, until: str) -> bool:
    """Checks the recipe and makes what is missing before `until`; every rank calls it.

    until: a phase, `pretrain` or `evaluate`.

    Returns False when something stopped half-way, to be resumed by the same command.
    """
    if until == "evaluate":
        check_scores(config)
    if not config.make_missing:
        if until != "pretrain":
            check(effective(config), world, until=until)
        return True
    if until != "pretrain" and not config.baseline:  # a baseline's steps come from its records
        with with_sketches(config) as sketched:
            check(sketched, world, until=until, unmade=unmade(config))
    make_shards(config, world)
    if until == "pretrain":
        return True
    if config.pretrain.out and not pretrain(config, world):
        log.info("%-13s is not started: pre-training was stopped; the same command goes on", until)
        return False
    chosen = effective(config)
    check(chosen, world, until=until)
    for name in phases_before(chosen, until):
        if not run_phase(chosen, name, world):
            log.info("%-13s is not started: %s was stopped; the same command goes on", until, name)
            return False
    return True


def unmade(config: Config) -> set[str]:
    """What the recipe makes before anything else, as `preflight.problems` calls it."""
    if not config.make_missing:
        return set()
    return unmade_weights(config) | ({"shards"} if shards_missing(config) else set())


def shards_missing(config: Config) -> bool:
    """True when a local split that the recipe reads is not there, or not written to its end."""
    data = config.data
    shards = [(data.shards, data.test_split), (data.shards, data.val_split)]
    shards += [(config.pretrain.shards, name) for name in (data.train_split, data.val_split)]
    shards += [(each.shards, each.split or data.train_split) for each in data.mix]
    if not data.mix:
        shards.append((data.shards, data.train_split))
    if config.evaluate.task is not None:
        shards.append((scored(config).data.shards, config.evaluate.split))
    paths = [
        Path(folder.removeprefix("file://")) / split / MANIFEST_NAME
        for folder, split in shards
        if folder and not is_remote(folder)
    ]
    return not all(path.is_file() for path in paths)
