"""What the runtime counts and times; `statistics()` gives a frozen snapshot, the same for tests and operators."""
# pure: numbers come in as arguments

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Percentiles", "Recorder", "Statistics", "WorkerStatistics"]

_WINDOW = 2048  # newest durations kept per worker
_LOSSES = 16  # newest reasons kept per worker


@dataclass(frozen=True)
class Percentiles:
    """Of the newest durations, in seconds; 0.0 where there are none yet."""

    p50_s: float = 0.0
    p99_s: float = 0.0

    @classmethod
    def of(cls, durations_s: Iterable[float]) -> Percentiles:
        values = list(durations_s)
        if not values:
            return cls()
        p50, p99 = np.percentile(values, (50, 99))
        return cls(float(p50), float(p99))


@dataclass(frozen=True)
class WorkerStatistics:
    """One worker. A command's time runs from when the worker could begin it to its reply in the parent."""

    worker: int
    pid: int  # -1: no process of its own
    incarnation: int  # how often it was replaced, or renewed
    step_time: Percentiles  # per step command, or row of an unroll, all its envs
    compute_share: float  # share of the time since opening with a command to work on
    wait_share: float  # share of it without one
    version: int  # newest update that it has taken
    env_ids: range  # the envs it holds
    ready: bool  # takes commands; False while it is being replaced
    losses: tuple[str, ...]  # why it was lost, oldest first; the newest 16
    policy_time: Percentiles = Percentiles()


@dataclass(frozen=True)
class Statistics:
    """A snapshot of a vec env."""

    executed_steps: int  # actions executed, over all envs
    terminated: int  # episodes by outcome, counted as their rows are collected
    truncated: int
    aborted: int
    restarts: int
    recovery: Percentiles  # from a loss to its replacement being ready
    bytes_sent: int  # over the pipes, headers included; the shared block's rows are not counted
    bytes_received: int
    version: int  # newest update that was published
    broadcast: Percentiles  # from broadcast() to a worker's acknowledgement
    workers: tuple[WorkerStatistics, ...]
    renewals: int = 0  # of workers, as planned: see `RenewAfter`
    renewal: Percentiles = Percentiles()  # from the last row of the old process to the new one being ready

    @property
    def stragglers(self) -> tuple[int, ...]:
        """Worker indices, slowest first, by median step time."""
        ranked = sorted(self.workers, key=lambda worker: -worker.step_time.p50_s)
        return tuple(worker.worker for worker in ranked)

    @property
    def episodes(self) -> Mapping[str, int]:
        """Episodes by outcome."""
        return {"terminated": self.terminated, "truncated": self.truncated, "aborted": self.aborted}


class Recorder:
    """Collects the counts and times. The supervisor writes to its fields directly, once per reply, to save calls."""

    def __init__(self, workers: int, opened_at: float) -> None:
        self.opened_at = opened_at
        self.step_times_s = [deque[float](maxlen=_WINDOW) for _ in range(workers)]  # per step command
        self.policy_times_s = [deque[float](maxlen=_WINDOW) for _ in range(workers)]  # per row of an unroll
        self.busy_s = [0.0] * workers
        self.bytes_sent = 0  # of commands that were answered
        self.bytes_received = 0
        self.recoveries_s: deque[float] = deque(maxlen=_WINDOW)
        self.renewals = 0
        self.renewals_s: deque[float] = deque(maxlen=_WINDOW)
        self.losses = [deque[str](maxlen=_LOSSES) for _ in range(workers)]  # reasons

    def renewed(self, took_s: float) -> None:
        """A worker gave way to a fresh process."""
        self.renewals += 1
        self.renewals_s.append(took_s)

    def share(self, worker: int, now: float) -> float:
        """The share of the time since opening in which the worker had a command."""
        return min(1.0, self.busy_s[worker] / max(now - self.opened_at, 1e-9))
