"""Drives an event loop for callers that have none: in place, or in a background thread.

In place, the loop turns only while a call waits: nothing hops between threads, and between two calls nothing else
happens either – acknowledgements, deadlines, restarts and what runs beside the stepping wait for the next call.
"""
# async: owns one plain asyncio loop, and at most one thread

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

from ..errors import ClosedError, WrongLoopError

__all__ = ["Driver", "LoopChoice", "Pending"]

T = TypeVar("T")
LoopChoice = Literal["auto", "thread"]


Pending = asyncio.Task[Any]  # something under way on the loop


class _Loop(asyncio.SelectorEventLoop):
    """A plain asyncio loop that can be turned by hand; `run_until_complete` costs two turns and a set-up more."""

    def turn(self) -> None:
        """One turn: wait for the first event, then call what is ready."""
        self._run_once()  # type: ignore[attr-defined]


class Driver:
    """Runs coroutines to their end, for one synchronous caller at a time.

    Calls from several threads are served one after another; calls from under a running loop move the driver to a
    background thread, for good: `moved` is called there, once.
    """

    def __init__(self, choice: LoopChoice = "auto") -> None:
        if choice not in ("auto", "thread"):
            raise ValueError(f"loop is {choice!r}, not 'auto' or 'thread'")
        self.moved: Callable[[], None] | None = None
        self._loop = _Loop()
        self._lock = threading.Lock()  # held while the loop is turned in place
        self._turner = threading.get_ident()  # the thread that turned it last
        self._thread: threading.Thread | None = None
        if choice == "thread" or asyncio._get_running_loop() is not None:
            self._start_thread()

    @property
    def threaded(self) -> bool:
        """Whether the loop turns in a background thread, all the time."""
        return self._thread is not None

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` as a task; its result. An interrupt (Ctrl-C) cancels it."""
        if self._in_thread(coroutine):
            return self._result(coroutine)
        with self._lock:
            self._enter(coroutine)
            try:
                task = self._loop.create_task(coroutine)
                try:
                    while not task.done():
                        self._loop.turn()
                except BaseException:
                    task.cancel()
                    while not task.done():
                        self._loop.turn()
                    raise
            finally:
                asyncio._set_running_loop(None)
        return task.result()

    def quick(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As `run`, for a coroutine that needs no current task: in place it costs no more than an await does."""
        if self._in_thread(coroutine):
            return self._result(coroutine)
        with self._lock:
            self._enter(coroutine)
            try:
                return self._by_hand(coroutine)
            except BaseException:
                coroutine.close()
                raise
            finally:
                asyncio._set_running_loop(None)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` in the thread that turns the loop; its result."""

        async def calling() -> T:
            return function(*args)

        return self.quick(calling())

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Pending:
        """Begin `coroutine`: everything that it does before it waits for the first time has been done on return."""

        async def starting() -> Pending:
            task = self._loop.create_task(coroutine)
            task.add_done_callback(_seen)
            await asyncio.sleep(0)
            return task

        try:
            return self.quick(starting())
        except ClosedError:
            coroutine.close()
            raise

    def wait(self, pending: Pending, timeout_s: float | None) -> Any:
        """The result of what was started. TimeoutError after `timeout_s` seconds: it goes on."""
        self.quick(_done(pending, timeout_s))
        if not pending.done():
            raise TimeoutError
        return pending.result()

    def drop(self, pending: Pending) -> None:
        """Cancel what was started, and see it end; nobody wants its result any more."""
        self.quick(_cancelled(pending))

    def close(self, last: Coroutine[Any, Any, Any] | None = None) -> None:
        """Run `last`, cancel whatever is left, close the loop, end the thread. Can be called twice."""
        if self._loop.is_closed():
            if last is not None:
                last.close()
            return
        try:
            if last is not None:
                self.run(last)
        finally:
            self.run(_end_tasks())
            if self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
            self._loop.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _in_thread(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        """Whether the loop turns in its thread: from now on, if this call comes from under a running loop."""
        running = asyncio._get_running_loop()
        if running is not None:
            if running is self._loop:
                coroutine.close()
                raise WrongLoopError(
                    "called from inside the adapter's own loop, which it would block: await its `native` instead"
                )
            if self._thread is None:
                self._start_thread()
        return self._thread is not None

    def _result(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """In a thread: run as a task there."""
        if self._loop.is_closed():
            coroutine.close()
            raise ClosedError("the adapter is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None
        except BaseException:
            future.cancel()
            raise

    def _enter(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """This thread turns the loop now."""
        if self._loop.is_closed():
            coroutine.close()
            raise ClosedError("the adapter is closed")
        thread = threading.get_ident()
        if thread != self._turner:
            self._turner = thread
            if self.moved is not None:
                self.moved()
        asyncio._set_running_loop(self._loop)

    def _by_hand(self, coroutine: Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        while True:
            try:
                waits_for = coroutine.send(None)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            if waits_for is None:  # asyncio.sleep(0)
                loop.call_soon(_nothing)
                loop.turn()
                continue
            waits_for._asyncio_future_blocking = False
            while not waits_for.done():
                loop.turn()

    def _start_thread(self) -> None:
        ready = threading.Event()

        def turn() -> None:
            with self._lock:
                self._turner = threading.get_ident()
                if self.moved is not None:
                    self.moved()
                self._loop.call_soon(ready.set)
                self._loop.run_forever()

        self._thread = threading.Thread(target=turn, name="aio_vecenv loop", daemon=True)
        self._thread.start()
        ready.wait()


def _nothing() -> None:
    """Wakes a turn."""


def _seen(task: asyncio.Task[Any]) -> None:
    """Nobody may ever ask for the result: what went wrong is seen."""
    if not task.cancelled():
        task.exception()


async def _done(task: Pending, timeout_s: float | None) -> None:
    if not task.done():
        await asyncio.wait([task], timeout=timeout_s)


async def _cancelled(task: Pending) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])


async def _end_tasks() -> None:
    """Cancel every other task of this loop, and see them end."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
