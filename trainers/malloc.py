"""What this process does with the memory that it frees."""
# resource: the C library's heap; imports no torch, so that a program can call it first

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt
_MALLOC_VARIABLES = (
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, from now on to its end; False where that cannot be set.

    An update of a network with images takes and frees megabytes in every layer. glibc returns them to the kernel
    and gets them back page by page, each time: a fifth of the learning, at times a third. The command line does this
    for its own process; `training()` leaves yours as it is. Whoever has set one of glibc's variables for it (such
    as MALLOC_TRIM_THRESHOLD_) is left alone, too.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or os.environ.keys() & set(_MALLOC_VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    # arrays come from the heap, too (some versions allow no more than 32 MiB), and the heap is never cut back
    on_heap = mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 32 << 20)
    return bool(on_heap and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1) and mallopt(_TOP_PAD, 64 << 20))
