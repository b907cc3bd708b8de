"""How many threads numpy's BLAS computes with in this process."""
# resource: a setting of the whole process, changed while a policy acts and always put back

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

__all__ = ["same_threads_as_workers"]

_KNOWN = ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads", "openblas_{}_num_threads64_",
          "openblas_{}_num_threads")  # fmt: skip
_SET_BY_USER = "OPENBLAS_NUM_THREADS"
_lock = threading.Lock()  # two that change it at once would put back each other's number


@contextmanager
def same_threads_as_workers() -> Iterator[None]:
    """Compute with one thread, as workers do: with several, a product of matrices beyond some 256 × 256 has other bits.

    Where the user has set OPENBLAS_NUM_THREADS, workers inherit it and nothing is changed. Other libraries than
    OpenBLAS, which numpy's wheels come with, are left as they are. It costs 2 µs.
    """
    calls = _openblas()
    if calls is None or _SET_BY_USER in os.environ:
        yield
        return
    get, put = calls
    with _lock:
        before = get()
        if before != 1:
            put(1)
        try:
            yield
        finally:
            if before != 1:
                put(before)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's own get and set, as far as numpy brought them into this process."""
    try:
        core: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
        library = ctypes.CDLL(core.__file__)
    except (AttributeError, OSError, TypeError):
        return None
    for name in _KNOWN:
        get, put = (getattr(library, name.format(verb), None) for verb in ("get", "set"))
        if get is not None and put is not None:
            return get, put
    return None
