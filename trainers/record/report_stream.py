"""Reports from one writer to any number of readers: a slow one misses the oldest, and never delays the writer."""
# async: readers wait; writing is a plain call

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from trainers.record.loggers import Logger
from trainers.record.metrics import EvalReport, Report

__all__ = ["ReportStream"]

KEPT = 256  # reports per reader; when it is full, a new one replaces the oldest


class ReportStream:
    """Every report goes to all loggers, and to whoever reads by then; until `close()`."""

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.last: Report | None = None
        self._loggers = loggers
        self._readers: list[tuple[deque[Report], asyncio.Event]] = []
        self._closed = False

    def put(self, report: Report) -> None:
        self.last = report
        for logger in self._loggers:
            logger.write(report)
        for queue, news in self._readers:
            queue.append(report)
            news.set()

    def evaluated(self, evaluation: EvalReport) -> None:
        """Give an evaluation to the loggers that take any."""
        for logger in self._loggers:
            if (take := getattr(logger, "evaluated", None)) is not None:
                take(evaluation)

    def close(self) -> None:
        """Readers end once they have read what is there."""
        self._closed = True
        for _queue, news in self._readers:
            news.set()

    async def read(self) -> AsyncIterator[Report]:
        """Reports as they come. Cancelling or leaving the iteration ends this reader only."""
        reader: tuple[deque[Report], asyncio.Event] = (deque(maxlen=KEPT), asyncio.Event())
        queue, news = reader
        self._readers.append(reader)
        try:
            while True:
                while queue:
                    yield queue.popleft()
                if self._closed:
                    return
                news.clear()
                await news.wait()
        finally:
            self._readers.remove(reader)
