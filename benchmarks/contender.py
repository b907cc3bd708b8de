"""What a contender is: it opens, steps and closes the envs of a workload."""
# pure: definitions only

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib import import_module
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import Workload

__all__ = ["Contender", "Unfit", "loop_factory"]


class Contender:
    """Something that steps the envs of a workload. `step()` steps a batch and says how many actions were executed."""

    title: ClassVar[str]
    note: ClassVar[str] = ""
    module: ClassVar[str] = ""
    """What it imports."""
    parallel: ClassVar[bool] = True
    """Whether it counts as a peer: it steps the same Python envs in processes of their own."""

    def open(self, workload: Workload) -> None:
        """Start everything and do the first reset."""
        self._actions = workload.actions()
        self._at = -1
        self.workload = workload
        self._open(workload)

    def _open(self, workload: Workload) -> None:
        raise NotImplementedError

    def _next_actions(self) -> NDArray[np.int64]:
        self._at += 1
        row: NDArray[np.int64] = self._actions[self._at & 1023]
        return row

    def step(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def run(self, seconds: float) -> dict[str, float]:
        """Step for so long: executed steps, calls, seconds."""
        steps = calls = 0
        began = now = time.perf_counter()
        while now - began < seconds:
            steps += self.step()
            calls += 1
            now = time.perf_counter()
        return {"steps": steps, "calls": calls, "seconds": now - began}

    def latencies(self, seconds: float) -> list[float]:
        """Seconds of each call of `step()`."""
        taken: list[float] = []
        began = now = time.perf_counter()
        while now - began < seconds:
            before = now
            self.step()
            now = time.perf_counter()
            taken.append(now - before)
        return taken


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it can be had."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory


class Unfit(Exception):
    """This contender cannot do this workload; the message says why."""
