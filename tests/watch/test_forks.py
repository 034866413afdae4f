"""A process forked from a rank takes nothing of the rank's with it that could harm either."""

import subprocess
import sys
import textwrap

PROGRAM = """
    import gc, os, signal, sys
    import torch
    from pipeline.dist import World
    from pipeline.watch.watcher import Watch

    class Garbage:
        def __del__(self):
            os.write(1, b"collected in %s" % (b"the parent" if os.getpid() == me else b"a child"))

    me = os.getpid()
    world = World(0, 1, 0, 1, torch.device("cpu"))
    watch = Watch(world, 45.0)
    gc.collect()
    garbage = Garbage()
    garbage.itself = garbage
    del garbage
    child = os.fork()
    if child == 0:
        gc.collect()
        for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), each)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert world.presence.asked is None
    assert gc.isenabled()
    gc.collect()
    watch.close()
"""


def test_signals_and_garbage_of_a_rank_are_not_its_childrens() -> None:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "collected in the parent"
