"""The learner's thread: where torch works while the event loop goes on."""
# async: one piece of work at a time; who waits may be cancelled, the work goes on to its end

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

__all__ = ["LearnerThread"]

T = TypeVar("T")


class LearnerThread:
    """One thread that runs what it is given, with `threads` threads of torch's own."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(1, "trainers.learner", torch.set_num_threads, (threads,))
        self._work: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """What `work` returns or raises. Cancelled: it goes on there, and `aclose` waits for it."""
        self._work = asyncio.get_running_loop().run_in_executor(self._executor, _told, work, args)
        result: T = await asyncio.shield(self._work)
        return result

    async def aclose(self) -> None:
        """Wait for what is still at work, then end the thread."""
        try:
            if self._work is not None and not self._work.done():
                await asyncio.wait([self._work])
        finally:
            self._executor.shutdown()


def _told(work: Callable[..., T], args: tuple[Any, ...]) -> T:
    """What `work` returns; whatever it raises as an exception that a future can hold, and that is no cancellation."""
    try:
        return work(*args)
    except (StopIteration, CancelledError) as error:  # the one would never arrive, the other as `cancelled`
        raise RuntimeError(f"{type(error).__name__} was raised in the learner's thread: {error}") from error
    except Exception:
        raise
    except BaseException as error:  # a SystemExit would end the loop, a CancelledError look like the caller's
        raise RuntimeError(f"{type(error).__name__} was raised in the learner's thread: {error}") from error
