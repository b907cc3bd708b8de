"""Server-sent events for any number of readers, in one bounded ring: a slow reader misses the oldest."""
# async: readers wait; writing is a plain call

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

__all__ = ["EventRing"]

KEPT = 1024  # events, for all readers together
PACE_S = 0.1  # readers are woken no more often
# readers woken in one turn of the loop; the others in the next ones: a crowd must not hold up training
SLICE = 8


MISSED = b"event: missed\ndata: null\n\n"


class EventRing:
    """Events, each encoded once. A reader is a place in the ring, so what it has not read costs nothing.

    An event's id is the ring's own name and a number: whoever comes back with the id of the last event it saw goes on
    after it. Where events in between are gone, an event `missed` says so first: what was shown must be read again.
    """

    def __init__(self) -> None:
        self.closed = False
        self.readers = 0
        self._name = secrets.token_hex(4)
        self._ring: deque[bytes] = deque(maxlen=KEPT)
        self._next = 0  # number of the next event
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waking: asyncio.Handle | None = None
        self._again = False  # something was put while readers were being woken
        self._woken_s = -PACE_S

    def put(self, event: str, data: Any) -> None:
        """Add one event; the oldest goes if there are `KEPT`."""
        text = json.dumps(data, ensure_ascii=False)
        self._ring.append(f"id: {self._name}-{self._next}\nevent: {event}\ndata: {text}\n\n".encode())
        self._next += 1
        if self._waking is not None:
            self._again = True
        elif self._waiting:
            self._wake_soon()

    def skip(self) -> None:
        """Note that from here back nothing was taken down: whoever comes back from before has missed something."""
        self._ring.clear()
        self._next += 1

    def close(self) -> None:
        """Readers end once they have read what is there."""
        self.closed = True
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    def _wake_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._again = False
        self._waking = loop.call_later(max(0.0, self._woken_s + PACE_S - loop.time()), self._wake, None)

    def _wake(self, left: int | None) -> None:
        """Wake `left` readers (None: all that wait by now), a slice in each turn of the loop."""
        loop = asyncio.get_running_loop()
        if left is None:
            left, self._woken_s = len(self._waiting), loop.time()
        for _ in range(min(SLICE, left)):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if left > SLICE:
            self._waking = loop.call_soon(self._wake, left - SLICE)
        else:
            self._waking = None
            if self._again and self._waiting:
                self._wake_soon()

    async def read(self, last_event_id: str | None = None) -> AsyncGenerator[bytes, None]:
        """Events as they come, from now on or from after `last_event_id`, in chunks of whole events. Cancelling or
        leaving the iteration ends this reader only.
        """
        place = self._next - bool(self.closed and self._ring)  # who comes after the end is told of it
        if last_event_id is not None:
            name, _, number = last_event_id.rpartition("-")
            if name == self._name and number.isdecimal() and int(number) < self._next:
                place = int(number) + 1
            else:
                yield MISSED
        self.readers += 1
        try:
            while True:
                oldest = self._next - len(self._ring)
                if place < oldest:
                    place = oldest
                    yield MISSED
                elif place < self._next:
                    chunk = b"".join(list(self._ring)[place - oldest :])
                    place = self._next
                    yield chunk
                elif self.closed:
                    return
                else:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiter)
                    await waiter
        finally:
            self.readers -= 1
