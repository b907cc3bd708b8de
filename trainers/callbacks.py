"""Coroutines of the user's own, beside a run."""
# async: one task each, ended with the run

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from trainers.config import ConfigError
from trainers.names import raised_by
from trainers.run import CALLBACK, Run

__all__ = ["CallbackError", "Callbacks"]

GRACE_S = 1.0  # to come to its own end once the run has ended, as after `async for report in run.reports()`


class CallbackError(RuntimeError):
    """A callback raised; the message names it, and says what and where."""


class Callbacks:
    """The callbacks of one run, by name: `async def callback(run)`."""

    def __init__(self, functions: Mapping[str, Callable[[Run], Awaitable[Any]]]) -> None:
        """Raises `ConfigError` for what is no coroutine function."""
        for name, function in functions.items():
            called = getattr(function, "__call__", None)  # noqa: B004 - of an object that has one
            if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)):
                raise ConfigError(
                    f"callback {name}: expected a coroutine function, `async def {name.rpartition(':')[2]}(run)`"
                )
        self._functions = functions
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, run: Run) -> None:
        """Give them the run. One that raises stops it."""
        for name, function in self._functions.items():
            task = asyncio.create_task(_run(name, function, run), name=f"{CALLBACK} {name}")
            task.add_done_callback(lambda ended: run.request_stop() if _error(ended) else None)
            self._tasks.append(task)

    async def finish(self) -> None:
        """The run has ended: so do they, soon. Raises what one of them raised. Cancelling leaves them to `aclose`."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_S)
        await self.aclose()
        errors = [error for task in self._tasks if (error := _error(task)) is not None]
        if errors:
            raise errors[0]

    async def aclose(self) -> None:
        """Cancel those that still run, and wait for them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _run(name: str, function: Callable[[Run], Awaitable[Any]], run: Run) -> None:
    try:
        await function(run)
    except Exception as error:
        if error is run.error:  # what ended the run, on its way through here: that is told anyway
            return
        raise CallbackError(raised_by(f"callback {name}", error)) from error


def _error(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
