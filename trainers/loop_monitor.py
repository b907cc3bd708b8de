"""The run's clock: how long it has taken, and how late the event loop is."""
# async: one task that sleeps

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence

__all__ = ["LoopMonitor"]

TICK_S = 0.010
WARN_S = 0.100
log = logging.getLogger("trainers")


class LoopMonitor:
    """Lateness of a 10 ms ticker, in seconds, of which the newest 65,536 ticks are kept; and the run's wall time."""

    def __init__(self) -> None:
        self.all: deque[float] = deque(maxlen=65_536)
        self._since: list[float] = []
        self._began_s = time.monotonic()  # earlier parts of the run are as if they had run just before

    def began_before(self, seconds: float) -> None:
        """Earlier parts of the run have taken that long."""
        self._began_s -= seconds

    def wall_s(self) -> float:
        """How long the run has taken, all its parts together."""
        return time.monotonic() - self._began_s

    async def run(self) -> None:
        """Tick until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            late = max(0.0, loop.time() - due)
            self.all.append(late)
            self._since.append(late)
            if late > WARN_S:
                log.warning("the event loop was blocked for %.0f ms", late * 1000)

    def take(self) -> Sequence[float]:
        """What was seen since the last call."""
        seen, self._since = self._since, []
        return seen
