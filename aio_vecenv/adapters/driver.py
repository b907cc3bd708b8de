"""Drives an event loop for callers that have none: in place, or in a background thread.

In place, the loop turns only while a call waits: nothing hops between threads, and between two calls nothing else
happens either – acknowledgements, deadlines, restarts and what runs beside the stepping wait for the next call.
"""
# async: owns one plain asyncio loop, and at most one thread

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import CancelledError as Cancelled
from typing import Any, Literal, Protocol, TypeVar

from ..errors import ClosedError, WrongLoopError

__all__ = ["Driver", "LoopChoice", "Pending"]

T = TypeVar("T")
LoopChoice = Literal["auto", "thread"]


class Pending(Protocol):
    """Something under way on the loop: an asyncio.Task in place, a concurrent future in a thread."""

    def done(self) -> bool: ...
    def cancel(self) -> object: ...
    def result(self) -> Any: ...


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
        return self.wait(self._task(coroutine), None)  # type: ignore[no-any-return]

    def quick(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As `run`, for a coroutine that needs no current task: in place it costs no more than an await does."""
        if self._in_thread():
            return self.wait(self._task(coroutine), None)  # type: ignore[no-any-return]
        with self._lock:
            self._enter()
            try:
                return self._by_hand(coroutine)
            finally:
                asyncio._set_running_loop(None)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` in the thread that turns the loop; its result."""
        if self._in_thread():

            async def calling() -> T:
                return function(*args)

            return self.wait(self._task(calling()), None)  # type: ignore[no-any-return]
        with self._lock:
            self._enter()
            try:
                return function(*args)
            finally:
                asyncio._set_running_loop(None)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Pending:
        """Begin `coroutine`: everything that it does before it waits for the first time has been done on return."""
        if self._in_thread():
            begun = threading.Event()

            async def beginning() -> Any:
                task = self._loop.create_task(coroutine)
                await asyncio.sleep(0)
                begun.set()
                return await task

            future = asyncio.run_coroutine_threadsafe(beginning(), self._loop)
            begun.wait()
            return future
        with self._lock:
            self._enter()
            try:
                task = self._loop.create_task(coroutine)
                task.add_done_callback(_seen)
                self._loop.call_soon(_nothing)  # this turn waits for nothing
                self._loop.turn()
            finally:
                asyncio._set_running_loop(None)
        return task

    def wait(self, pending: Pending, timeout_s: float | None) -> Any:
        """Wait for what was started. TimeoutError after `timeout_s` seconds: it goes on. An interrupt cancels it."""
        if self._in_thread():
            if isinstance(pending, asyncio.Task):  # begun before the loop moved
                pending = asyncio.run_coroutine_threadsafe(_await(pending), self._loop)
            return _result(pending, timeout_s)
        with self._lock:
            self._enter()
            try:
                self._turn_until(pending, timeout_s)
            except BaseException:
                pending.cancel()
                self._turn_until(pending, 1.0)
                raise
            finally:
                asyncio._set_running_loop(None)
        if not pending.done():
            raise TimeoutError
        return pending.result()

    def drop(self, pending: Pending) -> None:
        """Cancel what was started; nobody wants its result any more."""
        if self._in_thread():
            self._loop.call_soon_threadsafe(pending.cancel)
        else:
            pending.cancel()

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

    def _task(self, coroutine: Coroutine[Any, Any, Any]) -> Pending:
        if self._loop.is_closed():
            coroutine.close()
            raise ClosedError("the adapter is closed")
        if self._in_thread():
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return self._loop.create_task(coroutine)

    def _in_thread(self) -> bool:
        running = asyncio._get_running_loop()
        if running is not None:
            if running is self._loop:
                raise WrongLoopError(
                    "called from inside the adapter's own loop, which it would block: await its `native` instead"
                )
            if self._thread is None:
                self._start_thread()
        return self._thread is not None

    def _enter(self) -> None:
        """This thread turns the loop now."""
        if self._loop.is_closed():
            raise ClosedError("the adapter is closed")
        thread = threading.get_ident()
        if thread != self._turner:
            self._turner = thread
            if self.moved is not None:
                self.moved()
        asyncio._set_running_loop(self._loop)

    def _by_hand(self, coroutine: Generator[Any, None, T] | Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        try:
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
        except BaseException:
            coroutine.close()
            raise

    def _turn_until(self, pending: Pending, timeout_s: float | None) -> None:
        loop = self._loop
        if timeout_s is None:
            while not pending.done():
                loop.turn()
            return
        deadline = loop.time() + timeout_s
        timer = loop.call_at(deadline, _nothing)
        while not pending.done() and loop.time() < deadline:
            loop.turn()
        timer.cancel()

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


async def _await(task: asyncio.Task[T]) -> T:
    return await task


def _result(future: Any, timeout_s: float | None) -> Any:
    try:
        return future.result(timeout_s)
    except Cancelled:
        raise asyncio.CancelledError from None
    except TimeoutError:
        if future.done():  # it ended with a TimeoutError of its own
            return future.result()
        raise
    except BaseException:
        future.cancel()
        raise


async def _end_tasks() -> None:
    """Cancel every other task of this loop, and see them end."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
