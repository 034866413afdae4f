"""What glibc does with freed memory, while a model is built piece by piece.

It keeps freed blocks for later, of up to a size that grows with what was freed. Building a model in
partitions takes and frees whole tensors between partitions that stay, and most of those gaps are
never filled. Another C library is left as it is, and so is whoever sets MALLOC_MMAP_THRESHOLD_.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h and mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SMALL = 256 * 1024  # bytes; larger blocks go back to the system when they are freed
_LARGEST = 32 * 1024 * 1024  # what glibc's own threshold grows to


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Inside, freed blocks of more than 256 KiB go back to the system at once.

    Not for the time of training: on a CPU, where every activation is such a block, a step was
    measured to take 1.4 to 1.8 times as long.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        # A threshold that was set once grows no more by itself: it gets the value, and trimming
        # the double of it, that glibc would have reached.
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
