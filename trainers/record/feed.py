"""One writer, any number of readers: a slow reader misses the oldest, and never delays the writer."""
# async: readers wait; writing is a plain call

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

__all__ = ["Feed"]

T = TypeVar("T")
KEPT = 256  # items per reader; when it is full, a new one replaces the oldest


class Feed(Generic[T]):
    """Items from the moment a reader comes, until `close()`."""

    def __init__(self) -> None:
        self._readers: list[tuple[deque[T], asyncio.Event]] = []
        self._closed = False

    def put(self, item: T) -> None:
        for queue, news in self._readers:
            queue.append(item)
            news.set()

    def close(self) -> None:
        """Readers end once they have read what is there."""
        self._closed = True
        for _queue, news in self._readers:
            news.set()

    async def read(self) -> AsyncIterator[T]:
        """Items as they come. Cancelling or leaving the iteration ends this reader only."""
        reader: tuple[deque[T], asyncio.Event] = (deque(maxlen=KEPT), asyncio.Event())
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
