"""Decisions as they are taken: one writer, any number of readers; a slow reader never delays the writer."""
# async: readers wait for decisions; writing is a plain call

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator

from curriculum.strategies.base import Decision

__all__ = ["KEPT", "DecisionHub", "DecisionStream"]

KEPT = 256  # decisions per reader; when it is full, a new one replaces the oldest


class DecisionStream(AsyncIterator[Decision]):
    """Decisions from the moment of `Coordinator.decided()` on, until the coordinator ends.

    A reader that falls 256 behind misses the oldest; `missed` counts them, and `Coordinator.decisions` has them.
    Cancelling a read loses nothing. RuntimeError if two tasks read one stream: open one each.
    """

    def __init__(self, closed: bool) -> None:
        self.missed = 0
        self._queue: deque[Decision] = deque(maxlen=KEPT)
        self._closed = closed
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> DecisionStream:
        return self

    async def __anext__(self) -> Decision:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("two tasks read one stream of decisions: open one stream each")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()

    async def aclose(self) -> None:
        """End this stream; what was not read is dropped. Never waits; can be called twice."""
        self._queue.clear()
        self._end()

    def _put(self, decision: Decision) -> None:
        if self._closed:
            return
        self.missed += len(self._queue) == KEPT
        self._queue.append(decision)
        self._wake()

    def _end(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class DecisionHub:
    """Hands every decision to every open stream. A stream that its reader dropped is forgotten."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[DecisionStream] = weakref.WeakSet()
        self._closed = False

    def open(self) -> DecisionStream:
        """A stream from now on; one that ends at once if the hub is closed."""
        stream = DecisionStream(self._closed)
        self._streams.add(stream)
        return stream

    def put(self, decision: Decision) -> None:
        """Hand it to every stream; never waits."""
        for stream in self._streams:
            stream._put(decision)

    def close(self) -> None:
        """Readers end once they have read what is there."""
        self._closed = True
        for stream in self._streams:
            stream._end()
