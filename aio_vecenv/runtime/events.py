"""The stream of episode events: lossless, in order, one copy for every reader."""
# async: readers wait for events; the writer never waits, but can ask whether a reader is too far behind

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections import deque
from collections.abc import AsyncIterator

from ..core.batch import Episode, EpisodeStarted, EventBatch

__all__ = ["MAX_BEHIND", "EventHub", "EventStream"]

MAX_BEHIND = 65_536  # events: when a reader is that far behind, `recv` waits for it
_WARN_AFTER_S = 1.0


class EventStream(AsyncIterator[EpisodeStarted | Episode]):
    """Events from the moment of `events()` on. Cancelling a read loses nothing."""

    def __init__(self, hub: EventHub, name: str) -> None:
        self.name = name
        self.behind = 0  # events released and not read yet
        self._hub = hub
        self._batches: deque[EventBatch] = deque()
        self._position = 0  # in the first batch, where it is being read event by event
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> EpisodeStarted | Episode:
        while not self._batches:
            await self._wait()
        batch = self._batches[0]
        event = batch.events[self._position]
        self._position += 1
        if self._position == len(batch.events):
            self._batches.popleft()
            self._position = 0
        self._read(1)
        return event

    async def next_batch(self) -> EventBatch:
        """What one `recv` or `reset` released, all of it (or the rest, if some was read one by one).

        Raises StopAsyncIteration once the stream is closed and read to its end.
        """
        while not self._batches:
            await self._wait()
        batch = self._batches.popleft()
        events = batch.events[self._position :]
        self._position = 0
        self._read(len(events))
        return batch if len(events) == len(batch.events) else batch._replace(events=events)

    async def aclose(self) -> None:
        """End the stream; what was not read is dropped. Never waits; can be called twice."""
        self._batches.clear()
        self.behind = self._position = 0
        self._end()
        self._hub.drop(self)

    async def _wait(self) -> None:
        if self._closed:
            raise StopAsyncIteration
        if self._waiter is not None:
            raise RuntimeError(f"two tasks read the event stream {self.name!r}: open one stream each")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _read(self, count: int) -> None:
        self.behind -= count
        self._hub.advanced()

    def _put(self, batch: EventBatch) -> None:
        self._batches.append(batch)
        self.behind += len(batch.events)
        if self.behind >= MAX_BEHIND:
            self._hub.crowded = True
        self._wake()

    def _end(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EventHub:
    """Hands every released batch of events to every open stream. A dropped stream ends by itself."""

    def __init__(self) -> None:
        self._streams: list[weakref.ref[EventStream]] = []  # few
        self._opened = 0
        self._closed = False
        self._space: asyncio.Future[None] | None = None
        self.crowded = False  # whether a reader was too far behind; `slowest` looks again

    def open(self) -> EventStream:
        self._opened += 1
        stream = EventStream(self, f"events-{self._opened}")
        self._streams.append(weakref.ref(stream, self._forget))
        return stream

    def _forget(self, dropped: weakref.ref[EventStream]) -> None:
        self._streams = [one for one in self._streams if one is not dropped]
        self.advanced()

    def release(self, batch: EventBatch | None) -> None:
        """Hand it to every open stream; None: there were no events."""
        if batch is not None and batch.events and self._streams:
            for stream in self._open():
                stream._put(batch)

    def drop(self, stream: EventStream) -> None:
        self._streams = [one for one in self._streams if one() is not stream]
        self.advanced()

    def advanced(self) -> None:
        if self._space is not None and not self._space.done() and (self._closed or not self.slowest()):
            self._space.set_result(None)

    def slowest(self) -> EventStream | None:
        """A reader that is too far behind, if there is one."""
        for one in self._streams:
            stream = one()
            if stream is not None and stream.behind >= MAX_BEHIND:
                return stream
        self.crowded = False
        return None

    async def wait_for_readers(self) -> None:
        """Wait until no reader is too far behind; warn once a second has passed. Cancelling changes nothing."""
        loop = asyncio.get_running_loop()
        while not self._closed and (slow := self.slowest()) is not None:
            message = f"recv waits for {slow.name!r}, which is {slow.behind} events behind"
            self._space = loop.create_future()
            warning = loop.call_later(_WARN_AFTER_S, warnings.warn, message, RuntimeWarning, 2)
            del slow
            try:
                await self._space
            finally:
                self._space = None
                warning.cancel()

    def close(self) -> None:
        """No more events will come; readers end after what was released, and nobody waits for them any more."""
        self._closed = True
        self.advanced()
        for stream in self._open():
            stream._end()

    def _open(self) -> list[EventStream]:
        return [stream for one in self._streams if (stream := one()) is not None]
