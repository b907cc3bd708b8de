"""The process that a contender runs in: it answers the harness, and says what the kernel says of it."""
# edge: reads /proc; kills its own process group at the end

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workloads
from benchmarks.contender import Contender, Unfit
from benchmarks.workloads import Workload

__all__ = ["Host", "cpu_s", "descendants", "private_bytes", "serve"]


# -- what the kernel says --------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """All processes below this one that step envs: helpers of multiprocessing are left out."""
    found: list[int] = []
    for child in _children(pid):
        if b"resource_tracker" in _command(child):
            continue
        if _FORKSERVER in _command(child) and _FORKSERVER not in _command(pid):  # its forks bear its name
            found += descendants(child)
        else:
            found += [child, *descendants(child)]
    return found


_FORKSERVER = b"from multiprocessing.forkserver"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _command(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def cpu_s(pid: int) -> float:
    """Processor time of a process, all its threads; nanosecond resolution."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def private_bytes(pid: int) -> int:
    """Memory that ends with this process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


# -- the process that a contender runs in ----------------------------------------------------------------------------


class Host:
    """Answers the harness's requests, one at a time."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender

    def import_all(self) -> dict[str, Any]:
        """What opening would import: a start is measured without it, for everyone."""
        if self._contender.module:
            import_module(self._contender.module)
        return {}

    def open(self, workload: str, num_workers: int | None = None) -> dict[str, Any]:
        chosen = workloads.find(workload)
        if num_workers is not None:
            chosen = Workload(**{**vars(chosen), "num_workers": num_workers})
        began = time.perf_counter()
        self._contender.open(chosen)
        return {"seconds": time.perf_counter() - began}

    def run(self, seconds: float) -> dict[str, Any]:
        here, below = os.getpid(), descendants(os.getpid())
        gc.collect()
        before = cpu_s(here), sum(map(cpu_s, below))
        result = self._contender.run(seconds)
        after = cpu_s(here), sum(map(cpu_s, below))
        return {**result, "parent_cpu_s": after[0] - before[0], "children_cpu_s": after[1] - before[1]}

    def latencies(self, seconds: float) -> dict[str, Any]:
        gc.collect()
        return {"seconds": self._contender.latencies(seconds)}

    def memory(self) -> dict[str, Any]:
        sizes = [private_bytes(pid) for pid in descendants(os.getpid())]
        return {"bytes": sizes, "parent_bytes": private_bytes(os.getpid())}

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """A measurement that only this contender has."""
        result: dict[str, Any] = getattr(self._contender, method)(**arguments)
        return result

    def close(self) -> dict[str, Any]:
        self._contender.close()
        return {}


def serve(host: Any) -> None:
    """One line of JSON in, one out, until the input ends; what it asks is a method of `host`."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log

    try:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(host, json.loads(line)), default=_plain) + "\n")
    except BaseException:
        traceback.print_exc()
        raise
    finally:  # whoever asked has gone, perhaps without a word: what some libraries start would outlive us
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)


def _answer(host: Any, request: dict[str, Any]) -> dict[str, Any]:
    do = request.pop("do")
    try:
        return {"ok": True, **getattr(host, do)(**request)}
    except ModuleNotFoundError as error:
        return {"ok": False, "status": "missing", "why": str(error)}
    except Unfit as error:
        return {"ok": False, "status": "unfit", "why": str(error)}
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"ok": False, "status": "crashed", "why": text[:200]}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        number = value.item()
        return None if isinstance(number, float) and math.isnan(number) else number
    raise TypeError(f"{type(value).__name__} is not JSON")
