"""What a fleet counts and times, out of what its hosts said last."""
# pure: numbers in, a snapshot out

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from ..core.statistics import Percentiles, Statistics, WorkerStatistics
from .state import FleetState

__all__ = ["merged"]


class _Said(Protocol):
    @property
    def statistics(self) -> Statistics: ...


def merged(state: FleetState, said: Mapping[int, _Said], now: float) -> Statistics:
    """One snapshot of all hosts; their workers are numbered through, and have the fleet's env ids. Those of a host
    that is suspected are not `ready`."""
    answering = set(state.live).difference(state.suspects(now))
    workers: list[WorkerStatistics] = []
    for slot in sorted(said):
        first, losses = state.slots[slot].start, state.losses(slot)
        taken = max(state.levels(slot).values(), default=0)
        for worker in said[slot].statistics.workers:
            own = worker.env_ids
            workers.append(
                replace(
                    worker,
                    worker=len(workers),
                    incarnation=worker.incarnation + state.incarnation(slot),
                    version=taken,
                    env_ids=range(first + own.start, first + own.stop),
                    ready=worker.ready and slot in answering,
                    losses=(*losses, *worker.losses),
                )
            )
    parts = [one.statistics for one in said.values()]
    outcomes = state.episodes.outcomes
    return Statistics(
        executed_steps=state.episodes.executed,
        terminated=outcomes["terminated"],
        truncated=outcomes["truncated"],
        aborted=outcomes["aborted"],
        restarts=state.restarts + sum(part.restarts for part in parts),
        recovery=_worst([part.recovery for part in parts]),
        bytes_sent=sum(part.bytes_sent for part in parts),
        bytes_received=sum(part.bytes_received for part in parts),
        version=state.version,
        broadcast=_worst([part.broadcast for part in parts]),
        workers=tuple(workers),
        renewals=sum(part.renewals for part in parts),
        renewal=_worst([part.renewal for part in parts]),
    )


def _worst(parts: list[Percentiles]) -> Percentiles:
    return Percentiles(
        max((part.p50_s for part in parts), default=0.0), max((part.p99_s for part in parts), default=0.0)
    )
