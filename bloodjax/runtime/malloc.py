"""Settings of the C library's malloc, worth a fifth of a training step on a CPU."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, in one heap, instead of returning it to the system.

    XLA:CPU allocates its intermediate arrays in every call. Blocks above 32 MB would come from the
    system each time, filled with zeros page by page. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        for option, value in ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1)):
            mallopt(option, value)
