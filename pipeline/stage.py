"""What every stage does around its work: read the recipe, join the other ranks, report errors.

A `UserError` becomes one line from one rank and exit code 2; everything else keeps its traceback.
After an error no collective is entered: the process leaves at once, so that nobody waits for it.
While the work goes on a watch (`pipeline/watch`) hears of the other ranks, and of signals.
"""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import dist
from pipeline.config import Config
from pipeline.determinism import make_deterministic
from pipeline.errors import ConfigError, UserError
from pipeline.outcome import FAILED, FINISHED, STOPPED, note_outcome
from pipeline.recipe import load_recipe
from pipeline.stopping import OWN_STOP_FILE, STOP_FILE, Stopped
from pipeline.watch.causes import BUG, USER_ERROR, WELL
from pipeline.watch.watcher import Watch, leave

log = logging.getLogger("pipeline")

AS_THE_RECIPE_ASKS = "stop_after"

# Long enough for the launcher to end the other ranks once rank 0 has left with an error.
_PATIENCE_SECONDS = 4.0

Body = Callable[[Config, dist.World], bool | None]  # False: stopped half-way
Explain = Callable[[Config, dist.World], str]


def run_stage(
    body: Body,
    arguments: Sequence[str] | None = None,
    *,
    section: str | None = None,
    explain: Explain | None = None,
) -> None:
    """Runs `body` with the resolved recipe on every rank of the launch, and exits on errors.

    arguments: the command line without the program; None takes the process's own. section: the
    stage's own part of the recipe, see `load_recipe`. explain: what the stage would do, as text:
    under `plan=true` one rank prints it, and nothing else happens.
    """
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    watch = None
    try:
        config = load_recipe(sys.argv[1:] if arguments is None else arguments, section)
        if config.plan:
            say_plan(explain, config)
            return
        if config.deterministic:
            make_deterministic()
        world = dist.start()
        rank = world.rank
        configure_logging(speaks=world.is_main)
        watch = Watch(world, config.timeout)
        run_body(body, config, world)
        watch.close()
        dist.stop()
        if world.size > 1:
            # With communication threads about, Python's own way out was seen to abort (exit code
            # -6) after all work was done; there is nothing left to do but to flush.
            leave(WELL)
    except Exception as error:  # noqa: BLE001 - the way out for our own bugs, with their traceback
        if watch is not None:
            watch.fail(error)
        if isinstance(error, UserError):
            leave_with_user_error(error, rank)
        traceback.print_exc()
        note_outcome(FAILED, f"rank {rank}: {type(error).__name__}: {error}", BUG)
        leave(BUG)


def run_body(body: Body, config: Config, world: dist.World) -> None:
    """The stage's work, or as much of it as there is time for until a stop is asked for."""
    if world.is_main:
        obey_files(config, world)
    state, why = FINISHED, ""
    try:
        if body(config, world) is False:
            state, why = STOPPED, world.presence.asked or AS_THE_RECIPE_ASKS
    except Stopped as asked:
        state, why = STOPPED, str(asked)
        log.info(
            "%-13s %s; what is done is kept, nothing half-made is left, the same command goes on",
            "stopped",
            asked,
        )
    if world.is_main:
        note_outcome(state, why)


def obey_files(config: Config, world: dist.World) -> None:
    """From now on this rank looks for the files that ask for a stop: the run's, the job's."""
    stop = Path(config.runs) / config.name / STOP_FILE
    if world.presence.obey(stop):
        log.info("%-13s %s: it was there already, and is removed", "start", stop)
    if own := os.environ.get(OWN_STOP_FILE):
        world.presence.obey(Path(own), own=True)


def say_plan(explain: Explain | None, config: Config) -> None:
    """Prints a stage's plan from the first rank of the launch; no rank waits for another."""
    if explain is None:
        raise ConfigError("plan=true: this stage has no plan; leave it out to run the stage")
    world = dist.planned(config.plan_ranks)
    # That the hub cannot be reached is one of the plan's own lines, not a page of retries.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if world.is_main:
        say(explain(config, world))


def say(text: str) -> None:
    """Writes to standard output; a reader that has seen enough (`| head`) is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python flushes it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def leave_with_user_error(error: UserError, rank: int) -> None:
    """Prints the one line and ends the process with code 2.

    Most such errors are found by all ranks alike, and rank 0 speaks. Another rank that is alone
    with one is still there after a moment, and then speaks itself.
    """
    if rank != 0:
        time.sleep(_PATIENCE_SECONDS)
    where = "" if rank == 0 else f"rank {rank}: "
    line = where + " ".join(str(error).split())
    sys.stderr.write(f"error: {line}\n")
    note_outcome(FAILED, line, USER_ERROR)
    leave(USER_ERROR)


def configure_logging(*, speaks: bool) -> None:
    """The library's lines go to standard output, from one rank; other libraries only warn."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("pipeline")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if speaks else logging.ERROR)
