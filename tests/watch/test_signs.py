"""A thread that works is told from one that waits, without its help."""

import subprocess
import sys
import textwrap

PROGRAM = """
    import os, sys, threading, time
    from pathlib import Path
    from pipeline.presence import Presence
    from pipeline.watch.signs import Signs

    def watch(signs, found):
        for _ in range(8):
            time.sleep(0.05)
            signs.look(0.05)
        print(signs.still)
        sys.stdout.flush()
        os._exit(0)

    presence = Presence()
    threading.Thread(target=watch, args=(Signs(presence, spins=False), []), daemon=True).start()
    {does}
"""


def still_while(does: str) -> float:
    program = textwrap.dedent(PROGRAM).replace("{does}", does)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    return float(done.stdout)


def test_one_that_waits_stands_still() -> None:
    assert still_while("threading.Event().wait()") >= 0.3


def test_one_that_computes_moves() -> None:
    assert still_while("while True: sorted(range(50), key=lambda x: -x)") < 0.3


def test_one_that_counts_its_work_moves_though_it_is_always_seen_in_one_place() -> None:
    slow = "def work():\n    while True:\n        presence.beat(); time.sleep(0.04)\nwork()"
    assert still_while(slow) < 0.3


def test_one_that_waits_for_a_process_of_its_own_moves() -> None:
    waits = "import subprocess; subprocess.run(['sleep', '5'], stdout=-3, stderr=-3)"
    assert still_while(waits) == 0.0


def test_one_that_waits_for_a_slow_file_that_its_worker_reads_moves() -> None:
    waits = (
        "def read():\n"
        "    with open('/dev/zero', 'rb', 0) as file:\n"
        "        while True: file.read(1); time.sleep(0.01)\n"
        "parent = os.getpid()\n"
        "if os.fork(): threading.Event().wait()\n"
        "def end():\n"
        "    while os.getppid() == parent: time.sleep(0.1)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=end, daemon=True).start(); read()"
    )
    assert still_while(waits) < 0.3


def test_one_that_writes_a_large_file_in_one_call_moves() -> None:
    writes = (
        "path = Path('/dev/null')\n"
        "def write():\n"
        "    while True: os.write(3, bytes(1 << 20))\n"
        "os.dup2(os.open('/dev/null', os.O_WRONLY), 3)\n"
        "threading.Thread(target=write, daemon=True).start()\n"
        "threading.Event().wait()"
    )
    assert still_while(writes) < 0.3
