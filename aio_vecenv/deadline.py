"""`within`: a time limit that does not count what nobody could have heard of."""
# async: a timer beside who waits

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .core.limits import Patience

__all__ = ["within"]


@asynccontextmanager
async def within(limit_s: float | None) -> AsyncIterator[None]:
    """As `asyncio.timeout`, without the times in which the loop stood still, see `Patience`. None: no limit."""
    async with asyncio.timeout(None) as scope:
        watch = None if limit_s is None else _Watch(scope, limit_s)
        try:
            yield
        finally:
            if watch is not None:
                watch.timer.cancel()


class _Watch:
    """Ends a scope once its limit is over."""

    def __init__(self, scope: asyncio.Timeout, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._scope, self._limit_s = scope, limit_s
        self._began, self._patience = time.monotonic(), Patience()
        self._look_after(limit_s)

    def _look_after(self, left_s: float) -> None:
        wait_s = Patience.next_look_s(left_s, self._limit_s)
        self._due_at = time.monotonic() + wait_s
        self.timer = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        left_s = self._patience.left_s(time.monotonic(), self._began, self._limit_s, self._due_at)
        if left_s > 0:
            self._look_after(left_s)
        else:
            self._scope.reschedule(self._loop.time())
