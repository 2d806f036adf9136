"""What the C library does with freed memory: a fifth of a training step on CPU hangs on it."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, in one heap, instead of giving it back to the system.

    XLA:CPU takes the memory of its intermediate arrays anew in every call. Blocks above 32 MB would
    come from the system each time, filled with zeros page by page. Nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        for option, value in ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1)):
            mallopt(option, value)
