"""What fills the stream of events while somebody reads it; while nobody does, nothing of this runs."""
# async: owns three tasks, from the first reader's coming until shortly after the last one's going

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import aio_vecenv as av
from trainers.run import Run
from trainers.service.snapshot import decision_row, is_over, report_row, snapshot, worker_rows
from trainers.service.stream import EventRing

__all__ = ["Live"]

log = logging.getLogger("trainers")
LINGER_S = 10.0  # after the last reader has gone: a reload, or a network that was away, misses nothing
LOOK_S = 0.5  # between two looks at the workers


class Live:
    """Follows a run into an `EventRing` while it has readers.

    Events: `report` (a line of metrics.jsonl), `decision`, `workers` (all rows), `end` (the last snapshot).
    """

    def __init__(self, run: Run) -> None:
        self.ring = EventRing()
        self._run = run
        self._task: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None

    async def read(self, last_event_id: str | None = None) -> AsyncGenerator[bytes, None]:
        """Events for one reader, until the run ends. Cancelling or leaving ends this reader only."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._task is None and not self.ring.closed:
            self.ring.skip()
            self._task = asyncio.create_task(self._follow(), name="trainers.service.live")
        try:
            async with contextlib.aclosing(self.ring.read(last_event_id)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if self.ring.readers == 0 and self._task is not None:
                if self._linger is not None:
                    self._linger.cancel()
                self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._rest)

    async def aclose(self) -> None:
        """End all readers, and what serves them; where the run has ended, once they have been told."""
        if self._linger is not None:
            self._linger.cancel()
        task = self._task
        if task is not None and is_over(self._run):
            await asyncio.wait([task])
        self._rest()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        self.ring.close()

    def _rest(self) -> None:
        self._linger = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        """Until the run ends, or nobody reads any more."""
        helpers = [
            asyncio.create_task(self._decisions(), name="trainers.service.decisions"),
            asyncio.create_task(self._workers(), name="trainers.service.workers"),
        ]
        try:
            async for report in self._run.reports(raising=False):
                self.ring.put("report", report_row(report))
        finally:
            for helper in helpers:
                helper.cancel()
            for result in await asyncio.gather(*helpers, return_exceptions=True):
                if isinstance(result, Exception):
                    log.error("the page's stream lost a part: %r", result)
        self.ring.put("end", snapshot(self._run))  # whole: there may be nobody to ask any more
        self.ring.close()
        self._task = None

    async def _decisions(self) -> None:
        coordinator = self._run.coordinator
        number = len(coordinator.decisions)
        stream = coordinator.decided()
        async with contextlib.aclosing(stream):
            async for decision in stream:
                self.ring.put("decision", decision_row(number + stream.missed, decision))
                number += 1

    async def _workers(self) -> None:
        shown: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            with contextlib.suppress(av.ClosedError):
                rows = worker_rows(self._run)
                if rows != shown:
                    shown = rows
                    self.ring.put("workers", rows)
            # many workers are looked at less often
            await asyncio.sleep(max(LOOK_S, 50 * (loop.time() - began_s)))
