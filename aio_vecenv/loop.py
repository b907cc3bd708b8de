"""`run`: asyncio.run on uvloop where it can be had."""
# edge: the one place that chooses a loop; nothing is installed, no policy is changed

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run `main` to its end in a new event loop, as `asyncio.run` does, and return its result.

    Raises RuntimeError where a loop runs already, as in a notebook: there, write `await main()`.
    """
    if asyncio._get_running_loop() is not None:
        main.close()  # it never began: nobody shall hear that it was never awaited
        raise RuntimeError(
            "an event loop is running here already, as in a notebook: write `await main()` instead of "
            "`aio_vecenv.run(main())`"
        )
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)
