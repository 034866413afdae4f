"""Nobody hangs: a thread per rank that hears of every other rank's failure, silence and standstill.

`watcher.py` is the thread, the other modules are its parts. All of it goes beside the collectives,
over sockets of its own, since a collective is what a hung rank waits in.
"""
